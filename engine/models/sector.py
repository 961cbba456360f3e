"""The model: a small decoder-only transformer over place-coupled tokens, in Hugging Face form.

It embeds the class of a token, rotates queries and keys by its place (`tokens.py`), and scatters 32 class logits onto
the ids that may come next. So plain `generate` in transformers needs no state besides the ids.

In the shape descriptions B is the batch, T the tokens of a row, S the tokens attended to, D the hidden size, H the
heads, K the size of a head, P the places and V the vocabulary.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.import_utils import is_tracing

from sector.engine.language import tokens
from sector.engine.language.constant import Constant
from sector.engine.models.bound import check_learned
from sector.engine.models.layers import Block, rope_table
from sector.engine.models.loss import next_token_loss, refuse_impossible_targets
from sector.engine.models.mask import attention_mask_of
from sector.engine.models.sector_config import PRESETS, SectorConfig
from sector.engine.models.tokenizer import SectorTokenizer

# The longest row of any task, in prompts: a simplification of a product is nearly four prompts long.
_PROMPTS_OF_A_ROW = 5
# Tokens of the shortest prompt, `<a)+b)c=`.
_SHORTEST_PROMPT = 8


def scatter_logits(class_logits: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """Scatter class logits `[..., 32]` of the tokens that follow `ids [...]` onto their ids: `[..., V]`."""
    targets = tokens.next_ids(ids.unsqueeze(-1), torch.arange(tokens.NUM_CLASSES, device=ids.device))
    logits = class_logits.new_full((*ids.shape, vocab_size), float("-inf"))
    # Illegal classes may share an id with a legal one (a clamped place), so the larger logit wins.
    return logits.scatter_reduce_(-1, targets.clamp(max=vocab_size - 1), class_logits, "amax")


class SectorForCausalLM(PreTrainedModel, GenerationMixin):
    """Place-coupled language model. `forward` returns logits over ids, `class_logits` over the 32 classes."""

    config: SectorConfig
    config_class = SectorConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: SectorConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(tokens.NUM_CLASSES, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, tokens.NUM_CLASSES, bias=False)
        # Not a buffer: checkpoints do not hold it, and it stays float32 when the weights change type.
        self._rope = Constant(partial(rope_table, config))
        self._complete_generation_config()
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **others: Any) -> Any:
        """Load a model as transformers does. Raise InputError if its config is not the one of the training."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *arguments, **others)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            check_learned(Path(pretrained_model_name_or_path) / others.get("subfolder", ""), model.config)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the weights of a module."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    def hidden_states(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        places: Tensor | None = None,
        states: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the states `[B, T, D]` after the final norm for ids `[B, T]`.

        mask: as in `Attention`; None is plain causal attention.
        cache: keys and values of earlier tokens, to be extended.
        places: `[B, T]` rotary positions; None is the places in the ids (training augments them).
        states: list that receives the input of each block, and the result.
        attentions: list that receives the attention weights of each block.
        """
        if places is None:
            places = tokens.place_of(input_ids)
        cos, sin = self.rope(input_ids.device)[places].unsqueeze(2).unbind(dim=3)
        x = self.embed(tokens.class_of(input_ids))
        show = attentions is not None
        for block in self.blocks:
            if states is not None:
                states.append(x)
            x, weights = block(x, (cos, sin), mask, past_key_values=cache, show=show)
            if attentions is not None:
                attentions.append(weights)
        x = self.norm(x)
        if states is not None:
            states.append(x)
        return x

    def class_logits(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """Return the logits `[..., 32]` for hidden states `[..., D]` of ids `[...]`; illegal classes have -inf."""
        logits = self.head(hidden)
        legal = tokens.legal_table(logits.device)[tokens.class_of(input_ids.to(logits.device))]
        return logits.masked_fill(~legal, float("-inf"))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return logits `[B, T, V]` for ids `[B, T]`; only ids that may come next have logits above -inf.

        attention_mask: `[B, S]`, zero on padding; or a full mask as in `Attention`, which replaces the causal one.
        position_ids: `[B, T]`, read only without mask and cache. Another sequence begins where they do not increase by
            one, as collators pack rows. Rotation uses the places in the ids instead.
        past_key_values: cache of keys and values to extend.
        labels: `[B, T]`, the ids themselves, which are shifted here; -100 takes no loss. A target that can never
            follow, such as most tokens of a prompt, takes no loss either.
        shift_labels: `[B, T]`, labels that are shifted already.
        num_items_in_batch: number that divides the sum of losses; None takes the mean. transformers counts all targets
            other than -100 in all batches of a step. Behind padding on the left that is one more per row, so pad
            training batches on the right.
        logits_to_keep: number of last positions, or indices of positions, to compute logits for; 0 is all.
        use_cache: whether to return keys and values, by default not.
        output_attentions, output_hidden_states, return_dict: as in transformers.

        Raise ValueError or TypeError on arguments that this model cannot use.
        """
        # Not a named argument: transformers' Trainer would expect all arguments with "label" in their names.
        shift_labels: Tensor | None = others.pop("shift_labels", None)
        _refuse(inputs_embeds, others)
        ids = _checked_ids(input_ids, self.config.vocab_size)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        mask = attention_mask_of(attention_mask, position_ids, ids, past_key_values)
        config = self.config
        states: list[Tensor] | None = [] if _chosen(output_hidden_states, config.output_hidden_states) else None
        attentions: list[Tensor] | None = [] if _chosen(output_attentions, config.output_attentions) else None
        hidden = self.hidden_states(ids, mask, past_key_values, states=states, attentions=attentions)
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        class_logits = self.class_logits(hidden[:, positions], ids[:, positions])
        logits = scatter_logits(class_logits, ids[:, positions].to(class_logits.device), config.vocab_size)
        loss = _loss(logits, ids, labels, shift_labels, num_items_in_batch)
        output = CausalLMOutputWithPast(
            # transformers annotates FloatTensor, but any Tensor fits.
            loss=loss,  # type: ignore[arg-type]
            logits=logits,  # type: ignore[arg-type]
            past_key_values=past_key_values,
            hidden_states=None if states is None else tuple(states),  # type: ignore[arg-type]
            attentions=None if attentions is None else tuple(attentions),  # type: ignore[arg-type]
        )
        return output if _chosen(return_dict, config.return_dict) else output.to_tuple()

    @property
    def network(self) -> Self:
        """The model of transformers that computes: this one, as in a `TextModel` the one that it holds."""
        return self

    @property
    def tokenizer(self) -> SectorTokenizer:
        """Tokenizer of the model."""
        return SectorTokenizer(digit_order=self.config.digit_order, task=self.config.task)

    def weights(self) -> dict[str, Tensor]:
        """Return each weight once, by its name in a checkpoint."""
        return self.state_dict()

    def trained_weights(self) -> dict[str, Tensor]:
        """Return each weight that training changes once, by its name: all."""
        return self.weights()

    def plain(self) -> Self:
        """Return the model as engines run it: as it is."""
        return self

    def matrices(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the matrices of the blocks, and all other parameters except vectors."""
        inner: list[Tensor] = [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]
        return inner, [self.embed.weight, self.head.weight]

    def rope(self, device: torch.device | None = None) -> Tensor:
        """Return the `[P, 2, K/2]` table on a device, by default that of the weights."""
        return self._rope.on(device or self.head.weight.device)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the 32 classes; places have no weights."""
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of the classes. Raise ValueError unless it has the same shape."""
        _check_shape(value, self.embed)
        self.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, which computes logits of the 32 classes."""
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head. Raise ValueError unless it has the same shape."""
        _check_shape(new_embeddings, self.head)
        self.head = new_embeddings  # type: ignore[assignment]

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Return the embedding unchanged. Raise ValueError if the size of the vocabulary would change."""
        size, multiple = new_num_tokens or self.config.vocab_size, pad_to_multiple_of or 1
        if size + -size % multiple != self.config.vocab_size:
            raise ValueError(
                f"the vocabulary has {self.config.vocab_size} ids, every token class at every place, and cannot be "
                f"resized to {size + -size % multiple}; add no tokens"
            )
        return self.embed

    def init_continuous_batching(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raise ValueError: the model has no paged attention."""
        raise ValueError("continuous batching and paged caches do not work; give `generate` a batch, or serve by vLLM")

    def adjust_generation_fn(self, *arguments: Any, **options: Any) -> None:
        """Read the defaults of `generate`, and complete them: older checkpoints have no generation_config.json."""
        super().adjust_generation_fn(*arguments, **options)  # type: ignore[misc]
        self._complete_generation_config()

    def _complete_generation_config(self) -> None:
        """Set unset options to greedy decoding, up to the length of the longest problem."""
        config: GenerationConfig = self.generation_config
        if config.do_sample is None:
            # The temperature too: pipelines would set another one, and transformers warns that it has no effect.
            config.do_sample, config.temperature = False, config.temperature or 1.0
        if config.max_length is None and config.max_new_tokens is None:
            config.max_length = self.config.max_position_embeddings

    def _prepare_generated_length(  # type: ignore[override]
        self, generation_config: GenerationConfig, *, input_ids_length: int, **others: Any
    ) -> GenerationConfig:
        """Set the length limits. If the caller set none, limit a row to a multiple of its prompt's length."""
        prepared: GenerationConfig = super()._prepare_generated_length(  # type: ignore[misc]
            generation_config, input_ids_length=input_ids_length, **others
        )
        if prepared.max_new_tokens is None and prepared.max_length == self.config.max_position_embeddings:
            prepared.max_length = min(prepared.max_length, _PROMPTS_OF_A_ROW * max(input_ids_length, _SHORTEST_PROMPT))
        return prepared

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **options: Any
    ) -> tuple[GenerationConfig, dict[str, object]]:
        """Return the options of a call of `generate`. Raise ValueError, in one line, on options that cannot work."""
        prepared, others = super()._prepare_generation_config(generation_config, **options)  # type: ignore[misc]
        if _limits_only_new_tokens(options, vars(generation_config or GenerationConfig())):
            # Otherwise transformers warns at every call that both limits are set.
            prepared.max_length = None
        _refuse_generation(prepared)
        return prepared, others


def _limits_only_new_tokens(*sources: dict[str, object]) -> bool:
    """Return whether the first source with a limit of length limits the new tokens alone."""
    for options in sources:
        new_tokens, whole_row = options.get("max_new_tokens"), options.get("max_length")
        if new_tokens is not None or whole_row is not None:
            return whole_row is None
    return False


def _refuse_generation(config: GenerationConfig) -> None:
    """Raise ValueError, in one line, on options that do not work with these tokens and logits."""
    if config.stop_strings is not None:
        raise ValueError("stop_strings do not work, since a single token has no text; sequences end by themselves")
    if config.guidance_scale not in (None, 1, 1.0):
        raise ValueError("guidance_scale does not work: it subtracts logits, and those of illegal tokens are -inf")
    if config.cache_implementation == "quantized":
        raise ValueError("a quantized cache does not work: keys that are rounded so much give wrong digits")


def _refuse(inputs_embeds: Tensor | None, others: dict[str, object]) -> None:
    """Raise ValueError or TypeError, in one line, on arguments that would have no effect."""
    if inputs_embeds is not None:
        raise ValueError("inputs_embeds do not work: the place of a token is in its id; give input_ids")
    if unknown := [name for name, value in others.items() if value is not None]:
        raise TypeError(f"a sector model takes no {', '.join(unknown)}; leave that out")


def _checked_ids(input_ids: Tensor | None, vocab_size: int) -> Tensor:
    """Return the ids. Raise ValueError unless they are `[B, T]` integers, and on a CPU ids of the vocabulary."""
    if input_ids is None:
        raise ValueError("give input_ids")
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(f"input_ids must be [B, T] integers, not {input_ids.dtype} {list(input_ids.shape)}")
    # On other devices the check would wait for the device.
    if input_ids.device.type == "cpu" and input_ids.numel() and not is_tracing(input_ids):
        low, high = (int(bound) for bound in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{low if low < 0 else high} is no token id; ids are 0 to {vocab_size - 1}")
    return input_ids


def _loss(
    logits: Tensor, ids: Tensor, labels: Tensor | None, shift_labels: Tensor | None, num_items: int | Tensor | None
) -> Tensor | None:
    """Return the loss of logits `[B, T, V]`; None without labels. The arguments are those of `forward`."""
    if shift_labels is not None or labels is not None:
        return next_token_loss(logits, ids, labels, shift_labels, num_items)
    if logits.requires_grad and not is_tracing(logits):
        refuse_impossible_targets(logits)
    return None


def _chosen(value: bool | None, default: bool | None) -> bool:
    """Return a switch, or its default if it is None."""
    return bool(default if value is None else value)


def _check_shape(replacement: nn.Module, module: nn.Module) -> None:
    """Raise ValueError unless the weight of a replacement has the shape of the module's."""
    shape, expected = (list(getattr(layer, "weight", torch.empty(0)).shape) for layer in (replacement, module))
    if shape != expected:
        raise ValueError(f"the weight must be {expected}, a row for each token class, not {shape}")


def best_device() -> torch.device:
    """Return the device of the loop: the GPU if there is one (CUDA_VISIBLE_DEVICES= hides it), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model(preset: str, seed: int, **overrides: Any) -> SectorForCausalLM:
    """Return a newly initialised model on the CPU. The same preset and seed give the same weights.

    Raise ValueError on an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SectorForCausalLM(SectorConfig(**{**PRESETS[preset], **overrides}))
