"""Output of commands: data on stdout, as JSON or as text; messages on stderr.

All strings are printed literally: names and texts of users are never read as markup or terminal codes.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sector.cli._streams import printable
from sector.engine.training.torchrun import leads

# Longest silence of a command without a terminal.
SILENCE_SECONDS = 10.0
# Smallest terminal that the live view fits.
LIVE_COLUMNS, LIVE_LINES = 80, 24


class PlainConsole(Console):
    """Console that prints strings literally; styled output is a Text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text, keep="\n"), **settings)

    def on_broken_pipe(self) -> None:
        raise


class Output:
    """Sink of one command.

    as_json: print data as JSON, one object per line.
    console: console on stdout.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # Keep the real stdout: while workers run, `sys.stdout` is redirected to stderr.
        self._stdout = sys.stdout
        self.console = PlainConsole(file=self._stdout)
        self._messages = PlainConsole(stderr=True)

    @property
    def is_live(self) -> bool:
        """Whether stdout is a terminal that can show the live view."""
        console = self.console
        drawable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
        return drawable and console.width >= LIVE_COLUMNS and console.height >= LIVE_LINES

    @property
    def shows_bars(self) -> bool:
        """Whether stderr is a terminal, on which progress is a bar."""
        return self._messages.is_terminal

    def data(self, values: Mapping[str, object], view: Callable[[], RenderableType]) -> None:
        """Print the result: values as JSON, or a view of them. Lines of a view that is a string are never wrapped."""
        if self.as_json:
            self.line(values)
            return
        shown = view()
        if isinstance(shown, str):
            for line in shown.split("\n"):
                self.text(line)
        else:
            # A console cuts lines at its own width, so a wider table needs a wider console.
            width = max(self.console.width, _unwrapped_width(self.console, shown))
            PlainConsole(file=self._stdout, width=width, height=self.console.height).print(shown, crop=False)

    def line(self, values: Mapping[str, object]) -> None:
        """Print one JSON object, and flush."""
        # DEL is the only control character that JSON does not escape. It can only occur inside a string.
        print(json.dumps(values).replace("\x7f", "\\u007f"), file=self._stdout, flush=True)

    def text(self, text: str) -> None:
        """Print a line of the result without wrapping it, and flush."""
        print(printable(text), file=self._stdout, flush=True)

    def say(self, text: str) -> None:
        """Print a message on stderr. If stderr cannot be written, drop the message."""
        with suppress(OSError):
            self._messages.print(text, soft_wrap=True)

    def progress(self, title: str) -> "Bar":
        """Return a progress display on stderr."""
        return Bar(self, self._messages, title)


class Bar:
    """Progress display: a bar on a terminal, which disappears at the end; elsewhere a line every SILENCE_SECONDS."""

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
        self._on_terminal = console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True, disable=not self._on_terminal)
        self._task = self._progress.add_task(printable(title), total=None, note="")
        self._timer = every(SILENCE_SECONDS, self._print_line)

    def __enter__(self) -> "Bar":
        self._progress.start()
        if not self._on_terminal and leads():
            self._timer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if not self._on_terminal and leads():
            self._timer.__exit__(None, None, None)

    def at(self, done: int, total: int, note: str = "") -> None:
        """Show the progress: steps done of a total, and a note."""
        self._done, self._total, self._note = done, total, note
        self._progress.update(self._task, completed=done, total=total, note=printable(note))

    def note(self, note: str) -> None:
        """Change only the note."""
        self._note = note
        self._progress.update(self._task, note=printable(note))

    def _print_line(self) -> None:
        progress = f"{self._done} of {self._total}" if self._total else ""
        details = ", ".join(part for part in (progress, self._note) if part)
        title = f"{self._title}: {details}" if details else self._title
        self._output.say(f"[{clock(time.perf_counter() - self._start)}] {title}")


@contextmanager
def every(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` every `seconds` from another thread while the block runs."""
    done = threading.Event()

    def call_repeatedly() -> None:
        while not done.wait(seconds):
            act()

    thread = threading.Thread(target=call_repeatedly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def clock(seconds: float) -> str:
    """Return a time as `4:05`, or as `1:02:03` from one hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table(*columns: str, **style: Any) -> Table:
    """Return a table with a column of names on the left and columns of figures on the right; no cell is wrapped."""
    made = Table(**{"header_style": "bold", "pad_edge": False, "box": None, **style})
    for column in columns:
        made.add_column(column, justify="left" if column == columns[0] else "right", no_wrap=True)
    return made


def unwrapped(text: str, style: str = "") -> Text:
    """Return a line that is never wrapped, so that a name in it can be copied."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ignore")


def _unwrapped_width(console: Console, view: RenderableType) -> int:
    """Return the width of the widest table whose cells may not be wrapped or cut; 0 without one."""
    if isinstance(view, Group):
        return max((_unwrapped_width(console, part) for part in view.renderables), default=0)
    if isinstance(view, Table) and all(column.no_wrap for column in view.columns):
        # Measured without the bound of the terminal.
        return Measurement.get(console, console.options.update(width=100_000), view).maximum
    return 0
