"""The layout of a first pass: the prefix, then the mark and the draft of each branch, as tensors on the device.

A layout depends on lengths alone, not on ids. So it is kept, and met again in the next chain.

Legend: B rows, J branches, T tokens of a first pass, U of them after the prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sector.kernels.completion import Request

# Layouts that are kept on the device: each is some kilobytes, and a chain meets each of its own once.
_MOST_LAYOUTS = 4096


@dataclass(frozen=True, slots=True)
class PassLayout:
    """Layout of first passes with these lengths.

    sizes: tokens to read of the prefix and of each branch.
    mask: `[1, 1, T, slots]` 0 for the slots that each token attends to, minus infinity for others; slots that no token
        is written to are among them.
    slots: `[T]` the slot of each token.
    branches: `[U]` the branch of each mark and drafted token.
    steps: `[U]` the step of the choice after it in the random stream.
    lengths: `[2, J]` slots of each branch, and those of all before it.
    """

    sizes: list[int]
    mask: Tensor
    slots: Tensor
    branches: Tensor
    steps: Tensor
    lengths: Tensor


class PassLayouts:
    """The layouts for a model on a device.

    dtype: dtype of the mask, which is that of the queries.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._layouts: dict[tuple[int, ...], PassLayout] = {}

    def of(self, request: Request, drafts: Sequence[Tensor | None], shared: int) -> PassLayout:
        """Return the layout of a request, from the device if an earlier one had the same lengths.

        shared: tokens of the prefix that the cache holds.
        """
        sizes = [request.prefix.shape[1] - shared, *map(_read_tokens, request.lengths, drafts)]
        key = shared, *sizes, -1, *request.lengths
        if key not in self._layouts:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[key] = _new_layout(shared, sizes, request.lengths, self._dtype, self._device)
        return self._layouts[key]


def first_ids(request: Request, drafts: Sequence[Tensor | None], shared: int) -> Tensor:
    """Return the ids `[B, T]` of a first pass.

    shared: tokens of the prefix that need not be read.
    """
    parts = [request.prefix[:, shared:]]
    for branch, (length, draft) in enumerate(zip(request.lengths, drafts, strict=True)):
        parts.append(request.marks[:, branch : branch + 1])
        if draft is not None:
            parts.append(draft[:, : length - 1])
    return torch.cat(parts, dim=1)


def _read_tokens(length: int, draft: Tensor | None) -> int:
    """Return the count of tokens of a branch in the first pass: its mark, and its draft.

    The last token of a completion need not be read: no token is chosen after it.
    """
    return 1 if draft is None else 1 + min(draft.shape[1], length - 1)


def _new_layout(
    shared: int, sizes: list[int], lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> PassLayout:
    """Return a layout.

    shared: tokens of the prefix that the cache holds.
    sizes: tokens to read of the prefix and of each branch.
    lengths: slots of each branch. Branches follow one another in the cache and in the output.
    """
    prefix_length, reads = shared + sizes[0], sizes[1:]
    offsets = [sum(lengths[:branch]) for branch in range(len(lengths))]
    starts = [shared, *(prefix_length + offset for offset in offsets)]
    slots = torch.cat([torch.arange(size) + start for size, start in zip(sizes, starts, strict=True)])
    # The part of each slot: 0 is the prefix, 1 the first branch. Slots without a token come after those of their branch
    # that have one, so that no token attends to them.
    part_of_slot = torch.arange(len(sizes)).repeat_interleave(torch.tensor([prefix_length, *lengths]))
    part = part_of_slot[slots]
    visible = (part_of_slot == 0) | (part_of_slot == part[:, None])
    visible &= torch.arange(len(part_of_slot)) <= slots[:, None]
    # Rows of a multiple of 16 bytes, as fused attention wants them.
    mask = torch.full((len(slots), -(-len(part_of_slot) // 8) * 8), float("-inf"))
    mask[:, : len(part_of_slot)].masked_fill_(visible, 0.0)
    return PassLayout(
        sizes=sizes,
        mask=mask.to(device, dtype)[None, None, :, : len(part_of_slot)],
        slots=slots.to(device),
        branches=(part[sizes[0] :] - 1).to(device),
        steps=torch.cat([torch.arange(size) for size in reads]).to(device),
        lengths=torch.tensor([list(lengths), offsets]).to(device),
    )
