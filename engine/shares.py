"""Shares: their Wilson intervals, and their text in percent, by one rule for commands, plots and reports.

Rounding never gives 100 % unless the share is 1, nor 0 % unless it is 0.
"""

from collections.abc import Iterable, Sequence

# Shares closer than this are equal. Means of shares have rounding errors below it; one problem in a million is above.
_EQUAL = 1e-9
_MOST_PLACES = 7


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return lower and upper end of the Wilson score interval at 95 % of the share `count / of`."""
    # Imported here, since `sector --help` imports this module and scipy takes most of a second.
    from scipy.stats import binomtest

    low, high = binomtest(count, of).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def hundredths(share: float, places: int = 1, unlike: Sequence[float] = ()) -> str:
    """Format a share in percent without the sign, as `98.3`.

    places: decimal places; more are used if the text would otherwise read as 0, as 100 or like a share in `unlike`.
    unlike: shares that the text is compared with.
    """
    marks = [mark for mark in (0.0, 1.0, *unlike) if abs(share - mark) > _EQUAL]
    for more in range(places, _MOST_PLACES):
        text = f"{100 * share:.{more}f}"
        if all(float(text) != float(f"{100 * mark:.{more}f}") for mark in marks):
            return text
    return f"{100 * share:.{_MOST_PLACES}f}"


def common_places(shares: Iterable[float]) -> int:
    """Return the decimal places, at least one, with which all shares of a table follow the rule of `hundredths`."""
    return max([1, *(len(hundredths(share).partition(".")[2]) for share in shares)])


def percent(share: float | None, places: int = 1, unlike: Sequence[float] = ()) -> str:
    """Format a share as `98.3 %`, by the rule of `hundredths`; None, not measured, as a dash."""
    return "-" if share is None else f"{hundredths(share, places, unlike)} %"
