"""Shares as people read them: one rule for commands, pictures and reports.

Rounding never says more than is so: 100 % stands only where all are right, and 0 % only where none is wrong.
"""

from collections.abc import Sequence

# Closer than this is equal: means of shares carry an error of rounding, a share of a million problems does not.
_EQUAL = 1e-9
_MOST_PLACES = 7


def hundredths(share: float, places: int = 1, unlike: Sequence[float] = ()) -> str:
    """`98.3`: a share in percent, without the sign; with more places where these would round it to 0, 100 or `unlike`.

    unlike: shares that it is compared with in the same breath.
    """
    marks = [mark for mark in (0.0, 1.0, *unlike) if abs(share - mark) > _EQUAL]
    for more in range(places, _MOST_PLACES):
        text = f"{100 * share:.{more}f}"
        if all(float(text) != float(f"{100 * mark:.{more}f}") for mark in marks):
            return text
    return f"{100 * share:.{_MOST_PLACES}f}"


def percent(share: float | None, places: int = 1, unlike: Sequence[float] = ()) -> str:
    """`98.3 %`; a dash for what was not measured. See `hundredths`."""
    return "-" if share is None else f"{hundredths(share, places, unlike)} %"
