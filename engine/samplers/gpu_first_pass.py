"""The layout of a first pass: the prefix, then the mark and the draft of each branch, as tensors on the device.

A layout depends on lengths alone, not on ids. So it is kept, and met again in the next chain.

Legend: B rows, T tokens of a first pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sector.kernels.completion import CompletionRequest
from sector.kernels.first_pass import PassLayout
from sector.kernels.pass_attention import Spans

# Layouts that are kept on the device: each is some kilobytes, and a chain meets each of its own once.
_MOST_LAYOUTS = 4096


class PassLayouts:
    """Layouts of first passes on a device; each is made once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._layouts: dict[tuple[int, ...], PassLayout] = {}

    def of(self, request: CompletionRequest, drafts: Sequence[Tensor | None], shared: int) -> PassLayout:
        """Return the layout of a request, from the device if an earlier one had the same lengths.

        shared: tokens of the prefix that the cache holds.
        """
        sizes = [request.prefix.shape[1] - shared, *map(_read_tokens, request.lengths, drafts)]
        key = shared, *sizes, -1, *request.lengths
        if key not in self._layouts:
            if len(self._layouts) == _MOST_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[key] = _new_layout(shared, sizes, request.lengths, self._device)
        return self._layouts[key]


def first_ids(request: CompletionRequest, drafts: Sequence[Tensor | None], shared: int) -> Tensor:
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


def _new_layout(shared: int, sizes: list[int], lengths: Sequence[int], device: torch.device) -> PassLayout:
    """Return a layout.

    shared: tokens of the prefix that the cache holds.
    sizes: tokens to read of the prefix and of each branch.
    lengths: slots of each branch. Branches follow one another in the cache and in the output.
    """
    prefix_length, reads = shared + sizes[0], sizes[1:]
    offsets = [sum(lengths[:branch]) for branch in range(len(lengths))]
    firsts = [shared, *(prefix_length + offset for offset in offsets)]
    slots = torch.cat([torch.arange(size) + first for size, first in zip(sizes, firsts, strict=True)])
    # A token of the prefix sees all of it up to itself.
    starts = torch.tensor([0, *firsts[1:]]).repeat_interleave(torch.tensor(sizes))
    branches = torch.arange(len(reads)).repeat_interleave(torch.tensor(reads))
    return PassLayout(
        sizes=sizes,
        limits=list(lengths),
        spans=Spans(slots.to(device), starts.to(device), prefix_length),
        branches=branches.to(device),
        steps=torch.cat([torch.arange(size) for size in reads]).to(device),
        lengths=torch.tensor([list(lengths), offsets]).to(device),
    )
