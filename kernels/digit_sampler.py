"""Digit sampler: from the last hidden state to the next token, in one pass over the few classes that may follow.

The steps are: final RMS norm, class head, mask of illegal classes, choice (greedy, or by temperature and Gumbel noise;
of equal scores the lowest class wins), log-probability of the choice, next id by the place rule, and whether the row
has ended. The log-probability is that of the distribution at temperature 1 over the legal classes, at any temperature
of the choice. Each row draws its own noise (`philox.Stream`), so that a row's token does not depend on its batch.

All arithmetic is float32. Weights and hidden states may be bfloat16.

Legend: B rows, D hidden size, C classes (32).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.kernels._triton import FLOATS, block_rows, expect, next_power_of_2, num_programs, runs_kernel, tl, triton
from sector.kernels.philox import Stream, gumbel_lanes
from sector.kernels.token_table import TokenTable, class_of, next_ids

# Hidden components that a compiled program loads at a time.
_BLOCK_HIDDEN = 32


@dataclass(frozen=True, slots=True)
class Head:
    """The last weights of the model.

    norm: `[D]` of the final RMS norm.
    classes: `[C, D]` of the class head.
    eps: epsilon of the norm.
    """

    norm: Tensor
    classes: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """Sampled tokens.

    ids: `[B]` int64, the next tokens.
    logprobs: `[B]` float32, their log-probabilities.
    stopped: `[B]` bool, whether the row ends with this token.
    """

    ids: Tensor
    logprobs: Tensor
    stopped: Tensor

    @staticmethod
    def empty(count: int, device: torch.device) -> "Sampled":
        """Return memory for the outputs of `count` rows, all of which the kernel writes."""
        return Sampled(
            torch.empty(count, dtype=torch.int64, device=device),
            torch.empty(count, dtype=torch.float32, device=device),
            torch.empty(count, dtype=torch.bool, device=device),
        )


def sample_digits(
    hidden: Tensor,
    ids: Tensor,
    head: Head,
    table: TokenTable,
    temperature: float = 0.0,
    stream: Stream | None = None,
    out: Sampled | None = None,
    update: Tensor | None = None,
) -> Sampled:
    """Sample the tokens that follow `ids [B]`.

    hidden: `[B, D]` states of these tokens, before the final norm.
    temperature: 0 is greedy and needs no stream.
    out: optional memory for the result; `out.ids` may be `ids`.
    update: `[B, D]` to be added to the states; None adds nothing.
    """
    _check(hidden, ids, head, table, temperature, stream, out, update)
    if runs_kernel(hidden):
        return sample_digits_kernel(hidden, ids, head, table, temperature, stream, out, update)
    sampled = sample_digits_reference(hidden, ids, head, table, temperature, stream, update)
    if out is None:
        return sampled
    out.ids.copy_(sampled.ids)
    out.logprobs.copy_(sampled.logprobs)
    out.stopped.copy_(sampled.stopped)
    return out


def sample_digits_reference(
    hidden: Tensor,
    ids: Tensor,
    head: Head,
    table: TokenTable,
    temperature: float = 0.0,
    stream: Stream | None = None,
    update: Tensor | None = None,
) -> Sampled:
    """Compute `sample_digits` in plain torch."""
    hidden = hidden.float() if update is None else hidden.float() + update.float()
    normed = F.rms_norm(hidden, (hidden.shape[1],), head.norm.float(), head.eps)
    logits = F.linear(normed, head.classes.float()).masked_fill(~table.may_follow(ids), float("-inf"))
    scores = logits
    if temperature > 0 and stream is not None:
        scores = logits / temperature + stream.gumbel(table.token.num_classes)
    classes = scores.argmax(dim=1)
    logprobs = logits.log_softmax(dim=1).gather(1, classes.unsqueeze(1)).squeeze(1)
    return Sampled(table.next_ids(ids, classes), logprobs, (classes == table.token.eos) | (classes == table.token.pad))


def sample_digits_kernel(
    hidden: Tensor,
    ids: Tensor,
    head: Head,
    table: TokenTable,
    temperature: float = 0.0,
    stream: Stream | None = None,
    out: Sampled | None = None,
    update: Tensor | None = None,
) -> Sampled:
    """Compute `sample_digits` with the Triton kernel."""
    count, size = hidden.shape
    out = Sampled.empty(count, hidden.device) if out is None else out
    if count == 0:
        return out
    # A greedy kernel reads no stream, so any pointers do.
    stream = Stream(ids, ids, ids, ids) if stream is None else stream
    block = block_rows(count, compiled=32, smallest=16)
    _digit_sampler_kernel[(num_programs(count, block),)](
        hidden,
        hidden.stride(0),
        hidden if update is None else update,
        ids,
        head.norm,
        head.classes,
        table.legal,
        table.mark_base,
        stream.seed,
        stream.rows,
        stream.stages,
        stream.steps,
        out.ids,
        out.logprobs,
        out.stopped,
        count,
        temperature,
        head.eps,
        HIDDEN=size,
        BLOCK_HIDDEN=max(16, min(_BLOCK_HIDDEN, next_power_of_2(size))),
        BLOCK_ROWS=block,
        GREEDY=temperature == 0,
        ADDS=update is not None,
        TOKEN=table.token,
        num_warps=4,
    )
    return out


def _check(
    hidden: Tensor,
    ids: Tensor,
    head: Head,
    table: TokenTable,
    temperature: float,
    stream: Stream | None,
    out: Sampled | None,
    update: Tensor | None,
) -> None:
    """Raise ValueError unless the arguments have the shapes, dtypes and device that the kernel expects."""
    if hidden.ndim != 2 or hidden.stride(1) != 1:
        raise ValueError(
            f"hidden must be [B, D] with adjacent components, not {list(hidden.shape)} of strides {hidden.stride()}"
        )
    (count, size), device = hidden.shape, hidden.device
    expect("hidden", hidden, (count, size), FLOATS, device, contiguous=False)
    expect("ids", ids, (count,), torch.int64, device)
    expect("head.norm", head.norm, (size,), FLOATS, device)
    expect("head.classes", head.classes, (table.token.num_classes, size), FLOATS, device)
    expect("table.legal", table.legal, (table.token.num_classes,), torch.int32, device)
    if update is not None:
        expect("update", update, (count, size), FLOATS, device)
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if temperature > 0 and stream is None:
        raise ValueError("a temperature above 0 needs a stream to draw from")
    if stream is not None:
        expect("stream.seed", stream.seed, (1,), torch.int64, device)
        for name, tensor in (("rows", stream.rows), ("stages", stream.stages), ("steps", stream.steps)):
            expect(f"stream.{name}", tensor, (count,), torch.int64, device)
    if out is not None:
        expect("out.ids", out.ids, (count,), torch.int64, device)
        expect("out.logprobs", out.logprobs, (count,), torch.float32, device)
        expect("out.stopped", out.stopped, (count,), torch.bool, device)


# The stride is specialized: if Triton knows it to be a multiple of 16, loads are 16 bytes wide.
@triton.jit(do_not_specialize=["num_rows"])
def _digit_sampler_kernel(
    hidden_ptr,  # [B, D]
    stride_hidden,
    update_ptr,  # [B, D]
    ids_ptr,  # [B]
    norm_ptr,  # [D]
    head_ptr,  # [C, D]
    legal_ptr,  # [C]
    mark_base_ptr,  # [C / 2]
    seed_ptr,  # [1]
    rows_ptr,  # [B]
    stages_ptr,  # [B]
    steps_ptr,  # [B]
    next_ptr,  # [B]
    logprobs_ptr,  # [B]
    stopped_ptr,  # [B]
    num_rows,
    temperature,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    GREEDY: tl.constexpr,
    ADDS: tl.constexpr,
    TOKEN: tl.constexpr,
):
    NUM_CLASSES: tl.constexpr = 2 * TOKEN.num_local
    o_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_classes = tl.arange(0, NUM_CLASSES)
    m_rows = o_rows < num_rows

    # The factor of the norm is one number per row, so the head multiplies unnormalised components in the same pass.
    b_logits = tl.zeros([BLOCK_ROWS, NUM_CLASSES], dtype=tl.float32)
    b_squares = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    p_rows = hidden_ptr + o_rows.to(tl.int64)[:, None] * stride_hidden
    for start in range(0, HIDDEN, BLOCK_HIDDEN):
        o_hidden = start + tl.arange(0, BLOCK_HIDDEN)
        m_hidden = o_hidden < HIDDEN
        mask = m_rows[:, None] & m_hidden[None, :]
        b_hidden = tl.load(p_rows + o_hidden[None, :], mask=mask, other=0.0).to(tl.float32)
        if ADDS:
            p_update = update_ptr + o_rows.to(tl.int64)[:, None] * HIDDEN + o_hidden[None, :]
            b_hidden += tl.load(p_update, mask=mask, other=0.0).to(tl.float32)
        b_norm = tl.load(norm_ptr + o_hidden, mask=m_hidden, other=0.0).to(tl.float32)
        p_head = head_ptr + o_classes[None, :] * HIDDEN + o_hidden[:, None]
        b_head = tl.load(p_head, mask=m_hidden[:, None], other=0.0).to(tl.float32)
        b_squares += tl.sum(b_hidden * b_hidden, axis=1)
        b_logits = tl.dot(b_hidden * b_norm[None, :], b_head, b_logits, input_precision="ieee")
    b_logits *= (1.0 / tl.sqrt_rn(b_squares / HIDDEN + eps))[:, None]

    b_ids = tl.load(ids_ptr + o_rows, mask=m_rows, other=0).to(tl.int32)
    b_legal = tl.load(legal_ptr + class_of(b_ids, TOKEN))
    m_legal = ((b_legal[:, None] >> o_classes[None, :]) & 1) == 1
    b_logits = tl.where(m_legal, b_logits, float("-inf"))
    if GREEDY:
        b_scores = b_logits
    else:
        b_noise = gumbel_lanes(
            tl.load(seed_ptr),
            tl.load(rows_ptr + o_rows, mask=m_rows, other=0),
            tl.load(stages_ptr + o_rows, mask=m_rows, other=0),
            tl.load(steps_ptr + o_rows, mask=m_rows, other=0),
            NUM_CLASSES,
        )
        b_scores = tl.div_rn(b_logits, tl.zeros_like(b_logits) + temperature) + b_noise
    b_classes = tl.argmax(b_scores, axis=1)

    b_highest = tl.max(b_logits, axis=1)
    b_total = tl.sum(tl.exp(b_logits - b_highest[:, None]), axis=1)
    b_chosen = tl.sum(tl.where(o_classes[None, :] == b_classes[:, None], b_logits, 0.0), axis=1)
    b_next = next_ids(b_ids, b_classes, mark_base_ptr, TOKEN)
    # The ids may be written in place, and several threads have read each of them.
    tl.debug_barrier()
    tl.store(next_ptr + o_rows, b_next.to(tl.int64), mask=m_rows)
    tl.store(logprobs_ptr + o_rows, b_chosen - b_highest - tl.log(b_total), mask=m_rows)
    tl.store(stopped_ptr + o_rows, (b_classes == TOKEN.eos) | (b_classes == TOKEN.pad), mask=m_rows)
