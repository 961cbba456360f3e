"""Next-token loss with the arguments of transformers' trainers.

In the shape descriptions B is the batch, T the tokens of a row and V the vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, once_differentiable

from sector.engine.language import tokens

# Label of tokens without loss, the default of torch.
IGNORED = -100

# Logits that a loss in bfloat16 converts to float32 at a time: 16 MiB.
_CHUNK = 1 << 22


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits `[N, V]`, in float32 or better; targets `[N]` of -100 take no loss.

    Of logits in bfloat16 at most `_CHUNK` are float32 at a time: a vocabulary of 150,000 would need gigabytes.
    """
    if logits.dtype != torch.bfloat16:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED)
    loss: Tensor = _ChunkedLoss.apply(logits, targets)
    return loss


class _ChunkedLoss(Function):
    """Mean cross entropy of logits `[N, V]` chunk by chunk, which keeps its gradient alone for the backward pass."""

    @staticmethod
    def forward(ctx: BackwardCFunction, logits: Tensor, targets: Tensor) -> Tensor:
        count = (targets != IGNORED).sum()
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=torch.float32)
        rows = max(1, _CHUNK // logits.shape[1])
        for start in range(0, len(logits), rows):
            chunk = slice(start, start + rows)
            shares = logits[chunk].log_softmax(dim=1, dtype=torch.float32)
            total += F.nll_loss(shares, targets[chunk], ignore_index=IGNORED, reduction="sum")
            if gradient is not None:
                gradient[chunk] = _slope(shares, targets[chunk]).div_(count)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad), None


def _slope(log_shares: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient `[N, V]` of the summed cross entropy by the logits; overwrite the log-softmax `[N, V]`."""
    takes_loss = (targets != IGNORED).unsqueeze(1)
    slope = log_shares.exp_()
    slope.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -takes_loss.to(slope.dtype))
    return slope.mul_(takes_loss)


def next_token_loss(
    logits: Tensor,
    ids: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items: int | Tensor | None,
) -> Tensor:
    """Return the cross entropy of logits `[B, T, V]`, computed in float32; 0 if no token takes loss.

    The arguments are those of `SectorForCausalLM.forward`; `shift_labels` replace `labels` if both are given.

    Raise ValueError if the labels or the logits are not of the shape of the ids.
    """
    targets = labels if shift_labels is None else shift_labels
    assert targets is not None
    if logits.shape[1] != ids.shape[1]:
        raise ValueError("a loss needs the logits of all positions; leave out logits_to_keep, or the labels")
    if targets.shape != ids.shape:
        raise ValueError(f"labels must be {list(ids.shape)}, as the ids are, not {list(targets.shape)}")
    if shift_labels is None:
        logits, ids, targets = logits[:, :-1], ids[:, :-1], targets[:, 1:]
    ids, targets = ids.to(logits.device), targets.to(logits.device)
    targets = targets.masked_fill(never_follows(targets, ids), IGNORED)
    # Sums of bfloat16 would be wrong in the third digit.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    count = (targets != IGNORED).sum() if num_items is None else torch.as_tensor(num_items, device=logits.device)
    return total / count.clamp(min=1)


def refuse_impossible_targets(logits: Tensor) -> None:
    """Make `backward` raise ValueError if a loss computed outside of the model has targets that can never follow.

    logits: `[B, T, V]`.
    Such a loss, for example with label smoothing, is infinite. Its gradients are finite, and a trainer may log it as 0.
    """
    impossible = logits.detach() == float("-inf")

    def refuse(gradient: Tensor) -> None:
        if gradient.masked_fill(~impossible, 0.0).any():
            raise ValueError(
                "this loss gives weight to tokens that can never follow, as label smoothing does, and is infinite; "
                "leave out label_smoothing_factor, or give the model its labels"
            )

    logits.register_hook(refuse)


def never_follows(targets: Tensor, ids: Tensor) -> Tensor:
    """Return which targets `[...]` are ids of the vocabulary that no model may write after `ids [...]`."""
    in_vocabulary = (targets >= 0) & (targets < tokens.VOCAB_SIZE)
    classes = tokens.class_of(targets.clamp(0, tokens.VOCAB_SIZE - 1))
    legal = tokens.legal_table(ids.device)[tokens.class_of(ids), classes]
    return in_vocabulary & ~(legal & (tokens.next_ids(ids, classes) == targets))
