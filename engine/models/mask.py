"""Who attends to whom, by what callers of transformers give: padding, packed rows, a cache, or a mask of their own.

B is the batch, T the new tokens of a row, S those attended to, H the heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.utils.import_utils import is_tracing


def attention_mask_of(
    mask: Tensor | None, position_ids: Tensor | None, ids: Tensor, cache: Cache | None
) -> Tensor | None:
    """Who attends to whom, as `Attention` takes it; None where plain causal attention (or one new token) says it all.

    mask: `[B, S]` padding, or four-dimensional: then as it is. The rest as in `SectorForCausalLM.forward`.
    """
    batch, length = ids.shape
    past: int | Tensor = cache.get_seq_length() if cache is not None else 0
    if isinstance(past, Tensor):
        past = past.to(ids.device)
    size = cache.get_mask_sizes(length, 0)[0] if cache is not None else length
    if mask is not None and mask.ndim == 4:
        if mask.shape[0] not in (1, batch) or mask.shape[2:] != (length, size):
            raise ValueError(f"attention_mask must be {[batch, 1, length, size]}, not {list(mask.shape)}")
        return _seeing(mask)
    # A static cache is as long at first as at last, and how much of it is full is known on the device only.
    grows = isinstance(past, int) and size == past + length
    if mask is not None:
        fits = mask.shape[1] == size if grows else mask.shape[1] <= size
        if mask.shape[0] not in (1, batch) or not fits:
            raise ValueError(
                f"attention_mask must be {[batch, size]}, a column for each token so far, not {list(mask.shape)}"
            )
    documents = _documents(position_ids, batch) if mask is None and cache is None else None
    plain = grows and documents is None and (length == 1 or past == 0)
    # Where a mask holds no values yet, there is nothing to look at.
    if plain and (mask is None or (not is_tracing(mask) and not mask.is_meta and bool(mask.all()))):
        return None
    own = torch.arange(length, device=ids.device)[:, None] + past
    keys = torch.arange(size, device=ids.device)
    seen = (keys <= own)[None, None]
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    if mask is None:
        return seen
    padding = F.pad(mask.to(ids.device).bool(), (0, size - mask.shape[1]))
    # A padding row attends to itself, so that no softmax is over nothing.
    return seen & padding[:, None, None, :] | (keys == own)


def _documents(position_ids: Tensor | None, batch: int) -> Tensor | None:
    """`[B, T]` number of the sequence that each token of a packed row belongs to; None if rows are not packed."""
    if position_ids is None:
        return None
    return find_packed_sequence_indices(position_ids.expand(batch, -1))


def _seeing(mask: Tensor) -> Tensor:
    """A four-dimensional mask, but what would attend to nothing attends to all, so that no softmax is over nothing."""
    if mask.is_floating_point():
        return mask
    mask = mask.bool()
    return mask | ~mask.any(dim=3, keepdim=True)
