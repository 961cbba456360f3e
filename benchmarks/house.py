"""Measure the source of checkouts: lengths, nesting, arguments, docstrings and imports.

    python benchmarks/house.py NAME=CHECKOUT ... --page docs/explanation/house.md

The page gets a table with a column for each checkout, and for other codebases by their record. Without a page the table
is printed.
"""

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

TOPS = ("engine", "kernels", "cli", "benchmarks")
# Words that start a clause in the place of a noun.
CLAUSES = re.compile(r"\b(what|whatever|whoever|nobody|so many)\b", re.IGNORECASE)
# Lines of a function that is worth another look.
_LONG = 45
_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)

OTHERS = Path(__file__).parent / "results" / "2026-11-26_house" / "others.json"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every docstring of modules, classes and functions."""
    for path in sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 1)}", text


def sources(root: Path) -> list[Path]:
    """List the Python files of the package, without its tests."""
    return sorted(path for top in TOPS for path in (root / top).rglob("*.py"))


def measure(root: Path) -> dict[str, str]:
    """Measure a checkout; distributions are median, 90th percentile and maximum."""
    files = sources(root)
    code = [path.read_text(encoding="utf-8") for path in files]
    trees = [ast.parse(text) for text in code]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    lines = [len(text.splitlines()) for text in code]
    has_docstring = [ast.get_docstring(function) is not None for function in functions if function.name[0] != "_"]
    has_clause = [bool(CLAUSES.search(text)) for _, text in docstrings(root)]
    objects = sum(text.count("dict[str, Any]") for text in code)
    anything = sum(isinstance(node, ast.Name) and node.id == "Any" for tree in trees for node in ast.walk(tree))
    return {
        "files": str(len(files)),
        "lines": f"{sum(lines):,}",
        "lines of a file": _spread(lines),
        "lines of a function": _spread([_length(function) for function in functions]),
        f"functions over {_LONG} lines": str(sum(_length(function) > _LONG for function in functions)),
        "nesting": _spread([_nesting(function) for function in functions]),
        "arguments": _spread([_arguments(function) for function in functions]),
        "public functions with docstring": _share(has_docstring),
        "docstrings with a clause in the place of a noun": _share(has_clause),
        "`dict[str, Any]` per 1,000 lines": f"{1000 * objects / sum(lines):.1f}",
        "`Any` elsewhere, imports left out": str(anything - objects),
        "folders of code": str(len({path.parent for path in files})),
        "arrows between folders": str(len(_arrows(root, files, trees))),
        "lines of README.md": str(len((root / "README.md").read_text(encoding="utf-8").splitlines())),
    }


def table(columns: dict[str, dict[str, str]]) -> str:
    """Return a Markdown table with the rows of `measure`; a dash stands for a figure that a column lacks."""
    rows = [["", *columns], ["---"] * (1 + len(columns))]
    rows += [[row, *(column.get(row, "-") for column in columns.values())] for row in next(iter(columns.values()))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _length(function: Function) -> int:
    """Count the lines of a function, its docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _nesting(node: ast.AST) -> int:
    """Return the deepest nesting of blocks."""
    return max((isinstance(child, _BLOCKS) + _nesting(child) for child in ast.iter_child_nodes(node)), default=0)


def _arguments(function: Function) -> int:
    taken = function.args
    return len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs])


def _arrows(root: Path, files: list[Path], trees: list[ast.Module]) -> set[tuple[Path, Path]]:
    """Return pairs of folders; the first imports from the second."""
    arrows = set()
    for path, tree in zip(files, trees, strict=True):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sector."):
                home = Path(*str(node.module).split(".")[1:])
                folder = home if (root / home).is_dir() else home.parent
                if folder != path.parent.relative_to(root):
                    arrows.add((path.parent.relative_to(root), folder))
    return arrows


def _spread(values: list[int]) -> str:
    """Return median, 90th percentile and maximum."""
    ordered = sorted(values)
    return f"{median(ordered):g} / {ordered[int(0.9 * (len(ordered) - 1))]} / {ordered[-1]}"


def _share(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.1f} %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", metavar="NAME=CHECKOUT")
    parser.add_argument("--page", type=Path, help="page whose first table is replaced")
    arguments = parser.parse_args()
    pairs = [checkout.split("=", 1) for checkout in arguments.checkouts]
    made = table({name: measure(Path(root)) for name, root in pairs} | json.loads(OTHERS.read_text(encoding="utf-8")))
    if arguments.page:
        page = arguments.page.read_text(encoding="utf-8")
        arguments.page.write_text(re.sub(r"(?m)(^\|.*\n)+", made, page, count=1), encoding="utf-8")
    else:
        print(made)
