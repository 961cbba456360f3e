"""The command `sector`: a group of commands, each in the module of its name."""

import sys
from functools import partial
from typing import Annotated

import typer

from sector import __version__
from sector.cli._errors import Command, CommandGroup
from sector.cli._limits import check_address_space
from sector.cli.ablate import ablate
from sector.cli.bench import bench
from sector.cli.config import config
from sector.cli.distill import distill
from sector.cli.eval import evaluate
from sector.cli.export import export
from sector.cli.generate import generate
from sector.cli.profile import profile
from sector.cli.report import report
from sector.cli.run import run
from sector.cli.sft import sft
from sector.cli.solve import solve
from sector.cli.task import task
from sector.engine.errors import InputError
from sector.engine.training.torchrun import num_processes

# Commands whose training several processes of torchrun can share.
_FOR_TORCHRUN = ("run", "sft", "distill")

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
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train a small language model that teaches itself to add.

    The model solves problems that are too long for a direct answer by a
    chain of thought, keeps the answers on which it agrees with itself,
    learns to give them directly, and goes on to longer problems (SECToR,
    Zhang and Parkes 2023). Start with `sector run`.
    """
    if not {"-h", "--help"} & set(sys.argv):
        check_address_space()
    if num_processes() > 1 and context.invoked_subcommand not in _FOR_TORCHRUN:
        raise InputError(
            f"torchrun starts several processes, and {context.invoked_subcommand} runs in one; start it without "
            f"torchrun (it is for {', '.join(_FOR_TORCHRUN)})"
        )


command = partial(app.command, cls=Command)
command(rich_help_panel="Run the loop")(run)
command(rich_help_panel="Run the loop")(config)
# Words like -5+3 look like options. They reach `solve` as problems, so that it can say why they are none.
command(rich_help_panel="Use a model", context_settings={"ignore_unknown_options": True})(solve)
command("eval", rich_help_panel="Use a model")(evaluate)
command(rich_help_panel="Use a model")(export)
command(rich_help_panel="Run one step of the loop")(sft)
command(rich_help_panel="Run one step of the loop")(generate)
command(rich_help_panel="Run one step of the loop")(distill)
command(rich_help_panel="Measure")(bench)
command(rich_help_panel="Measure")(ablate)
command(rich_help_panel="Measure")(report)
app.add_typer(profile, name="profile", rich_help_panel="Measure")
app.add_typer(task, name="task", rich_help_panel="Bring your own")


def main() -> None:
    """Run the console script."""
    app(prog_name="sector")


if __name__ == "__main__":
    main()
