"""A new file with a task to start from: `sector task new`."""

import keyword
import os
import re
from pathlib import Path

from sector.engine.api.templates import rendered
from sector.engine.errors import InputError
from sector.engine.files import write_text
from sector.engine.tasks import is_task


def new_task(name: str, out: Path | None = None) -> str:
    """Write a file with a task that can be learned as it is; return its reference, `FILE.py:ClassName`.

    name: name of the task; the class is named after it.
    out: the file; by default NAME.py.

    Raise InputError if the name is not a name of a task or is taken, or if the file exists or cannot be written.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(class_name):
        raise InputError(f"{name!r} is no name of a task; use lower case letters, digits and _")
    if is_task(name):
        raise InputError(f"there is a task {name!r} already; give yours another name")
    path = Path(f"{name}.py") if out is None else out
    if path.suffix != ".py":
        raise InputError(f"{path} is no Python file; name one that ends in .py")
    if os.path.lexists(path):
        raise InputError(f"{path} exists; name another file with --out, or remove it")
    write_text(path, rendered("new_task.py.jinja", name=name, class_name=class_name))
    return f"{path}:{class_name}"
