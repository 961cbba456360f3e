"""One problem of a task as the loop sees it: its steps, its checks and its tokens. `sector task show` prints it."""

from dataclasses import asdict, dataclass

from sector.engine.config import FILTERS, Values, run_config
from sector.engine.errors import InputError
from sector.engine.language.layout import Mode
from sector.engine.models.token_text import has_token_text
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
    think: tokens that ask for a simplification; [] if the problem has none.
    simplification: tokens of the first simplification; [] if there is none.
    texts: the problem with its answer, and with its first simplification, as text; [] if the task has no text.
    settings: settings of a run that differ for this task.
    """

    task: str
    solution: Solution
    prompt: list[str]
    answer: list[str]
    think: list[str]
    simplification: list[str]
    texts: list[str]
    settings: Values

    def as_json(self) -> dict[str, object]:
        """Return the page as a JSON object."""
        return asdict(self) | {"solution": self.solution.as_json()}


def task_page(task: Task, text: str | None = None) -> TaskPage:
    """Return a page that shows how a task writes and solves a problem.

    text: the problem as typed; by default the example of the task.

    Raise InputError if the text is not a problem.
    """
    text = task.example if text is None else text
    problems, config = task.parse([text]), run_config({"task": task.name})
    knowing = Knowing(task)
    solver = Solver(knowing, knowing.layout(config.digit_order), "improved", FILTERS["strict"])
    (solution,) = solve(solver, task, [text], show=True)
    if solution.unread:
        raise InputError(str(solution.error))
    examples, layout = label(problems), task.layout(config.digit_order)
    parts = [layout.prompt_ids(problems, Mode.ANSWER), layout.answer_ids(examples.answers)]
    if not examples.rest.is_nothing:
        parts += [
            layout.prompt_ids(problems, Mode.THINK),
            layout.simplification_ids(examples.rest, examples.digit),
        ]
    tokenizer = SectorTokenizer(config.digit_order, task.name)
    names: list[list[str]] = [tokenizer.convert_ids_to_tokens(ids[0].tolist()) for ids in parts]
    pairs = [(names[at], names[at + 1]) for at in range(0, len(names), 2)]
    (prompt, answer), (think, simplification) = pairs[0], pairs[1] if pairs[1:] else ([], [])
    return TaskPage(
        task=task.name,
        solution=solution,
        prompt=prompt,
        answer=answer,
        think=think,
        simplification=simplification,
        texts=[tokenizer.convert_tokens_to_string(ask + tell) for ask, tell in pairs] if has_token_text(task) else [],
        settings=task.settings,
    )
