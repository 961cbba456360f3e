"""Gates of chance: leaks and the random control, drawn by row, and without effect on what the loop sees."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scripted import Scripted
from small_run import SMALL, start

from sector.engine.config import FILTERS, Filter
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.rows import cat
from sector.engine.policy.chance import draw_accepted
from sector.engine.policy.generate import Assignment, generate, generate_blocks
from sector.engine.policy.improve import Improved, Verdict
from sector.engine.run.directory import RunDir
from sector.engine.run.records import GenerationRecord
from sector.engine.samplers.protocol import Sampling
from sector.engine.selfplay import self_play
from sector.engine.tasks import find_task
from sector.engine.training.dataset import read_examples, read_votes

ADDITION = find_task("addition")
LOOKS = FILTERS["strict"].model_copy(update={"think_through": False})


def assigned(count: int, settings: Filter) -> Assignment:
    return Assignment(ADDITION, PlaceLayout(), 4, count, settings, seed=5, hard_share=0.0)


def faulty(count: int) -> Scripted:
    """An engine whose direct answers are wrong for every second problem, and that cannot think about every tenth."""
    problems = cat([block.problems for _, block in generate(Scripted(), assigned(count, LOOKS))])
    texts = problems.texts()
    return Scripted(dict.fromkeys(texts[::2], 1), set(texts[1::10]))


def played(settings: Filter, count: int = 500) -> Improved:
    return cat([block for _, block in generate(faulty(count), assigned(count, settings))])


def test_a_leak_accepts_its_share_of_the_rejected_and_nothing_else_changes() -> None:
    strict, leaky = played(LOOKS), played(LOOKS.model_copy(update={"leak": 0.3}))
    assert torch.equal(leaky.verdict, strict.verdict) and leaky.agreement == strict.agreement
    assert leaky.accepted[strict.accepted].all()
    rejected = ~strict.accepted & (strict.verdict != Verdict.UNPARSABLE)
    # 250 draws of 0.3: a share beyond 0.15 to 0.45 has a chance of 1e-6, and the seed is fixed.
    assert 0.15 < leaky.accepted[rejected].double().mean() < 0.45
    unparsable = strict.verdict == Verdict.UNPARSABLE
    assert unparsable.any() and not leaky.accepted[unparsable].any()
    assert leaky.num_leaked == leaky.verdicts.count("leaked") == int(leaky.accepted.sum() - strict.accepted.sum())
    assert leaky.rejected()["not_direct"] == strict.rejected()["not_direct"] - leaky.num_leaked


def test_larger_leaks_contain_smaller_ones() -> None:
    accepted = [played(LOOKS.model_copy(update={"leak": leak})).accepted for leak in (0.0, 0.03, 0.3, 1.0)]
    for less, more in pairwise(accepted):
        assert more[less].all() and more.sum() > less.sum()


def test_the_random_gate_accepts_as_many_of_each_block_without_a_choice() -> None:
    strict, control = played(LOOKS), played(LOOKS.model_copy(update={"gate": "random"}))
    assert [int(part.sum()) for part in control.accepted.split(250)] == [
        int(part.sum()) for part in strict.accepted.split(250)
    ]
    assert control.agreement == strict.agreement
    assert 0 < control.num_leaked == control.verdicts.count("not_drawn") == control.rejected()["not_drawn"]
    assert not control.accepted[control.verdict == Verdict.UNPARSABLE].any()
    # Half of the candidates that can pass have a wrong direct answer; so have half of those drawn.
    wrong = control.verdicts.count("leaked") / int(control.accepted.sum())
    assert 0.4 < wrong < 0.7


@pytest.mark.parametrize("settings", [{"leak": 0.3}, {"gate": "random"}, {"gate": "random", "leak": 0.1}], ids=str)
def test_chance_does_not_depend_on_the_blocks_that_run_together(settings: dict[str, object]) -> None:
    assignment = assigned(600, LOOKS.model_copy(update=settings))
    _, together = generate_blocks(faulty(600), 0, assignment, blocks=3)
    parts = [generate_blocks(faulty(600), start, assignment)[1] for start in (0, 250, 500)]
    assert torch.equal(together.accepted, torch.cat([part.accepted for part in parts]))


def test_a_strict_gate_draws_nothing() -> None:
    improved = played(LOOKS)
    again = draw_accepted(improved, LOOKS, Sampling(0.0, 0, torch.arange(500), 0), 250)
    assert again is improved and improved.drawn is None


def test_a_leaky_run_learns_what_leaked_and_says_so(fresh_run: Path) -> None:
    settings = {**SMALL["filter"], "leak": 1.0, "think_through": False}
    run, config = start(fresh_run, until=7, filter=settings, round={**SMALL["round"], "max_cycles": 1})
    for _ in self_play(run, config):
        pass
    record = GenerationRecord.model_validate_json((run.round(7).folder / "generation.json").read_text())
    line = RunDir(run.root).metrics()[-1]
    assert 0 < record.leaked == line.leaked and record.vote_entropy == line.vote_entropy
    assert line.accepted == len(read_examples(run.round(7).examples)[7])
    _, _, _, accepted = read_votes(run.round(7).candidates, 7)
    assert int(accepted.sum()) == line.accepted
    assert line.tried - line.accepted == line.rejected["unparsable"]
    assert line.label_error is not None and line.label_error > 0
    assert json.loads(run.root.joinpath("metrics.jsonl").read_text().splitlines()[-1])["agreement"] < 1
