"""One sink for what commands have to say: data on stdout, as JSON or for people; talk on stderr.

All of it is shown as text: names and texts of users hold no markup, and obey no terminal.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sector.cli._streams import printable
from sector.engine.training.torchrun import leads

# The longest that anything is silent where nobody watches a bar.
SILENCE_SECONDS = 10.0
# What the live view is laid out for.
LIVE_COLUMNS, LIVE_LINES = 80, 24


class PlainConsole(Console):
    """Prints every string as it is; what is to have a style is a Text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **settings)

    def on_broken_pipe(self) -> None:
        raise


class Output:
    """as_json: machines read stdout, one object a line."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # As it is now: while workers are there, what others print goes to stderr.
        self._stdout = sys.stdout
        self.console = PlainConsole(file=self._stdout)
        self._talk = PlainConsole(stderr=True)

    @property
    def is_live(self) -> bool:
        """Is someone watching a terminal that can be drawn on?"""
        console = self.console
        drawable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
        return drawable and console.width >= LIVE_COLUMNS and console.height >= LIVE_LINES

    def data(self, values: dict[str, Any], view: Callable[[], RenderableType]) -> None:
        """The result: the values as JSON, or a view of them for people. Lines of a text are never wrapped."""
        if self.as_json:
            self.line(values)
            return
        shown = view()
        if isinstance(shown, str):
            for line in shown.split("\n"):
                self.text(line)
        else:
            # A console prints no wider than it is, whatever it is asked for.
            width = max(self.console.width, _width_of_figures(self.console, shown))
            PlainConsole(file=self._stdout, width=width, height=self.console.height).print(shown, crop=False)

    def line(self, values: dict[str, Any]) -> None:
        """One JSON object, at once."""
        # The one control character that JSON leaves alone; it can only be inside of a string.
        print(json.dumps(values).replace("\x7f", "\\u007f"), file=self._stdout, flush=True)

    def text(self, text: str) -> None:
        """A line of the result, never wrapped, at once."""
        print(printable(text), file=self._stdout, flush=True)

    def say(self, text: str) -> None:
        """Talk. Where nobody can hear it, it is lost, and the work goes on."""
        with suppress(OSError):
            self._talk.print(text, soft_wrap=True)

    def progress(self, title: str) -> "Bar":
        """On stderr while something takes its time: a bar on a terminal, now and then a line elsewhere."""
        return Bar(self, self._talk, title)


class Bar:
    """Told how far things are, it shows it; a bar is gone when done."""

    def __init__(self, output: Output, console: Console, title: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._output, self._title, self._start = output, title, time.perf_counter()
        self._done, self._total, self._note = 0, 0, ""
        self._watched = console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True, disable=not self._watched)
        self._task = self._progress.add_task(printable(title), total=None, note="")
        self._beat = every(SILENCE_SECONDS, self._say)

    def __enter__(self) -> "Bar":
        self._progress.start()
        if not self._watched and leads():
            self._beat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if not self._watched and leads():
            self._beat.__exit__(None, None, None)

    def at(self, done: int, total: int, note: str = "") -> None:
        self._done, self._total, self._note = done, total, note
        self._progress.update(self._task, completed=done, total=total, note=printable(note))

    def note(self, note: str) -> None:
        self._note = note
        self._progress.update(self._task, note=printable(note))

    def _say(self) -> None:
        """Where it stands, as a line."""
        far = f"{self._done} of {self._total}" if self._total else ""
        said = ", ".join(part for part in (far, self._note) if part)
        self._output.say(f"[{clock(time.perf_counter() - self._start)}] {self._title}{': ' * bool(said)}{said}")


@contextmanager
def every(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` so often while the block runs, whatever that is busy with; from another thread."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(seconds):
            act()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def clock(seconds: float) -> str:
    """`4:05`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def unwrapped(text: str, style: str = "") -> Text:
    """A line that stays one, however long: names are there to be copied."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ignore")


def _width_of_figures(console: Console, view: RenderableType) -> int:
    """Columns that tables take of which no cell may be wrapped or cut."""
    if isinstance(view, Group):
        return max((_width_of_figures(console, part) for part in view.renderables), default=0)
    if isinstance(view, Table) and all(column.no_wrap for column in view.columns):
        # Without a bound, the table says how much it would like.
        return Measurement.get(console, console.options.update(width=100_000), view).maximum
    return 0
