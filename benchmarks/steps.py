"""Steps against chains: how often a checkpoint's simplifications are right, by mistake, and its answers, by length.

    python -m sector.benchmarks.steps runs/multiplication --digits 1 2 3 4 --samples 200

A step is asked of every kind of problem that the supervised phase teaches at that length (`Task.draw_lesson`), as they
stand in the middle of a chain too; an answer of problems as they are drawn, by the fast policy. A JSON object a length.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sector.engine.language.layout import Mode
from sector.engine.policy.improve import answer_fast
from sector.engine.run.audit import answers_correct, simplification_mistakes
from sector.engine.run.steps import open_engine
from sector.engine.samplers.protocol import Branch, Sampling
from sector.engine.seeding import generator


def measure(model: Path, lengths: list[int], samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """For every length the share of right answers, of answers that parse, and steps by mistake."""
    sampler, task, layout = open_engine(model, "native")
    sampling = Sampling(0.0, 0, torch.arange(samples), stage=0)
    for digits in lengths:
        problems = task.draw(digits, samples, generator(seed, "steps", digits))
        answers, valid, _ = answer_fast(sampler, problems, layout, sampling)
        steps: Counter[str] = Counter()
        for lesson in range(task.num_lessons(digits)):
            taught = task.draw_lesson(digits, lesson, samples, generator(seed, "steps", digits, lesson))
            if task.num_simplifications(taught, 1) < 1:
                continue
            branch = Branch(layout.mark_ids(Mode.THINK, samples), layout.simplification_length(taught.size))
            (ids,) = sampler.sample(layout.prefix_ids(taught), [branch], sampling)
            steps.update(kind.value for kind in simplification_mistakes(ids, taught, layout))
        right = (answers_correct(problems, answers) & valid).double().mean().item()
        yield {"digits": digits, "answers": right, "parsed": valid.double().mean().item(), "steps": dict(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    taken = parser.parse_args()
    for line in measure(taken.model, taken.digits, taken.samples, taken.seed):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
