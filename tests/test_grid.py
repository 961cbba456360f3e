"""Grid files: every cell is checked before anything runs, and none is lost."""

from pathlib import Path

import pytest

from sector.benchmarks.grid import read_grid
from sector.engine.config import run_config
from sector.engine.errors import InputError

SHIPPED = sorted((Path(__file__).parents[1] / "benchmarks" / "grids").glob("*.toml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_axes_are_crossed_and_cells_stand_beside_them(tmp_path: Path) -> None:
    text = """
    seeds = [3, 4]
    [settings]
    until = 9
    filter.k = 2
    [axes.vote]
    on = { filter.vote = "majority" }
    off = { filter.vote = "off", filter.k = 1 }
    [axes.look]
    on = {}
    off = { filter.second_look = "off" }
    [cells.long]
    until = 12
    """
    grid = read_grid(written(tmp_path, text))
    names = ["vote-on_look-on", "vote-on_look-off", "vote-off_look-on", "vote-off_look-off", "long"]
    assert [cell.name for cell in grid.cells] == names
    assert [(cell.name, seed) for cell, seed in grid.runs()] == [(name, seed) for seed in (3, 4) for name in names]
    config = run_config(grid.cells[3].of_seed(4))
    assert (config.until, config.seed, config.filter.vote, config.filter.k) == (9, 4, "off", 1)
    # A setting of an earlier release: it takes one check away.
    assert config.filter.checks == ("direct", "complement", "through")
    assert run_config(grid.cells[1].of_seed(3)).filter.k == 2 and run_config(grid.cells[4].of_seed(3)).until == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[axes.k]\n1 = { filter.kk = 1 }", "cell k-1: filter.kk: unknown key"),
        ("[axes.a]\nx = {}\n[axes.b]\ny = {}\nz = { until = 3 }", "cell a-x_b-z: until"),
        ("[cells.c]\nfilter.vote = 'most'", "cell c: filter.vote"),
        ("[cells.c]\nseed = 3", "seeds"),
        ("seeds = [-1]\n[cells.c]", "cell c: seed"),
        ("seeds = []\n[cells.c]", "seeds"),
        ("[cells.c]\n[axis.k]", "axis: unknown key"),
        ("[cells.'../c']", "cannot name a directory"),
        ("[axes.k]\n'a b' = {}", "cannot name a directory"),
        ("title = 'empty'", "no cells"),
        ("[cells", "not TOML"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_grid(written(tmp_path, text))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_grids_can_be_run(path: Path) -> None:
    grid = read_grid(path)
    settings = [run_config(cell.of_seed(seed)) for cell, seed in grid.runs()]
    assert len(settings) == len(grid.cells) * 3 and grid.title
    # No two cells ask for the same run.
    assert len({config.model_dump_json() for config in settings}) == len(settings)


def test_the_signals_of_the_collapse_grid_begin_alike_and_leak() -> None:
    grid = read_grid(next(path for path in SHIPPED if path.stem == "collapse"))
    configs = {cell.name: run_config(cell.of_seed(0)) for cell in grid.cells}
    tight = {name: config for name, config in configs.items() if not config.filter.leak}
    assert len(tight) >= 9 and grid.seeds == [0, 1, 2]
    # No goal ends the supervised phase of one cell before that of another.
    assert {config.supervised.max_cycles for config in configs.values()} == {1}
    assert len({config.supervised.model_dump_json() for config in configs.values()}) == 1
    for gate in ("ours", "paper", "remainder"):
        leaks = {name: config for name, config in configs.items() if name.startswith(f"{gate}-leak-")}
        assert [config.filter.leak for config in leaks.values()] == [0.03, 0.1, 0.3]
        assert {config.filter.model_copy(update={"leak": 0.0}) for config in leaks.values()} == {tight[gate].filter}
    settings = [(config.filter.model_dump_json(), config.round.teacher) for config in tight.values()]
    assert len(set(settings)) == len(settings)


def test_the_paper_s_checks_are_all_that_the_four_cells_differ_in() -> None:
    grid = read_grid(next(path for path in SHIPPED if path.stem == "vote_x_commutativity"))
    filters = {cell.name: run_config(cell.of_seed(0)).filter for cell in grid.cells}
    assert {name: (each.vote, each.checks) for name, each in filters.items()} == {
        "vote-on_commutativity-on": ("majority", ("commutative",)),
        "vote-on_commutativity-off": ("majority", ()),
        "vote-off_commutativity-on": ("off", ("commutative",)),
        "vote-off_commutativity-off": ("off", ()),
    }
    assert not any(each.think_through for each in filters.values())
