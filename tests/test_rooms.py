"""The rooms: imports point downwards and in no circle, rooms list their contents, and each class has its own name."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("language", "tasks", "models", "samplers", "policy", "training", "run", "report", "api", "testing")
# From the bottom up; a line may import itself and the lines before it.
FLOORS = (
    ("kernels",),
    (
        "engine.errors",
        "engine.files",
        "engine.outside",
        "engine.seeding",
        "engine.shares",
        "engine.spans",
        "engine.threads",
    ),
    ("engine.language",),
    ("engine.tasks",),
    ("engine.config",),
    ("engine.models",),
    ("engine.samplers",),
    ("engine.policy",),
    ("engine.training",),
    ("engine.run",),
    ("engine.selfplay",),
    ("engine.report",),
    ("engine.api",),
    ("engine.testing",),
    ("benchmarks",),
    ("cli",),
)


def modules() -> dict[str, Path]:
    """Files of the package by their names below `sector`."""
    files = (path for top in ("engine", "kernels", "benchmarks", "cli") for path in (ROOT / top).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sector."):
            module = str(node.module).removeprefix("sector.")
            yield from (f"{module}.{name.name}" if f"{module}.{name.name}" in known else module for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name.removeprefix("sector.") for name in node.names if name.name.startswith("sector."))


def floor(module: str) -> int:
    """Where in the house a module stands."""
    found = [
        number for number, names in enumerate(FLOORS) for name in names if f"{module}.".startswith(f"{name}.")
    ]  # fmt: skip
    assert len(found) == 1, f"{module} stands in no room"
    return found[0]


MODULES = modules()
ARROWS = {name: sorted(set(imports(path, MODULES))) for name, path in MODULES.items()}


def test_imports_point_downwards() -> None:
    up = [
        f"{module} imports {other}"
        for module, others in ARROWS.items()
        for other in others
        if module != "engine" and floor(other) > floor(module)
    ]
    assert not up
    assert len(ARROWS) > 100 and sum(map(len, ARROWS.values())) > 500


def test_no_module_imports_itself_through_others() -> None:
    try:
        tuple(TopologicalSorter(ARROWS).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_few_files_stand_beside_the_rooms() -> None:
    beside = {path.name for path in (ROOT / "engine").glob("*.py")} - {"__init__.py"}
    folders = {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}
    assert folders == {*ROOMS, "config"} and len(beside) <= 8


@pytest.mark.parametrize("room", [*ROOMS, "config"], ids=str)
def test_a_room_says_what_it_holds_and_what_to_open_first(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "engine" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert 3 <= len(text.splitlines()) <= 5 and "May import:" in text
    first = text.partition("Open `")[2].partition("`")[0]
    assert (ROOT / "engine" / room / first).is_file()


def test_a_name_of_a_class_stands_once() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert len(homes) > 200
    assert not {name: places for name, places in homes.items() if len(places) > 1}
