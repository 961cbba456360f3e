"""Attention masks from the arguments of transformers: padding, packed rows, a cache, or a full mask.

In the shape descriptions B is the batch, T the new tokens of a row, S the tokens attended to and H the heads.
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
    """Return the mask for `Attention`, or None if plain causal attention (or one new token) needs none.

    mask: `[B, S]` padding mask, or a four-dimensional mask, which is used as it is.
    position_ids, ids, cache: as in `SectorForCausalLM.forward`.

    Raise ValueError if the mask has another shape.
    """
    batch, length = ids.shape
    past: int | Tensor = cache.get_seq_length() if cache is not None else 0
    if isinstance(past, Tensor):
        past = past.to(ids.device)
    size = cache.get_mask_sizes(length, 0)[0] if cache is not None else length
    if mask is not None and mask.ndim == 4:
        if mask.shape[0] not in (1, batch) or mask.shape[2:] != (length, size):
            raise ValueError(f"attention_mask must be {[batch, 1, length, size]}, not {list(mask.shape)}")
        return _without_empty_rows(mask)
    # A static cache has its full length from the start, and only the device knows how much of it is used.
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
    queries = torch.arange(length, device=ids.device)[:, None] + past
    keys = torch.arange(size, device=ids.device)
    visible = (keys <= queries)[None, None]
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    if mask is None:
        return visible
    is_token = F.pad(mask.to(ids.device).bool(), (0, size - mask.shape[1]))
    # Padding attends to itself, so that no softmax is empty.
    return visible & is_token[:, None, None, :] | (keys == queries)


def _documents(position_ids: Tensor | None, batch: int) -> Tensor | None:
    """Return the `[B, T]` index of each token's sequence in packed rows; None without positions."""
    if position_ids is None:
        return None
    return find_packed_sequence_indices(position_ids.expand(batch, -1))


def _without_empty_rows(mask: Tensor) -> Tensor:
    """Return a four-dimensional mask in which queries without any key attend to all, so that no softmax is empty."""
    if mask.is_floating_point():
        return mask
    mask = mask.bool()
    return mask | ~mask.any(dim=3, keepdim=True)
