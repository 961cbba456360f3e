"""One problem of a task as the loop sees it: its steps, its checks and its tokens. `sector task show` prints it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from sector.engine.config import FILTERS, run_config
from sector.engine.errors import InputError
from sector.engine.language.layout import Mode
from sector.engine.models.tokenizer import SectorTokenizer
from sector.engine.policy.solve import Solution, solve
from sector.engine.policy.solver import Solver
from sector.engine.tasks.task import Task
from sector.engine.testing.knowing import Knowing
from sector.engine.training.supervised import label


@dataclass(frozen=True, slots=True)
class TaskPage:
    """One problem of a task as the loop sees it.

    task: name of the task.
    solution: the problem, solved by an engine that knows the truth, with steps, guesses and checks.
    prompt: tokens that ask for the answer.
    answer: tokens of the answer.
    think: tokens that ask for a simplification.
    simplification: tokens of the first simplification.
    settings: settings of a run that differ for this task.
    """

    task: str
    solution: Solution
    prompt: list[str]
    answer: list[str]
    think: list[str]
    simplification: list[str]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the page as a JSON object."""
        return asdict(self) | {"solution": self.solution.as_json()}


def task_page(task: Task, text: str | None = None) -> TaskPage:
    """Return the page of a problem of a task.

    text: the problem as typed; by default the example of the task.

    Raises InputError if the text is not a problem.
    """
    text = task.example if text is None else text
    problems, config = task.parse([text]), run_config({"task": task.name})
    knowing = Knowing(task)
    solver = Solver(knowing, knowing.layout(config.digit_order), "improved", FILTERS["strict"])
    (solution,) = solve(solver, task, [text], show=True)
    if solution.unread:
        raise InputError(str(solution.error))
    examples, layout = label(problems), task.layout(config.digit_order)
    return TaskPage(
        task=task.name,
        solution=solution,
        prompt=_names(layout.prompt_ids(problems, Mode.ANSWER)),
        answer=_names(layout.answer_ids(examples.answers)),
        think=_names(layout.prompt_ids(problems, Mode.THINK)),
        simplification=_names(layout.simplification_ids(examples.rest, examples.digit)),
        settings=task.settings,
    )


def _names(ids: torch.Tensor) -> list[str]:
    """Return the names of the tokens of the first row of ids `[B, T]`."""
    names: list[str] = SectorTokenizer().convert_ids_to_tokens(ids[0].tolist())
    return names
