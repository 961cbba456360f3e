"""Shares in words: 100 % only where all are right, 0 % only where none is wrong."""

from statistics import fmean

import pytest

from sector.engine.shares import common_places, hundredths, percent


@pytest.mark.parametrize(
    ("shares", "places"),
    [([], 1), ([1.0, 0.5, 0.0], 1), ([1.0, 0.9996, 0.5], 2), ([0.99997, 0.9996], 3)],
    ids=str,
)
def test_a_table_has_the_places_of_its_finest_share(shares: list[float], places: int) -> None:
    assert common_places(shares) == places


@pytest.mark.parametrize(
    ("share", "places", "text"),
    [
        (1.0, 1, "100.0 %"),
        (0.0, 2, "0.00 %"),
        (0.983, 1, "98.3 %"),
        (0.9, 0, "90 %"),
        (0.9996, 1, "99.96 %"),
        (0.996, 0, "99.6 %"),
        (0.9999996, 1, "99.99996 %"),
        (2 / 24_833, 2, "0.01 %"),
        (2 / 124_833, 2, "0.002 %"),
        (1.214, 1, "121.4 %"),
        (None, 1, "-"),
    ],
    ids=str,
)
def test_rounding_hides_no_error(share: float | None, places: int, text: str) -> None:
    assert percent(share, places) == text


@pytest.mark.parametrize("problems", [3, 100, 999, 10_000, 1_000_000], ids=str)
@pytest.mark.parametrize("places", [0, 1, 2])
def test_one_error_is_always_seen_and_none_never(problems: int, places: int) -> None:
    assert float(hundredths(1 - 1 / problems, places)) < 100 and float(hundredths(1 / problems, places)) > 0
    assert float(hundredths(1 - 0 / problems, places)) == 100


def test_a_mean_of_shares_is_not_above_all_of_them() -> None:
    shares = [1.0] * 28 + [0.99]
    assert (percent(fmean(shares)), percent(min(shares))) == ("99.97 %", "99.0 %")
    # Sums of floats that are all one, but for rounding.
    assert percent(0.1 + 0.2 + 0.7 - 1e-16) == "100.0 %"


def test_what_is_less_than_its_bound_is_shown_so() -> None:
    assert percent(0.8996, unlike=[0.9]) == "89.96 %" and percent(0.9, unlike=[0.9]) == "90.0 %"
