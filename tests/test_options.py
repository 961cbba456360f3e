"""What options take: lists of lengths."""

import pytest

from sector.cli._options import parse_lengths
from sector.engine.errors import InputError


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("7", [7]), ("1-4", [1, 2, 3, 4]), ("3,5,8-10", [3, 5, 8, 9, 10]), (" 2 , 2-3", [2, 3])],
    ids=str,
)
def test_lengths(text: str, lengths: list[int]) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "a", "3-2", "1,,2", "1--2", "9" * 5000], ids=lambda text: text[:6]
)
def test_no_lengths(text: str) -> None:
    with pytest.raises(InputError):
        parse_lengths(text)
