"""The loss of next tokens, as transformers' trainers ask for it.

B is the batch, T the tokens of a row, V the vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sector.engine.language import tokens

# What `labels` hold where there is nothing to learn, as everywhere in torch.
IGNORED = -100


def next_token_loss(
    logits: Tensor,
    ids: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items: int | Tensor | None,
) -> Tensor:
    """Cross entropy of `[B, T, V]`, in float32; see `SectorForCausalLM.forward`. Zero if nothing carries loss."""
    given = labels if shift_labels is None else shift_labels
    assert given is not None
    if given.shape != ids.shape:
        raise ValueError(f"labels must be {list(ids.shape)}, as the ids are, not {list(given.shape)}")
    if shift_labels is None:
        logits, ids, given = logits[:, :-1], ids[:, :-1], given[:, 1:]
    ids, targets = ids.to(logits.device), given.to(logits.device)
    targets = targets.masked_fill(never_follows(targets, ids), IGNORED)
    # Sums of bfloat16 would be off in the third digit.
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    total = F.cross_entropy(exact, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    count = (targets != IGNORED).sum() if num_items is None else torch.as_tensor(num_items, device=logits.device)
    return total / count.clamp(min=1)


def refuse_impossible_targets(logits: Tensor) -> None:
    """Have `backward` raise ValueError where a loss made of `[B, T, V]` elsewhere asks for what never follows.

    Such a loss is infinite, as that of label smoothing is; its gradients are not, and a trainer may log it as zero.
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
    """Which ids of the vocabulary `targets [...]` have no chance to come after `ids [...]`, whatever the weights?"""
    in_vocabulary = (targets >= 0) & (targets < tokens.VOCAB_SIZE)
    classes = tokens.class_of(targets.clamp(0, tokens.VOCAB_SIZE - 1))
    legal = tokens.legal_table(ids.device)[tokens.class_of(ids), classes]
    return in_vocabulary & ~(legal & (tokens.next_ids(ids, classes) == targets))
