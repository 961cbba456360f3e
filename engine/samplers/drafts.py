"""Drafts: what of them the model lets stand. The one rule that makes drafting lossless, for every engine of ours."""

import torch
from torch import Tensor


def accept(output: Tensor, chosen: Tensor, draft: Tensor | None, pad_id: int) -> Tensor:
    """Put the model's choices `[B, U]` behind a mark and its draft into `output [B, length]`; `[B]` how many stand.

    A choice stands as long as every drafted token before it was the model's own choice.
    """
    count = chosen.shape[1]
    stands = torch.ones_like(chosen)
    if draft is not None:
        stands[:, 1:] = (chosen[:, :-1] == draft[:, : count - 1]).long().cumprod(dim=1)
    output.fill_(pad_id)
    output[:, :count] = torch.where(stands.bool(), chosen, pad_id)
    return stands.sum(dim=1)
