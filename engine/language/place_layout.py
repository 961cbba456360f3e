"""Layout of our own model: prompts and completions of both policies as place-coupled tokens.

The fast policy answers a problem at once; the slow policy simplifies it once, to the last answer digit and a problem
one digit shorter (SECToR section 3). The model generates every token of a completion; this file lays out prompts,
parses completions and reports which rows do not parse. The operations are those of `kernels/layout.py`, which choose by
device: plain torch on a CPU, and on a GPU kernels that never wait for the host.

In the shape descriptions B is the batch and N the digits per operand.
"""

import re
from dataclasses import dataclass

from torch import Tensor

from sector.engine.language import tokens
from sector.engine.language.layout import Mode, Simplifications
from sector.engine.language.operands import Problems
from sector.engine.language.place_ids import ANSWER, DigitOrder, PlaceIds, match_letters
from sector.kernels import layout as kernels
from sector.kernels import simplification
from sector.kernels.token_table import TokenTable

# Pattern of a simplification, a letter a token: d is a digit, c a carry, _ padding.
_SIMPLIFICATION = re.compile(r"d+\)&d+\)cd?E?_*")


@dataclass(frozen=True, slots=True)
class PlaceLayout(PlaceIds[Problems, int]):
    """Layout of problems as place-coupled ids (`tokens.py`); a `layout.Layout`.

    order, variant: as in `PlaceIds`.
    problems: class of the remaining problems: sums, or another batch of two operands and a carry.
    """

    problems: type[Problems] = Problems

    def answer_length(self, digits: int, /) -> int:
        """Return the count of tokens of a fast answer, end included."""
        return digits + 2

    def simplification_length(self, digits: int, /) -> int:
        """Return the count of tokens of a simplification, end included."""
        return 2 * digits + 4

    def beginning_length(self, digits: int, /) -> int:
        """Return the count of tokens of `<` and all digits of `a` but the last: the next prompt begins with them, too.

        With the least significant digit first it is 0, because a simplification takes away the first digit.
        """
        return digits if self.order is DigitOrder.MSD else 0

    def prefix_ids(self, problems: Problems) -> Tensor:
        """Return the `[B, 2N+5]` ids of `< a ) + b ) c`, which the fast and the slow prompt of a problem share."""
        operands = problems.a.contiguous(), problems.b.contiguous(), problems.carry.contiguous()
        return kernels.prompt_ids(*operands, *self._kernel_terms(problems.a))

    def simplification_ids(self, rest: Problems, digit: Tensor) -> Tensor:
        """Return the `[B, 2N+4]` ids that follow `>` for the remaining problems (N-1 digits) and the digits `[B]`."""
        operands = _adjacent(rest.a), _adjacent(rest.b), rest.carry.contiguous(), digit.contiguous()
        return simplification.simplification_ids(*operands, *self._kernel_terms(digit))

    def parse_answers(self, ids: Tensor, digits: int, /) -> tuple[Tensor, Tensor]:
        """Parse ids `[B, >=N+2]` as answers `[B, N+1]`; also return which rows parse `[B]`. Other rows hold zeros."""
        return kernels.parse_answers(ids, digits, *self._kernel_terms(ids))

    def parse_simplifications(self, ids: Tensor, digits: int, /) -> Simplifications[Problems]:
        """Parse ids `[B, >=2N+4]` as simplifications of N = `digits`. Rows that do not parse hold zeros."""
        parsed = kernels.parse_simplifications(ids, digits, *self._kernel_terms(ids))
        return Simplifications(self.problems(parsed.a, parsed.b, parsed.carry), parsed.digit, parsed.valid)

    def is_well_formed(self, ids: Tensor, mode: Mode) -> list[bool]:
        """Return which rows of `[B, T]` have the right token pattern, ignoring the lengths of numbers."""
        return match_letters(ids, ANSWER if mode == Mode.ANSWER else _SIMPLIFICATION)

    def _kernel_terms(self, like: Tensor) -> tuple[Tensor, TokenTable, bool]:
        """Return the variants `[B]`, the token table and the order for kernels, on the device of `like [B, ...]`."""
        variants = self._variants(like.device).expand(len(like)).contiguous()
        return variants, tokens.kernel_table(like.device), self.order is DigitOrder.LSD


def _adjacent(digits: Tensor) -> Tensor:
    """Return digits `[B, N]` whose rows have them side by side in memory."""
    return digits if digits.stride(1) == 1 else digits.contiguous()
