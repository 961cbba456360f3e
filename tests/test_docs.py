"""The pages name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "log.md"),
    ROOT / "benchmarks" / "results" / "README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_names_of_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    tests = re.findall(r"\btests?/(test_[a-z]\w+\.py)|`(test_[a-z]\w+\.py)`", text)
    code = re.findall(r"`((?:engine|kernels|cli|benchmarks|tests|docs)/[\w./]+\.\w+)`", text)
    named = [page.parent / link for link in links]
    named += [ROOT / "tests" / (first or second) for first, second in tests]
    named += [ROOT / path for path in code]
    missing = sorted({str(path) for path in named if not path.exists()})
    assert not missing


def test_there_are_pages() -> None:
    assert len(PAGES) > 25
