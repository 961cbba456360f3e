"""`sector`: the commands, and nothing else. Each lives in the module of its name."""

import sys
from typing import Annotated

import typer

from sector import __version__
from sector.cli._errors import CommandGroup
from sector.cli._limits import check_address_space
from sector.cli.ablate import ablate
from sector.cli.bench import bench
from sector.cli.config import config
from sector.cli.distill import distill
from sector.cli.eval import evaluate
from sector.cli.generate import generate
from sector.cli.profile import profile
from sector.cli.report import report
from sector.cli.run import run
from sector.cli.sft import sft
from sector.cli.solve import solve
from sector.engine.errors import InputError
from sector.engine.training.torchrun import num_processes

# Commands that torchrun may start several times over.
_SHARED = ("run", "sft", "distill")

app = typer.Typer(
    name="sector",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def sector(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A language model that teaches itself to add.

    It thinks slowly to solve problems one digit longer than it can answer
    at once, keeps the answers on which it agrees with itself, learns to give
    them fast, and repeats (SECToR, Zhang and Parkes 2023).
    """
    if not {"-h", "--help"} & set(sys.argv):
        check_address_space()
    if num_processes() > 1 and context.invoked_subcommand not in _SHARED:
        shared = ", ".join(_SHARED[:-1])
        raise InputError(
            f"several processes (torchrun) are for {shared} and {_SHARED[-1]}, not for {context.invoked_subcommand}; "
            "start it by itself"
        )


app.command(rich_help_panel="The whole thing")(run)
app.command(rich_help_panel="The whole thing")(config)
# What looks like an option reaches `solve` as a problem, so that it can say what is wrong with -5+3.
app.command(rich_help_panel="Use a model", context_settings={"ignore_unknown_options": True})(solve)
app.command("eval", rich_help_panel="Use a model")(evaluate)
app.command(rich_help_panel="Step by step")(sft)
app.command(rich_help_panel="Step by step")(generate)
app.command(rich_help_panel="Step by step")(distill)
app.command(rich_help_panel="Measure")(bench)
app.command(rich_help_panel="Measure")(ablate)
app.command(rich_help_panel="Measure")(report)
app.add_typer(profile, name="profile", rich_help_panel="Measure")


def main() -> None:
    """The console script."""
    app(prog_name="sector")


if __name__ == "__main__":
    main()
