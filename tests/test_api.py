"""The loop and its parts as functions: what programs call, and what the commands call."""

import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_run import SMALL, assert_same, final_weights
from typer.testing import CliRunner

import sector
from sector.cli.app import app
from sector.engine.api.choice import choose_model
from sector.engine.api.settings import chosen_settings
from sector.engine.config import FILTERS, run_config
from sector.engine.errors import InputError, NoAgreement
from sector.engine.run.directory import RunDir
from sector.engine.run.events import FrontierMoved, Generated, GoalMeasured, PhaseAudited, TrainingStep

EVENTS = (FrontierMoved, Generated, GoalMeasured, PhaseAudited, TrainingStep)


def command(*words: object) -> str:
    """Stdout of a command that succeeds."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


# A run


def test_a_run_is_an_iterator_of_its_events(fresh_run: Path, finished_run: Path) -> None:
    run = sector.run(fresh_run)
    events = list(run)
    assert {type(event) for event in events} == set(EVENTS) and all(isinstance(event, EVENTS) for event in events)
    assert run.frontier == run_config(SMALL).until and [line.digits for line in run.metrics()][-1] == run.frontier
    assert list(run) == [] and list(sector.run(fresh_run))[-1] == FrontierMoved(run.frontier)
    assert_same(fresh_run, finished_run)


def test_a_run_waits_for_its_first_event_and_checks_its_settings_before(tmp_path: Path) -> None:
    run = sector.run(tmp_path / "run", until=7, round={"candidates": 20})
    assert not list(tmp_path.iterdir())
    run.close()
    assert not list(tmp_path.iterdir()) and list(run) == []
    for settings, named in (
        ({"until": "nine"}, "until"),
        ({"untill": 9}, "unknown key"),
        ({"round": {"candidates": 0}}, "round.candidates"),
        ({"filter": "severe"}, "unknown filter 'severe'"),
        ({"config": tmp_path / "no.toml"}, "no.toml"),
        ({"pretrained": tmp_path / "none"}, "none"),
    ):
        with pytest.raises(InputError, match=named):
            next(sector.run(tmp_path / "run", **settings))  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["with", "close", "lost", "kept"], ids=str)
def test_a_run_that_was_left_goes_on_to_the_same_weights(way: str, fresh_run: Path, finished_run: Path) -> None:
    """Left in a training; `kept` stays alive and locked, as in the last traceback of a notebook."""
    run = sector.run(fresh_run)
    assert next(event for event in run if isinstance(event, TrainingStep) and event.step == 3)
    if way == "with":
        with run:
            pass
    elif way == "close":
        run.close()
    elif way == "lost":
        del run
    if way in ("with", "close"):
        assert (fresh_run / "training.safetensors").exists()
        first = next(event for event in sector.run(fresh_run) if isinstance(event, TrainingStep))
        assert first.step == 5
    if way != "kept":
        with RunDir(fresh_run).lock():
            pass
    assert isinstance(list(sector.run(fresh_run))[-1], FrontierMoved)
    assert_same(fresh_run, finished_run)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7], ids=str)
def test_ctrl_c_anywhere_loses_nothing(share: float, fresh_run: Path, finished_run: Path) -> None:
    """The handler of Ctrl-C, called by a timer after a share of the time that a whole run took."""
    seconds = share * RunDir(finished_run).metrics()[-1].seconds_total
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with suppress(KeyboardInterrupt):
            list(sector.run(fresh_run))
            pytest.fail("the run was over before")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    list(sector.run(fresh_run))
    assert_same(fresh_run, finished_run)


def test_a_run_of_another_process_is_left_alone(fresh_run: Path) -> None:
    with RunDir(fresh_run).lock(), pytest.raises(InputError, match="in use"):
        next(sector.run(fresh_run))


def test_a_run_without_agreement_raises(fresh_run: Path) -> None:
    shutil.rmtree(fresh_run)
    few = {"max_digits": 2, "cycle_steps": 2, "max_cycles": 1, "examples": 8}
    with pytest.raises(NoAgreement):
        list(sector.run(fresh_run, until=3, audit_samples=4, supervised=few, round={"candidates": 8, "probe": 4}))


def test_keywords_are_the_settings_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("hard_share = 0.25\n[round]\ncandidates = 7\nprobe = 9\n[filter]\nk = 3\n")
    given = sector.run(
        tmp_path / "a", config=tmp_path / "my.toml", until=9, seed=4, filter="strict", round={"probe": 5}
    )
    values, _ = chosen_settings(tmp_path / "my.toml", ["round.probe=5"], "strict", until=9, seed=4)
    # Both are validated by opening the run.
    next(given)
    given.close()
    config = RunDir(tmp_path / "a").read_config()
    assert config == run_config(values)
    assert (config.hard_share, config.round.candidates, config.round.probe) == (0.25, 7, 5)
    assert config.filter == FILTERS["strict"].model_copy(update={"k": 3})


# Answers, labels, accuracy


def test_solve_thinks_with_the_shipped_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    solution = sector.solve("123+456")
    assert (solution.answer, solution.policy) == ("579", "improved") and solution.thought is not None
    assert [(step.rest, step.found) for step in solution.thought.steps] == [("12+45", "9"), ("1+4", "79")]
    assert solution.thought.votes == 2 and solution.thought.direct == "579"
    assert sector.solve("12*34").answer == "408"
    assert sector.solve("12*34", show=False).policy == "fast"


def test_solve_many(tmp_path: Path) -> None:
    model = sector.load("addition")
    solutions = sector.solve(["1+2", "x", "99999+1"], model, "slow")
    assert [solution.answer for solution in solutions] == ["3", None, "100000"]
    assert solutions[1].unread and "'x'" in str(solutions[1].error)
    with pytest.raises(InputError, match="'x'"):
        sector.solve("x", model)
    with pytest.raises(InputError, match="unknown policy 'quick'"):
        sector.solve("1+2", model, "quick")  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r"k: .*1 to 100"):
        sector.solve("1+2", model, k=0)
    with pytest.raises(InputError, match=r"no such directory.*\(addition, multiplication\)"):
        sector.solve("1+2", tmp_path / "none")


def test_the_newest_run_comes_before_the_shelf(
    supervised_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_model(["x", "3*4"]).path == Path("multiplication") and choose_model().path == Path("addition")
    (tmp_path / "runs").mkdir()
    shutil.copytree(supervised_run, tmp_path / "runs" / "mine", symlinks=True)
    assert sector.load().source == Path("runs/mine") and sector.load().weights_sha256 == final_weights(supervised_run)
    result = CliRunner().invoke(app, ["solve", "12+34"])
    assert result.stderr == "sector: solved by the newest run, runs/mine\n" and result.stdout.startswith("12+34 = ")
    # A folder of that name is what the user means.
    shutil.copytree(supervised_run, tmp_path / "addition", symlinks=True)
    assert sector.load("addition").weights_sha256 == final_weights(supervised_run)


def test_a_loaded_model_is_one_of_transformers() -> None:
    trained = sector.load("addition")
    ids = trained.model.generate(**trained.tokenizer("123+456=", return_tensors="pt").to(trained.model.device))
    assert trained.tokenizer.decode(ids[0], skip_special_tokens=True) == "123+456=0579"
    assert trained.task == "addition" and trained.path.name == "addition" and sector.load(trained) is trained


def test_generate_gives_the_labels_of_the_command(tmp_path: Path) -> None:
    words = ["--model", "addition", "--digits", 9, "--count", 30, "--seed", 2, "--out", tmp_path / "a.parquet"]
    printed = json.loads(command("generate", *words, "--json"))
    labels = sector.generate("addition", 9, 30, seed=2)
    assert labels.file is None and labels.table.equals(pq.read_table(tmp_path / "a.parquet"))
    counts = ("tried", "accepted", "rejected", "tokens", "weights_sha256", "engine", "agreement")
    assert {name: labels.as_json()[name] for name in counts} == {name: printed[name] for name in counts}
    assert labels.to_dataset()[0]["problem"] == labels.table["problem"][0].as_py()
    written = sector.generate("addition", 9, 30, tmp_path / "b.parquet", seed=2)
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()
    assert written.file == tmp_path / "b.parquet"
    for arguments, named in (
        ({"count": 0}, "count"), ({"seed": -1}, "seed"), ({"hard_share": 2.0}, "hard_share"), ({"digits": 0}, "digits"),
        ({"temperature": 11.0}, "temperature"), ({"engine": "tpu"}, "engine"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            sector.generate(**{"model": "addition", "digits": 3, "count": 2, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("digits", ["2-3", [2, 3]], ids=["text", "numbers"])
def test_evaluate_gives_the_figures_of_the_command(digits: str | list[int], tmp_path: Path) -> None:
    words = ["--model", "addition", "--digits", "2-3", "--samples", 20, "--seed", 5]
    printed = json.loads(command("eval", *words, "--json"))
    report = sector.evaluate("addition", digits, 20, seed=5, out=tmp_path / "plots")
    assert {**report.values, "seconds": 0} == {**printed, "seconds": 0}
    assert [score.accuracy for score in report.scores if score.name == "uniform"] == [1.0, 1.0]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["eval-fast.json", "eval-fast.png"]
    with pytest.raises(InputError, match="no lengths"):
        sector.evaluate("addition", [])
    with pytest.raises(InputError, match="samples"):
        sector.evaluate("addition", 3, 0)
