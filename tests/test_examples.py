"""Examples, the notebook and the code on pages run as they are, small. Recipes are settings that a run takes."""

import json
import re
import shutil
from pathlib import Path

import pytest
from programs import ran

import sector
from sector.engine.config import flat, merged, read_config, run_config
from sector.engine.errors import InputError

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RECIPES = sorted((ROOT / "examples").glob("*.toml"))
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def test_the_ladder_names_each_program_and_each_is_tested() -> None:
    ladder = (ROOT / "examples" / "README.md").read_text()
    # `ask_server.py` is tested where the server is.
    tests = "".join((ROOT / "tests" / name).read_text() for name in ("test_examples.py", "test_server_tokenizer.py"))
    assert len(EXAMPLES) >= 5 and len(RECIPES) >= 2
    for path in EXAMPLES:
        assert f"({path.name})" in ladder and f'"{path.name}"' in tests


@each_recipe
def test_a_recipe_changes_defaults_only_and_says_why(recipe: Path) -> None:
    assert f"({recipe.name})" in (ROOT / "examples" / "README.md").read_text()
    start = {"pretrained": "model"} if "--pretrained" in recipe.read_text() else {}
    given = read_config(recipe)
    default, chosen = (dict(flat(run_config(values, recipe.name).model_dump())) for values in (start, start | given))
    assert len(list(flat(given))) > 3
    assert [key for key, _ in flat(given) if chosen[key] == default[key]] == []
    blocks = re.split(r"\n(?=#)|\n\n", recipe.read_text())
    settings = [block for block in blocks if re.search("^[a-z_]+ = ", block, re.MULTILINE)]
    assert [block for block in settings if not block.startswith("# ")] == []


@each_recipe
def test_a_recipe_with_a_misspelled_setting_is_refused(recipe: Path) -> None:
    misspelled = merged(read_config(recipe), {"round": {"trainer": {"zeroes": 8}}})
    with pytest.raises(InputError, match=rf"^{recipe.name}: round.trainer.zeroes: unknown key"):
        run_config(misspelled, recipe.name)


def test_first_run_goes_on_with_a_run(fresh_run: Path) -> None:
    shown = ran(ROOT / "examples" / "first_run.py", fresh_run.parent, "--out", fresh_run, "--until", 8)
    assert "after 8 digits" in shown and "done: 8 digits" in shown and "#" in shown


def test_own_check(tmp_path: Path) -> None:
    shown = ran(ROOT / "examples" / "own_check.py", tmp_path, "--small", "--digits", 29, 50)
    lines = [[int(number) for number in line.split()] for line in shown.splitlines()[1:]]
    (digits, labels, wrong, kept, still_wrong), longer = lines
    assert (digits, wrong, still_wrong) == (29, 0, 0) and kept > 40 and labels == 50
    # Beyond the trained lengths the check catches errors.
    assert longer[2] > longer[4] and longer[3] < longer[1]


def test_own_model(tmp_path: Path) -> None:
    shown = ran(ROOT / "examples" / "own_model.py", tmp_path, "--small")
    assert "step     8 of 8" in shown and "after 2 digits" in shown
    assert sector.load(tmp_path / "runs" / "own-model").task == "addition"


def test_train_elsewhere(finished_run: Path, tmp_path: Path) -> None:
    shown = ran(ROOT / "examples" / "train_elsewhere.py", tmp_path, "--small", "--run", finished_run)
    losses = [float(loss) for loss in re.findall(r"step +\d+ +loss ([\d.]+)", shown)]
    assert len(losses) == 4 and all(loss < 20 for loss in losses)


def test_the_notebook_runs_from_top_to_bottom(fresh_run: Path, tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "tutorial" / "first_steps.ipynb").read_text())
    assert notebook["nbformat"] == 4 and not any(cell.get("outputs") for cell in notebook["cells"])
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join(cells))
    (tmp_path / "work" / "runs").mkdir(parents=True)
    # A run that goes on takes seconds, where a new one takes a minute. It would be the newest one, too.
    shutil.copytree(fresh_run, tmp_path / "work" / "runs" / "notebook", symlinks=True)
    shown = ran(program, tmp_path / "work")
    assert "nines' complement" in shown and "after 8 digits" in shown and "rows" in shown
    assert re.search(r"\d+ of 200 accepted", shown) and re.search(r"^ +5 digits #{40} 1\.00", shown, re.MULTILINE)


@pytest.mark.parametrize("page", ["reference/python_api.md"], ids=str)
def test_the_code_on_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert len(blocks) > 5
    (tmp_path / "page.py").write_text("\n".join(blocks))
    (tmp_path / "work").mkdir()
    assert "12+45 9 579" in ran(tmp_path / "page.py", tmp_path / "work")


def test_each_public_name_is_described() -> None:
    page = (ROOT / "docs" / "reference" / "python_api.md").read_text()
    assert [name for name in sector.__all__ if f"`{name}" not in page] == []
