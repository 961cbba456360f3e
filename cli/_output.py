"""One sink for what commands have to say: data on stdout, as JSON or for people; talk on stderr."""

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Output:
    """as_json: machines read stdout, one object a line."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # As it is now: while workers are there, what others print goes to stderr.
        self._stdout = sys.stdout
        self.console = Console(highlight=False, file=self._stdout)
        self._talk = Console(stderr=True, highlight=False)

    @property
    def is_live(self) -> bool:
        """Is someone watching a terminal that can be drawn on?"""
        console = self.console
        return console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")

    def data(self, values: dict[str, Any], view: Callable[[], RenderableType]) -> None:
        """The result: the values as JSON, or a view of them for people."""
        if self.as_json:
            self.line(values)
        else:
            self.console.print(view())

    def line(self, values: dict[str, Any]) -> None:
        """One JSON object, at once."""
        print(json.dumps(values), file=self._stdout, flush=True)

    def text(self, text: str) -> None:
        """A line of the result, never wrapped, at once."""
        print(text, file=self._stdout, flush=True)

    def say(self, text: str) -> None:
        """Talk."""
        self._talk.print(text, soft_wrap=True, markup=False)

    def progress(self, title: str) -> "Bar":
        """A bar on stderr while something takes its time; nothing where nobody watches."""
        return Bar(self._talk, title)


class Bar:
    """A progress bar that is told how far things are; gone when done."""

    def __init__(self, console: Console, title: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=None, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def at(self, done: int, total: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, note=note)

    def note(self, note: str) -> None:
        self._progress.update(self._task, note=note)


def clock(seconds: float) -> str:
    """`4:05`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(share: float | None, places: int = 1) -> str:
    """`98.3 %`; a dash for what was not measured."""
    return "-" if share is None else f"{100 * share:.{places}f} %"
