"""The model of `engine/models/sector.py` built from the linear layers, norms and paged attention of vLLM.

vLLM passes a model the ids of a step in one row, and passes to `compute_logits` only some rows of the hidden states
that `forward` returned. The classes that may follow, and their ids, depend on the token of a row. So `forward` appends
its id to the hidden states as more columns.

Legend: T tokens of a step, R = D + 8 columns of a row, D hidden size, H heads, K head size, V vocabulary.
"""

from collections.abc import Iterable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.sequence import IntermediateTensors

from sector.engine.language import tokens
from sector.engine.models.layers import rope_table, rotate
from sector.engine.models.sector import scatter_logits
from sector.engine.models.sector_config import SectorConfig
from sector.engine.samplers.vllm.start import padded_head

# Ids are written in this base: integers up to 256 are exact in bfloat16.
_BASE = 256

# Columns of an id: two digits, and zeros, so that rows begin at multiples of 16 bytes and kernels load 16 at a time.
_ID_COLUMNS = 8


def with_ids(hidden: Tensor, ids: Tensor) -> Tensor:
    """Append ids `[T]` to hidden states `[T, D]` -> `[T, R]`."""
    digits = torch.stack([ids // _BASE, ids % _BASE], dim=1)
    return torch.cat([hidden, F.pad(digits, (0, _ID_COLUMNS - 2)).to(hidden.dtype)], dim=1)


def split_ids(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split `[T, R]` into hidden states `[T, D]` and ids `[T]`."""
    high, low = rows[:, -_ID_COLUMNS : 2 - _ID_COLUMNS].long().unbind(dim=1)
    return rows[:, :-_ID_COLUMNS], high * _BASE + low


class PlacedAttention(nn.Module):
    """`layers.Attention`: rotary by place, with keys and values in vLLM's cache."""

    def __init__(self, config: SectorConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.head_dim = config.head_dim
        self.padding = padded_head(config.head_dim) - config.head_dim
        self.qkv = QKVParallelLinear(size, self.head_dim, heads, bias=False, prefix=f"{prefix}.qkv")
        self.out = RowParallelLinear(size, size, bias=False, prefix=f"{prefix}.out")
        self.attend = Attention(
            self.qkv.num_heads,
            self.head_dim + self.padding,
            scale=self.head_dim**-0.5,
            num_kv_heads=self.qkv.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attend",
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend: `[T, D]` -> `[T, D]`; cosines and sines are `[T, 1, 1, K/2]`."""
        qkv = self.qkv(x)[0].unflatten(1, (3, -1, self.head_dim))
        padded = qkv.new_zeros(*qkv.shape[:3], self.head_dim + self.padding)
        padded[:, :2, :, : self.head_dim] = rotate(qkv[:, :2], cos, sin)
        padded[:, 2, :, : self.head_dim] = qkv[:, 2]
        q, k, v = padded.flatten(2).unbind(dim=1)
        y = self.attend(q, k, v).unflatten(1, (-1, self.head_dim + self.padding))
        return self.out(y[..., : self.head_dim].flatten(1))[0]


class VllmBlock(nn.Module):
    """`layers.Block`."""

    def __init__(self, config: SectorConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.attention = PlacedAttention(config, vllm_config, f"{prefix}.attention")
        self.mlp_norm = RMSNorm(size, eps=config.rms_norm_eps)
        self.up = ColumnParallelLinear(size, inner, bias=False, prefix=f"{prefix}.up")
        self.down = RowParallelLinear(inner, size, bias=False, prefix=f"{prefix}.down")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Run the block: `[T, D]` -> `[T, D]`."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.down(self.up(self.mlp_norm(x))[0].relu_().square_())[0]


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0})
class Body(nn.Module):
    """The model before the final norm, in one module for the compiler."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: SectorConfig = vllm_config.model_config.hf_config
        self.embed = nn.Embedding(tokens.NUM_CLASSES, config.hidden_size)
        self.blocks = nn.ModuleList(
            VllmBlock(config, vllm_config, f"{prefix}.blocks.{index}") for index in range(config.num_hidden_layers)
        )
        self.rope: Tensor
        self.register_buffer("rope", rope_table(config), persistent=False)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return hidden states before the final norm, with ids, `[T, R]`, from ids `[T]`.

        `positions` is not used: a token's position is its place.
        """
        cos, sin = self.rope[tokens.place_of(input_ids), :, None, None].unbind(dim=1)
        x = self.embed(tokens.class_of(input_ids))
        for block in self.blocks:
            x = block(x, cos, sin)
        return with_ids(x, input_ids)


class SectorForVllm(nn.Module):
    """`models.sector.SectorForCausalLM` with the interface of a vLLM model; loads the same checkpoints.

    returns_rows: whether `compute_logits` returns its rows, for the digit sampler (`digit_choice.py`).
    """

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"embed.": "body.embed.", "blocks.": "body.blocks."})

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.vocab_size = config.vocab_size
        self.body = Body(vllm_config=vllm_config, prefix=f"{prefix}.body" if prefix else "body")
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, tokens.NUM_CLASSES, bias=False)
        self.returns_rows = False

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embed ids `[T]` -> `[T, D]`. vLLM requires this method; the embeddings do not contain the place."""
        return self.body.embed(tokens.class_of(input_ids))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states and ids `[T, R]`, for `compute_logits`, from ids `[T]`."""
        assert intermediate_tensors is None and inputs_embeds is None, "neither pipelines nor embeddings as input"
        return self.body(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits `[T, V]` from rows `[T, R]`, or the rows themselves if the digit sampler is to have them."""
        return hidden_states if self.returns_rows else self.logits(hidden_states)

    def logits(self, rows: Tensor) -> Tensor:
        """Return logits `[T, V]` from rows `[T, R]`, -inf except for the ids that may follow."""
        hidden, ids = split_ids(rows)
        legal = tokens.legal_table(ids.device)[tokens.class_of(ids)]
        class_logits = self.head(self.norm(hidden)).float().masked_fill(~legal, float("-inf"))
        return scatter_logits(class_logits, ids, self.vocab_size)

    @staticmethod
    def get_model_state_cls() -> type:
        """Return the class of the model's state in vLLM's second model runner."""
        # By name: the module of that runner imports this one.
        state: type = import_module("sector.engine.samplers.vllm.second_runner").SectorModelState
        return state

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights by the names of a checkpoint; return the names of the parameters that were set."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
