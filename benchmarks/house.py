"""Measure the source of a checkout: lengths, nesting, arguments, docstrings and imports.

    python benchmarks/house.py [CHECKOUT ...]

`docs/explanation/house.md` shows the figures.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

TOPS = ("engine", "kernels", "cli", "benchmarks")
# Words that start a clause in the place of a noun.
CLAUSES = re.compile(r"\b(what|whatever|whoever|nobody|so many)\b", re.IGNORECASE)
_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)

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


def measure(root: Path) -> dict[str, Any]:
    """Measure a checkout; lists are median, 90th percentile and maximum."""
    files = sources(root)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, Function)]
    texts = [text for _, text in docstrings(root)]
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    public = [function for function in functions if not function.name.startswith("_")]
    return {
        "files": len(files),
        "lines": sum(lines),
        "file lines": _spread(lines),
        "function lines": _spread([_length(function) for function in functions]),
        "nesting": _spread([_nesting(function) for function in functions]),
        "arguments": _spread([_arguments(function) for function in functions]),
        "public functions with docstring": _share([ast.get_docstring(function) is not None for function in public]),
        "docstrings with a clause for a noun": _share([bool(CLAUSES.search(text)) for text in texts]),
        "dict[str, Any] per 1,000 lines": round(
            1000 * sum(path.read_text(encoding="utf-8").count("dict[str, Any]") for path in files) / sum(lines), 1
        ),
        "rooms": len({path.parent for path in files}),
        "arrows between rooms": len(_arrows(root, files, trees)),
    }


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
    """Return pairs of folders, the first of which imports from the second."""
    arrows = set()
    for path, tree in zip(files, trees, strict=True):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sector."):
                home = Path(*str(node.module).split(".")[1:])
                folder = home if (root / home).is_dir() else home.parent
                if folder != path.parent.relative_to(root):
                    arrows.add((path.parent.relative_to(root), folder))
    return arrows


def _spread(values: list[int]) -> list[float]:
    """Return median, 90th percentile and maximum."""
    ordered = sorted(values)
    return [median(ordered), ordered[int(0.9 * (len(ordered) - 1))], ordered[-1]]


def _share(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)} ({100 * sum(flags) / len(flags):.1f} %)"


if __name__ == "__main__":
    print(json.dumps({name: measure(Path(name)) for name in sys.argv[1:] or ["."]}, indent=2))
