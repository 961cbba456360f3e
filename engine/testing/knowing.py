"""An engine without a model that knows the truth of a task, for tests of tasks and of the code above engines."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout, Mode
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.tasks import oracle
from sector.engine.tasks.task import Task
from sector.engine.training.supervised import label


class Overheard:
    """A layout that keeps the problems that it laid out last; all else is that of the task's layout."""

    def __init__(self, layout: Layout, heard: list[tuple[Layout, Batch]]) -> None:
        self._layout, self._heard = layout, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)

    def prefix_ids(self, problems: Batch) -> Tensor:
        """Return the ids of the task's layout, and keep the problems."""
        self._heard[:] = [(self._layout, problems)]
        return self._layout.prefix_ids(problems)

    def shifted(self, variant: int | Tensor) -> "Overheard":
        """Return the layout of another variant, which keeps problems in the same place."""
        return Overheard(self._layout.shifted(variant), self._heard)


class Knowing:
    """Engine that answers truly, except for chosen problems: their last digit is one more, always or in fast answers.

    It gets the problems as its own `layout` lays them out, since only models read prompts.
    """

    name = "knowing"
    device = torch.device("cpu")
    uses_all_cores = False
    weights_sha256 = ""

    def __init__(self, task: Task, lies_about: Iterable[str] = (), misjudges: Iterable[str] = ()) -> None:
        """Make the engine.

        lies_about: texts of problems whose answers and steps are wrong.
        misjudges: texts of problems whose fast answers are wrong.
        """
        # Taken now: a test may put `layout` itself in its place.
        self._layout, self._lies, self._misjudged = task.layout, set(lies_about), set(misjudges)
        self._heard: list[tuple[Layout, Batch]] = []

    def layout(self, order: str) -> Layout:
        """Return the layout that callers must use; order as in `Task.layout`."""
        return cast(Layout, Overheard(self._layout(order), self._heard))

    def load(self, model: object) -> None:
        """Do nothing: there are no weights."""

    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Return the completions of each branch, as an engine does."""
        layout, problems = self._heard[0]
        assert torch.equal(layout.prefix_ids(problems), prefix), "the layout is that of this engine"
        assert len(set(sampling.rows.tolist())) == len(prefix), "each row has a counter of its own"
        truth = _unsealed(problems)
        lies = torch.tensor([text in self._lies for text in problems.texts()], dtype=torch.bool)
        misjudged = torch.tensor([text in self._misjudged for text in problems.texts()], dtype=torch.bool)
        outputs = []
        for branch in branches:
            if torch.equal(branch.mark, layout.mark_ids(Mode.ANSWER, len(problems))):
                answers = truth.answers.clone()
                answers[:, -1] = (answers[:, -1] + (lies | misjudged)) % 10
                outputs.append(layout.answer_ids(answers))
            else:
                outputs.append(layout.simplification_ids(truth.rest, (truth.digit + lies) % 10))
            assert outputs[-1].shape[1] == branch.length, "a branch is as long as the layout says"
        return outputs


def _unsealed(problems: Batch) -> Examples:
    """Return the truth of problems, also within a round: it stands for a model, and reaches the loop as tokens only."""
    seals, oracle._seals = oracle._seals, 0
    try:
        return label(problems)
    finally:
        oracle._seals = seals
