"""The picture of a run: the live view, whole, in one file that needs no other."""

import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sector.cli._picture import at_the_end_of, svg
from sector.engine.errors import InputError
from sector.engine.run.directory import RunDir

ROOT = Path(__file__).parents[1]


def _texts(picture: str) -> list[str]:
    """Return the texts of a picture, line by line."""
    lines: dict[float, str] = {}
    for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text"):
        height = float(each.get("y", 0))
        lines[height] = f"{lines.get(height, '')}{unescape(each.text or '')}".replace("\N{NO-BREAK SPACE}", " ")
    return [lines[height] for height in sorted(lines)]


def _check_whole(picture: str) -> None:
    assert re.findall(r"https?:[^\"'<) ]*", picture) == ["http://www.w3.org/2000/svg"]
    assert "@font-face" not in picture and "@import" not in picture and len(picture) < 60_000
    # Nothing refers to what is not there: a line without its clip is drawn by some viewers only.
    assert set(re.findall(r"url\(#([^)]+)\)", picture)) <= set(re.findall(r'id="([^"]+)"', picture))


def test_the_live_view_of_a_finished_run_is_whole(finished_run: Path) -> None:
    tally = at_the_end_of(RunDir(finished_run))
    picture = svg(tally, "runs/<here>")
    _check_whole(picture)
    lines = _texts(picture)
    assert "sector run --out runs/<here>" in lines and lines[0].startswith("sector  runs/<here>")
    text = "\n".join(lines)
    # The round but one: bars of both kinds, a row a round so far, and both speeds.
    assert "7 of 8 digits" in text and "Distilling 7 digits" in text and text.count("\u2501") > 20
    assert [line.split()[0] for line in lines if line.strip()[:1] in "67" and "%" in line] == ["6", "7"]
    assert re.search(r"generated [\d,]+ +trained [\d,]+", text)
    with pytest.raises(InputError, match="no round at 9 digits"):
        at_the_end_of(RunDir(finished_run), 9)
    assert "8 of 8 digits" in "\n".join(_texts(svg(at_the_end_of(RunDir(finished_run), 8), "runs/first")))


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/images/*.svg")), ids=lambda path: path.name)
def test_pictures_of_the_repository_need_no_network(path: Path) -> None:
    picture = path.read_text(encoding="utf-8")
    _check_whole(picture)
    assert any("29 digits" in line for line in _texts(picture))
