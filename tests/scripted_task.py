"""An engine without a model that knows the truth of any task, and lies where it is told to."""

from typing import Any

import torch
from torch import Tensor

from sector.engine.language.layout import Batch, Layout, Mode
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.tasks import oracle
from sector.engine.tasks.task import Task
from sector.engine.training.supervised import label


class Overheard:
    """A layout that tells which problems it was last asked to lay out, and is the task's own in all else."""

    def __init__(self, layout: Layout, heard: list[tuple[Layout, Batch]]) -> None:
        self._layout, self._heard = layout, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)

    def prefix_ids(self, problems: Batch) -> Tensor:
        self._heard[:] = [(self._layout, problems)]
        return self._layout.prefix_ids(problems)

    def shifted(self, variant: int | Tensor) -> "Overheard":
        return Overheard(self._layout.shifted(variant), self._heard)


class Knowing:
    """Engine that answers truly, except for chosen problems: their last digit is one more, always or in fast answers.

    It gets the problems as they are laid out, since only real models are tested for reading prompts.
    """

    name = "knowing"
    device = torch.device("cpu")
    uses_all_cores = False
    weights_sha256 = ""

    def __init__(self, task: Task, lies_about: set[str] | None = None, misjudges: set[str] | None = None) -> None:
        # Taken now: a test may put `layout` itself in its place.
        self._layout, self._lies, self._misjudged = task.layout, lies_about or set(), misjudges or set()
        self._heard: list[tuple[Layout, Batch]] = []

    def layout(self, order: str) -> Overheard:
        return Overheard(self._layout(order), self._heard)

    def load(self, model: object) -> None: ...

    def sample(
        self, prefix: Tensor, branches: list[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        layout, problems = self._heard[0]
        assert torch.equal(layout.prefix_ids(problems), prefix)
        # The truth is open to this engine at all times, as it must be sealed for the loop.
        seals, oracle._seals = oracle._seals, 0
        truth = label(problems)
        oracle._seals = seals
        assert len(set(sampling.rows.tolist())) == len(prefix)
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
            assert outputs[-1].shape[1] == branch.length
        return outputs
