"""Tasks of users: imported if named or installed, never because a file of a run or of a model names them."""

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from empty_doors import empty_doors, forget
from typer.testing import CliRunner, Result

import sector
from sector.benchmarks.small_run import small
from sector.cli.app import app
from sector.engine import outside, tasks
from sector.engine.config import Filter, VllmConfig, run_config
from sector.engine.errors import InputError
from sector.engine.language.operands import plain_decimals
from sector.engine.models.checkpoint import checkpoint_files, learned_task, load_checkpoint, save_checkpoint
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.sector import new_model
from sector.engine.outside import load_origins, origins
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.worker import Worker, prove
from sector.engine.run.made_with import SETTINGS
from sector.engine.run.open import open_run
from sector.engine.samplers.native import NativeSampler
from sector.engine.tasks import find_task, task_names, true_answers
from sector.engine.tasks.outside import load_task
from sector.engine.training.dataset import Provenance, labelled_table, read_examples, write_examples
from sector.engine.training.supervised import label

PARITY = """
from pathlib import Path

import sector

Path(__file__).with_name("trace").touch()


class Parity(sector.Task):
    name = "parity"
    example = "1234"
    problem = "{a:N};{p:1?}"
    end = ("p",)
    checks = (sector.check("complement", "other parity", lambda p, answer: ({**p, "p": 1 - int(p["p"])}, answer)),)

    def draw(self, digits, rng):
        return {"a": rng.randrange(10**digits), "p": rng.randrange(2)}

    def simplify(self, p):
        parity = (int(p["p"]) + int(p["a"][-1])) % 2
        return parity, {"a": p["a"][:-1], "p": parity}

    def join(self, piece, rest):
        return rest
"""


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    empty_doors(monkeypatch)
    yield
    sys.modules.pop("my_tasks", None)
    outside._installed.cache_clear()


@pytest.fixture
def parity(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "my_tasks.py"
    path.parent.mkdir()
    path.write_text(PARITY)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def install(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Make entry points as installed packages have them."""
    found = [EntryPoint(name, value, "sector.tasks") for name, value in points]
    monkeypatch.setattr(outside, "entry_points", lambda group: found if group == "sector.tasks" else [])
    outside._installed.cache_clear()


def test_a_file_is_loaded_as_it_is_and_leaves_nothing_behind(parity: Path) -> None:
    task = load_task(f"{parity}:Parity")
    assert find_task("parity") is task and "parity" in task_names()
    assert task.parse(["12"]).texts() == ["12;0"]
    assert sorted(path.name for path in parity.parent.iterdir()) == ["my_tasks.py", "trace"]


def test_a_changed_file_takes_the_place_of_the_old_one(parity: Path) -> None:
    load_task(f"{parity}:Parity")
    parity.write_text(PARITY.replace('"1234"', '"99"'))
    assert load_task(f"{parity}:Parity") is find_task("parity")
    assert find_task("parity").example == "99"
    other = parity.with_name("other.py")
    other.write_text(PARITY)
    with pytest.raises(InputError, match="there is a task 'parity' already"):
        load_task(f"{other}:Parity")


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        (PARITY, "Odd", "there is no task 'Odd'; the module has Parity"),
        (PARITY, "sector", "there is no task 'sector'"),
        ("import nothing_like_this", "Parity", r"cannot be loaded \(ModuleNotFoundError: No module"),
        ("class Parity(", "Parity", r"cannot be loaded \(SyntaxError"),
        (PARITY.replace("def draw", "def drawn"), "Parity", r"cannot be loaded \(TypeError.*draw"),
        (PARITY.replace('name = "parity"', ""), "Parity", "Parity has no name"),
        (PARITY.replace('"parity"', '"addition"'), "Parity", "there is a task 'addition' already"),
    ],
    ids=["no such name", "no task", "import", "syntax", "abstract", "nameless", "name taken"],
)
def test_code_without_a_task_is_refused_in_one_line(parity: Path, text: str, name: str, fault: str) -> None:
    parity.write_text(text)
    with pytest.raises(InputError, match=fault) as caught:
        load_task(f"{parity}:{name}")
    assert "\n" not in str(caught.value)
    assert task_names() == tuple(sorted(tasks.built_in()))


@pytest.mark.parametrize("reference", ["missing.py:Parity", "no_such_module:Parity", ":Parity", "my.py:", "a:b:c"])
def test_a_reference_to_nothing_is_refused(reference: str, tmp_path: Path) -> None:
    result = invoke("sft", "--out", tmp_path / "run", "--task", reference)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_module_is_loaded_by_its_name(parity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(parity.parent)
    assert load_task("my_tasks:Parity").name == "parity"
    assert origins()[0].source == parity.read_bytes()


def test_an_entry_point_is_imported_when_its_task_is_used(parity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(parity.parent)
    install(monkeypatch, ("parity", "my_tasks:Parity"), ("addition", "my_tasks:Parity"), ("odd", "my_tasks:Parity"))
    assert task_names() == ("addition", "multiplication", "odd", "parity", "subtraction")
    assert find_task("addition").name == "addition"
    assert not parity.with_name("trace").exists()
    assert find_task("parity").name == "parity" and parity.with_name("trace").exists()
    forget()
    with pytest.raises(InputError, match=r"the entry point 'odd' of sector\.tasks holds the task 'parity'"):
        find_task("odd")


def test_a_name_that_two_packages_bring_is_refused(parity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(parity.parent)
    install(monkeypatch, ("parity", "my_tasks:Parity"), ("parity", "their_tasks:Parity"))
    assert "parity" in task_names()
    with pytest.raises(InputError, match=r"bring the task 'parity' \(my_tasks:Parity, their_tasks:Parity\); uninstall"):
        find_task("parity")
    assert not parity.with_name("trace").exists()
    install(monkeypatch, ("parity", "my_tasks:Parity"), ("parity", "my_tasks:Parity"))
    assert find_task("parity").name == "parity"


def test_files_name_tasks_and_never_code(parity: Path, tmp_path: Path) -> None:
    """A checkpoint, a run and a config in it, each with a reference in the place of a name, and with the plain name."""
    load_task(f"{parity}:Parity")
    save_checkpoint(new_model("tiny", 0, task="parity"), tmp_path / "model")
    with open_run(tmp_path / "run", small(task="parity"), "test") as (run, _):
        (run.root / "rounds" / "supervised").mkdir(parents=True)
    forget()
    parity.with_name("trace").unlink()
    with pytest.raises(InputError, match=r"unknown task 'parity'.*install the package.*--task FILE\.py:NAME"):
        load_checkpoint(tmp_path / "model")
    with pytest.raises(InputError, match="unknown task 'parity'"):
        run.read_config()
    for path in (tmp_path / "model" / "config.json", tmp_path / "run" / "config.toml"):
        path.write_text(path.read_text().replace('"parity"', json.dumps(f"{parity}:Parity")))
    (tmp_path / "model" / "learned.json").unlink()
    with pytest.raises(InputError, match="unknown task"):
        load_checkpoint(tmp_path / "model")
    with pytest.raises(InputError, match="unknown task"):
        run.read_config()
    with pytest.raises(InputError, match="unknown task"):
        run_config({"task": f"{parity}:Parity"})
    assert invoke("run", "--out", tmp_path / "run").exit_code == 2
    assert not parity.with_name("trace").exists()


def test_parquet_files_name_tasks_and_never_code(parity: Path, tmp_path: Path) -> None:
    task = load_task(f"{parity}:Parity")
    examples = label(task.parse(["12", "34"]))
    table = labelled_table(examples, task.layout("msd"), Provenance(0, 0, "oracle", ""))
    names = pa.array([f"{parity}:Parity"] * 2)
    write_examples(tmp_path / "name.parquet", table)
    write_examples(tmp_path / "code.parquet", table.set_column(table.schema.get_field_index("task"), "task", names))
    assert [list(part.problems.texts()) for part in read_examples(tmp_path / "name.parquet").values()] == [
        ["12;0", "34;0"]
    ]
    forget()
    parity.with_name("trace").unlink()
    for name in ("name.parquet", "code.parquet"):
        with pytest.raises(InputError, match="unknown task"):
            read_examples(tmp_path / name)
    assert not parity.with_name("trace").exists()


def test_a_worker_in_another_process_solves_an_outside_task(parity: Path) -> None:
    """What Ray sends to it, in the order in which it arrives, where nothing is loaded and the file is gone."""
    task = load_task(f"{parity}:Parity")
    model = new_model("tiny", 0, task="parity")
    assignment = Assignment(task, task.layout("msd"), 3, 8, Filter(k=1, checks=("complement",)), 0, 0.0)
    engine = NativeSampler(model, num_threads=1)
    ((_, expected),) = generate(engine, assignment)
    expected_proof = prove(engine, task, task.layout("msd"))
    weights, sent = (
        pickle.dumps((checkpoint_files(model), origins())),
        pickle.dumps(assignment),
    )
    forget()
    parity.unlink()
    worker = Worker("native", VllmConfig())
    assert worker.load(*pickle.loads(weights)) == expected_proof
    block = worker.solve(0, pickle.loads(sent))
    assert block.problems.texts() == expected.problems.texts() and block.verdicts == expected.verdicts


def test_a_run_goes_on_with_the_same_code_only(parity: Path, tmp_path: Path) -> None:
    load_task(f"{parity}:Parity")
    with open_run(tmp_path / "run", small(task="parity"), "test") as (run, _):
        (run.root / "rounds" / "supervised").mkdir(parents=True)
    record = json.loads((run.root / SETTINGS).read_text())
    assert record["task_sha256"] == origins()[0].sha256
    parity.write_text(PARITY + "\n# Edited.\n")
    load_task(f"{parity}:Parity")
    with pytest.raises(InputError, match="made with other code of the task parity; put that file back"):
        run.read_config()
    (run.root / SETTINGS).write_text(json.dumps(record | {"task_sha256": origins()[0].sha256}))
    with pytest.raises(InputError, match="is damaged"):
        run.read_config()
    (run.root / SETTINGS).write_text(json.dumps(record))
    parity.write_text(PARITY)
    load_task(f"{parity}:Parity")
    # A file of another name may hold the same code.
    moved = Path(shutil.copy(parity, tmp_path / "moved.py"))
    forget()
    load_task(f"{moved}:Parity")
    assert run.read_config().task == "parity"


def test_runs_of_the_package_record_no_code(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", small(), "test") as (run, _):
        (run.root / "rounds" / "supervised").mkdir(parents=True)
    assert sorted(json.loads((run.root / SETTINGS).read_text())) == ["settings", "sha256"]


def test_other_processes_get_the_code_that_was_loaded(parity: Path) -> None:
    """As Ray sends it: the origins, then problems and the task itself; the file may have changed meanwhile."""
    task = load_task(f"{parity}:Parity")
    sent = pickle.dumps(origins()), pickle.dumps((task, task.parse(["12"]), task.layout("msd")))
    forget()
    parity.unlink()
    load_origins(pickle.loads(sent[0]))
    received, problems, layout = pickle.loads(sent[1])
    assert received is find_task("parity") and problems.texts() == ["12;0"]
    assert layout.prefix_ids(problems).shape == (1, 7)


def test_a_run_and_its_model_are_used_from_the_command_line(parity: Path, tmp_path: Path) -> None:
    """Once by --task, and once by a config file that the user names."""
    reference, out = f"{parity}:Parity", tmp_path / "run"
    little = ["supervised.cycle_steps=3", "supervised.max_cycles=1", "supervised.examples=8", "audit_samples=4"]
    options = [part for setting in little for part in ("--set", setting)]
    result = invoke("sft", "--out", out, "--task", reference, *options)
    assert result.exit_code == 0, result.stderr
    assert f"--task {reference}" in "".join(result.stdout.split("\n"))
    forget()
    assert invoke("solve", "1234", "--model", out).exit_code == 2
    result = invoke("solve", "1234", "--model", out, "--task", reference, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["problem"] == "1234"
    forget()
    (tmp_path / "mine.toml").write_text(f"task = {json.dumps(reference)}\n")
    result = invoke("sft", "--out", out, "--config", tmp_path / "mine.toml")
    assert result.exit_code == 0, result.stderr
    assert 'task = "parity"' in (out / "config.toml").read_text()


# Commands of a model, without --task.
OF_A_MODEL = {
    "solve": ["solve", "12", "--model", "MODEL"],
    "eval": ["eval", "--model", "MODEL", "--digits", 2, "--samples", 1],
    "gym": ["eval", "--model", "MODEL", "--gym", "chain_sum", "--samples", 1],
    "bench": ["bench", "--model", "MODEL", "--digits", 2, "--count", 1, "--batch", 1],
    "generate": ["generate", "--model", "MODEL", "--digits", 2, "--count", 1, "--out", "OUT"],
    "distill": ["distill", "--model", "MODEL", "--data", "DATA", "--out", "OUT"],
    "export": ["export", "MODEL", "--to", "OUT"],
    "profile generate": ["profile", "generate", "--model", "MODEL", "--digits", 2, "--out", "OUT"],
    "profile distill": ["profile", "distill", "--model", "MODEL", "--data", "DATA", "--out", "OUT"],
}


@pytest.mark.parametrize("command", OF_A_MODEL.values(), ids=OF_A_MODEL)
def test_another_task_than_that_of_the_model_is_refused(
    command: list[object], parity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["addition" if word == "MODEL" else word for word in command]
    result = invoke(*words, "--task", f"{parity}:Parity")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "addition has learned the task addition, not parity; choose a model of parity" in result.stderr
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize("command", ["report", "ablate"])
def test_a_task_that_there_is_not_is_refused(command: str, tmp_path: Path) -> None:
    result = invoke(command, tmp_path, "--out", tmp_path / "out", "--task", "nothing")
    assert result.exit_code == 2 and "unknown task 'nothing'" in result.stderr


def test_the_task_of_a_model_is_read_without_its_code(parity: Path, tmp_path: Path) -> None:
    """For a model of ours and a model of text: the keys of their configs differ."""
    load_task(f"{parity}:Parity")
    save_checkpoint(new_model("tiny", 0, task="parity"), tmp_path / "ours")
    text = new_text_model("text-tiny", 0, {"hidden_size": 32})
    save_checkpoint(text, tmp_path / "fresh")
    text.learns("parity")
    save_checkpoint(text, tmp_path / "text")
    forget()
    assert [learned_task(tmp_path / name) for name in ("ours", "fresh", "text")] == ["parity", "addition", "parity"]


def test_the_example_of_the_documentation_divides(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how_to" / "add_a_task.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 45
    (tmp_path / "my_tasks.py").write_text(code)
    task = load_task(f"{tmp_path / 'my_tasks.py'}:Division")
    problems = task.parse(["8432/7", "100/9", "1/2"])
    answers = true_answers(problems)
    assert plain_decimals(answers) == ["12044", "111", "1"]
    other, expected = task.checks[0].pose(problems, answers)
    assert torch.equal(true_answers(other), expected)


def test_the_public_names_are_the_task_and_its_check() -> None:
    assert sector.Task.__name__ == "Declaration" and callable(sector.check) and sector.load_task is load_task
