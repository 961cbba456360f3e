"""The picture of a run: frames out of what a live view wrote to a terminal."""

import sys

from sector.benchmarks.picture import frames, record, svg

LIVE = """
import time
from rich.console import Console
from rich.live import Live
from rich.text import Text

with Live(console=Console(), auto_refresh=False) as live:
    for step in range(3):
        live.update(Text(f"frontier {step}\\nsecond line", style="green"), refresh=True)
"""


def test_frames_of_a_real_live_view() -> None:
    shown = frames(record([sys.executable, "-c", LIVE]))
    steps = [frame for frame in shown if "frontier" in frame]
    assert [f"frontier {step}" in steps[step] for step in range(3)] == [True] * 3
    assert all("second line" in frame for frame in steps)
    picture = svg(steps[2], "sector run <here>")
    assert picture.startswith("<svg") and "frontier" in picture and "&lt;here&gt;" in picture
