"""Names at the ends of lines: each once, in the order of the ends, apart from each other and within the axes."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sector.engine.report.charts import CELL_COLORS, draw_chart
from sector.engine.report.line_names import _spread

GAP = 0.04


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_names_stand_apart_and_within_the_axes(ends: list[float]) -> None:
    places = _spread(sorted(ends, reverse=True), GAP)
    assert all(upper - lower >= GAP - 1e-9 for upper, lower in pairwise(places))
    assert places[-1] >= -1e-9 and places[0] <= 1 + 1e-9


def test_a_name_alone_stands_at_its_end() -> None:
    assert _spread([0.9, 0.5, 0.1], GAP) == [0.9, 0.5, 0.1]


@pytest.mark.parametrize("count", [len(CELL_COLORS), len(CELL_COLORS) + 1], ids=["legend", "names"])
def test_more_lines_than_colours_have_names_at_their_ends(count: int) -> None:
    def fill(axes: Any) -> None:
        for index in range(count):
            axes.plot([1, 2], [index, index], label=f"cell {index}")
            axes.axhline(index)

    chart = draw_chart("lines", "Lines", "", fill)
    for picture in (chart.wide, chart.narrow):
        assert [picture.count(f">cell {index}<") for index in range(count)] == [1] * count
        assert ("legend" in picture) == (count == len(CELL_COLORS))
