"""The native engine for a model on a GPU: requests are copied there once, and completed ids are copied back once.

There are two ways to complete a request on a GPU. `gpu_steps.py` reads prompts and drafts in one pass, and then
generates one token per step with kernels in CUDA graphs. The megakernel (`kernels/megakernel.py`) does it in one
launch, for models whose weights stay on chip while every program reads them repeatedly; it ignores drafts. On an H200
the steps are faster at every count of rows: 1.8 to 5.9 times for the preset tiny at 20 digits (docs/research/log.md).
If asked for, their first pass is one launch, too (`kernels/verify.py`), which no GPU has run yet.

All of this also runs on a CPU, for the tests: the plain-torch references replace the kernels there.
"""

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from sector.engine.language import tokens
from sector.engine.models.checkpoint import weights_sha256
from sector.engine.models.layers import rope_table
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.samplers.gpu_steps import Stepwise
from sector.engine.samplers.protocol import Beginning, Branch, Sampling
from sector.engine.samplers.rows import no_rows
from sector.kernels.completion import CompletionRequest, Model, Weights
from sector.kernels.megakernel import complete
from sector.kernels.megakernel_plan import make_plan
from sector.kernels.verify import verify_plan

# Enough for the keys and values of ten thousand short rows of the preset tiny, or a thousand of base.
CACHE_BYTES = 4 << 30

# The megakernel counts tokens in 32 bits.
_MAX_TOKENS = 2**31 - 1


class Decode(StrEnum):
    """How to complete requests; AUTO is KERNELS, the fastest way that was measured.

    VERIFY is KERNELS with greedy first passes in one launch each (`kernels/verify.py`). No GPU has run it yet.
    """

    AUTO = "auto"
    MEGAKERNEL = "megakernel"
    KERNELS = "kernels"
    VERIFY = "verify"


class GpuSampler:
    """Triton engine; see the module docstring.

    decode: how to complete requests.
    cache_bytes: device memory for keys and values, if `gpu_steps.py` completes them.
    """

    name = "native"
    uses_all_cores = False

    def __init__(self, model: SectorForCausalLM, decode: Decode = Decode.AUTO, cache_bytes: int = CACHE_BYTES) -> None:
        self._cache_bytes = cache_bytes
        self._decode = Decode.KERNELS if decode is Decode.AUTO else decode
        self._take(kernel_model(model, model.device))
        self.weights_sha256 = weights_sha256(model)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._model.weights.qkv.device

    @property
    def decode(self) -> Decode:
        """The way to complete requests, not AUTO."""
        return self._decode

    def load(self, model: SectorForCausalLM) -> None:
        """Copy the model's weights to the engine's device: in place if shapes are equal, since graphs hold pointers."""
        new = kernel_model(model, self._model.weights.qkv.device)
        if _kind(new) == _kind(self._model):
            with torch.inference_mode():
                for weight, new_weight in zip(self._model.weights, new.weights, strict=True):
                    weight.copy_(new_weight)
            if self._stepwise is not None:
                self._stepwise.forget()
        else:
            self._take(new)
        self.weights_sha256 = weights_sha256(model)

    @torch.inference_mode()
    def sample(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, beginning: Beginning | None = None
    ) -> list[Tensor]:
        """Complete every prefix; see `protocol.Sampler`."""
        if len(prefix) == 0:
            return no_rows(prefix, branches)
        marks = torch.cat([branch.mark for branch in branches], dim=1)
        drafts = [branch.draft for branch in branches]
        device = self.device
        request = CompletionRequest(
            prefix=prefix.to(device).contiguous(),
            marks=marks.to(device).contiguous(),
            lengths=[branch.length for branch in branches],
            rows=sampling.rows.to(device).contiguous(),
            stage=sampling.stage,
            seed=sampling.seed,
            temperature=sampling.temperature,
        )
        # Triton launches on the current device.
        with torch.cuda.device_of(request.prefix):
            cuts = self._cut(request)
            # The rows of several cuts take turns in the cache, so nothing of a call is left for the next.
            kept = beginning if len(cuts) == 1 else None
            parts = [self._complete(request, drafts, rows, kept) for rows in cuts]
            # A single part is not copied.
            outputs = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            return [output.to(prefix.device) for output in outputs]

    def room(self, prefix_length: int, lengths: Sequence[int]) -> int:
        """Return the count of rows that are completed at once; see `protocol.Room`."""
        if self._stepwise is None:
            return _MAX_TOKENS // (len(lengths) * (prefix_length + max(lengths)))
        return self._stepwise.capacity(prefix_length, lengths)

    def _take(self, model: Model) -> None:
        self._model = model
        self._stepwise = None
        if self._decode is Decode.MEGAKERNEL:
            # Raise ValueError now if it cannot run the model.
            make_plan(model)
            return
        verifies = self._decode is Decode.VERIFY
        if verifies:
            verify_plan(model)
        with torch.inference_mode():
            self._stepwise = Stepwise(model, self._cache_bytes, verifies=verifies)

    def _cut(self, request: CompletionRequest) -> list[slice]:
        """Return slices of rows, each small enough to complete at once."""
        batch, prefix_length = request.prefix.shape
        rows = self.room(prefix_length, request.lengths)
        return [slice(first, first + rows) for first in range(0, batch, rows)]

    def _complete(
        self, request: CompletionRequest, drafts: list[Tensor | None], rows: slice, beginning: Beginning | None
    ) -> list[Tensor]:
        if self._stepwise is None:
            return complete(self._model, request[rows])
        device = request.prefix.device
        on_device = [None if draft is None else draft[rows].to(device) for draft in drafts]
        return self._stepwise.complete(request[rows], on_device, beginning)


@torch.inference_mode()
def kernel_model(model: SectorForCausalLM, device: torch.device) -> Model:
    """Copy a model to a device in the form that kernels take, in the model's dtype."""

    def copy(module: nn.Module) -> Tensor:
        return module.get_parameter("weight").to(device, copy=True)

    def stack(name: str) -> Tensor:
        return torch.stack([block.get_submodule(name).get_parameter("weight") for block in model.blocks]).to(device)

    weights = Weights(
        embed=copy(model.embed),
        attention_norm=stack("attention_norm"),
        qkv=stack("attention.qkv"),
        out=stack("attention.out"),
        mlp_norm=stack("mlp_norm"),
        up=stack("up"),
        down=stack("down"),
        norm=copy(model.norm),
        head=copy(model.head),
        rope=rope_table(model.config).to(device),
    )
    return Model(weights, tokens.kernel_table(device), model.config.num_attention_heads, model.config.rms_norm_eps)


def _kind(model: Model) -> tuple[object, ...]:
    """Return a key that is equal for models that differ only in the values of their weights."""
    tensors = [(tensor.shape, tensor.dtype) for tensor in model.weights]
    return *tensors, model.num_heads, model.eps
