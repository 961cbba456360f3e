"""A picture of a run as it was on the screen:

    python -m sector.benchmarks.picture OUT.svg [options of sector run]

Runs `sector run` in a pseudo-terminal of 80 by 24 and keeps one frame, `--at` of the way through those that were drawn
(default 0.6), as SVG by rich.
"""

import argparse
import os
import pty
import re
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from rich.console import Console
from rich.text import Text

from sector.engine.files import write_text

COLUMNS, LINES = 80, 24
# Before a live view draws a frame, it goes back over the last one, line by line.
_REDRAW = re.compile(r"(?:\x1b\[1A\x1b\[2K)+")


def frames(recorded: str) -> list[str]:
    """What stood on the screen, one after another, with colours and without cursor movements."""
    shown = [re.sub(r"\x1b\[\?25[lh]|\x1b\[2K|\r", "", part).strip("\n") for part in _REDRAW.split(recorded)]
    return [frame for frame in shown if frame.strip()]


def record(command: list[str]) -> str:
    """Everything that a command writes to a terminal."""
    main, side = pty.openpty()
    ioctl(side, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment, close_fds=True)
    os.close(side)
    chunks = []
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:
            # Linux says so when the other side is closed.
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(main)
    if process.wait():
        raise SystemExit(f"the run ended with exit code {process.returncode}")
    return b"".join(chunks).decode("utf-8")


def svg(frame: str, title: str) -> str:
    """A frame as rich draws terminals."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115 (lives as long as this)
    console.print(Text.from_ansi(frame))
    return console.export_svg(title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at", type=float, default=0.6)
    taken, options = parser.parse_known_args()
    shown = frames(record([sys.executable, "-P", "-m", "sector.cli.app", "run", *options]))
    write_text(taken.out, svg(shown[int(taken.at * (len(shown) - 1))], " ".join(["sector run", *options])))
    print(f"{len(shown)} frames; wrote {taken.out}")


if __name__ == "__main__":
    main()
