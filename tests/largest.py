"""A task whose answers come most significant digit first: the larger digit of each column, then the carry-in."""

from typing import ClassVar

import torch
from torch import Tensor

from sector.engine.language.alphabet import Alphabet
from sector.engine.language.layout import Layout, Simplifications
from sector.engine.language.operands import Problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.text_layout import TextLayout
from sector.engine.tasks.addition import Addition, _swapped
from sector.engine.tasks.check import Check, Solve
from sector.engine.tasks.mistakes import Mistake
from sector.engine.tasks.oracle import Truth


class Columns(Problems):
    task: ClassVar[str] = "largest"


class LargestDigits(Truth):
    def answers(self, problems: Problems) -> Tensor:
        return torch.cat([torch.maximum(problems.a, problems.b), problems.carry.unsqueeze(1)], dim=1)

    def simplifications(self, problems: Problems) -> Simplifications:
        first = torch.maximum(problems.a[:, 0], problems.b[:, 0])
        rest = Columns(problems.a[:, 1:], problems.b[:, 1:], problems.carry)
        return Simplifications(rest, first, torch.ones_like(first, dtype=torch.bool))

    def answer_mistakes(self, problems: Problems, answers: Tensor) -> list[Mistake]:
        raise NotImplementedError

    def simplification_mistakes(self, problems: Problems, outputs: Simplifications) -> list[Mistake]:
        raise NotImplementedError


class Largest(Addition):
    name = "largest"
    truth = LargestDigits()
    checks = (Check("commutative", "swapped operands", _swapped, Solve.BY_VOTE),)

    def join(self, pieces: Tensor, rest_answers: Tensor) -> Tensor:
        return torch.cat([pieces.flip(1), rest_answers], dim=1)

    def rest_answers(self, answers: Tensor, width: int) -> Tensor:
        return answers[..., answers.shape[-1] - width :]

    def layout(self, order: str) -> PlaceLayout:
        return PlaceLayout(DigitOrder(order), problems=Columns)

    def text_layout(self, alphabet: Alphabet, order: str = "msd") -> TextLayout:
        raise NotImplementedError

    def draw(self, digits: int, count: int, draws: torch.Generator, hard_share: float = 0.0) -> Problems:
        problems = super().draw(digits, count, draws, hard_share)
        return Columns(problems.a, problems.b, problems.carry)

    def parse(self, texts: list[str], digits: int | None = None) -> Problems:
        return Columns.parse(texts, digits)

    def draft(self, problems: Problems, answers: Tensor | None, layout: Layout) -> None:
        return


class LargestAtOnce(Largest):
    """Its whole chains are distilled: only problems of two digits or less are answered at once."""

    at_once = 2
