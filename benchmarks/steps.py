"""Compare single steps with answers: the mistakes in a checkpoint's simplifications, and its accuracy, by length.

    python -m sector.benchmarks.steps runs/multiplication --digits 1 2 3 4 --samples 200

Steps are simplifications of every kind of problem that the supervised phase teaches at a length (`Task.draw_lesson`),
including problems in the middle of a chain. Answers are those of the fast policy to problems as they are drawn. The
output is one JSON object per length.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from sector.benchmarks.cells import printed
from sector.engine.language.layout import Mode
from sector.engine.policy.improve import answer_fast
from sector.engine.run.audit import answers_correct, simplification_mistakes
from sector.engine.run.steps import open_engine
from sector.engine.samplers.protocol import Branch, Sampling
from sector.engine.seeding import generator


def measure(model: Path, lengths: list[int], samples: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield for each length the shares of answers that are right and that parse, and steps by kind of mistake."""
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
    """Print one JSON object per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    printed(measure(options.model, options.digits, options.samples, options.seed))


if __name__ == "__main__":
    main()
