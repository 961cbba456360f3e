"""Place-coupled tokens: the meaning of a token id, and the ids that may follow it.

A token is a class and a place. The rotary position of a token is its place, not its index in the sequence, so that
digits of equal significance meet at equal positions. The place of the next token depends only on the current token and
the class of the next one. So the id carries the place, and plain `generate` loops need no state:

    classes 0..15   local: the ten digits, `)` the end of a number, the carry-in marks, E the end of a sequence;
                    id = class + 16 * place, place >= 1
    classes 16..31  marks: they stand at place 0 and their ids are 0..15

Place rule: a digit stands one place after its predecessor, any other local token at the place of its predecessor, a
mark at 0. Each mark has NUM_SHIFTS variants; the first digit after a mark of variant v stands at place 1 + SHIFTS[v].
A prompt with all marks of variant v is thus the same problem at shifted places, as shifted checks use it. The model
copies the variant of `+` into the `&` it writes, as it copies digits.

Prompts and completions, all marks in one variant; `&` is the JOIN mark, shown as `+` in text:

    prompt          < a ) + b ) c =      or ending in >
    fast answer     N+1 digits, E                           after =
    simplification  a' ) & b' ) c' d E                      after >

a', b' and c' are the remaining problem of N-1 digits, d the last digit of the answer.
"""

from functools import cache

import torch
from torch import Tensor

from sector.engine.language.constant import Constant
from sector.kernels.token_table import TokenConstants, TokenTable, pack_legal

NUM_CLASSES = 32
NUM_LOCAL = 16
NUM_DIGITS = 10

END = 10
CARRY_0 = 11
CARRY_1 = 12
EOS = 13

SHIFTS = (0, 6, 15)
NUM_SHIFTS = len(SHIFTS)
START = 16
ANSWER = START + NUM_SHIFTS
THINK = ANSWER + NUM_SHIFTS
PLUS = THINK + NUM_SHIFTS
JOIN = PLUS + NUM_SHIFTS
PAD = JOIN + NUM_SHIFTS

PAD_ID = PAD - NUM_LOCAL

# The longest legal operand; its answer has one digit more. A model that runs on past MAX_PLACE repeats that place, so
# its output does not parse.
MAX_DIGITS = 256
MAX_PLACE = MAX_DIGITS + 1 + max(SHIFTS)
VOCAB_SIZE = NUM_LOCAL * (MAX_PLACE + 1)


def row_length(digits: int) -> int:
    """Return the count of tokens of a prompt, 2N+6, and its longest completion, the simplification, 2N+4."""
    return 4 * digits + 10


def class_of(ids: Tensor) -> Tensor:
    """Return the class 0..31 of each id; any shape."""
    return torch.where(ids < NUM_LOCAL, ids + NUM_LOCAL, ids % NUM_LOCAL)


def place_of(ids: Tensor) -> Tensor:
    """Return the place of each id, 0 for marks; any shape."""
    return ids // NUM_LOCAL


def next_ids(ids: Tensor, next_classes: Tensor) -> Tensor:
    """Return the ids of the tokens of class `next_classes` that follow `ids`; shapes broadcast."""
    base = torch.where(ids < NUM_LOCAL, _MARK_BASE.on(ids.device)[ids.clamp(max=NUM_LOCAL - 1)], place_of(ids))
    places = (base + (next_classes < NUM_DIGITS)).clamp(max=MAX_PLACE)
    local = next_classes + NUM_LOCAL * places
    return torch.where(next_classes < NUM_LOCAL, local, next_classes - NUM_LOCAL)


def legal_table(device: torch.device | str = "cpu") -> Tensor:
    """Return `[32, 32]` bool: whether class j may follow class i in generated tokens. Every row allows a class.

    The table is read-only and cached per device, because every forward pass reads it.
    """
    return _LEGAL.on(device)


def is_eos(ids: Tensor) -> Tensor:
    """Return which ids end a sequence, at any place; any shape."""
    return (ids % NUM_LOCAL == EOS) & (ids >= NUM_LOCAL)


def eos_ids() -> list[int]:
    """Return all ids that end a sequence, for engines that take a list of stop ids."""
    return list(range(NUM_LOCAL + EOS, VOCAB_SIZE, NUM_LOCAL))


@cache
@torch.inference_mode(False)
def kernel_table(device: torch.device | str = "cpu") -> TokenTable:
    """Return the token table for kernels, cached per device."""
    constants = TokenConstants(
        num_digits=NUM_DIGITS,
        num_local=NUM_LOCAL,
        max_place=MAX_PLACE,
        end=END,
        carry_0=CARRY_0,
        eos=EOS,
        start=START,
        plus=PLUS,
        join=JOIN,
        pad=PAD,
    )
    return TokenTable(constants, pack_legal(legal_table()).to(device), _MARK_BASE.on(device).int())


def _legal() -> Tensor:
    """Build the table of `legal_table`."""
    legal = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.bool)
    digits = slice(0, NUM_DIGITS)
    legal[START:PAD, digits] = True
    legal[digits, digits] = True
    legal[digits, [END, EOS]] = True
    legal[END, JOIN : JOIN + NUM_SHIFTS] = True
    legal[END, [CARRY_0, CARRY_1]] = True
    legal[[CARRY_0, CARRY_1], digits] = True
    # Padding follows the end of a sequence, and every class that no sequence contains.
    legal[~legal.any(dim=1), PAD] = True
    return legal


def _mark_base() -> Tensor:
    """Build the table `[16]` of the place before the first digit after each mark, by id."""
    base = torch.zeros(NUM_LOCAL, dtype=torch.int64)
    for kind in (START, ANSWER, THINK, PLUS, JOIN):
        for variant, shift in enumerate(SHIFTS):
            base[kind + variant - NUM_LOCAL] = shift
    return base


_LEGAL, _MARK_BASE = Constant(_legal), Constant(_mark_base)
