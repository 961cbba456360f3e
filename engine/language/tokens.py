"""Place-coupled tokens: what a token id means, and which id follows which.

A token is a class and a place. The rotary position of a token is its place, not its index in the sequence, so that
digits of equal significance meet at equal positions (mission: lead). The place of the next token depends on nothing but
the current token and the class of the next one, so it is carried in the id, and plain `generate` loops need no state:

    classes 0..15   local: the ten digits, `)` the end of a number, the carry-in marks, E the end of a sequence;
                    id = class + 16 * place, place >= 1
    classes 16..31  marks: they stand at place 0 and their ids are 0..15

Place rule: a digit stands one place after its predecessor, any other local token at the place of its predecessor, a
mark at 0. Every mark comes in NUM_SHIFTS variants; the first digit after a mark of variant v stands at place
1 + SHIFTS[v]. A prompt whose marks are all of variant v is thus the same problem seen at shifted places: the second
look of the strict filter. The model copies the variant of `+` into the `&` it writes, as it copies digits.

Prompts and completions, all marks in one variant; `&` is the JOIN mark, which people see as `+`:

    prompt          < a ) + b ) c =      or ending in >
    fast answer     N+1 digits, E                           after =
    simplification  a' ) & b' ) c' d E                      after >

a', b' and c' are the remaining problem of N-1 digits, d the last digit of the answer.
"""

from functools import cache

import torch
from torch import Tensor

from sector.engine.language.constant import Constant
from sector.kernels.token_table import TokenTable, pack_legal

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

# The longest legal operand; its answer has one digit more. A model that runs on past MAX_PLACE repeats that place, and
# what it wrote does not parse.
MAX_DIGITS = 256
MAX_PLACE = MAX_DIGITS + 1 + max(SHIFTS)
VOCAB_SIZE = NUM_LOCAL * (MAX_PLACE + 1)


def row_length(digits: int) -> int:
    """Tokens of a problem's prompt and its longest completion, the simplification: 2N+6 and 2N+4."""
    return 4 * digits + 10


def class_of(ids: Tensor) -> Tensor:
    """Class 0..31 of each id; any shape."""
    return torch.where(ids < NUM_LOCAL, ids + NUM_LOCAL, ids % NUM_LOCAL)


def place_of(ids: Tensor) -> Tensor:
    """Place of each id, 0 for marks; any shape."""
    return ids // NUM_LOCAL


def next_ids(ids: Tensor, next_classes: Tensor) -> Tensor:
    """Ids of the tokens of class `next_classes` that follow `ids`; shapes broadcast."""
    base = torch.where(ids < NUM_LOCAL, _MARK_BASE.on(ids.device)[ids.clamp(max=NUM_LOCAL - 1)], place_of(ids))
    places = (base + (next_classes < NUM_DIGITS)).clamp(max=MAX_PLACE)
    local = next_classes + NUM_LOCAL * places
    return torch.where(next_classes < NUM_LOCAL, local, next_classes - NUM_LOCAL)


def legal_table(device: torch.device | str = "cpu") -> Tensor:
    """`[32, 32]` bool: may class j follow class i in what a model generates? Every row allows something.

    One a device, since every forward pass asks for it: not to be written to.
    """
    return _LEGAL.on(device)


def is_eos(ids: Tensor) -> Tensor:
    """Which ids end a sequence, at whatever place; any shape."""
    return (ids % NUM_LOCAL == EOS) & (ids >= NUM_LOCAL)


def eos_ids() -> list[int]:
    """Every id that ends a sequence, for engines that take a list of stop ids."""
    return list(range(NUM_LOCAL + EOS, VOCAB_SIZE, NUM_LOCAL))


@cache
@torch.inference_mode(False)
def kernel_table(device: torch.device | str = "cpu") -> TokenTable:
    """These tokens as kernels take them; made once a device."""
    return TokenTable(
        num_digits=NUM_DIGITS,
        num_local=NUM_LOCAL,
        num_shifts=NUM_SHIFTS,
        max_place=MAX_PLACE,
        end=END,
        carry_0=CARRY_0,
        eos=EOS,
        start=START,
        answer=ANSWER,
        think=THINK,
        plus=PLUS,
        join=JOIN,
        pad=PAD,
        legal=pack_legal(legal_table()).to(device),
        mark_base=_MARK_BASE.on(device).int(),
    )


def _legal() -> Tensor:
    """`[32, 32]`; see `legal_table`."""
    legal = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.bool)
    digits = slice(0, NUM_DIGITS)
    legal[START:PAD, digits] = True
    legal[digits, digits] = True
    legal[digits, [END, EOS]] = True
    legal[END, JOIN : JOIN + NUM_SHIFTS] = True
    legal[END, [CARRY_0, CARRY_1]] = True
    legal[[CARRY_0, CARRY_1], digits] = True
    # A finished sequence yields padding, and so does anything that no sequence contains.
    legal[~legal.any(dim=1), PAD] = True
    return legal


def _mark_base() -> Tensor:
    """`[16]` place before the first digit after each mark, by id."""
    base = torch.zeros(NUM_LOCAL, dtype=torch.int64)
    for kind in (START, ANSWER, THINK, PLUS, JOIN):
        for variant, shift in enumerate(SHIFTS):
            base[kind + variant - NUM_LOCAL] = shift
    return base


_LEGAL, _MARK_BASE = Constant(_legal), Constant(_mark_base)
