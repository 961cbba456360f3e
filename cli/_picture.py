"""Draw the live view of a finished run at the end of a round as an SVG file, from the run directory alone:

    python -m sector.cli._picture RUN OUT.svg [--digits 26]

The file needs no other file, no network and no font. Without --digits, draw the last round but one.
"""

import argparse
import io
import math
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT

from sector.cli._live import frame
from sector.cli._output import LIVE_COLUMNS, LIVE_LINES, PlainConsole
from sector.cli._tally import Tally
from sector.engine.errors import InputError
from sector.engine.files import write_text
from sector.engine.run.directory import RunDir
from sector.engine.run.events import GoalMeasured, TrainingStep

# Every system has one of these fonts. The template of rich downloads a font, and links to a web page.
_FONTS = "'DejaVu Sans Mono', ui-monospace, Menlo, Consolas, monospace"
_FORMAT = re.sub(r"@font-face {{.*?}}\n|<!--.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
_FORMAT = _FORMAT.replace("Fira Code, monospace", _FONTS).replace("font-family: arial", f"font-family: {_FONTS}")


def at_the_end_of(run: RunDir, digits: int | None = None) -> Tally:
    """Return the tally of a run at the end of the round of `digits` digits; by default, the last round but one.

    Raise InputError if the run has no such round.
    """
    lines = run.metrics()
    rounds = [line.digits for line in lines if line.is_round]
    if not rounds or (digits or rounds[0]) not in rounds:
        raise InputError(f"{run.root} has no round at {digits or 'any'} digits, but at {rounds or 'none'}")
    digits = digits or rounds[-2:][0]
    seen = [line for line in lines if line.digits <= digits]
    tally, line = Tally(run.read_config(), seen, digits), seen[-1]
    steps = run.read_config().round.cycle_steps
    speed = line.tokens_trained / line.seconds_train
    # The loss of the last step is not recorded. The note of the goal replaces it.
    tally.take(TrainingStep(digits, line.cycles, step=steps, of=steps, loss=math.nan, tokens_per_s=speed))
    tally.take(
        GoalMeasured(
            digits,
            line.cycles,
            met=True,
            agreement=line.next_agreement,
            accuracy=None,
            trained=line.trained_agreement,
        )
    )
    tally.generated_per_s = line.tokens_generated / line.seconds_generate
    return tally


def svg(tally: Tally, title: str) -> str:
    """Return the live view of a tally as an SVG picture of a terminal."""
    console = PlainConsole(
        record=True, width=LIVE_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(frame(title, tally, LIVE_COLUMNS, LIVE_LINES))
    # rich defines no clip path for the last line, so add an empty one; and it draws each line break as a text, so drop
    # those.
    console.print(" ")
    drawn = console.export_svg(title=f"sector run --out {title}", code_format=_FORMAT, unique_id="live")
    return re.sub(r"<text [^>]*>\n</text>", "", drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--digits", type=int)
    options = parser.parse_args()
    write_text(options.out, svg(at_the_end_of(RunDir(options.run), options.digits), str(options.run)))


if __name__ == "__main__":
    main()
