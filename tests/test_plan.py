"""Training plans: the sets of examples that a round trains on."""

from pathlib import Path

import torch
from scripted import Scripted

from sector.engine.config import FILTERS, RunConfig, run_config
from sector.engine.language.operands import draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.policy.improve import improve
from sector.engine.run.directory import RunDir
from sector.engine.run.plan import examples_of
from sector.engine.samplers.protocol import Sampling
from sector.engine.training.dataset import Provenance, improved_table, write_examples
from sector.engine.training.supervised import label

ROWS = 40


def a_round(root: Path, missed: int) -> RunDir:
    """Return a round at 7 digits with right answers, `missed` of which the fast policy got wrong."""
    problems = draw_problems(7, ROWS, torch.Generator().manual_seed(0))
    wrong = dict.fromkeys(problems.texts()[:missed], 1)
    rows = torch.arange(ROWS)
    improved = improve(Scripted(wrong), problems, FILTERS["paper"], PlaceLayout(), Sampling(0.0, 0, rows, 0))
    assert improved.accepted.all()
    run = RunDir(root)
    run.round(7).folder.mkdir(parents=True)
    table = improved_table(improved, rows, PlaceLayout(), Provenance(7, 0, "native", ""))
    write_examples(run.round(7).examples, table)
    return run


def test_what_was_missed_takes_turns_and_all_is_restated(tmp_path: Path) -> None:
    everything, missed = examples_of(RunConfig(), a_round(tmp_path, 17).round(7))
    for examples, count in ((everything, ROWS), (missed, 17)):
        truth, texts = label(examples.problems), examples.problems.texts()
        # As they were asked, in the other order, and the complements of both.
        assert len(examples) == len(set(texts)) == 4 * count
        assert torch.equal(examples.answers, truth.answers) and torch.equal(examples.digit, truth.digit)
    assert everything.rest.texts() == label(everything.problems).rest.texts()
    assert missed.rest.is_nothing and missed.problems.texts()[:17] == everything.problems.texts()[:17]


def test_too_few_to_fill_a_shard_take_no_turns_of_their_own(tmp_path: Path) -> None:
    config = RunConfig()
    (everything,) = examples_of(config, a_round(tmp_path, config.round.trainer.shard_rows - 1).round(7))
    assert len(everything) == 4 * ROWS


def test_the_paper_s_schedule_learns_examples_as_they_are(tmp_path: Path) -> None:
    (everything,) = examples_of(run_config({"schedule": "paper"}), a_round(tmp_path, 17).round(7))
    assert len(everything) == ROWS and not everything.rest.is_nothing
