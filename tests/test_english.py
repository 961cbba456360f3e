"""Docstrings name things by their nouns. A floor, not the aim: reading them aloud is no test."""

from pathlib import Path

from sector.benchmarks.house import CLAUSES, docstrings

ROOT = Path(__file__).parents[1]
MOST = 0.03


def test_docstrings_name_things_by_their_nouns() -> None:
    found = list(docstrings(ROOT))
    clauses = [f"{place}: {text.splitlines()[0]}" for place, text in found if CLAUSES.search(text)]
    assert len(found) > 1000
    assert len(clauses) <= MOST * len(found), "\n".join(clauses)
