"""Standard streams as commands find them: full, closed, of few characters; and nothing printed that obeys a user."""

import io
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from sector.cli import _output
from sector.cli._output import Output, unwrapped
from sector.cli._streams import Unwritable, printable, usable_streams
from sector.cli.app import app
from sector.cli.solve import _read
from sector.engine.errors import InputError
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model

SECTOR = Path(sys.executable).with_name("sector")
HOSTILE = "[red]x[/b] :smile: \x1b[31m\x07\x00 \u202e\x9b"
SHOWN = "[red]x[/b] :smile: \\x1b[31m\\x07\\x00 \\u202e\\x9b"


def sector(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    words = [str(SECTOR), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", **settings}
    return subprocess.run(words, check=False, timeout=300, **pipes)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_checkpoint(new_model("tiny", 0), path)
    return path


# Shown as text


def test_printable() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\nb\x7f\udcff\u00e9\u6570") == "a\\nb\\x7f\\udcff\u00e9\u6570"
    assert printable("a\nb", keep="\n") == "a\nb"


def test_everything_that_is_printed_shows_what_users_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    """However it reaches the sink: as a line, as talk, in a table, its heads and its title, as JSON."""
    table = Table(HOSTILE, title=HOSTILE, min_width=100)
    table.add_row(HOSTILE)
    views = ["a\n" + printable(HOSTILE), Group(HOSTILE, unwrapped(HOSTILE), Text(printable(HOSTILE))), table]
    output = Output(as_json=False)
    output.console.width = 120
    for view in views:
        output.data({}, lambda view=view: view)
    output.text(HOSTILE)
    output.say(HOSTILE)
    said = capsys.readouterr()
    assert said.out.count(SHOWN) == 1 + 3 + 3 + 1 and said.err == f"{SHOWN}\n"
    assert said.out.replace("\n", "").isprintable()
    Output(as_json=True).line({"name": HOSTILE + "\x7f"})
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_a_bar_shows_names_as_text() -> None:
    output = Output(as_json=False)
    output._messages = _output.PlainConsole(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    with output.progress(HOSTILE) as bar:
        bar.at(1, 2, HOSTILE)
        bar._progress.refresh()
    shown = output._messages.file.getvalue()
    assert shown.count(SHOWN) >= 2 and "\x1b[31m" not in shown and "\x07" not in shown


@pytest.mark.parametrize("name", ["[red]x[ b] :smile: \x1b[31mx $x$_{ \u6570\u5b66", "x\udcff"], ids=ascii)
def test_names_of_runs_are_shown_as_typed(finished_run: Path, tmp_path: Path, name: str) -> None:
    """In output, in files, and in pictures, without any warning."""
    root = tmp_path / name
    root.parent.mkdir(exist_ok=True)
    shutil.copytree(finished_run, root, symlinks=True)
    page = tmp_path / "pages" / name
    result = CliRunner().invoke(app, ["report", str(root), "--out", str(page)], catch_exceptions=False)
    assert result.exit_code == 0 and result.stderr == ""
    assert f"{printable(str(root))}: " in result.stdout and f"the page is {printable(str(page))}, " in result.stdout
    command = ["eval", "--model", str(root), "--digits", "1-2", "--samples", "4", "--no-suite"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and printable(str(root)) in result.stdout and printable(str(root)) in result.stderr
    result = CliRunner().invoke(app, ["run", "--out", str(root)], catch_exceptions=False)
    assert result.exit_code == 0 and f"Everything is in {printable(str(root))}, " in result.stdout
    # Whatever a library makes of the name, nothing is damaged.
    assert "made again" not in result.stdout
    data = root / "rounds" / "supervised" / "examples.parquet"
    for command in (
        ["generate", "--model", str(root), "--digits", "2", "--count", "2", "--out", str(root / f"{name}.parquet")],
        ["distill", "--model", str(root), "--data", str(data), "--steps", "1", "--out", str(root / f"new {name}")],
        ["solve", "--model", str(root), "1+2"],
    ):
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0, command


def test_without_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long one step takes."""
    assert _output.SILENCE_SECONDS == 10
    monkeypatch.setattr(_output, "SILENCE_SECONDS", 0.05)
    with Output(as_json=True).progress("generating 256 digits") as bar:
        bar.at(0, 2, "0 accepted")
        time.sleep(0.5)
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("[0:00] generating 256 digits: 0 of 2, 0 accepted\n") > 1


# Unwritable


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["plain", "json"])
@pytest.mark.parametrize(
    "command", ["solve", "generate", "eval", "report", "run", "distill", "ablate", "bench"], ids=str
)
def test_a_full_stdout_is_one_line(
    model: Path, finished_run: Path, tmp_path: Path, command: str, flag: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text("[cells.one]\n")
    run = shutil.copytree(finished_run, tmp_path / "run", symlinks=True)
    words = {
        "solve": ["1+2", "12", "--model", model],
        "generate": ["--model", model, "--digits", "2", "--count", "2", "--out", tmp_path / "2.parquet"],
        "eval": ["--model", model, "--digits", "1", "--samples", "2", "--no-suite"],
        "report": [run],
        "run": ["--out", run],
        "distill": ["--model", model, "--steps", "1", "--out", tmp_path / "new",
                    "--data", run / "rounds" / "supervised" / "examples.parquet"],
        "ablate": [grid, "--plan", "--out", tmp_path / "grid"],
        "bench": ["--model", model, "--engine", "native", "--digits", "2", "--count", "2", "--repeats", "1"],
    }[command]  # fmt: skip
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        stderr = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as ended:
            app([command, *map(str, words), *flag], prog_name="sector")
    assert ended.value.code == 1
    # After ten seconds, on a slow machine, commands also tell how far they are.
    lines = [line for line in stderr.getvalue().splitlines() if not line.startswith("[")]
    assert lines == ["sector: cannot write to stdout: No space left on device"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["solve", "--help"]], ids=str)
def test_a_process_with_a_full_stdout_leaves_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = sector(*words, stdout=full)
    assert done.returncode == 1 and done.stderr == "sector: cannot write to stdout: No space left on device\n"


def test_a_reader_that_is_gone_is_one_line() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = sector("--help", stdout=writing)
    os.close(writing)
    assert done.returncode == 1 and done.stderr == "sector: cannot write to stdout: Broken pipe\n"


def test_a_full_stderr_costs_the_talk_alone(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        for words, code in ((["eval", "--digits", "1", "--samples", "2", "--no-suite"], None), (["solve", "1+x"], 2)):
            with pytest.raises(SystemExit) as ended:
                app([*words, "--model", str(model)], prog_name="sector")
            assert ended.value.code == code and capsys.readouterr().out.strip()
        # What did not go out would be tried again when it is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_closed_streams(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closing(*numbers: int) -> dict[str, object]:
        return {"preexec_fn": lambda: [os.close(number) for number in numbers]}

    done = sector("--version", **closing(1))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "stdout is closed" in done.stderr
    done = sector("--version", **closing(0, 2))
    assert done.returncode == 0 and done.stdout.count(".") == 2
    # With nobody to tell it, the message does not go to stdout instead.
    done = sector("walk", **closing(2))
    assert done.returncode == 2 and done.stdout == ""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="stdin is closed"):
        _read(Path("-"))


@pytest.mark.parametrize("kind", ["fifo", "device", "link to a device", "folder", "long", "aside too long"])
def test_what_cannot_become_a_file_is_refused_at_once_and_stays(
    model: Path, finished_run: Path, tmp_path: Path, kind: str
) -> None:
    """A file renamed over /dev/null would take its place, for everybody."""
    out = tmp_path / {"long": "x" * 300, "aside too long": "x" * 250}.get(kind, "out")
    if kind == "fifo":
        os.mkfifo(out)
    elif kind == "device":
        try:
            os.mknod(out, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "link to a device":
        out.symlink_to("/dev/null")
    elif kind == "folder":
        out.mkdir()
    before = sorted(path.lstat() for path in tmp_path.iterdir())
    for command in (
        ["generate", "--model", model, "--digits", "2", "--count", "2"],
        ["report", finished_run],
        ["bench", "--model", model, "--engine", "native", "--digits", "2", "--count", "2", "--repeats", "1"],
    ):
        result = CliRunner().invoke(app, [*map(str, command), "--out", str(out)], prog_name="sector")
        assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1, command
        assert "cannot write" in result.stderr
        assert sorted(path.lstat() for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["run", "sft", "report", "eval", "solve", "ablate"])
def test_a_name_that_is_too_long_is_one_line(tmp_path: Path, command: str) -> None:
    name = str(tmp_path / ("x" * 300))
    words = {"report": [name], "eval": ["--model", name], "solve": ["1+2", "--model", name], "ablate": [name]}
    result = CliRunner().invoke(
        app, [command, *words.get(command, []), *["--out", name] * (command != "solve")], prog_name="sector"
    )
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert "File name too long" in result.stderr


# Encodings of a terminal


def test_an_encoding_of_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with usable_streams():
        print("\u6570 \u00b11 \u2026")
    assert written.getvalue() == b"\\u6570 \xb11 ...\n"
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="surrogateescape"))
    with usable_streams():
        print("\u6570 \u00b11 \u00e9 \udcff")
    assert written.getvalue() == b"\\u6570 +-1 \\xe9 \\udcff\n"


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}],
    ids=["C", "latin-1"],
)
def test_a_terminal_of_another_encoding(environment: dict[str, str]) -> None:
    done = sector("report", "--help", env={**os.environ, **environment}, encoding="latin-1")
    assert done.returncode == 0 and "RUN" in done.stdout
    done = sector("report", "\u6570", env={**os.environ, **environment}, encoding="latin-1")
    assert done.returncode == 2 and done.stderr.isprintable() is False and done.stderr.count("\n") == 1


# Width


@pytest.mark.parametrize("columns", ["", "0", "1", "40", "x", "-3", "9" * 30], ids=str)
def test_no_figure_is_cut_however_narrow(
    finished_run: Path, tmp_path: Path, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    command = ["eval", "--model", str(finished_run), "--digits", "1-9", "--samples", "7", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    rows = [line for line in result.stdout.splitlines() if line.split()[:1] == ["7"]]
    assert result.exit_code == 0 and len(rows) == 1 and rows[0].count("%") == 5 and "\u2026" not in result.stdout
    assert CliRunner().invoke(app, ["solve", "--help"], catch_exceptions=False).stdout.strip()


def test_a_full_disk_of_the_sink_is_named_once() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    before = sys.stdout
    sys.stdout = Full()
    try:
        with pytest.raises(Unwritable, match="No space left"), usable_streams():
            Output(as_json=False).text("x")
    finally:
        sys.stdout = before
