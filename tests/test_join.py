"""Answers whose digits are found most significant first are joined in that order, wherever pieces and rest meet."""

from pathlib import Path

import pytest
import torch
from empty_doors import empty_doors
from largest import Largest, LargestAtOnce

from sector.engine.config import FILTERS
from sector.engine.errors import InputError
from sector.engine.language.operands import plain_decimals
from sector.engine.policy.improve import improve
from sector.engine.policy.solve import solve
from sector.engine.policy.solver import Solver
from sector.engine.samplers.protocol import Sampling
from sector.engine.seeding import generator
from sector.engine.tasks import TASK_DOOR
from sector.engine.testing.knowing import Knowing
from sector.engine.training.dataset import Provenance, improved_table, read_examples, write_examples
from sector.engine.training.supervised import label

ROWS = 12
STRICT = FILTERS["strict"].model_copy(update={"k": 3})


@pytest.fixture(params=[Largest, LargestAtOnce], ids=["at any length", "at once"])
def task(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Largest:
    empty_doors(monkeypatch)
    task: Largest = request.param()
    TASK_DOOR.register(task)
    return task


def test_votes_lessons_and_files_have_the_true_answers(task: Largest, tmp_path: Path) -> None:
    problems, model = task.draw(6, ROWS, generator(0, "join"), 0.5), Knowing(task)
    layout = model.layout("msd")
    sampling = Sampling(0.0, 0, torch.arange(ROWS), stage=0)
    # Problems of two digits are the shortest whose simplification this layout writes.
    settings = STRICT if task.at_once is None else STRICT.model_copy(update={"k": 1})
    improved = improve(model, problems, settings, layout, sampling)
    assert improved.accepted.all()
    assert len(improved.examples_by_step()) == (1 if task.at_once is None else 5)
    path = tmp_path / "examples.parquet"
    table = improved_table(improved, torch.arange(ROWS), task.layout("msd"), Provenance(6, 0, "native", ""))
    assert all(set(row["guesses"]) == {row["answer"]} for row in table.to_pylist())
    write_examples(path, table)
    for lesson in [*improved.examples_by_step(), *read_examples(path).values()]:
        truth = label(lesson.problems)
        assert torch.equal(lesson.answers, truth.answers)
        assert lesson.rest.is_nothing or torch.equal(lesson.digit, truth.digit)


def test_a_chain_shows_the_digits_found_in_their_order(task: Largest) -> None:
    model = Knowing(task)
    (solution,) = solve(Solver(model, model.layout("msd"), "slow", STRICT), task, ["1937+5290"], show=True)
    assert solution.answer == "59970" and solution.thought is not None
    assert [step.found for step in solution.thought.steps] == ["5", "59", "599"]
    assert plain_decimals(label(task.parse(["1937+5290"])).answers) == ["59970"]


def test_a_name_is_taken_once(task: Largest) -> None:
    TASK_DOOR.register(task)
    with pytest.raises(InputError, match="there is a task 'largest' already"):
        TASK_DOOR.register(type(task)())
