"""`sector eval`: exact-match accuracy by length."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.text import Text

from sector.cli import _options as options
from sector.cli._groups import EngineOptions, ModelOptions, with_groups
from sector.cli._output import Output, table, unwrapped
from sector.engine.config import MOST, parse_settings
from sector.engine.errors import InputError
from sector.engine.shares import common_places, hundredths, percent

if TYPE_CHECKING:
    from sector.engine.api.gym import GymReport
    from sector.engine.report.evaluate import Report

# Least accuracy for each colour of the table.
_COLORS = ((0.98, "green"), (0.9, "yellow"), (0.0, "red"))


@with_groups
def evaluate(
    *,
    context: typer.Context,
    named: ModelOptions,
    digits: Annotated[str, options.option("LENGTHS", "Digits per operand, as in 7, 1-29 or 3,5,8-10.")] = "1-29",
    samples: Annotated[
        int, options.number("N", "Problems per length, and per family of hard problems.", 1, MOST)
    ] = 1000,
    policy: options.PolicyOption = "fast",
    suite: Annotated[
        bool, options.option("", "Test families of hard problems: long carries, unequal lengths, leading zeros.")
    ] = True,
    out: Annotated[
        Path | None,
        options.option(
            "DIR",
            "Directory for the picture and the JSON record.",
            show_default="plots/ of the run, if --model is a run",
        ),
    ] = None,
    chosen: EngineOptions,
    seed: options.Seed = 0,
    gym: options.Gym = None,
    gym_settings: options.GymSettings = None,
    as_json: options.Json = False,
) -> None:
    """Measure exact-match accuracy by length, with Wilson 95 % intervals; print a table and draw a picture.

    Three policies can be measured. fast: direct answers. slow: one
    simplification, right only if every digit is. improved: votes with checks;
    an answer that the checks reject counts as wrong.

    With --gym, a generator of Reasoning Gym makes --samples problems of its
    own lengths. Both its scorer and the truth score each answer, and problems
    that the model's task cannot read are counted.

    Examples:

      sector eval --model runs/first
      sector eval --model runs/first --digits 25-32 --policy improved --no-suite
      sector eval --model checkpoints/12 --digits 1-12 --out eval12 --json
      sector eval --model addition --gym chain_sum --gym-set max_terms=2
    """
    from sector.engine.api.accuracy import evaluate as measure
    from sector.engine.api.gym import evaluate_gym

    output, model = Output(as_json), named.checked()
    if gym is not None:
        _refuse(context, "digits", "suite", "out")
        with output.progress(f"evaluating {gym}, {policy} policy") as bar:
            scores = evaluate_gym(
                gym, model, samples, policy, options=parse_settings(gym_settings or ()), seed=seed, on_progress=bar.at,
                **chosen.arguments,
            )  # fmt: skip
        output.data(scores.as_json(), lambda: _gym_view(scores))
        return
    if gym_settings:
        raise InputError("--gym-set changes a generator; name it with --gym")
    with output.progress(f"evaluating, {policy} policy") as bar:
        report = measure(
            model, digits, samples, policy, suite=suite, out=out, seed=seed, on_progress=bar.at, **chosen.arguments
        )
    output.data(report.values, lambda: _view(report))
    output.say(_files(report))


def _refuse(context: typer.Context, *names: str) -> None:
    """Raise InputError if one of these options is used: they do not apply to a generator's problems."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name} does not go with --gym; change the generator with --gym-set")


def _gym_view(report: "GymReport") -> Group:
    """Return scores by length, and the problems that were not read."""
    rows = table("digits", "problems", "right", "95 % interval", "right by its scorer")
    for column in rows.columns:
        column.justify = "right"
    for length in report.lengths:
        low, high = (hundredths(bound) for bound in length.interval)
        share = length.correct / length.samples
        scored = percent(length.scored / length.samples)
        rows.add_row(str(length.digits), f"{length.samples:,}", _colored(share, 1), f"{low}-{high}", scored)
    notes = [f"{report.unread:,} of {report.asked:,} problems are not of the task {report.task}"]
    if report.first_unread:
        notes[0] += f", as {report.first_unread}"
    if report.differing:
        notes.append(f"scorer and truth differ: {'; '.join(report.differing)}")
    title = f"{report.generator} of Reasoning Gym, {report.policy} policy, with Wilson 95 % intervals"
    return Group(unwrapped(title, style="bold"), rows, *map(unwrapped, notes))


def _files(report: "Report") -> str:
    """Return the names of the files that were written, or the reason that there are none."""
    if report.written:
        picture, record = report.written
        return f"picture: {picture}, record: {record}"
    if report.kept:
        return (
            f"not written: {report.kept} holds more problems of the same weights and is kept; "
            "write elsewhere with --out DIR"
        )
    return "no picture was written; name a directory with --out DIR"


def _view(report: "Report") -> Group:
    places = common_places([share for score in report.scores for share in (score.accuracy, *score.interval)])
    families = [name for name in dict.fromkeys(score.name for score in report.scores) if name != "uniform"]
    at = {(score.name, score.digits): score for score in report.scores}
    rows = table("digits", "uniform", "95 % interval", *families, collapse_padding=True)
    rows.columns[0].justify = "right"
    for digits in dict.fromkeys(score.digits for score in report.scores):
        score = at["uniform", digits]
        low, high = (hundredths(bound, places) for bound in score.interval)
        others = [_colored(at[name, digits].accuracy, places) for name in families]
        rows.add_row(str(digits), _colored(score.accuracy, places), f"{low}-{high}", *others)
    # Not a title of the table, which would be folded to the width of the table.
    return Group(unwrapped(f"{report.title}, with Wilson 95 % intervals", style="bold"), rows)


def _colored(accuracy: float, places: int) -> Text:
    color = next(color for least, color in _COLORS if accuracy >= least)
    return Text(percent(accuracy, places), style=color)
