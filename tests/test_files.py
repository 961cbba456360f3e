"""Text files of any editor: read as they were written, or refused in one line."""

from pathlib import Path

import pytest

from sector.engine.errors import InputError
from sector.engine.files import check_writable, decoded, read_text, write_atomically
from sector.engine.run.locks import locked

TEXT = "1+2\r\n3+4\n"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"],
    ids=str,
)
def test_any_encoding_that_tells(encoding: str) -> None:
    assert decoded(TEXT.encode(encoding), "f") == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"], ids=str)
def test_either_end_first(encoding: str) -> None:
    assert decoded(("\ufeff" + TEXT).encode(encoding), "f") == TEXT


@pytest.mark.parametrize(
    "content", [b"\xff1+2", b"1+2\n\xe9", b"\xfe\xff1", b"\xff\xfe1", b"\x89PNG\r\n\x1a\n"], ids=ascii
)
def test_what_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"f is not a text file in UTF-8 \(byte \d+\)"):
        read_text(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(InputError, match="cannot read"):
            read_text(path)


def test_zeros_alone_are_no_encoding() -> None:
    assert decoded(b"1\0+2", "f") == "1\0+2" and decoded(b"\0\0", "f") == "\0\0" and decoded(b"", "f") == ""


def test_looking_whether_a_place_can_be_written_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "file")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / "file" / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_processes_may_write_one_file_at_a_time(tmp_path: Path) -> None:
    """With a mark of its own, neither takes the file that the other has begun."""
    path = tmp_path / "f"

    def write(aside: Path) -> None:
        aside.write_text("hal")
        write_atomically(path, lambda other: other.write_text("whole"), mark=".b")
        assert path.read_text() == "whole"
        aside.write_text("half and half")

    write_atomically(path, write, mark=".a")
    assert path.read_text() == "half and half" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["s3://bucket/run", "s3://bucket", "file:///tmp/run"], ids=["folder", "bucket", "file"]
)
def test_an_address_is_not_taken_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"it is an address, .* name a path of this machine"):
        check_writable(Path(name), folder=True)
    with pytest.raises(InputError, match="it is an address"), locked(Path(name), "run"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "s3:").mkdir()
    check_writable(Path("s3:/bucket"))


def test_a_folder_that_is_there_is_tried_itself(tmp_path: Path) -> None:
    # A long name leaves no room for that of a file aside.
    long = tmp_path / ("x" * 250)
    long.mkdir()
    check_writable(long, folder=True)
    check_writable(Path("/"), folder=True)
    assert not list(long.iterdir())
