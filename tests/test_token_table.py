"""The token table of the kernels against the tokens of the engine, and its Triton functions against it."""

from dataclasses import replace

import pytest
import torch

from sector.engine.language import tokens
from sector.kernels import token_table
from sector.kernels._triton import tl, triton

ALL_IDS = torch.arange(tokens.VOCAB_SIZE)
ALL_CLASSES = torch.arange(tokens.NUM_CLASSES)
TABLE = tokens.kernel_table()


@triton.jit
def _successor_kernel(
    ids_ptr,
    base_ptr,
    classes_ptr,
    next_ptr,
    num_ids,
    TOKEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o_classes = tl.arange(0, TOKEN.num_classes)
    mask = o_ids < num_ids
    b_ids = tl.load(ids_ptr + o_ids, mask=mask, other=0).to(tl.int32)
    tl.store(classes_ptr + o_ids, token_table.class_of(b_ids, TOKEN), mask=mask)
    b_from = b_ids[:, None] + tl.zeros([BLOCK, TOKEN.num_classes], dtype=tl.int32)
    b_next = token_table.next_ids(b_from, o_classes[None, :], base_ptr, TOKEN)
    tl.store(next_ptr + o_ids[:, None] * TOKEN.num_classes + o_classes[None, :], b_next, mask=mask[:, None])


def test_the_table_says_what_the_engine_says() -> None:
    assert torch.equal(TABLE.class_of(ALL_IDS), tokens.class_of(ALL_IDS))
    assert torch.equal(TABLE.may_follow(ALL_IDS), tokens.legal_table()[tokens.class_of(ALL_IDS)])
    ids, classes = torch.meshgrid(ALL_IDS, ALL_CLASSES, indexing="ij")
    assert torch.equal(TABLE.next_ids(ids, classes), tokens.next_ids(ids, classes))


def test_in_a_kernel_every_class_follows_every_id_alike(kernel_device: torch.device) -> None:
    table = tokens.kernel_table(kernel_device)
    ids = ALL_IDS.to(kernel_device)
    classes, successors = (
        torch.full(shape, -9, device=kernel_device)
        for shape in ((tokens.VOCAB_SIZE,), (tokens.VOCAB_SIZE, tokens.NUM_CLASSES))
    )
    block = 1024
    _successor_kernel[(-(-len(ids) // block),)](
        ids,
        table.mark_base,
        classes,
        successors,
        len(ids),
        TOKEN=table.token,
        BLOCK=block,
    )
    assert torch.equal(classes, table.class_of(ids))
    assert torch.equal(successors.cpu(), tokens.next_ids(ALL_IDS.unsqueeze(1), ALL_CLASSES))


def test_the_sign_bit_is_a_class_too() -> None:
    legal = torch.eye(32, dtype=torch.bool)
    table = replace(TABLE, legal=token_table.pack_legal(legal))
    assert torch.equal(table.may_follow(ALL_IDS), legal[tokens.class_of(ALL_IDS)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"token": replace(TABLE.token, num_local=8)}, "16 local classes", id="classes"),
        pytest.param({"legal": TABLE.legal.long()}, "legal must be .32. int32", id="dtype"),
        pytest.param({"mark_base": TABLE.mark_base[:9]}, "mark_base must be .16. int32", id="shape"),
    ],
)
def test_a_table_that_kernels_cannot_read_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TABLE, **change)
