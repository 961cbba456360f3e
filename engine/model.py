"""The model: a small decoder-only transformer over place-coupled tokens, in Hugging Face form.

It embeds the class of a token, rotates queries and keys by its place (`tokens.py`), and scatters 32 class logits onto
the ids that may come next, so that plain `generate` in transformers needs no state besides the ids.

In the shape descriptions B is the batch, T the tokens of a row, S the tokens attended to, D the hidden size, H the
heads, K the size of a head and V the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from sector.engine import tokens
from sector.engine.tasks import DEFAULT, task_names

# Training moves the digits behind a random column away by up to this many places (`distill.py`).
MAX_GAP = 30

# Raised whenever the same weights would mean something else: token classes, activation, rotation.
ARCHITECTURE_VERSION = 1

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256},
    "base": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "initializer_range": 0.033,
    },
}


class SectorConfig(PretrainedConfig):
    """Sizes of a model. `digit_order` and `task` are part of a checkpoint because the weights have learned them.

    architecture_version: what the weights were trained as; others would load here and answer nonsense.
    """

    model_type = "sector"

    def __init__(
        self,
        hidden_size: int = 64,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int = 256,
        rope_theta: float = 100.0,
        rope_max_frequency: float = 2.5,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.08,
        digit_order: str = "msd",
        task: str = DEFAULT,
        architecture_version: int = ARCHITECTURE_VERSION,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.rope_theta = rope_theta
        self.rope_max_frequency = rope_max_frequency
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.digit_order = digit_order
        self.task = task
        self.architecture_version = architecture_version
        kwargs.setdefault("vocab_size", tokens.VOCAB_SIZE)
        kwargs.setdefault("pad_token_id", tokens.PAD_ID)
        kwargs.setdefault("eos_token_id", tokens.eos_ids())
        kwargs.setdefault("bos_token_id", None)
        kwargs.setdefault("tie_word_embeddings", False)
        kwargs.setdefault("architectures", ["SectorForCausalLM"])
        _check(self)
        super().__init__(**kwargs)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the longest prompt and completion, by the name under which engines look for it."""
        return tokens.row_length(tokens.MAX_DIGITS)


def _check(config: SectorConfig) -> None:
    """Raise ValueError, naming the rule, on sizes of which no model can be made."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
    for name in ("rope_theta", "rope_max_frequency", "rms_norm_eps", "initializer_range"):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    if config.hidden_size % (2 * config.num_attention_heads):
        raise ValueError(
            f"hidden_size {config.hidden_size} must be a multiple of twice num_attention_heads, "
            f"{config.num_attention_heads}: a head rotates pairs"
        )
    if config.architecture_version != ARCHITECTURE_VERSION:
        raise ValueError(
            f"architecture_version is {config.architecture_version!r}; this release reads {ARCHITECTURE_VERSION} only"
        )
    if config.digit_order not in ("msd", "lsd"):
        raise ValueError(f"digit_order must be msd or lsd, not {config.digit_order!r}")
    if config.task not in task_names():
        raise ValueError(f"task must be one of {', '.join(task_names())}, not {config.task!r}")


def rope_table(config: SectorConfig) -> Tensor:
    """`[P, 2, K/2]` cosines and sines of every place that training or inference can meet."""
    places = torch.arange(tokens.MAX_PLACE + MAX_GAP + 1, dtype=torch.float64)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = places[:, None] * config.rope_max_frequency * config.rope_theta**-exponents
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def scatter_logits(class_logits: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """`[..., 32]` class logits of the tokens that follow `ids [...]` -> `[..., V]`, each on the id of its class."""
    targets = tokens.next_ids(ids.unsqueeze(-1), torch.arange(tokens.NUM_CLASSES, device=ids.device))
    logits = class_logits.new_full((*ids.shape, vocab_size), float("-inf"))
    # Illegal classes may share an id with a legal one (a clamped place), so the larger logit wins.
    return logits.scatter_reduce_(-1, targets.clamp(max=vocab_size - 1), class_logits, "amax")


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, T, H, K]` by the angles of `[B, T, 1, K/2]` cosines and sines; halves are the two components."""
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)


class Attention(nn.Module):
    """Multi-head attention, rotary by place."""

    def __init__(self, config: SectorConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`; `mask` is `[1 or B, 1, T, S]` bool, or None for plain causal attention."""
        batch, length, hidden = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        qk, v = qkv.split([2 * hidden // self.head_dim, hidden // self.head_dim], dim=2)
        q, k = rotate(qk, *rope).transpose(1, 2).chunk(2, dim=1)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_index)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and length > 1)
        return self.out(y.transpose(1, 2).reshape(batch, length, hidden))


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: SectorConfig, layer_index: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config, layer_index)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.down(F.relu(self.up(self.mlp_norm(x))).square())


class SectorForCausalLM(PreTrainedModel, GenerationMixin):
    """Place-coupled language model; `forward` yields logits over ids, `class_logits` over the 32 classes."""

    config: SectorConfig
    config_class = SectorConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: SectorConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(tokens.NUM_CLASSES, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, tokens.NUM_CLASSES, bias=False)
        self._rope_cache: Tensor | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    def hidden_states(
        self, input_ids: Tensor, mask: Tensor | None = None, cache: Cache | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Ids `[B, T]` -> `[B, T, D]` after the final norm.

        mask: `[1 or B, 1, T, S]` bool, True where a token may attend; None is plain causal attention.
        places: `[B, T]` instead of the places in the ids (training augments them).
        """
        if places is None:
            places = tokens.place_of(input_ids)
        cos, sin = self.rope()[places].unsqueeze(2).unbind(dim=3)
        x = self.embed(tokens.class_of(input_ids))
        for block in self.blocks:
            x = block(x, (cos, sin), mask, cache)
        return self.norm(x)

    def class_logits(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """`[..., D]` hidden states and the ids `[...]` they belong to -> `[..., 32]`, -inf where illegal."""
        legal = tokens.legal_table(input_ids.device)[tokens.class_of(input_ids)]
        return self.head(hidden).masked_fill(~legal, float("-inf"))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Ids `[B, T]` -> logits `[B, T, V]`, all but -inf only on the ids that may come next.

        attention_mask: `[B, S]`, zero on padding. labels: `[B, T]` next-token targets as in every causal model of
        transformers (shifted here, -100 ignored). logits_to_keep: only the last so many positions.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = _attention_mask(attention_mask, input_ids.shape[1], past)
        hidden = self.hidden_states(input_ids, mask, past_key_values)[:, -logits_to_keep:]
        ids = input_ids[:, -logits_to_keep:]
        logits = scatter_logits(self.class_logits(hidden, ids), ids, self.config.vocab_size)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        # transformers says FloatTensor and means a Tensor.
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]

    def rope(self) -> Tensor:
        """The `[P, 2, K/2]` table on the device of the weights; not a buffer, so that checkpoints do not hold it."""
        device = self.head.weight.device
        if self._rope_cache is None or self._rope_cache.device != device:
            self._rope_cache = rope_table(self.config).to(device)
        return self._rope_cache


def _attention_mask(padding: Tensor | None, length: int, past: int) -> Tensor | None:
    """`[B, S]` padding mask -> `[B, 1, T, S]`; None where plain causal attention (or one new token) says it all."""
    if length == 1 and (padding is None or bool(padding.all())):
        return None
    if past == 0 and (padding is None or bool(padding.all())):
        return None
    causal = torch.ones(length, past + length, dtype=torch.bool).tril(past)
    if padding is None:
        return causal[None, None]
    mask = causal.to(padding.device)[None, None] & padding[:, None, None, :].bool()
    # A padding row attends to itself, so that no softmax is over nothing.
    return mask | torch.eye(length, past + length, dtype=torch.bool, device=padding.device).roll(past, 1)


def best_device() -> torch.device:
    """The GPU if there is one (CUDA_VISIBLE_DEVICES= hides it), else the CPU: where models of the loop lie."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model(preset: str, seed: int, **overrides: Any) -> SectorForCausalLM:
    """A freshly initialised model on the CPU; the same preset and seed give the same weights.

    ValueError on an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SectorForCausalLM(SectorConfig(**{**PRESETS[preset], **overrides}))


AutoConfig.register(SectorConfig.model_type, SectorConfig, exist_ok=True)
AutoModelForCausalLM.register(SectorConfig, SectorForCausalLM, exist_ok=True)
