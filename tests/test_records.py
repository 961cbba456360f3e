"""The records of a run: old ones read, written ones the same to the byte, damaged ones refused or mended."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import SHA, generation, round_metrics, training, write_metrics
from small_run import assert_same
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.run import records
from sector.engine.run.directory import RunDir
from sector.engine.run.open import open_run
from sector.engine.run.records import (
    EvaluationRecord,
    LengthScore,
    RoundMetrics,
    StartRecord,
    dump_file,
    dump_line,
    parse_record,
    read_metrics,
    read_record,
)
from sector.engine.run.repair import remove_damaged
from sector.engine.selfplay import self_play
from sector.engine.training.distill import start_training

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
OLD_METRICS = [path for path in sorted(RESULTS.rglob("*.jsonl")) if b'"phase"' in path.read_bytes()[:100]]


@pytest.mark.parametrize("path", OLD_METRICS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_metrics_of_every_release_read_with_the_values_they_have(path: Path) -> None:
    for line, text in zip(read_metrics(path, ""), path.read_text().splitlines(), strict=True):
        written, read = json.loads(text), line.as_json()
        assert {name: read[name] for name in written} == written
        assert list(read) != list(written) or dump_line(line) == text + "\n"


def test_evaluations_of_every_release_read() -> None:
    paths = [path for path in RESULTS.rglob("eval*.json") if '"lengths"' in path.read_text()]
    assert len(paths) > 20
    for path in paths:
        record = read_record(path, EvaluationRecord, "")
        assert record is not None and record.as_json() == json.loads(path.read_text())


def test_a_line_added_leaves_those_of_an_earlier_release_as_they_are(tmp_path: Path) -> None:
    old = OLD_METRICS[0].read_text().splitlines()[0]
    (tmp_path / "metrics.jsonl").write_text(old)
    RunDir(tmp_path).add_metrics(round_metrics(7, seconds_total=1e6))
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[0] == old
    assert [line.digits for line in RunDir(tmp_path).metrics()] == [6, 7]


def test_counts_are_read_off_shares() -> None:
    line = round_metrics(7, tried=300, accepted=290, label_error=1 - 283 / 290, fast_label_error=1 - 211 / 300)
    assert (line.wrong_accepted, line.wrong_fast) == (7, 89)
    assert (round_metrics(6).wrong_accepted, round_metrics(6).wrong_fast) == (0, 0)


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"accuracy": {"1": 7.0}, "label_error": -5, "seconds_total": 1e300}, "label_error is -5"),
    ({"accuracy": {**{str(n): 1.0 for n in range(1, 8)}, "8": 7.0}}, r"accuracy\.8 is 7\.0"),
    ({"accuracy": {"1": 1.0}}, "accuracy should have the lengths 1 to 8"),
    ({"accuracy": {"one": 1.0}}, "accuracy.one is 'one'"),
    ({"seconds_total": 1e300}, "seconds_total is 1e[+]300"),
    ({"seconds_train": -1.0}, "seconds_train is -1.0"),
    ({"seconds_audit": float("nan")}, "seconds_audit is nan"),
    ({"agreement": float("inf")}, "agreement is inf"),
    ({"tokens_generated": 10**400}, "tokens_generated is 1000"),
    ({"tried": "100"}, "tried is '100'"),
    ({"digits": 0}, "digits is 0"),
    ({"digits": 257}, "digits is 257"),
    ({"accepted": 101}, "accepted is 101, more than tried"),
    ({"thought_through": 81}, "thought_through is 81, more than accepted"),
    ({"rejected": {"outvoted": 21}}, r"accepted \(80\) and rejected \(21\) do not add up to tried"),
    ({"rejected": {"out voted": 20}}, "rejected.out voted is 'out voted'"),
    ({"label_mistakes": {"typo": 1}}, "label_mistakes.typo is 'typo'"),
    ({"label_error": None}, "label_error is None, but accepted is 80"),
    ({"phase": "sft"}, "tried should be 0 in the phase 'sft'"),
    ({"frontier": {"fast": {}, "slow": {}}}, "frontier counts no outputs"),
    ({"leap": 0}, "leap is 0"),
]


@pytest.mark.parametrize(("changes", "said"), NONSENSE, ids=[said for _, said in NONSENSE])
def test_nonsense_is_refused_and_said(changes: dict[str, Any], said: str) -> None:
    values = {**round_metrics(7).as_json(), **changes}
    with pytest.raises(records.Damaged, match=rf"^m, line 2: {said}.*; mend$"):
        parse_record(json.dumps(values).encode(), RoundMetrics, "m, line 2", "mend")


ORDERS = {
    "digits repeat": ([6, 7, 7], "line 3: digits is 7"),
    "digits fall": ([6, 8, 7], "line 3: digits is 7"),
    "no supervised phase": ([7, 8], "line 1: the first line is not the supervised phase"),
    "two supervised phases": ([5, 6], "line 2: the supervised phase is not the first line"),
}


@pytest.mark.parametrize(("digits", "said"), ORDERS.values(), ids=ORDERS)
def test_lines_out_of_order_are_refused(tmp_path: Path, digits: list[int], said: str) -> None:
    write_metrics(tmp_path, *(round_metrics(each) for each in digits))
    with pytest.raises(InputError, match=said):
        RunDir(tmp_path).metrics()


def test_time_that_runs_back_is_refused(tmp_path: Path) -> None:
    write_metrics(tmp_path, round_metrics(6, seconds_total=20.0), round_metrics(7, seconds_total=10.0))
    with pytest.raises(InputError, match=r"line 2: seconds_total is 10\.0, less than"):
        RunDir(tmp_path).metrics()


def test_a_key_of_a_later_release_is_named_and_nothing_is_removed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config(run_config({}))
    text = json.dumps({**round_metrics(6, frontier=None).as_json(), "novelty": 1}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    for read in (run.metrics, lambda: remove_damaged(run)):
        with pytest.raises(InputError, match=r"metrics\.jsonl, line 1: unknown key 'novelty', written by a later"):
            read()
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_garbled_key_is_damage_and_not_of_a_later_release() -> None:
    values = round_metrics(7).as_json()
    values["lexp"] = values.pop("leap")
    with pytest.raises(records.Damaged, match="unknown key 'lexp'; mend"):
        parse_record(json.dumps(values).encode(), RoundMetrics, "m", "mend")


# Every file, damaged in every way


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _last_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _garbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"\x00\xff{#\"\x00'\n"
    path.write_bytes(content)


def _nonsense(path: Path) -> None:
    """Every number another one, that cannot be."""
    values = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    if values is None:
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), -5)))
    else:
        path.write_text("".join(json.dumps({**each, "label_error": -5}) + "\n" for each in values))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("something")


def _loop(path: Path) -> None:
    """Make a link to itself, which no user can read, not even root."""
    path.unlink()
    path.symlink_to(path.name)


Damage = Callable[[Path], object]
BINARY: dict[str, Damage] = {
    "half": _half,
    "last bytes cut off": _last_bytes,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00\x80 garbage\n" * 9),
    "another type": lambda path: path.write_text("[1, 2]\n"),
    "a directory": _directory,
    "unreadable": _loop,
}
TEXT: dict[str, Damage] = {**BINARY, "garbled": _garbled, "nonsense": _nonsense}
ROUND, FIRST = "rounds/08", "rounds/supervised"
DAMAGES: dict[str, dict[str, Damage]] = {
    "metrics.jsonl": TEXT,
    f"{ROUND}/generation.json": TEXT,
    f"{ROUND}/training.json": TEXT,
    f"{FIRST}/training.json": TEXT,
    f"{FIRST}/start.json": TEXT,
    "plots/eval-fast.json": TEXT,
    f"{ROUND}/examples.parquet": {**BINARY, "garbled": _garbled},
    f"{ROUND}/candidates.parquet": {**BINARY, "garbled": _garbled},
    # Its middle is a column that nothing of ours reads.
    f"{FIRST}/examples.parquet": BINARY,
    "checkpoints/08/config.json": TEXT,
    # Weights that are others are for their digest to tell.
    "checkpoints/08/model.safetensors": BINARY,
    "training.safetensors": BINARY,
    "config.toml": BINARY,
}
OF_MODEL = ["config.toml", "checkpoints/08/config.json", "checkpoints/08/model.safetensors"]
READ_BY = {
    "report": ["config.toml", "metrics.jsonl", f"{FIRST}/start.json", "plots/eval-fast.json",
               f"{ROUND}/examples.parquet", f"{ROUND}/candidates.parquet"],
    **dict.fromkeys(("eval", "solve", "generate", "distill", "bench", "profile"), OF_MODEL[1:]),
}  # fmt: skip
COMMANDS: dict[str, list[str]] = {
    "report": ["report", "RUN"],
    "eval": ["eval", "--model", "RUN", "--digits", "2", "--samples", "8", "--no-suite"],
    "solve": ["solve", "--model", "RUN", "12+34"],
    "generate": ["generate", "--model", "RUN", "--digits", "3", "--count", "4", "--out", "OUT"],
    "distill": ["distill", "--model", "RUN", "--data", "RUN/rounds/07/examples.parquet", "--out", "OUT"],
    "bench": ["bench", "--model", "RUN", "--digits", "3"],
    "profile": ["profile", "generate", "--model", "RUN", "--digits", "3", "--out", "OUT"],
}
# Without it a run is new, or of an earlier release; without lines it has only begun.
NO_DAMAGE = {("config.toml", "empty"), ("metrics.jsonl", "empty")}


def cases(files: list[str]) -> Iterator[tuple[str, str]]:
    for name in files:
        for damage in DAMAGES[name]:
            if (name, damage) not in NO_DAMAGE:
                yield name, damage


@pytest.fixture(scope="module")
def whole_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every file that a run can have."""
    root = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("records") / "run", symlinks=True))
    run = RunDir(root)
    score = LengthScore(digits=1, correct=8, samples=8, accuracy=1.0, low=0.6, high=1.0)
    evaluation = EvaluationRecord(
        policy="fast", samples=8, lengths=[score], suite=[], seed=0, engine="native", weights_sha256=SHA, seconds=1.0
    )
    (root / "plots" / "eval-fast.json").write_text(dump_file(evaluation))
    run.supervised(6).write(StartRecord(snapshot="other", seconds=3.0))
    model = run.round(8).load_checkpoint()
    run.save_training(start_training(model, run.read_config().round.trainer), run.round(9), 0, 1.0)
    return root


@pytest.fixture
def copied_run(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run", symlinks=True))


REFUSED = [(command, *case) for command, files in READ_BY.items() for case in cases(files)]


@pytest.mark.parametrize(("command", "name", "damage"), REFUSED, ids=[" ".join(each) for each in REFUSED])
def test_a_damaged_file_is_one_line_in_every_command_that_reads_it(
    copied_run: Path, tmp_path: Path, command: str, name: str, damage: str
) -> None:
    DAMAGES[name][damage](copied_run / name)
    places = {"RUN": str(copied_run), "OUT": str(tmp_path / "out")}
    args = [each.replace("RUN", places["RUN"]).replace("OUT", places["OUT"]) for each in COMMANDS[command]]
    result = CliRunner().invoke(app, args, prog_name="sector")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stdout == "", result.stderr
    folder, _, file = name.rpartition("/")
    assert file in result.stderr or folder.startswith("checkpoints"), result.stderr
    assert f"sector {'eval --model' if 'eval' in name else 'run --out'} {copied_run}" in result.stderr or (
        name == "config.toml" or "holds no" in result.stderr
    )
    assert not (tmp_path / "out").exists() and not (copied_run / "report.html").exists()


MENDED = list(cases([name for name in DAMAGES if name not in ("config.toml", "plots/eval-fast.json")]))


@pytest.mark.parametrize(("name", "damage"), MENDED, ids=[" ".join(each) for each in MENDED])
def test_run_finds_every_damage_and_leaves_none(copied_run: Path, name: str, damage: str) -> None:
    DAMAGES[name][damage](copied_run / name)
    with open_run(copied_run, {}, "test") as (run, _):
        assert run.mended == [str(Path(name).parent) if name.startswith("checkpoints") else name]
        assert remove_damaged(run) == []
        run.metrics()


@pytest.mark.parametrize("damage", ["garbled", "nonsense", "a directory"])
def test_metrics_and_records_are_made_again_as_they_were(finished_run: Path, tmp_path: Path, damage: str) -> None:
    root = Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))
    for name in ("metrics.jsonl", f"{ROUND}/generation.json", f"{ROUND}/training.json"):
        TEXT[damage](root / name)
    with open_run(root, {}, "test") as (run, config):
        assert len(list(self_play(run, config))) > 3
    assert_same(root, finished_run)


def test_records_that_are_missing_where_their_phase_is_done_are_made_again(copied_run: Path) -> None:
    for name in ("generation.json", "candidates.parquet", "training.json"):
        (copied_run / ROUND / name).unlink()
    with open_run(copied_run, {}, "test") as (run, _):
        assert run.mended == [f"{ROUND}/{name}" for name in ("candidates.parquet", "generation.json", "training.json")]
        assert not run.round(8).examples.exists() and not run.round(8).is_trained


def test_a_run_copied_without_its_links_is_mended_too(copied_run: Path) -> None:
    best = copied_run / "checkpoints" / "best"
    best.unlink()
    shutil.copytree(copied_run / "checkpoints" / "08", best)
    _last_bytes(copied_run / "metrics.jsonl")
    assert RunDir(copied_run).frontier == 7


def test_records_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for record in (generation(), training(trained_agreement=0.5), StartRecord(snapshot="a", seconds=1.0)):
        run.round(7).write(record)
        assert run.round(7).read(type(record)) == record
    assert run.round(8).read(StartRecord) is None
