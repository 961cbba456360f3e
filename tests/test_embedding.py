"""The kernel that embeds tokens against plain torch; interpreted where there is no GPU."""

import pytest
import torch

from sector.engine.language import tokens
from sector.kernels.embedding import embed, embed_kernel, embed_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("count", "hidden"), [(1, 64), (300, 384), (33, 40), (0, 64)])
def test_the_kernel_is_the_reference(
    count: int, hidden: int, dtype: torch.dtype, draws: torch.Generator, kernel_device: torch.device
) -> None:
    table = tokens.kernel_table(kernel_device)
    num_ids = table.token.num_local * (table.token.max_place + 1)
    ids = torch.randint(0, num_ids, (count,), generator=draws).to(kernel_device)
    # Marks, which have no place of their own.
    ids[::3] %= table.token.num_local
    weight = torch.randn(table.token.num_classes, hidden, generator=draws).to(kernel_device, dtype)
    (x, places), expected = embed_kernel(ids, weight, table), embed_reference(ids, weight, table)
    assert x.dtype is torch.float32 and torch.equal(x, expected[0])
    assert torch.equal(places, expected[1]) and torch.equal(places, tokens.place_of(ids))
    assert torch.equal(x, weight[tokens.class_of(ids)].float())


def test_arguments_are_checked() -> None:
    ids, table = torch.zeros(3, dtype=torch.int64), tokens.kernel_table()
    with pytest.raises(ValueError, match="weight must be"):
        embed(ids, torch.zeros(table.token.num_classes - 1, 8), table)
    with pytest.raises(ValueError, match="ids must be"):
        embed(ids.view(1, 3), torch.zeros(table.token.num_classes, 8), table)
