"""An engine without a model, for tests of the code above engines."""

import torch
from torch import Tensor

from sector.engine.language.operands import Problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.tokens import ANSWER, NUM_LOCAL, NUM_SHIFTS, PAD_ID
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.training.supervised import label


class Scripted:
    """An engine that answers truly, but for the faults it is told to make; it reads its prompts as a model would."""

    name = "scripted"
    device = torch.device("cpu")
    uses_all_cores = False
    weights_sha256 = ""

    def __init__(
        self,
        wrong_answers: dict[str, int] | None = None,
        broken_thoughts: set[str] | None = None,
        wrong_column: tuple[int, int, int] | None = None,
    ) -> None:
        self.wrong_answers = wrong_answers or {}
        self.broken_thoughts = broken_thoughts or set()
        # Two digits and a carry that it always adds up wrongly when it thinks.
        self.wrong_column = wrong_column
        self.asked: list[str] = []
        self.stages: list[int] = []

    def load(self, model: object) -> None: ...

    def sample(
        self, prefix: Tensor, branches: list[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        if len(prefix) == 0:
            return [prefix.new_empty(0, branch.length) for branch in branches]
        self.stages += range(sampling.stage, sampling.stage + len(branches))
        digits = (prefix.shape[1] - 5) // 2
        variant = prefix[:, 0]
        layout = PlaceLayout(DigitOrder.MSD, variant)
        problems = Problems(
            prefix[:, 1 : digits + 1] % NUM_LOCAL,
            prefix[:, digits + 3 : 2 * digits + 3] % NUM_LOCAL,
            (prefix[:, -1] % NUM_LOCAL == 12).long(),
        )
        truth, texts = label(problems), problems.texts()
        outputs = []
        for branch in branches:
            if int(branch.mark[0]) - (ANSWER - NUM_LOCAL) in range(NUM_SHIFTS):
                answers = truth.answers.clone()
                for row, text in enumerate(texts):
                    self.asked.append(text)
                    answers[row, 0] = (answers[row, 0] + self.wrong_answers.get(text, 0)) % 10
                outputs.append(layout.answer_ids(answers))
            else:
                columns = zip(
                    problems.a[:, -1].tolist(), problems.b[:, -1].tolist(), problems.carry.tolist(), strict=True
                )
                off = torch.tensor([column == self.wrong_column for column in columns]).long()
                ids = layout.simplification_ids(truth.rest, (truth.digit + off) % 10)
                broken = torch.tensor([text in self.broken_thoughts for text in texts])
                outputs.append(ids.masked_fill(broken.unsqueeze(1), PAD_ID))
        return outputs
