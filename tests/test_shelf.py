"""The shelf: weights that ship with the package, what is said of them, and the package that holds them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sector
from sector.benchmarks.shelf import put
from sector.engine.models.shelf import EVALUATION, MADE, SHELF, shelf_names
from sector.engine.run.directory import RunDir
from sector.engine.run.records import EvaluationRecord
from sector.engine.shares import percent

ROOT = Path(__file__).parents[1]
# What the package is built of.
SOURCES = ("sector", "engine", "kernels", "cli", "benchmarks", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.parametrize("name", shelf_names(), ids=str)
def test_shipped_weights_are_those_that_were_measured(name: str) -> None:
    folder = SHELF / name
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    made = json.loads((folder / MADE).read_text())
    record = EvaluationRecord.model_validate_json((folder / EVALUATION).read_text())
    assert made["weights_sha256"] == record.weights_sha256 == sector.load(name).weights_sha256 == digest
    assert [score.digits for score in record.lengths] == list(range(1, made["digits"] + 1))
    assert min(score.accuracy for score in record.lengths) > 0.99
    assert "dirty" not in made["machine"] and "commit" in made["machine"] and str(made["seed"]) in made["commands"][0]


@pytest.mark.parametrize(
    ("name", "digits"), [("addition", 29), ("multiplication", 6)], ids=["addition", "multiplication"]
)
def test_shipped_weights_answer(name: str, digits: int) -> None:
    report = sector.evaluate(name, digits, 20, suite=False)
    assert report.scores[0].correct >= 19 and report.written is None


@pytest.mark.parametrize(
    ("name", "prompt", "text"),
    [
        ("addition", "123+456=", "123+456=0579"),
        ("addition", "99+12>", "99+12>9+1+1|1"),
        ("multiplication", "12*34>", "12*034+00>00,48,00,048,00:048|03*12"),
        ("multiplication", "12*03+04>", "12*03+04>00,36,00,036,01:040|0*12"),
        ("multiplication", "12*0+40=", "12*0+40=40"),
    ],
    ids=["sum", "column", "product", "last_digit", "what_is_left"],
)
def test_shipped_weights_write_text(name: str, prompt: str, text: str) -> None:
    loaded = sector.load(name)
    ids = loaded.model.generate(**loaded.tokenizer(prompt, return_tensors="pt").to(loaded.model.device))
    assert loaded.tokenizer.decode(ids[0], skip_special_tokens=True) == text


def test_weights_are_put_on_the_shelf_by_their_task(finished_run: Path, tmp_path: Path) -> None:
    folder = put(finished_run, samples=2, shelf=tmp_path)
    assert folder == tmp_path / "addition"
    made = json.loads((folder / MADE).read_text())
    assert (
        made["weights_sha256"] == sector.load(finished_run).weights_sha256
        and made["digits"] == RunDir(finished_run).frontier
    )
    assert (folder / EVALUATION).is_file() and not (folder / "eval-fast.png").exists()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("package")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, folder / "tree" / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, folder], cwd=folder / "tree", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_the_package_solves_in_an_empty_folder(package: Path, tmp_path: Path) -> None:
    program = (
        "import sector, sys\n"
        f"assert sector.__file__.startswith({str(package)!r}), sector.__file__\n"
        "from sector.cli.app import main\n"
        "sys.argv = ['sector', 'solve', '123+456', '--show']\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "123+456 = 579" and any("what remains" in line for line in lines)
    assert (
        done.stderr
        == "sector: solved by the weights addition that ship with sector, since runs/ holds no trained model\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_package_holds_all_that_its_modules_read(package: Path) -> None:
    kept = {".jinja", ".c", ".safetensors", ".json"}
    sources = [path for top in ("engine", "sector") for path in (ROOT / top).rglob("*") if path.suffix in kept]
    assert len(sources) > 18
    for source in sources:
        inside = (
            source.relative_to(ROOT)
            if source.parts[len(ROOT.parts)] == "sector"
            else Path("sector") / source.relative_to(ROOT)
        )
        assert (package / inside).read_bytes() == source.read_bytes(), inside


@pytest.mark.parametrize("name", shelf_names(), ids=str)
def test_the_page_says_how_the_shelf_was_made(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "shelf.md").read_text()
    made = json.loads((SHELF / name / MADE).read_text())
    record = EvaluationRecord.model_validate_json((SHELF / name / EVALUATION).read_text())
    worst = min(record.lengths, key=lambda score: score.accuracy)
    assert f"`{made['commands'][0]}`" in page and f"`{made['weights_sha256'][:8]}...`" in page
    assert (
        f"{percent(worst.accuracy)} ({100 * worst.low:.1f} to {100 * worst.high:.1f}) at {worst.digits} digits" in page
    )
