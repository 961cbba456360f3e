"""A data set in a folder: the same bytes however it was interrupted, and nothing but its own files in it."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from forked import forked
from scripted import Scripted
from typer.testing import CliRunner

import sector
from sector.cli.app import app
from sector.engine.errors import InputError
from sector.engine.files import aside_of
from sector.engine.run import generate_folder, request
from sector.engine.run.labels import Labels
from sector.engine.run.locks import HOLDER, LOCK, locked
from sector.engine.run.part_folder import MANIFEST, part_files, read_manifest
from sector.engine.run.parts import DatasetSettings, read_part
from sector.engine.run.records import Damaged

MODEL = sector.load("addition")
# Five parts, the last one short, at a temperature: rows must keep their own random streams.
ASKED: dict[str, Any] = {"digits": 5, "count": 1100, "seed": 3, "k": 2, "temperature": 0.6, "part_rows": 250}
WORDS = ("--model", "addition", "--digits", 5, "--count", 1100, "--seed", 3, "--k", 2, "--temperature", 0.6)
STARTS = [0, 250, 500, 750, 1000]
# In the names of files that this process has not finished.
MARK = f".{socket.gethostname()}-{os.getpid()}"
PARTS = [f"part-{number:05d}.parquet" for number in range(5)]


def make(folder: Path, **changes: Any) -> Labels:
    return sector.generate(MODEL, out=f"{folder}/", **{**ASKED, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """All files, except those of the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (LOCK, HOLDER)}


def command(folder: Path, *more: object) -> list[object]:
    return ["generate", *WORDS, "--part-rows", 250, "--out", f"{folder}/", "--json", *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a call that nothing disturbed."""
    folder = tmp_path_factory.mktemp("parts") / "new" / "whole"
    make(folder)
    return folder


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, bytes]:
    files = contents(whole)
    assert sorted(files) == sorted([*PARTS, MANIFEST])
    return files


@pytest.fixture
def folder(tmp_path: Path, expected: dict[str, bytes]) -> Path:
    """A copy of the whole folder."""
    made = tmp_path / "folder"
    made.mkdir()
    for name, content in expected.items():
        (made / name).write_bytes(content)
    return made


# The whole, and its parts


def test_parts_are_the_rows_and_the_counts_of_one_file(whole: Path, tmp_path: Path) -> None:
    one = sector.generate(MODEL, out=tmp_path / "one.parquet", **{**ASKED, "part_rows": None})
    assert 0 < one.counts.accepted < one.counts.tried
    again = make(whole)
    assert again.table.equals(one.table) and pq.read_table(whole / PARTS[0]).num_rows <= 250
    counts = ("tried", "accepted", "thought_through", "rejected", "agreement", "tokens", "engine", "weights_sha256")
    assert {key: again.as_json()[key] for key in counts} == {key: one.as_json()[key] for key in counts}
    assert "this_call" not in one.as_json() and again.num_parts == 5
    assert again.as_json()["this_call"] == {"parts": 0, "tried": 0, "accepted": 0, "tokens": 0, "mended": []}


def test_the_manifest_names_weights_settings_and_parts(whole: Path) -> None:
    manifest = json.loads((whole / MANIFEST).read_text())
    assert manifest["complete"] and manifest["settings"]["seed"] == 3 and manifest["settings"]["filter"]["k"] == 2
    assert manifest["settings"]["weights_sha256"] == MODEL.weights_sha256
    assert [(part["file"], part["first"]) for part in manifest["parts"]] == list(zip(PARTS, STARTS, strict=True))
    assert sum(part["tried"] for part in manifest["parts"]) == 1100
    assert [part["rows"] for part in manifest["parts"]] == [pq.read_table(whole / name).num_rows for name in PARTS]


def test_two_workers_write_the_same_bytes(tmp_path: Path, expected: dict[str, bytes]) -> None:
    labels = make(tmp_path / "parts", workers=2)
    assert contents(tmp_path / "parts") == expected
    assert labels.this_call is not None and labels.this_call.parts == 5


def test_parts_in_any_order_give_the_same_bytes(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parts = generate_folder.make_parts
    monkeypatch.setattr(
        generate_folder,
        "make_parts",
        lambda crew, model, sampler, starts, *rest: make_parts(crew, model, sampler, starts[::-1], *rest),
    )
    make(tmp_path / "parts")
    assert contents(tmp_path / "parts") == expected


@pytest.mark.parametrize("options", [{"compression": "none"}, {"part_rows": 500}], ids=["compression", "part rows"])
def test_the_form_of_the_files_does_not_change_the_rows(tmp_path: Path, whole: Path, options: dict[str, Any]) -> None:
    labels = make(tmp_path / "parts", **options)
    assert labels.table.equals(make(whole).table)
    assert contents(tmp_path / "parts") != contents(whole)


# Interruptions


@pytest.mark.parametrize("number", [0, 3], ids=lambda number: f"{number} parts")
def test_a_killed_command_goes_on_at_the_missing_parts(tmp_path: Path, expected: dict[str, bytes], number: int) -> None:
    folder = tmp_path / "parts"
    with forked(*command(folder)) as process:
        while not (folder / MANIFEST).exists() or len(list(folder.glob("part-*.parquet"))) < number:
            assert process.returncode is None, process.stderr.read()
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = len(list(folder.glob("part-*.parquet")))
    result = CliRunner().invoke(app, [str(word) for word in command(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["parts"], report["this_call"]["parts"]) == (5, 5 - left) and not report["this_call"]["mended"]
    assert contents(folder) == expected


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink], ids=["cut", "flipped", "empty", "removed"])
@pytest.mark.parametrize("name", [PARTS[1], PARTS[-1], MANIFEST], ids=str)
def test_damage_is_mended_by_the_same_command(folder: Path, expected: dict[str, bytes], name: str, damage: Any) -> None:
    damage(folder / name)
    result = CliRunner().invoke(app, [str(word) for word in command(folder)], catch_exceptions=False)
    assert result.exit_code == 0 and contents(folder) == expected
    named = [] if damage is Path.unlink else [name]
    assert result.stderr.splitlines() == [f"{name} was damaged; made again" for name in named]
    call = json.loads(result.stdout)["this_call"]
    # Parts show by themselves that they are whole, so without a manifest none is made again.
    assert call["mended"] == named and call["parts"] == (name != MANIFEST)


def test_no_damaged_byte_of_a_part_passes_without_a_manifest(tmp_path: Path, expected: dict[str, bytes]) -> None:
    content, path = expected[PARTS[0]], tmp_path / PARTS[0]
    path.write_bytes(content)
    assert (found := read_part(path)) and found[1].sha256 == hashlib.sha256(content).hexdigest()
    for place in [*range(0, len(content), 97), *range(len(content) - 500, len(content), 7)]:
        changed = bytearray(content)
        changed[place] ^= 1 + place % 255
        path.write_bytes(changed)
        assert read_part(path) is None, place


@pytest.mark.parametrize("name", [PARTS[2], MANIFEST], ids=str)
def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on(
    tmp_path: Path, expected: dict[str, bytes], name: str
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    aside = aside_of(folder / name, MARK)
    # The kernel's own ENOSPC, where the file is to be written aside.
    aside.symlink_to("/dev/full")
    line = r"cannot write .*: No space left on device; finished parts are kept, and the same command goes on"
    with pytest.raises(InputError, match=line):
        make(folder)
    labels = make(folder)
    assert contents(folder) == expected
    assert labels.this_call is not None and labels.this_call.parts == (3 if name in PARTS else 5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for the manifest and half of the parts."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("needs a right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_in_the_middle_of_a_part_loses_no_whole_part(
    small_disk: Path, expected: dict[str, bytes]
) -> None:
    folder = small_disk / "parts"
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; finished parts are kept"):
        make(folder)
    left = [name for name in contents(folder) if name in PARTS]
    assert 0 < len(left) < len(PARTS) and all(contents(folder)[name] == expected[name] for name in left)
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    labels = make(folder)
    assert labels.this_call is not None and labels.this_call.parts == len(PARTS) - len(left)
    assert contents(folder) == expected


def test_no_flipped_bit_of_a_manifest_passes_or_looks_like_a_later_release(
    folder: Path, expected: dict[str, bytes]
) -> None:
    for place in range(0, len(expected[MANIFEST]), 3):
        changed = bytearray(expected[MANIFEST])
        changed[place] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(changed)
        # Some bits turn white space into other white space.
        if changed.split() != expected[MANIFEST].split():
            with pytest.raises(Damaged, match="makes it again"):
                read_manifest(folder)


@pytest.mark.parametrize("name", [PARTS[1], MANIFEST], ids=str)
@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_named_and_not_waited_for(
    folder: Path, expected: dict[str, bytes], name: str, place: Callable[[Path], None]
) -> None:
    (folder / name).unlink()
    place(folder / name)
    with pytest.raises(
        InputError, match=f"{name} is a folder, a device or a pipe, not a file; remove it, and the same"
    ):
        make(folder)
    with pytest.raises(InputError, match=f"{name} (is damaged or missing|cannot be read)"):
        part_files(folder)
    (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    make(folder)
    assert contents(folder) == expected


def test_a_part_under_another_name_is_not_left_for_readers(folder: Path, expected: dict[str, bytes]) -> None:
    (folder / PARTS[1]).rename(folder / "part-00009.parquet")
    with pytest.raises(InputError, match=r"part-00009.parquet is no part of this data set, .* remove it") as refusal:
        make(folder)
    assert "\n" not in str(refusal.value)
    (folder / "part-00009.parquet").rename(folder / PARTS[1])
    assert make(folder).num_parts == 5 and contents(folder) == expected


def test_a_part_of_another_data_set_is_to_be_removed(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    make(tmp_path / "other", seed=4, count=250)
    (folder / PARTS[1]).write_bytes((tmp_path / "other" / PARTS[0]).read_bytes())
    with pytest.raises(InputError, match=f"{PARTS[1]} was made with .* remove it, and the same command makes it again"):
        make(folder)
    (folder / PARTS[1]).unlink()
    make(folder)
    assert contents(folder) == expected


def test_a_folder_that_a_power_failure_left_empty_files_in_is_begun_again(
    folder: Path, expected: dict[str, bytes]
) -> None:
    for name in expected:
        empty(folder / name)
    labels = make(folder)
    assert labels.this_call is not None and labels.this_call.mended == [MANIFEST, *PARTS]
    assert contents(folder) == expected


def test_a_folder_that_was_moved_meanwhile_is_not_called_whole(
    folder: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for name in PARTS[2:]:
        (folder / name).unlink()
    moved = tmp_path / "moved"

    def move(done: int, total: int, note: str) -> None:
        if not moved.exists():
            folder.rename(moved)

    with pytest.raises(InputError, match=f"{PARTS[0]} was removed meanwhile; the same command makes it again"):
        make(folder, on_progress=move)
    assert not json.loads((moved / MANIFEST).read_text())["complete"]
    make(folder)
    assert contents(folder) == expected


def test_files_that_killed_processes_left_aside_are_removed_at_the_end(
    folder: Path, expected: dict[str, bytes]
) -> None:
    for name in (PARTS[1], MANIFEST):
        aside_of(folder / name, ".elsewhere-1").write_bytes(b"half")
    assert make(folder).this_call is not None and contents(folder) == expected


def test_a_card_beside_the_parts_of_a_data_set_stays(folder: Path, expected: dict[str, bytes]) -> None:
    (folder / "README.md").write_text("a card")
    (folder / PARTS[1]).unlink()
    make(folder)
    flip(folder / MANIFEST)
    make(folder)
    assert contents(folder) == {**expected, "README.md": b"a card"}


# Refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed = 3, not 4"),
        ({"digits": 6}, "digits = 5, not 6"),
        ({"count": 1101}, "count = 1100, not 1101"),
        ({"k": 3}, "filter.k = 2, not 3"),
        ({"hard_share": 0.1}, "hard_share"),
        ({"part_rows": 500}, "part_rows = 250, not 500"),
        ({"compression": "gzip"}, "compression = 'zstd', not 'gzip'"),
        ({"engine": "hf"}, "engine = 'native', not 'hf'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("lacks_manifest", [False, True], ids=["manifest", "parts alone"])
def test_other_settings_are_refused_and_nothing_is_lost(
    folder: Path, expected: dict[str, bytes], changes: dict[str, Any], named: str, lacks_manifest: bool
) -> None:
    if lacks_manifest:
        (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match=named) as refusal:
        make(folder, **changes)
    assert "choose another --out" in str(refusal.value) and "\n" not in str(refusal.value)
    assert contents(folder) == {name: expected[name] for name in expected if not lacks_manifest or name != MANIFEST}


def test_other_weights_are_refused(folder: Path, supervised_run: Path) -> None:
    with pytest.raises(InputError, match="weights_sha256"):
        sector.generate(supervised_run, out=folder, **ASKED)


@pytest.mark.parametrize("name", ["notes.txt", "part-00000.parquet", MANIFEST], ids=str)
def test_a_folder_of_other_files_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / name)
    before = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    with pytest.raises(InputError, match=f"is a directory that holds other files \\({name}\\)"):
        make(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == before


def test_files_of_others_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"is a directory that holds other files \(pipe\)"):
        make(tmp_path)


def test_the_root_of_all_folders_is_one_of_other_files() -> None:
    with pytest.raises(InputError, match="cannot write /: it is a directory that holds other files"):
        sector.generate(MODEL, out="/", **ASKED)


def test_a_folder_needs_the_slash_only_before_it_is_a_data_set(folder: Path, tmp_path: Path) -> None:
    labels = sector.generate(MODEL, out=folder, **ASKED)
    assert labels.this_call is not None and labels.this_call.parts == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it is a directory; name a file in it"):
        sector.generate(MODEL, out=tmp_path / "empty", **{**ASKED, "part_rows": None})
    assert not list((tmp_path / "empty").iterdir())


def test_a_second_command_on_one_folder_is_refused(folder: Path, expected: dict[str, bytes]) -> None:
    with locked(folder, "test"), forked(*command(folder)) as process:
        refusal = process.stderr.read()
    assert process.returncode == 2 and refusal.count("\n") == 1
    assert f"{folder} is in use by another `sector generate` (process " in refusal
    assert contents(folder) == expected


@pytest.mark.parametrize(
    ("out", "options", "named"),
    [
        ("new/", {"part_rows": 300}, "multiple of 250"),
        ("new/", {"part_rows": -250}, "multiple of 250"),
        ("new/", {"compression": "zip"}, "one of none, snappy, gzip, zstd"),
        ("one.parquet", {"part_rows": 250}, "for a folder"),
        ("one.parquet", {"part_rows": None, "compression": "zstd"}, "for a folder"),
    ],
    ids=["no whole blocks", "negative", "unknown compression", "part rows of a file", "compression of a file"],
)
def test_a_bad_form_is_refused_before_anything_is_written(
    tmp_path: Path, out: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        sector.generate(MODEL, out=f"{tmp_path}/{out}", **{**ASKED, **options})
    assert not list(tmp_path.iterdir())


# Readers


def test_other_libraries_read_the_folder(whole: Path, tmp_path: Path) -> None:
    problems = make(whole).table["problem"].to_pylist()
    assert pd.concat(map(pd.read_parquet, sorted(whole.glob("*.parquet")))).problem.tolist() == problems
    assert ds.dataset(whole, exclude_invalid_files=True).to_table()["problem"].to_pylist() == problems
    ignored = [".", MANIFEST]
    assert pd.read_parquet(whole, ignore_prefixes=ignored).problem.tolist() == problems
    assert pl.read_parquet(whole / "*.parquet")["problem"].to_list() == problems
    read = duckdb.sql(f"select problem from read_parquet('{whole}/') order by index").fetchall()
    assert [problem for (problem,) in read] == problems
    assert load_dataset(str(whole), split="train", cache_dir=str(tmp_path))["problem"][:] == problems


def test_a_report_shows_counts_settings_and_rows(folder: Path, expected: dict[str, bytes]) -> None:
    result = CliRunner().invoke(app, ["report", str(folder), "--json"], catch_exceptions=False)
    values, labels = json.loads(result.stdout), make(folder)
    assert values["page"] == f"{folder}.html" and values["runs"] == values["pictures"] == []
    assert values["dataset"]["rejected"] == labels.counts.rejected and values["dataset"]["settings"]["seed"] == 3
    page, first = Path(values["page"]).read_text(), labels.table.slice(0, 1).to_pylist()[0]
    assert all(f"<code>{first[key]}</code>" in page for key in ("problem", "answer", "simplification"))
    assert "1,100" in page and f"{labels.table.num_rows:,}" in page and "<code>filter.k</code>" in page
    assert contents(folder) == expected
    cut(folder / PARTS[0])
    refused = CliRunner().invoke(app, ["report", str(folder)])
    assert refused.exit_code == 2 and f"{PARTS[0]} is damaged" in refused.stderr
    assert CliRunner().invoke(app, ["report", str(folder), str(folder)]).exit_code == 2
    part = CliRunner().invoke(app, ["report", str(folder / PARTS[1])])
    assert part.exit_code == 2 and f"is a file of a data set; name its folder, {folder}" in part.stderr


def test_the_table_tells_the_whole_from_this_call(folder: Path) -> None:
    def said() -> str:
        result = CliRunner().invoke(
            app, [str(word) for word in command(folder) if word != "--json"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.stdout

    complete = said()
    assert "complete before this call" in complete and "(5 parts)" in complete and "tokens/s" not in complete
    (folder / PARTS[2]).unlink()
    assert "rates are of this call, which made 1 part\n" in said().replace("\n ", " ")


def test_an_incomplete_or_damaged_folder_is_not_read(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in part_files(folder)] == PARTS
    cut(folder / PARTS[3])
    with pytest.raises(InputError, match=f"{PARTS[3]} is damaged or missing; .* makes it again"):
        part_files(folder)
    aside_of(folder / PARTS[3], MARK).symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space"):
        make(folder)
    with pytest.raises(InputError, match="is not complete"):
        part_files(folder)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        part_files(tmp_path)


def test_names_of_parts_sort_in_their_order() -> None:
    settings = DatasetSettings.model_construct(count=250 * 200_000, part_rows=250)
    names = [settings.file_of(start) for start in (0, 250, 250 * 99_999, 250 * 199_999)]
    assert names == sorted(names) and names[0] == "part-000000.parquet"


# Memory


@pytest.fixture
def fast_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without a model, that keeps no record."""

    class Forgetful(Scripted):
        def sample(self, *arguments: Any) -> list[torch.Tensor]:
            self.asked, self.stages = [], []
            return super().sample(*arguments)

    monkeypatch.setattr(request, "make_sampler", lambda *_: Forgetful())


def _peak(folder: Path, count: int) -> int:
    """Most bytes that objects of Python took while a folder was made."""
    tracemalloc.start()
    try:
        make(folder, digits=3, count=count, filter="none", k=1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("fast_engine")
def test_memory_does_not_grow_with_the_count(tmp_path: Path) -> None:
    _peak(tmp_path / "warm", 500)
    few, many = _peak(tmp_path / "few", 500), _peak(tmp_path / "many", 10_000)
    # What grows is the list of parts: 4 KB each, where the rows of a part take 250 KB.
    assert many - few < 38 * 8_000
    assert pa.default_memory_pool().bytes_allocated() < 2**20
