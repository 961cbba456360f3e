"""`import sector`: fast, and all that transformers' Auto classes need, in any order and in a program of any name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sector
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import new_model

# Prints what a checkpoint completes; nothing of the hook may be left by then.
COMPLETE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer("12+34=", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=4)[0], skip_special_tokens=True))
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "sector"]
assert sys.modules["transformers"].__spec__.loader.__class__.__module__ != "sector"
"""
# Everything that the package of models imports of ours.
BELOW = """
import pkgutil, sys, sector.engine.config, sector.engine.language, sector.engine.tasks
for room in (sector.engine.language, sector.engine.tasks):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        __import__(module.name)
print("transformers" in sys.modules)
"""


def run(program: str, folder: Path, *arguments: object, name: str = "program.py") -> str:
    """Run a program in a new process, with an empty cache and no network, and return its output."""
    (folder / name).write_text(program)
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, folder / name, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("import sector", id="sector_first"),
        pytest.param("import transformers, sector", id="transformers_first"),
        pytest.param("import sector.engine.models.mask", id="by_a_module_of_ours"),
    ],
)
def test_the_auto_classes_know_a_checkpoint(first: str, tmp_path: Path) -> None:
    save_checkpoint(new_model("tiny", seed=1), tmp_path / "model")
    assert run(first + COMPLETE, tmp_path, tmp_path / "model").startswith("12+34=")


@pytest.mark.parametrize("name", ["sector", "train.py"])
def test_the_import_waits_for_neither_torch_nor_transformers(name: str, tmp_path: Path) -> None:
    program = "import sys, sector, sector.cli\nprint({'torch', 'transformers'} & set(sys.modules))"
    assert run(program, tmp_path, name=name) == "set()"


def test_looking_for_transformers_does_not_load_it(tmp_path: Path) -> None:
    program = (
        "import sys, sector\n"
        "from importlib.util import find_spec\n"
        "spec = find_spec('transformers')\n"
        "print(spec.loader.get_filename('transformers') == spec.origin, 'transformers' in sys.modules)\n"
    )
    assert run(program, tmp_path) == "True False"


def test_nothing_below_the_models_imports_transformers(tmp_path: Path) -> None:
    """Else the hook could run while a module is under way that the models import."""
    assert run(BELOW, tmp_path) == "False"


def test_public_names_resolve() -> None:
    assert [name for name in sector.__all__ if not hasattr(sector, name)] == []
    with pytest.raises(AttributeError, match="oracle_sums"):
        sector.oracle_sums  # noqa: B018
