"""Engines and checks of users: by a file, a module or an entry point, and never because a file of a run names them."""

import json
import pickle
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from empty_doors import empty_doors, forget
from small_run import give_weights, start
from typer.testing import CliRunner, Result

import sector
from sector.benchmarks.grid import read_grid
from sector.benchmarks.small_run import small
from sector.cli.app import app
from sector.engine import outside
from sector.engine.config import CHECK_DOOR, CHECKS, ENGINE_DOOR, MAX_CHECKS, Filter, VllmConfig, run_config
from sector.engine.errors import InputError
from sector.engine.language.operands import digit_tensor
from sector.engine.models.checkpoint import checkpoint_files, load_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.outside import origins
from sector.engine.policy.checks import checks_of, load_check
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.improve import answer_fast, improve
from sector.engine.policy.worker import Worker, prove
from sector.engine.run.directory import RunDir
from sector.engine.run.made_with import SETTINGS
from sector.engine.run.open import open_run
from sector.engine.run.part_folder import MANIFEST
from sector.engine.samplers import make_sampler
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.outside import load_engine
from sector.engine.samplers.protocol import Room, Sampling
from sector.engine.tasks import find_task, true_answers
from sector.engine.tasks.addition import TASK as ADDITION
from sector.engine.tasks.check import Solve
from sector.engine.tasks.text_check import text_check
from sector.testing import check_engine

OWN_CHECK = Path(__file__).parents[1] / "examples" / "own_check.py"

CODE = """
from pathlib import Path

import sector
from sector.engine.samplers.native import NativeSampler

Path(__file__).with_name("trace").touch()


class Twin(NativeSampler):
    name = "twin"

    def __init__(self, model, num_threads=None):
        super().__init__(model, num_threads)
        self.threads = num_threads


def unlucky(problem, answer):
    return problem, None if answer.endswith("7") else answer


luck = sector.text_check("luck", "no seven at the end", unlucky)
"""


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    empty_doors(monkeypatch)
    yield
    sys.modules.pop("my_code", None)
    outside._installed.cache_clear()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "my_code.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return path


def was_imported(code: Path) -> bool:
    trace = code.with_name("trace")
    is_there = trace.exists()
    trace.unlink(missing_ok=True)
    return is_there


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def begun(root: Path, **settings: object) -> RunDir:
    """A run that has made something."""
    with open_run(root, small(**settings), "test") as (run, _):
        (run.root / "rounds" / "supervised").mkdir(parents=True)
    return run


def test_an_engine_is_one_class_anywhere(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model("tiny", 0)
    twin = load_engine(f"{code}:Twin")
    assert twin.name == "twin" and ENGINE_DOOR.names() == ("native", "hf", "vllm", "twin")
    sampler = make_sampler("twin", model, num_threads=1)
    assert isinstance(sampler, twin) and sampler.threads == 1 and not isinstance(sampler, Room)
    forget()
    monkeypatch.syspath_prepend(code.parent)
    assert load_engine("my_code:Twin").name == "twin" and origins()[0].source == code.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "member", "fault"),
    [
        ("", "", "Other", r"there is no engine 'Other'; the module has Twin$"),
        ("", "", "luck", r"there is no engine 'luck'; the module has Twin$"),
        ('name = "twin"', 'name = "Twin Two"', "Twin", "Twin has no valid name; give it a name of lower case letters"),
        ('name = "twin"', "name = None", "Twin", "Twin has no valid name"),
        ('name = "twin"', 'name = "hf"', "Twin", "there is an? engine 'hf' already"),
        ("import sector\n", "import nothing_like_this\n", "Twin", r"cannot be loaded \(ModuleNotFoundError"),
    ],
    ids=["missing", "a check", "name", "no name", "name taken", "import"],
)
def test_code_without_an_engine_is_refused_in_one_line(
    code: Path, old: str, new: str, member: str, fault: str, tmp_path: Path
) -> None:
    code.write_text(CODE.replace(old, new) if old else CODE)
    with pytest.raises(InputError, match=fault):
        load_engine(f"{code}:{member}")
    result = invoke("run", "--out", tmp_path / "run", "--engine", f"{code}:{member}")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("raise OSError('no card')", r"the engine twin cannot be made of this model \(OSError: no card\)"),
        ("pass", "the engine twin has no weights_sha256, device, uses_all_cores; sector.testing.check_engine tests"),
    ],
    ids=["raises", "incomplete"],
)
def test_an_engine_that_cannot_be_made_is_named(code: Path, body: str, fault: str) -> None:
    code.write_text(
        f"class Twin:\n    name = 'twin'\n    def __init__(self, model):\n        {body}\n"
        "    def load(self, model): pass\n    def sample(self, prefix, branches, sampling, beginning=None): pass\n"
    )
    load_engine(f"{code}:Twin")
    with pytest.raises(InputError, match=fault):
        make_sampler("twin", new_model("tiny", 0))


@pytest.mark.parametrize("command", [("solve", "1+2"), ("eval", "--digits", 2), ("generate", "--digits", 2)], ids=str)
def test_engines_are_checked_before_work(command: tuple[object, ...], tmp_path: Path) -> None:
    result = invoke(*command, "--model", "addition", "--engine", "tpu")
    assert result.exit_code == 2 and "unknown engine 'tpu'; choose one of native, hf, vllm" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_every_way_in_takes_an_engine_and_a_check(code: Path, tmp_path: Path) -> None:
    engine, check = f"{code}:Twin", f"{code}:luck"
    assert sector.solve("123+456", "addition", "fast", engine=engine).answer == "579"
    chosen = {"vote": "off", "checks": ["direct", check], "think_through": False}
    labels = sector.generate("addition", 3, 40, engine=engine, filter=chosen)
    assert labels.counts.engine == "twin" and set(labels.table["engine"].to_pylist()) == {"twin"}
    assert labels.counts.rejected["not_luck"] > 0
    assert not [answer for answer in labels.table["answer"].to_pylist() if answer.endswith("7")]
    solution = sector.solve("123+456", "addition", filter=chosen)
    assert [tried.label for tried in solution.thought.checks] == ["no seven at the end"]
    assert sector.solve("123+454", "addition", filter=chosen).answer is None
    report = sector.evaluate("addition", "2", 4, "improved", suite=False, engine=engine, filter=chosen)
    assert report.scores[0].correct <= 4
    forget()
    shown = invoke("solve", "123+456", "--model", "addition", "--engine", engine, "--json")
    assert shown.exit_code == 0 and json.loads(shown.stdout)["answer"] == "579"


def test_a_grid_that_a_user_names_may_name_code(code: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(f"""
[axes.check]
luck = {{ engine = "{code}:Twin", filter.checks = ["direct", "{code}:luck"] }}
none = {{ filter.checks = ["direct"] }}
""")
    result = invoke("ablate", grid, "--out", tmp_path / "out", "--plan")
    assert result.exit_code == 0, result.stderr
    luck, none = (run_config(cell.of_seed(0)) for cell in read_grid(grid).cells)
    assert (luck.engine, luck.filter.checks, none.engine) == ("twin", ("direct", "luck"), "native")
    grid.write_text(grid.read_text().replace(":luck", ":bad"))
    result = invoke("ablate", grid, "--out", tmp_path / "out", "--plan")
    assert result.exit_code == 2 and "there is no check 'bad'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_entry_point_needs_no_option(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("twin", "my_code:Twin", "sector.engines"), EntryPoint("native", "my_code:Twin", "sector.engines"),
        EntryPoint("luck", "my_code:luck", "sector.checks"), EntryPoint("odd", "my_code:luck", "sector.checks"),
    ]  # fmt: skip
    monkeypatch.syspath_prepend(code.parent)
    monkeypatch.setattr(outside, "entry_points", lambda group: [point for point in points if point.group == group])
    outside._installed.cache_clear()
    config = run_config({"engine": "twin", "filter": {"checks": ["direct", "luck"]}})
    assert isinstance(make_sampler("native", new_model("tiny", 0)), NativeSampler) and not was_imported(code)
    assert [check.name for check in checks_of(config.filter, ADDITION)] == ["direct", "luck"]
    assert make_sampler("twin", new_model("tiny", 0)).name == "twin" and was_imported(code)
    with pytest.raises(InputError, match=r"the entry point 'odd' of sector\.checks holds the check 'luck'"):
        checks_of(Filter(checks=("odd",)), ADDITION)


def test_files_of_a_run_name_no_code(code: Path, tmp_path: Path) -> None:
    """A run whose config holds references in the place of names, and one whose names are unknown here."""
    load_engine(f"{code}:Twin"), load_check(f"{code}:luck")
    run = begun(tmp_path / "run", engine="twin", filter={"checks": ["luck"]})
    text = (run.root / "config.toml").read_text()
    forget()
    was_imported(code)
    # A run can be reported without its code, and not resumed.
    assert run.read_config().engine == "twin" and run.read_config().filter.checks == ("luck",)
    for options, kind in (((), "engine 'twin'|check 'luck'"), (("--engine", f"{code}:Twin"), "check 'luck'")):
        result = invoke("run", "--out", run.root, *options)
        assert result.exit_code == 2 and "unknown " in result.stderr and len(result.stderr.splitlines()) == 1
        assert any(name in result.stderr for name in kind.split("|"))
        assert not was_imported(code) or options
        forget()
    was_imported(code)
    for name, reference in (("twin", f"{code}:Twin"), ("luck", f"{code}:luck")):
        (run.root / "config.toml").write_text(text.replace(json.dumps(name), json.dumps(reference)))
        with pytest.raises(InputError, match=f"unknown (engine|check) '{code}"):
            run.read_config()
        assert invoke("report", run.root).exit_code == 2
    with pytest.raises(InputError, match="unknown engine"):
        run_config({"engine": f"{code}:Twin"})
    with pytest.raises(InputError, match="unknown check"):
        run_config({"filter": {"checks": [f"{code}:luck"]}})
    with pytest.raises(InputError, match="unknown engine"):
        make_sampler(f"{code}:Twin", new_model("tiny", 0))
    assert not was_imported(code)


def test_a_run_goes_on_with_the_same_code_only(code: Path, tmp_path: Path) -> None:
    load_engine(f"{code}:Twin"), load_check(f"{code}:luck")
    settings = {"engine": "twin", "filter": {"checks": ["complement", "luck"]}}
    run = begun(tmp_path / "run", **settings)
    record = json.loads((run.root / SETTINGS).read_text())
    digest = origins()[0].sha256
    assert record["code_sha256"] == {"engine twin": digest, "check luck": digest} and "task_sha256" not in record
    code.write_text(CODE + "\n# Edited.\n")
    for load, name in ((load_engine, "Twin"), (load_check, "luck")):
        forget()
        load(f"{code}:{name}")
        with pytest.raises(InputError, match=r"made with other code of the (engine twin|check luck); put that file"):
            run.read_config()
    (run.root / SETTINGS).write_text(json.dumps(record | {"code_sha256": {"engine twin": origins()[0].sha256}}))
    with pytest.raises(InputError, match="is damaged"):
        run.read_config()
    (run.root / SETTINGS).write_text(json.dumps(record))
    code.write_text(CODE)
    forget()
    load_engine(f"{code}:Twin"), load_check(f"{code}:luck")
    with open_run(run.root, {}, "test") as (_, config):
        assert config.engine == "twin" and config.filter.checks == ("complement", "luck")


def test_a_data_set_goes_on_with_the_same_code_only(code: Path, tmp_path: Path) -> None:
    def num_made() -> int:
        chosen = {"vote": "off", "checks": ["direct", f"{code}:luck"], "think_through": False}
        out = f"{tmp_path / 'parts'}/"
        labels = sector.generate("addition", 3, 500, out, engine=f"{code}:Twin", filter=chosen, part_rows=250)
        return labels.as_json()["this_call"]["parts"]

    assert num_made() == 2
    settings = json.loads((tmp_path / "parts" / MANIFEST).read_text())["settings"]
    assert settings["code_sha256"] == dict.fromkeys(["engine twin", "check luck"], origins()[0].sha256)
    code.write_text(CODE + "\n# Edited.\n")
    forget()
    with pytest.raises(InputError, match=r"was made with code_sha256\.(engine twin|check luck) = '"):
        num_made()
    code.write_text(CODE)
    forget()
    assert num_made() == 0


def test_runs_of_the_package_record_no_code(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert sorted(json.loads((run.root / SETTINGS).read_text())) == ["settings", "sha256"]


def test_a_worker_in_another_process_gets_engine_and_check(code: Path) -> None:
    """What Ray sends to it, in the order in which it arrives, where nothing is loaded and the file is gone."""
    load_engine(f"{code}:Twin"), load_check(f"{code}:luck")
    model, task = new_model("tiny", 0), find_task("addition")
    assignment = Assignment(task, task.layout("msd"), 3, 8, Filter(k=1, vote="off", checks=("luck",)), 0, 0.0)
    engine = make_sampler("twin", model, num_threads=1)
    ((_, expected),) = generate(engine, assignment)
    expected_proof = prove(engine, task, task.layout("msd"))
    sent = pickle.dumps((checkpoint_files(model), origins())), pickle.dumps(assignment)
    forget()
    code.unlink()
    worker = Worker("twin", VllmConfig())
    assert worker.load(*pickle.loads(sent[0])) == expected_proof and worker._sampler.name == "twin"
    block = worker.solve(0, pickle.loads(sent[1]))
    assert block.verdicts == expected.verdicts and block.reasons == expected.reasons


def test_a_filter_has_room_for_so_many_checks(code: Path) -> None:
    names = []
    for number in range(MAX_CHECKS + 1 - len(CHECKS)):
        CHECK_DOOR.register(text_check(f"own_{number}", "own", lambda problem, answer: (problem, answer)))
        names.append(f"own_{number}")
    assert len(Filter(checks=(*CHECKS, *names[1:])).checks) == MAX_CHECKS
    with pytest.raises(InputError, match="13 checks are too many; a filter has at most 12"):
        run_config({"filter": {"checks": [*CHECKS, *names]}})
    with pytest.raises(InputError, match="names a check twice"):
        run_config({"filter": {"checks": ["own_1", "own_1"]}})


def answers_by(texts: list[str], digits: int) -> torch.Tensor:
    return digit_tensor(texts, digits)


@pytest.mark.parametrize("solve", Solve, ids=lambda solve: solve.name)
def test_casting_out_nines_finds_a_wrong_carry(solve: Solve) -> None:
    """The remainders of two answers of the model: a power of ten too much or too little is found, at any place."""
    residues = load_check(f"{OWN_CHECK}:residues")
    trained = sector.load("addition")
    problems = ADDITION.draw(8, 40, torch.Generator().manual_seed(0), 0.5)
    right = true_answers(problems)
    numbers = [int("".join(map(str, row))) for row in right.tolist()]
    carried = [abs(number + (-1) ** place * 10 ** (place % 8)) for place, number in enumerate(numbers)]
    wrong = answers_by([str(number) for number in carried], 9)
    sampler, layout = NativeSampler(trained.model, num_threads=1), ADDITION.layout("msd")
    for answers, agrees in ((right, True), (wrong, False)):
        posed, expected = residues.pose(problems, answers)
        solved, parsed, _ = answer_fast(sampler, posed, layout, Sampling(0.0, 0, torch.arange(40), 0))
        assert parsed.all() and residues.compare(solved, expected).tolist() == [agrees] * 40
    checked = text_check("residues", "casting out nines", lambda problem, answer: (problem, answer), solve)
    CHECK_DOOR.things["residues"] = checked
    settings = Filter(k=2, vote="off", checks=("residues",), think_through=True)
    improved = improve(sampler, problems, settings, layout, Sampling(0.0, 0, torch.arange(40), 0))
    assert improved.verdicts.count("accepted") > 35 and improved.checks[0].name == "residues"


@pytest.mark.parametrize(
    ("pose", "fault"),
    [
        (lambda problem, answer: 1 / 0, r"the check own failed on 12\+34 and 046 \(ZeroDivisionError"),
        (lambda problem, answer: ("12-34", answer), "the check own poses a problem that cannot be read: "),
        (
            lambda problem, answer: ("123+1", answer),
            "poses a problem that cannot be read: an operand has 3 digits",
        ),
        (
            lambda problem, answer: (problem, "1000"),
            "the check own expects '1000'; an answer here is a text of at most",
        ),
        (lambda problem, answer: (problem, "-1"), "the check own expects '-1'"),
    ],
    ids=["raises", "no problem", "too long", "answer too long", "no digits"],
)
def test_a_check_that_fails_is_named(pose: object, fault: str) -> None:
    problems = ADDITION.parse(["12+34"])
    with pytest.raises(InputError, match=fault) as caught:
        text_check("own", "own", pose).pose(problems, answers_by(["46"], 3))
    assert "\n" not in str(caught.value)


def test_a_text_check_goes_with_other_tasks() -> None:
    def swapped(problem: str, answer: str) -> tuple[str, str]:
        first, second = problem.split("+")[0].split("*")
        return f"{second}*{first}", answer

    swap = text_check("swap", "swapped", swapped)
    task = find_task("multiplication")
    problems = task.parse(["12*34", "56*78"])
    posed, expected = swap.pose(problems, true_answers(problems))
    assert torch.equal(true_answers(posed), expected) and posed.texts() != problems.texts()


def test_a_round_with_checks_of_a_user(code: Path, tmp_path: Path) -> None:
    """Verdicts, counts, metrics, pictures and report take the names of the checks."""
    names = ["complement", "residues", "luck"]
    load_check(f"{OWN_CHECK}:residues"), load_check(f"{code}:luck")
    run, _ = start(tmp_path / "run", until=7, filter={"vote": "off", "checks": names, "think_through": False})
    give_weights(run)
    forget()
    assert invoke("run", "--out", run.root).exit_code == 2
    references = json.dumps(["complement", f"{OWN_CHECK}:residues", f"{code}:luck"])
    result = invoke("run", "--out", run.root, "--set", f"filter.checks={references}")
    assert result.exit_code == 0, result.stderr
    forget()
    line = run.metrics()[-1]
    assert line.digits == 7 and {"not_residues", "not_luck"} <= set(line.rejected) and line.rejected["not_luck"] > 10
    verdicts = pq.read_table(run.round(7).candidates)["verdict"].to_pylist()
    assert verdicts.count("not_luck") == line.rejected["not_luck"]
    assert verdicts.count("not_residues") == line.rejected["not_residues"]
    assert (run.plots() / "labels.png").stat().st_size > 1000
    assert invoke("report", run.root).exit_code == 0
    assert "luck" in (run.root / "report.html").read_text(encoding="utf-8")
    assert load_checkpoint(run.root)


@pytest.mark.parametrize(
    ("page", "name"), [("add_a_check.md", "my_checks.py:residues"), ("add_an_engine.md", "my_engine.py:Plain")], ids=str
)
def test_the_example_of_a_page_works(page: str, name: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "how_to" / page).read_text(encoding="utf-8")
    (tmp_path / name.partition(":")[0]).write_text(text.partition("```python\n")[2].partition("```")[0])
    if page == "add_an_engine.md":
        check_engine(load_engine(f"{tmp_path / name}"))
    else:
        chosen = {"vote": "off", "checks": [f"{tmp_path / name}"], "think_through": False}
        labels = sector.generate("addition", 4, 20, filter=chosen)
        assert labels.counts.accepted > 15 and "not_residues" in labels.counts.rejected
