"""Write the page of a report: one HTML file, from facts and charts by a template that escapes all text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median

from jinja2 import Environment

from sector import __version__
from sector.engine.errors import InputError
from sector.engine.files import check_writable, write_text
from sector.engine.report.alarm import HORIZON, Alarm, alarms_of
from sector.engine.report.charts import Chart, comparison_charts, run_charts
from sector.engine.report.dataset_facts import DatasetFacts, read_dataset
from sector.engine.report.facts import RunFacts, cells_of, rank_correlation, read_run, run_roots
from sector.engine.report.lab_charts import phase_charts, rise_charts
from sector.engine.report.outcomes import Mean, means_of
from sector.engine.report.templates import environment
from sector.engine.run.part_folder import is_dataset
from sector.engine.shares import hundredths, percent
from sector.engine.training.locations import Location, LocationLike, location_of

# A page about more runs than this has no charts of each run; they would take minutes and tens of megabytes.
MOST_DRAWN = 24
# Lower bounds of the shades of the heat map.
_SHADES = (0.995, 0.98, 0.95, 0.9, 0.5, 0.0)


@dataclass(frozen=True, slots=True)
class ReportPage:
    """A written report.

    page: the HTML file.
    beside: the folder of its pictures.
    pictures: PNG files in that folder.
    runs: facts of the runs.
    alarms: figures that the loop can see, by their worth as an alarm; empty if no run collapsed.
    dataset: facts of the data set, if the report is on one.
    """

    page: Path
    beside: Path
    pictures: list[Path]
    runs: list[RunFacts]
    alarms: list[Alarm]
    dataset: DatasetFacts | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The parts of a report that compare several runs.

    charts: charts of all cells.
    panels: rise and fall of each cell.
    alarms: as in `ReportPage`.
    """

    charts: list[Chart]
    panels: list[Chart]
    alarms: list[Alarm]


def write_report(names: Sequence[LocationLike], out: Path | None) -> ReportPage:
    """Write a page about runs, and its pictures beside it; or a page about one data set, without pictures.

    Raise InputError for a path that is no run, a damaged file in one, or a page that cannot be written.

    names: run directories; a grid's directory stands for all its runs. Or the folder of a data set, or its address.
    out: the page, by default `report.html` in the only path, or beside a data set; the folder of the pictures has its
        name.
    """
    locations = [location_of(name) for name in names]
    if any(map(is_dataset, locations)):
        return _write_dataset_report(locations, out)
    paths = [location for location in locations if isinstance(location, Path)]
    if addresses := [location for location in locations if not isinstance(location, Path)]:
        raise InputError(f"{addresses[0]} is no data set, and a run is read from a folder; copy it to this machine")
    page = out or _default_page(paths)
    roots = run_roots(paths)
    check_writable(page)
    runs = [facts for facts in map(read_run, roots) if facts is not None]
    if not runs:
        raise InputError(f"{paths[0]} has nothing to report yet: its supervised phase is not done")
    cells = cells_of(runs)
    several = len(runs) > 1
    comparison = [*comparison_charts(cells), *phase_charts(cells)] if several else []
    panels = rise_charts(cells) if several else []
    charts = [run_charts(run) if len(runs) <= MOST_DRAWN else [] for run in runs]
    # An alarm in a run that stopped before it collapsed can be called neither right nor false.
    judged = {name: [run.rounds for run in group if run.outcome.fate != "stopped"] for name, group in cells.items()}
    alarms = alarms_of(judged)
    write_text(page, _render(runs, cells, Compared(comparison, panels, alarms), charts))
    # Without a suffix, the page itself has the name that the folder would have.
    beside = page.with_suffix("") if page.suffix else page.with_name(f"{page.name}-pictures")
    pictures = [chart.save(beside) for chart in (*comparison, *panels)]
    for run, of_run in zip(runs, charts, strict=True):
        folder = beside / run.name if several else beside
        pictures += [chart.save(folder) for chart in of_run]
    return ReportPage(page, beside, pictures, runs, alarms)


def _write_dataset_report(locations: Sequence[Location], out: Path | None) -> ReportPage:
    """Write a page about a data set. Raise InputError if there are several paths, or if it is incomplete or damaged."""
    if len(locations) > 1:
        raise InputError("a data set has a page of its own; name its folder alone")
    # Beside the folder, since libraries would take the page for one of its parts. That of a store is here.
    root = locations[0].absolute()
    page = out or (root.with_name(f"{root.name}.html") if isinstance(root, Path) else Path(f"{root.name}.html"))
    check_writable(page)
    data = read_dataset(locations[0])
    template = _environment().get_template("dataset.html.jinja")
    write_text(page, template.render(title=root.name, data=data, version=__version__))
    return ReportPage(page, page.parent, [], [], [], data)


def _default_page(paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise InputError("several runs make one page; name it with --out")
    return paths[0] / "report.html"


def _render(
    runs: list[RunFacts], cells: dict[str, list[RunFacts]], compared: Compared, charts: list[list[Chart]]
) -> str:
    template = _environment().get_template("page.html.jinja")
    return template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs, {len(cells)} of a kind",
        runs=list(zip(runs, charts, strict=True)),
        cells=[(name, group, means_of([run.outcome for run in group])) for name, group in cells.items()],
        compared=compared,
        horizon=HORIZON,
        most_drawn=MOST_DRAWN,
        correlation={run.root: rank_correlation(list(run.gates.values())) for run in runs},
        version=__version__,
    )


def _environment() -> Environment:
    pages = environment("sector.engine.report", escapes=True)
    pages.filters |= {"percent": _percent, "unbroken": _unbroken, "clock": _clock, "shade": _shade}
    pages.filters |= {"interval": _interval, "share_interval": _share_interval, "collapses": _collapses}
    pages.filters |= {"leads": _leads, "thousands": "{:,}".format}
    return pages


def _percent(share: float | None, places: int = 1) -> str:
    return _unbroken(percent(share, places))


def _unbroken(text: str) -> str:
    """Keep a figure and its percent sign on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _clock(seconds: float) -> str:
    """Format a duration short enough for a card: `45 s`, `2:38 min` or `1:02 h`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _interval(mean: Mean | None, unit: float = 1.0, floor: float = -inf) -> str:
    """Format a mean with its interval.

    unit: factor of the figures.
    floor: the least possible value; the interval is cut off there.
    """
    return _with_bounds(mean, lambda value: f"{unit * max(floor, value):.1f}")


def _share_interval(mean: Mean | None, places: int = 1) -> str:
    """Format the mean of a share with its interval, in percent."""
    return _with_bounds(mean, lambda value: hundredths(min(1.0, max(0.0, value)), places))


def _with_bounds(mean: Mean | None, figure: Callable[[float], str]) -> str:
    """Format a mean with its interval, `12.3 (10.1 to 14.5)`; alone if it has none, and `-` without a mean."""
    if mean is None:
        return "-"
    text = figure(mean.mean)
    if mean.low is None or mean.high is None or mean.low == mean.high:
        return text
    return f"{text} ({figure(mean.low)} to {figure(mean.high)})"


def _collapses(runs: Sequence[RunFacts]) -> str:
    """Return how many runs of a cell collapsed and where, and how many stopped: `1 of 3, at 12 digits; 1 stopped`."""
    lengths = sorted(run.outcome.collapsed_at for run in runs if run.outcome.collapsed_at is not None)
    where = f", at {', '.join(map(str, lengths))} digits" if lengths else ""
    stopped = sum(run.outcome.fate == "stopped" for run in runs)
    return f"{len(lengths)} of {len(runs)}{where}{f'; {stopped} stopped' if stopped else ''}"


def _leads(alarm: Alarm) -> str:
    """Return by how many rounds an alarm is ahead, as `3 (1 to 5)`: the median and the extremes."""
    if not alarm.leads:
        return "-"
    return f"{median(alarm.leads):g} ({alarm.leads[0]} to {alarm.leads[-1]})"


def _shade(share: float) -> int:
    """Return the index of a share's shade in `_SHADES`, 0 for the best."""
    return next(index for index, bound in enumerate(_SHADES) if share >= bound)
