"""Names at the ends of the lines of a chart, for charts with more lines than a legend has colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Size of the names in points, their height and the width of a letter in inches.
_POINTS, _ROW, _LETTER = 7, 0.118, 0.062
# Gap between lines and names in inches.
_GAP = 0.22


def named_lines(axes: Axes) -> list[Line2D]:
    """Return the lines of a chart that have names; dots have none."""
    return [line for line in axes.get_lines() if not _name(line).startswith("_") and line.get_linestyle() != "None"]


def margin_of(axes: Axes) -> float:
    """Return the width in inches that the names take."""
    return _GAP + _LETTER * max((len(_name(line)) for line in named_lines(axes)), default=0)


def name_lines(axes: Axes, width: float, height: float) -> None:
    """Write the name of each line to the right of the axes, as high as its end, or as near to it as there is room.

    width: width of the axes in inches.
    height: height of the axes in inches.
    """
    ends = sorted(((_end_of(axes, line), line) for line in named_lines(axes)), key=lambda each: -each[0][1])
    for (end, line), place in zip(ends, _spread([end[1] for end, _ in ends], _ROW / height), strict=True):
        axes.annotate(
            _name(line),
            xy=end,
            xytext=(1 + _GAP / width, place),
            xycoords="axes fraction",
            va="center",
            color=line.get_color(),
            fontsize=_POINTS,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "lw": 0.4,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0, 0.5),
            },
        )


def _name(line: Line2D) -> str:
    return str(line.get_label())


def _end_of(axes: Axes, line: Line2D) -> tuple[float, float]:
    """Return the last point of a line, in shares of the axes."""
    x, y = axes.transAxes.inverted().transform(line.get_transform().transform(np.asarray(line.get_xydata())[-1]))
    return float(x), min(max(float(y), 0.0), 1.0)


def _spread(heights: list[float], gap: float) -> list[float]:
    """Return heights in their order, which falls, moved apart to at least `gap`, and no lower than the rest needs."""
    places: list[float] = []
    for index, height in enumerate(heights):
        # Room for the names below.
        lowest = gap * (len(heights) - 1 - index)
        place = max(height, lowest)
        places.append(min(place, places[-1] - gap) if places else place)
    return places
