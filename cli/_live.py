"""Live view of a run on a terminal of 80x24 or more: progress, accuracy by length, and the last rounds."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sector.cli._output import SILENCE_SECONDS, clock, every
from sector.cli._streams import Unwritable, printable
from sector.engine.run.events import Event, Generated, TrainingStep
from sector.engine.run.stop_signals import HINT, Stopping
from sector.engine.shares import percent

if TYPE_CHECKING:
    from sector.cli._tally import Tally
    from sector.engine.run.records import RoundMetrics

# Shortest time between frames. The trainer waits while a frame is drawn.
FRAME_SECONDS = 1.0
# Lines of the view besides the rows of rounds: all other parts, and the line of the cursor.
_OTHER_LINES = 18
# Least accuracy for a block and its colour. Steps are finer near 1, where small differences matter.
_BLOCKS = (
    (0.995, "█", "green"),
    (0.99, "▇", "green"),
    (0.98, "▆", "green"),
    (0.95, "▅", "yellow"),
    (0.9, "▄", "yellow"),
    (0.8, "▃", "red"),
    (0.5, "▂", "red"),
    (0.0, "▁", "red"),
)


class LiveView:
    """Live view that is redrawn on events, at most once per FRAME_SECONDS. The last frame stays on screen."""

    def __init__(self, console: Console, title: str, tally: "Tally", stopping: Stopping) -> None:
        self._console, self._title, self._tally, self._stopping = console, title, tally, stopping
        self._live = Live(console=console, auto_refresh=False)
        self._last, self._notice = 0.0, ""
        self._timer = every(FRAME_SECONDS, self._draw_if_silent)

    def __enter__(self) -> Self:
        self._stopping.is_shown = True
        self._live.start()
        self._draw()
        self._timer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.__exit__(None, None, None)
        self._stopping.is_shown = False
        self._draw()
        self._live.stop()

    def show(self, event: Event) -> None:
        if not isinstance(event, TrainingStep | Generated) or time.perf_counter() - self._last > FRAME_SECONDS:
            self._draw()

    def _draw_if_silent(self) -> None:
        """Redraw after Ctrl-C, and after long without an event, so that the clock moves."""
        is_new = self._stopping.interrupted and not self._notice
        if is_new or time.perf_counter() - self._last > SILENCE_SECONDS:
            # If the terminal is gone, the next event fails in the same way and reports it.
            with suppress(Unwritable):
                self._draw()

    def _draw(self) -> None:
        # Not in the last frame, which stays.
        self._notice = HINT if self._stopping.interrupted and self._stopping.is_shown else ""
        shown = frame(self._title, self._tally, self._console.width, self._console.height, self._notice)
        self._live.update(shown, refresh=True)
        self._last = time.perf_counter()


def frame(title: str, tally: "Tally", width: int, height: int, notice: str = "") -> RenderableType:
    """Return one frame of the view, for a terminal of `width` columns and `height` lines.

    notice: line that replaces the tally's note.
    """
    note = Text(notice, style="bold yellow") if notice else Text(printable(tally.note), style="dim")
    parts: list[RenderableType] = [_header(title, tally, width - 2), "", _bars(tally), note, ""]
    if tally.rounds:
        parts += [
            *_accuracies(tally.rounds[-1], width - 2),
            "",
            _rounds(tally.rounds, max(1, height - _OTHER_LINES)),
            "",
        ]
    return Padding(Group(*parts, _speeds(tally)), (0, 1))


def _header(title: str, tally: "Tally", width: int) -> Table:
    left = tally.seconds_left()
    times = Text(clock(tally.seconds), style="bold")
    if left:
        times = Text.assemble(times, ("  about ", "dim"), clock(left), (" left", "dim"))
    name = Text.assemble(("sector  ", "bold"), printable(title))
    # Cut a long name rather than the times.
    name.truncate(width - len(times) - 1, overflow="ellipsis")
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(name, times)
    return grid


def _bars(tally: "Tally") -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True, min_width=23)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    steps = tally.until - tally.first
    frontier = ProgressBar(steps, max(0, tally.frontier - tally.first), complete_style="green", finished_style="green")
    grid.add_row("Frontier", frontier, f"{tally.frontier or '-'} of {tally.until} digits")
    phase = ProgressBar(tally.of, tally.done, complete_style="cyan", finished_style="cyan")
    share = f"{100 * tally.done / tally.of:.0f} %"
    grid.add_row(tally.phase, phase, share)
    return grid


def _accuracies(line: "RoundMetrics", width: int) -> list[RenderableType]:
    """Return a line of blocks, one per length, above an axis of lengths and a legend."""
    cell = 2 if 2 * len(line.accuracy) <= width else 1
    shown = list(line.accuracy.items())[-(width // cell) :]
    blocks, axis = Text(no_wrap=True), ""
    for index, (digits, share) in enumerate(shown):
        block, color = next((block, color) for least, block, color in _BLOCKS if share >= least)
        blocks.append((block * cell)[: cell - 1 or 1] + " " * (cell - 1), style=color)
        if digits in (1, line.digits) or (digits % 5 == 0 and abs(digits - line.digits) > 2):
            axis = axis.ljust(index * cell) + str(digits)
    legend = Text.assemble(("direct answers, accuracy by length  ", "bold"))
    for least, block, color in _BLOCKS[:-1]:
        legend.append(block, style=color)
        legend.append(f" {100 * least:g}  ", style="dim")
    return [blocks, Text(axis, style="dim", no_wrap=True), legend]


def _rounds(rounds: "list[RoundMetrics]", count: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in ("round", "accepted", "thought", "label error", "fast error", "next agrees", "cycles", "seconds"):
        # One word per line, so that all columns fit into 80 characters.
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
    for line in rounds[-count:]:
        table.add_row(
            str(line.digits),
            percent(line.accepted / line.tried if line.is_round else None),
            percent(line.thought_through / line.tried if line.is_round else None),
            percent(line.label_error, 2),
            percent(line.fast_label_error),
            percent(line.next_agreement),
            str(line.cycles),
            f"{line.seconds_generate + line.seconds_train + line.seconds_audit:.0f}",
        )
    return table


def _speeds(tally: "Tally") -> Text:
    text = Text("tokens/s   ", style="dim")
    for name, speed in (("generated", tally.generated_per_s), ("trained", tally.trained_per_s)):
        text.append(f"{name} ", style="dim")
        text.append(f"{speed:,.0f}   " if speed is not None else "-   ", style="default")
    return text
