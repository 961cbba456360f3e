"""The loop: rule 1 (label-free), and that a run killed anywhere ends with the weights of one never killed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import forked
from recorded import training
from small_run import SMALL, assert_same, give_weights, kill_when, start

from sector.engine.config import run_config
from sector.engine.errors import NoAgreement
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.policy.workers import Measure
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event, FrontierMoved, TrainingStep
from sector.engine.run.goals import Goals
from sector.engine.run.phase import Phase
from sector.engine.run.phases import Phases
from sector.engine.run.plan import replay_sets
from sector.engine.selfplay import run_phases, self_play
from sector.engine.tasks import oracle, true_answers
from sector.engine.tasks.addition import TASK as ADDITION
from sector.engine.training.dataset import read_examples


def test_a_run_leaves_the_files_it_promises(finished_run: Path) -> None:
    for name in (
        "config.toml",
        "metrics.jsonl",
        "checkpoints/latest/config.json",
        "checkpoints/best/model.safetensors",
    ):
        assert (finished_run / name).is_file(), name
    for digits in ("supervised", "07", "08"):
        assert (finished_run / "rounds" / digits / "examples.parquet").is_file()
    assert sorted(path.name for path in (finished_run / "plots").glob("*.png")) == ["accuracy.png", "labels.png"]
    assert not (finished_run / "training.safetensors").exists()
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["digits"]) for line in lines] == [("sft", 6), ("round", 7), ("round", 8)]
    promised = [
        "tried",
        "accepted",
        "label_error",
        "fast_label_error",
        "agreement",
        "tokens_generated",
        "tokens_trained",
    ]
    promised += ["seconds_generate", "seconds_train", "seconds_total"]
    for line in lines[1:]:
        assert line["tried"] == SMALL["round"]["candidates"] == line["accepted"] + sum(line["rejected"].values())
        assert not [key for key in promised if line[key] is None]
        assert sum(line["label_mistakes"].values()) == line["accepted"]
        assert line["label_mistakes"]["right"] == round(line["accepted"] * (1 - line["label_error"]))
    for line in lines:
        assert [sum(counts.values()) for counts in line["frontier"].values()] == [SMALL["audit_samples"]] * 2
    # The supervised phase is audited as far as the loop is to go: what it adds is to be seen.
    assert [max(map(int, line["accuracy"])) for line in lines] == [9, 8, 9]
    totals = [line["seconds_total"] for line in lines]
    assert totals == sorted(totals)


def test_true_sums_are_sealed_during_a_round(fresh_run: Path) -> None:
    """Rule 1 by force: a stand-in for the oracle that always raises changes nothing but the audit."""
    run = RunDir(fresh_run)
    phases = Phases(run, run.read_config())
    with oracle.sealed():
        with pytest.raises(oracle.OracleSealed):
            true_answers(replay_sets(run, run.read_config(), run.round(7))[0].problems)
        for _ in phases.generate(run.round(7)):
            pass
        for _ in phases.distill(run.round(7)):
            pass
        with pytest.raises(oracle.OracleSealed):
            list(phases.audit(run.round(7)))
        assert list(phases.advance(run.round(7))) == [FrontierMoved(7)]


class _Watched(Phases):
    """Phases that note whether the oracle is sealed while each runs."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.states: dict[str, bool] = {}

    def _watch(self, name: str, events: Iterator[Event]) -> Iterator[Event]:
        self.states[name] = oracle.is_sealed()
        yield from events

    def generate(self, phase: Phase) -> Iterator[Event]:
        return self._watch("generate", super().generate(phase))

    def distill(self, phase: Phase) -> Iterator[Event]:
        return self._watch("distill", super().distill(phase))

    def audit(self, phase: Phase) -> Iterator[Event]:
        return self._watch("audit", super().audit(phase))

    def advance(self, phase: Phase) -> Iterator[Event]:
        return self._watch("advance", super().advance(phase))


def test_the_loop_itself_seals_the_oracle(fresh_run: Path) -> None:
    run = RunDir(fresh_run)
    phases = _Watched(run, run.read_config())
    outside = {event.kind: oracle.is_sealed() for event in run_phases(phases)}
    assert phases.states == {"generate": True, "distill": True, "audit": False, "advance": True}
    assert outside and not any(outside.values())


def test_a_loop_that_is_left_leaves_the_oracle_open(fresh_run: Path) -> None:
    run = RunDir(fresh_run)
    events = self_play(run, run.read_config())
    assert next(event for event in events if event.kind == "generate") and not oracle.is_sealed()


def test_no_agreement_stops_the_loop_and_keeps_the_last_good_checkpoint(fresh_run: Path) -> None:
    run, config = start(fresh_run, filter={}, round={**SMALL["round"], "min_agreement": 1.0})
    with pytest.raises(NoAgreement, match="digits"):
        for _ in self_play(run, config):
            pass
    assert os.readlink(run.root / "checkpoints" / "best") == "06"


def test_one_shot_distillation_asks_the_supervised_weights_in_every_round(fresh_run: Path) -> None:
    run, config = start(fresh_run, round={**SMALL["round"], "teacher": "supervised", "max_cycles": 1})
    for _ in self_play(run, config):
        pass
    teachers = [json.loads((run.round(digits).folder / "generation.json").read_text()) for digits in (7, 8)]
    supervised, after = (weights_sha256(run.round(digits).load_checkpoint()) for digits in (6, 7))
    assert [each["weights_sha256"] for each in teachers] == [supervised] * 2
    assert supervised != after


def test_a_run_without_chain_of_thought_learns_answers_alone(fresh_run: Path) -> None:
    settings = {"use_chain": False, "vote": "majority", "checks": [], "k": 3, "think_through": False}
    settings["through"] = False
    run, config = start(fresh_run, until=7, filter=settings, round={**SMALL["round"], "max_cycles": 1})
    for _ in self_play(run, config):
        pass
    accepted = read_examples(run.round(7).examples)[7]
    assert len(accepted) > 0 and accepted.rest.digits == 0
    assert run.metrics()[-1].digits == 7 and (run.metrics()[-1].trained_agreement or 0) < 1


KILLS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "generate": lambda event: event["event"] == "generate" and event["digits"] == 7,
    "train": lambda event: event["event"] == "train" and event["digits"] == 7,
    "between cycles": lambda event: event["event"] == "goal" and event["digits"] == 7 and event["cycle"] == 1,
    "audit": lambda event: event["event"] == "goal" and event["digits"] == 7 and event["cycle"] == 2,
    "next round": lambda event: event["event"] == "generate" and event["digits"] == 8,
}


def test_killed_in_every_phase_it_ends_with_the_same_weights(fresh_run: Path, finished_run: Path) -> None:
    """kill -9, five times over, in one run; then to its end."""
    killed = [name for name, reached in KILLS.items() if kill_when(fresh_run, reached)]
    assert killed == list(KILLS)
    with forked("run", "--out", fresh_run) as process:
        pass
    assert process.returncode == 0
    assert_same(fresh_run, finished_run)
    rows = [(line.digits, line.accepted, line.accuracy) for line in RunDir(fresh_run).metrics()]
    assert rows == [(line.digits, line.accepted, line.accuracy) for line in RunDir(finished_run).metrics()]


def test_killed_in_the_supervised_phase_it_goes_on_from_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot holds weights, both optimizers and the step: the rest of the phase is the same to the bit."""
    monkeypatch.setattr("sector.engine.run.phases.SNAPSHOT_STEPS", 10)
    phase = {"supervised": {"cycle_steps": 24, "max_cycles": 1, "examples": 4, "trainer": {"shard_rows": 4}}}
    (finished, config), (run, _) = start(tmp_path / "finished", **phase), start(tmp_path / "run", **phase)
    for _ in Phases(finished, config).supervise():
        pass
    for event in Phases(run, config).supervise():
        if isinstance(event, TrainingStep) and event.step == 13:
            break
    steps = [event.step for event in Phases(run, config).supervise() if isinstance(event, TrainingStep)]
    assert steps[0] == 11 and steps[-1] == 24
    assert_same(run.root, finished.root)


# Leaps

LEAPING = {
    **SMALL["round"],
    "max_cycles": 1,
    "max_leap": 4,
    "target_agreement": 0.0,
    "target_trained": 0.0,
    "leap_agreement": 0.0,
    "max_fall": 1.0,
}


def test_a_run_leaps_as_far_as_its_settings_allow_killed_or_not(fresh_run: Path) -> None:
    """Everything agrees where nothing is compared, so every leap is the longest; the last one ends at `until`."""
    looks = {"vote": "off", "checks": []}
    run, config = start(fresh_run, until=12, filter=looks, round=LEAPING)
    for event in self_play(run, config):
        if isinstance(event, TrainingStep) and event.digits == 11:
            break
    for _ in self_play(run, config):
        pass
    # What the supervised phase was told of leaps is on record: it was to take none.
    assert [(line.digits, line.leap) for line in run.metrics()] == [(6, 1), (7, 4), (11, 1), (12, 1)]
    assert os.readlink(run.root / "checkpoints" / "best") == "12" and [phase.digits for phase in run.rounds()] == [
        7,
        11,
        12,
    ]
    teacher = json.loads((run.round(11).folder / "generation.json").read_text())["weights_sha256"]
    assert teacher == weights_sha256(run.round(7).load_checkpoint())
    assert sorted({each.digits for each in replay_sets(run, run.read_config(), run.round(12))}) == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        11,
    ]


@pytest.mark.parametrize(
    ("max_leap", "until", "agrees_to", "leap"),
    [
        pytest.param(1, 100, 100, 1, id="no leaps"),
        pytest.param(16, 100, 100, 16, id="the longest"),
        pytest.param(16, 100, 16, 8, id="as far as it agrees"),
        pytest.param(16, 100, 9, 1, id="not even two"),
        pytest.param(12, 100, 100, 12, id="no power of two"),
        pytest.param(16, 13, 100, 5, id="up to the end"),
        pytest.param(16, 8, 100, 1, id="at the end"),
    ],
)
def test_how_far_a_leap_is(max_leap: int, until: int, agrees_to: int, leap: int) -> None:
    config = run_config({**SMALL, "until": until, "round": {"max_leap": max_leap}})
    asked = []

    class Agreeing(Goals):
        def agreement(self, measure: Measure, digits: int) -> float:
            asked.append(digits)
            return config.round.leap_agreement if digits <= agrees_to else 0.0

    assert Agreeing(config, ADDITION, PlaceLayout()).leap(list, 8) == leap
    # No probe beyond the first that fails, nor beyond the end.
    assert all(digits <= until for digits in asked) and sum(digits > agrees_to for digits in asked) <= 1


def test_a_run_that_may_go_further_keeps_the_rounds_it_has(fresh_run: Path) -> None:
    """A round at the old end stays, though a leap from the one before would go past it now."""
    run, config = start(fresh_run, until=8)
    for digits in (7, 8):
        run.round(digits).write(training(leap=4))
    rounds = list(Phases(run, config).rounds())
    assert [phase.digits for phase in rounds] == [7, 8] and all(phase.is_round for phase in rounds)
    further = Phases(run, config.model_copy(update={"until": 12}))
    assert [phase.digits for phase in further.rounds()] == [7, 8, 12]


# The guard against the error avalanche


@pytest.fixture(scope="module")
def guarded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has something to lose, before its first round."""
    changes = {"candidates": 120, "cycle_steps": 20, "max_cycles": 1, "probe_trained": 40, "trainer": {}}
    guarded = {"until": 7, "round": {**SMALL["round"], **changes, "max_fall": 0.25}}
    run, config = start(tmp_path_factory.mktemp("runs") / "guarded", **guarded)
    give_weights(run)
    for _ in Phases(run, config).supervise():
        pass
    return run.root


class PoisonedPhases(Phases):
    """Phases in which every digit of every accepted answer is one higher, in the first `attempts` attempts."""

    attempts = 0

    def write_accepted(self, phase: Phase, examples: pa.Table) -> None:
        if phase.num_failed < self.attempts:
            higher = str.maketrans("0123456789", "1234567890")
            answers = [text.zfill(8).translate(higher) for text in examples.column("answer").to_pylist()]
            at = examples.column_names.index("answer")
            examples = examples.set_column(at, examples.schema.field(at), pa.array(answers, pa.string()))
        super().write_accepted(phase, examples)


def play_poisoned(guarded_run: Path, root: Path, attempts: int) -> tuple[RunDir, list[dict[str, Any]], str]:
    """Play a run whose first `attempts` attempts at 7 digits learn wrong answers; its events, and why it ended."""
    shutil.copytree(guarded_run, root, symlinks=True)
    run = RunDir(root)
    phases = PoisonedPhases(run, run.read_config())
    phases.attempts = attempts
    events = []
    try:
        for event in run_phases(phases):
            events.append(event.as_json())
    except NoAgreement as error:
        return run, events, str(error)
    return run, events, "reached"


def test_a_poisoned_round_is_taken_back_and_tried_again(guarded_run: Path, tmp_path: Path) -> None:
    run, events, ended = play_poisoned(guarded_run, tmp_path / "run", attempts=1)
    (rollback,) = [event for event in events if event["event"] == "rollback"]
    assert rollback["failed"] == 1 and rollback["trained"] < rollback["before"] - 0.25
    assert ended == "reached" and os.readlink(run.root / "checkpoints" / "best") == "07"
    # Other problems, of which the audit says that they were learned; what was taken back can still be looked at.
    first, second = (
        pq.read_table(path).column("problem").to_pylist()
        for path in (run.root / "failed" / "07-1" / "candidates.parquet", run.round(7).candidates)
    )
    assert len(first) == len(second) == 120 and not set(first) & set(second)
    (line,) = [event for event in events if event["event"] == "round" and event["digits"] == 7]
    assert line["trained_agreement"] >= rollback["before"] - 0.25 and line["taken_back"] == 1


def test_rounds_that_stay_poisoned_end_the_loop_with_the_last_good_weights(guarded_run: Path, tmp_path: Path) -> None:
    run, events, ended = play_poisoned(guarded_run, tmp_path / "run", attempts=9)
    assert [event["failed"] for event in events if event["event"] == "rollback"] == [1, 2, 3]
    assert "rolled back 3 times" in ended and not run.round(7).is_trained
    assert os.readlink(run.root / "checkpoints" / "best") == os.readlink(run.root / "checkpoints" / "latest") == "06"
    # The same command says the same at once.
    with pytest.raises(NoAgreement, match="rolled back 3 times"):
        list(self_play(run, run.read_config()))
