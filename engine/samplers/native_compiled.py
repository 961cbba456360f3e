"""The compiled passes of the native engine: `native.c` as a library, and the model's weights in its form.

The library is built once, beside the bytecode of this package (the folder `__pycache__`), from a source of this package
only: to replace one takes the same rights as to replace the other. If that folder is not writable, every process builds
the library again. Without a C compiler there is no library, and the native engine runs on torch alone.

Legend: B rows, P prefix tokens, L of them kept, T tokens of a branch, D hidden size, H heads, K head size, I inner
size, C classes.
"""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sector.engine.errors import InputError
from sector.engine.files import write_atomically
from sector.engine.language import tokens
from sector.engine.models.layers import Block, rope_table
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.models.sector_config import SectorConfig
from sector.engine.samplers.native_attention import BITS
from sector.engine.samplers.native_model import Kept, interleaved
from sector.engine.samplers.protocol import Branch, Sampling

# A few times the number of rows that are decoded together.
_JOB_ROWS = 192
_SOURCE = Path(__file__).with_name("native.c")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_SECONDS = 120
# Compiler flags for the instructions that torch uses: those of the processor, or of ATEN_CPU_CAPABILITY.
_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}


class _Layer(Structure):
    _fields_ = [(name, c_void_p) for name in ("query", "key_value", "out", "up", "down")]


class _Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_layers", "hidden", "width", "inner", "heads", "head_size")),
        *((name, c_int64) for name in ("heads_width", "query_width", "key_value_width")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("embed", "first", "rope", "head", "legal", "mark_base")),
        ("layers", POINTER(_Layer)),
    ]


class _Branch(Structure):
    _fields_ = [
        ("length", c_int64),
        ("drafted", c_int64),
        *((name, c_void_p) for name in ("mark", "draft", "output", "noise")),
    ]


class _Call(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "prefix_length", "num_branches", "kept_length", "are_kept")),
        ("drop_finished", c_int64),
        ("temperature", c_float),
        *((name, c_void_p) for name in ("prefix", "kept_ids", "kept")),
        ("branches", POINTER(_Branch)),
    ]


class CompiledModel:
    """A copy of a model's weights in the form of the library, and the calls to it."""

    @torch.inference_mode()
    def __init__(self, model: SectorForCausalLM, library: ctypes.CDLL) -> None:
        self._library, self._of_thread = library, threading.local()
        # The library has pointers to these tensors, so they must stay alive.
        self._tensors: list[Tensor] = []
        config, sizes = model.config, _Sizes.of(model.config, library.vector_width(), library.tile_width())
        self._sizes, self._num_layers = sizes, config.num_hidden_layers
        layers = [self._copy_layer(block, sizes) for block in model.blocks]
        rope = _rope(config, sizes)
        embed = F.pad(model.embed.weight.detach(), (0, sizes.width - sizes.hidden))
        illegal = torch.zeros(tokens.NUM_CLASSES, tokens.NUM_CLASSES).masked_fill_(~tokens.legal_table(), float("-inf"))
        self._model = _Model(
            num_layers=len(layers),
            hidden=sizes.hidden,
            width=sizes.width,
            inner=sizes.inner,
            heads=sizes.heads,
            head_size=sizes.head,
            heads_width=sizes.heads * sizes.head,
            query_width=sizes.query,
            key_value_width=sizes.key_value,
            eps=config.rms_norm_eps,
            embed=self._copy(embed),
            first=self._copy(_first_layer(model, sizes, rope)),
            rope=self._copy(rope),
            head=self._copy(sizes.panels(model.head.weight * model.norm.weight)),
            legal=self._copy(illegal),
            mark_base=self._copy(tokens.kernel_table().mark_base.long()),
            layers=(_Layer * len(layers))(*layers),
        )

    def keep(self, ids: Tensor) -> Kept:
        """Allocate memory for the keys and values of ids `[B, L]`."""
        sizes = self._sizes
        slots = _rounded(ids.shape[1], sizes.vector)
        kv = torch.empty(len(ids), 2 * self._num_layers * sizes.heads * sizes.head * slots)
        return Kept(ids.contiguous(), kv, rows_dim=0)

    def job_rows(self, slots: int) -> int:
        """Return the largest count of rows of a job, for any number of slots: the library manages its cache itself."""
        return _JOB_ROWS

    def complete(
        self, prefix: Tensor, branches: Sequence[Branch], sampling: Sampling, kept: Kept | None, drop_finished: bool
    ) -> tuple[list[Tensor], int]:
        """Complete every prefix `[B, P]` once per branch; return ids `[B, length]` each, and the number of tokens read.

        Raise InputError if the weights are broken.
        """
        prefix = prefix.contiguous()
        tensors = [_BranchTensors.of(branch, index, sampling) for index, branch in enumerate(branches)]
        call = _Call(
            rows=len(prefix),
            prefix_length=prefix.shape[1],
            num_branches=len(branches),
            kept_length=0 if kept is None else kept.ids.shape[1],
            are_kept=kept is not None and kept.is_read,
            drop_finished=drop_finished,
            temperature=sampling.temperature,
            prefix=prefix.data_ptr(),
            kept_ids=None if kept is None else kept.ids.data_ptr(),
            kept=None if kept is None else kept.kv.data_ptr(),
            branches=(_Branch * len(branches))(*(branch.pointers() for branch in tensors)),
        )
        memory = self._memory(self._library.memory_size(byref(self._model), byref(call)))
        count = self._library.complete(byref(self._model), byref(call), memory.data_ptr())
        if count < 0:
            raise InputError(
                "the model's attention scores or logits are NaN or infinite; its weights are broken; "
                "restore them, or train again"
            )
        return [branch.output for branch in tensors], count

    def _memory(self, size: int) -> Tensor:
        """Return `size` bytes or more of this thread's memory, which calls reuse because new pages are slow."""
        memory: Tensor | None = getattr(self._of_thread, "memory", None)
        if memory is None or len(memory) < size:
            memory = self._of_thread.memory = torch.empty(size, dtype=torch.uint8)
        return memory

    def _copy(self, tensor: Tensor) -> int:
        """Copy a tensor, keep the copy, and return its address."""
        self._tensors.append(tensor.detach().clone().contiguous())
        return int(self._tensors[-1].data_ptr())

    def _copy_layer(self, block: nn.Module, sizes: "_Sizes") -> _Layer:
        q, kv = _queries_keys_values(block, sizes)
        assert isinstance(block, Block)
        out = block.attention.out.weight.unflatten(1, (sizes.heads, -1))
        return _Layer(
            self._copy(sizes.panels(q)),
            self._copy(sizes.panels(kv)),
            self._copy(sizes.panels(F.pad(out, (0, sizes.head - out.shape[2])).flatten(1))),
            self._copy(sizes.panels(block.up.weight * block.mlp_norm.weight)),
            self._copy(sizes.panels(F.pad(block.down.weight, (0, sizes.inner - block.down.weight.shape[1])))),
        )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a model in the library, rounded up to whole vectors (`head`) or panels (the others).

    vector: floats of a vector.
    tile: columns of a panel.
    hidden: D, not rounded.
    width: D, rounded up.
    inner: I, rounded up.
    heads: H.
    head: K, rounded up.
    query: the queries of all heads.
    key_value: the keys and values of all heads.
    """

    vector: int
    tile: int
    hidden: int
    width: int
    inner: int
    heads: int
    head: int
    query: int
    key_value: int

    @classmethod
    def of(cls, config: SectorConfig, vector: int, tile: int) -> "_Sizes":
        hidden, heads, head = config.hidden_size, config.num_attention_heads, _rounded(config.head_dim, vector)
        return cls(
            vector=vector,
            tile=tile,
            hidden=hidden,
            width=_rounded(hidden, tile),
            inner=_rounded(config.intermediate_size, tile),
            heads=heads,
            head=head,
            query=_rounded(heads * head, tile),
            key_value=_rounded(2 * heads * head, tile),
        )

    def panels(self, weight: Tensor) -> Tensor:
        """Cut a matrix `[out, in]` into panels `[panels, in, tile]`."""
        return F.pad(weight, (0, 0, 0, -len(weight) % self.tile)).unflatten(0, (-1, self.tile)).transpose(1, 2)


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _queries_keys_values(block: nn.Module, sizes: _Sizes) -> tuple[Tensor, Tensor]:
    """Return the matrices `[H * K, D]` to queries in bits, and `[2 * H * K, D]` to keys and values."""
    assert isinstance(block, Block)
    q, k, v = (block.attention.qkv.weight * block.attention_norm.weight).chunk(3)
    head_dim = len(q) // sizes.heads
    q, k = interleaved(q, head_dim) * (head_dim**-0.5 / BITS), interleaved(k, head_dim)
    q, k, v = (
        F.pad(part.unflatten(0, (sizes.heads, -1)), (0, 0, 0, sizes.head - head_dim)).flatten(0, 1)
        for part in (q, k, v)
    )
    return q, torch.cat([k, v])


def _rope(config: SectorConfig, sizes: _Sizes) -> Tensor:
    """Return `[places, 2, K]`: the cosine of each component, and the sine with the sign that its sum needs."""
    cos, sin = rope_table(config).unbind(dim=1)
    cosines = torch.stack([cos, cos], dim=2).flatten(1)
    sines = torch.stack([-sin, sin], dim=2).flatten(1)
    return F.pad(torch.stack([cosines, sines], dim=1), (0, sizes.head - cosines.shape[1]))


def _first_layer(model: SectorForCausalLM, sizes: _Sizes, rope: Tensor) -> Tensor:
    """Return queries, keys and values `[ids, ...]` of the first layer for all ids, each padded to whole panels."""
    ids = torch.arange(tokens.VOCAB_SIZE)
    x = F.embedding(tokens.class_of(ids), model.embed.weight)
    x = x * (x.square().mean(dim=-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
    q, kv = (F.linear(x, weight) for weight in _queries_keys_values(model.blocks[0], sizes))
    k, v = kv.chunk(2, dim=1)
    cos, sin = rope[tokens.place_of(ids)].repeat(1, 1, sizes.heads).unbind(dim=1)
    q, k = (part * cos + part.unflatten(1, (-1, 2)).flip(2).flatten(1) * sin for part in (q, k))
    kv = torch.cat([k, v], dim=1)
    return torch.cat([F.pad(q, (0, sizes.query - q.shape[1])), F.pad(kv, (0, sizes.key_value - kv.shape[1]))], dim=1)


@dataclass(frozen=True, slots=True)
class _BranchTensors:
    """Tensors of a branch in the form of the library.

    mark: `[B, 1]` ids.
    draft: `[B, drafted]` ids, if there is a draft.
    output: `[B, length]` ids, which the library writes.
    noise: `[B, length, C]` Gumbel noise, if the temperature is above 0.
    """

    mark: Tensor
    draft: Tensor | None
    output: Tensor
    noise: Tensor | None

    @classmethod
    def of(cls, branch: Branch, index: int, sampling: Sampling) -> "_BranchTensors":
        """Return the tensors of a branch; index: its index in the call."""
        noise = None
        if sampling.temperature > 0:
            steps = torch.arange(branch.length)
            noise = sampling.gumbel(index, sampling.rows.unsqueeze(1), steps, tokens.NUM_CLASSES).contiguous()
        draft = None if branch.draft is None else branch.draft[:, : branch.drafted].contiguous()
        return cls(branch.mark.contiguous(), draft, branch.mark.new_empty(len(branch.mark), branch.length), noise)

    def pointers(self) -> _Branch:
        drafted = 0 if self.draft is None else self.draft.shape[1]
        tensors = (self.mark, self.draft, self.output, self.noise)
        return _Branch(self.output.shape[1], drafted, *map(_pointer, tensors))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def load_library(capability: str | None = None) -> ctypes.CDLL | None:
    """Return the library, built if necessary, or None if it cannot be built.

    capability: the processor's instructions by torch's names; by default those that torch uses.
    """
    try:
        library = _build_library(_flags(capability or torch.backends.cpu.get_cpu_capability()))
    except (OSError, subprocess.SubprocessError):
        return None
    if library is not None:
        for function in (library.vector_width, library.tile_width, library.memory_size, library.complete):
            function.restype = c_int64
        library.memory_size.argtypes = [c_void_p, c_void_p]
        library.complete.argtypes = [c_void_p, c_void_p, c_void_p]
    return library


def _build_library(flags: Sequence[str]) -> ctypes.CDLL | None:
    """Return the library of an earlier build from the same flags and source, or build it; None without a compiler."""
    digest = hashlib.sha256("\n".join([*flags, _SOURCE.read_text()]).encode()).hexdigest()
    path = Path(cache_from_source(str(_SOURCE))).with_name(f"native-{digest[:16]}.so")
    if path.exists():
        return ctypes.CDLL(str(path))
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, path.name)
        command = [compiler, *flags, str(_SOURCE), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
        # If the path is not writable, the library is loaded from the temporary folder.
        with suppress(InputError, OSError):
            write_atomically(path, lambda temporary: shutil.copyfile(built, temporary))
            built = path
        return ctypes.CDLL(str(built))


def _flags(capability: str) -> list[str]:
    """Return the flags of the compiler. None of them lets it change the order of additions."""
    numbers = {
        "CLASSES": tokens.NUM_CLASSES,
        "LOCAL": tokens.NUM_LOCAL,
        "DIGITS": tokens.NUM_DIGITS,
        "EOS": tokens.EOS,
        "PAD_ID": tokens.PAD_ID,
        "MAX_PLACE": tokens.MAX_PLACE,
    }
    return [
        *("-std=c11", "-O3", "-ffp-contract=fast", "-shared", "-fPIC"),
        *_INSTRUCTIONS.get(capability, ()),
        *(f"-D{name}={value}" for name, value in numbers.items()),
    ]
