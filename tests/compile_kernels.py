"""Compile what the launchers launch for a GPU that is not there: sm_90, the H100's.

A program of its own (`test_kernels_compile.py` runs it): whether kernels are interpreted is fixed once in a process.
Each case calls a launcher on CPU tensors while Triton, told that an H100 is the current device, compiles and launches
nothing. So the signatures, block sizes and warps are those of real calls. Prints one JSON object a compiled kernel:

    {"case": ..., "kernel": ..., "registers": ..., "stack": ..., "widest_load": ..., "shared": ..., "seconds": ...}

`stack` is bytes a thread of local memory: 0 means that nothing spilled. `widest_load` is the bits that a thread reads
from device memory by one instruction, at most 128.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from sector.engine.language.tokens import kernel_table
from sector.kernels.acceptance import accept_kernel
from sector.kernels.consistency import majority_kernel
from sector.kernels.decode_attention import Positions, decode_attention_kernel
from sector.kernels.digit_sampler import Head, sample_digits_kernel
from sector.kernels.layer import add_norm_kernel, rotate_to_cache_kernel, square_of_relu_kernel
from sector.kernels.layout import parse_answers_kernel, parse_simplifications_kernel, prompt_ids_kernel
from sector.kernels.philox import Stream

TARGET = GPUTarget("cuda", 90, 32)


class _AbsentGpu:
    """As much of a Triton driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [tools / "cuobjdump", "-res-usage", file.name], [tools / "nvdisasm", file.name]
        usage, code = (subprocess.run(line, capture_output=True, text=True, check=True).stdout for line in commands)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    # A load without a number is of 32 bits.
    loads = [int(bits or 32) for bits in re.findall(r"\bLDG(?:STS)?\.E(?:\.[A-Z]+)*(?:\.(64|128))?\b", code)]
    return {"registers": int(found[1]), "stack": int(found[2]), "widest_load": max(loads, default=0)}


def _integers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _sampler(
    size: int, dtype: torch.dtype, temperature: float, hidden_dtype: torch.dtype | None = None
) -> Callable[[], Any]:
    head = Head(torch.zeros(size, dtype=dtype), torch.zeros(32, size, dtype=dtype), 1e-6)
    stream = Stream(_integers(1), _integers(1000), _integers(1000), _integers(1000))
    hidden = torch.zeros(1000, size, dtype=hidden_dtype or dtype)
    return lambda: sample_digits_kernel(hidden, _integers(1000), head, TABLE, temperature, stream)


def _attention(heads: int, size: int, dtype: torch.dtype) -> Callable[[], Any]:
    qkv, rope = torch.zeros(1000, 3 * heads * size, dtype=dtype), torch.zeros(304, 2, size // 2)
    cache = torch.zeros(1000, heads, 8, size, dtype=dtype)
    at = Positions(*(_integers(1000) for _ in range(4)))
    return lambda: decode_attention_kernel(qkv, _integers(1000), rope, cache, cache.clone(), at)


def _vote(guesses: int, length: int) -> Callable[[], Any]:
    valid = torch.ones(1000, guesses, dtype=torch.bool)
    return lambda: majority_kernel(_integers(1000, guesses, length), valid)


def _prompts(digits: int) -> Callable[[], Any]:
    operand, row = _integers(1000, digits), _integers(1000)
    return lambda: prompt_ids_kernel(operand, operand, row, row, TABLE, TABLE.think)


def _simplifications(digits: int, least_first: bool) -> Callable[[], Any]:
    ids, row = _integers(1000, 2 * digits + 4), _integers(1000)
    return lambda: parse_simplifications_kernel(ids, digits, row, TABLE, least_first)


def _answers(digits: int) -> Callable[[], Any]:
    return lambda: parse_answers_kernel(_integers(1000, digits + 2), digits, _integers(1000), TABLE)


def _layer(count: int, heads: int, size: int, dtype: torch.dtype) -> Callable[[], Any]:
    """Return the calls of a layer of the first pass."""
    hidden, x = heads * size, torch.zeros(count, heads * size)
    cache, rope = torch.zeros(2, count, heads, 64, size, dtype=dtype), torch.zeros(304, 2, size // 2)
    weight, qkv = torch.zeros(hidden, dtype=dtype), torch.zeros(count, 1, 3 * hidden, dtype=dtype)

    def run() -> None:
        add_norm_kernel(x, None, weight, 1e-6)
        add_norm_kernel(x, x.to(dtype), weight, 1e-6)
        rotate_to_cache_kernel(qkv, _integers(count, 1), _integers(1), rope, *cache)
        square_of_relu_kernel(torch.zeros(count, 4 * hidden, dtype=dtype))

    return run


def _acceptance(length: int, drafted: bool) -> Callable[[], Any]:
    ids = _integers(1000, length)
    return lambda: accept_kernel(ids, ids, ids if drafted else None, 0)


TABLE = kernel_table()
BF16, FP32 = torch.bfloat16, torch.float32

CASES: dict[str, Callable[[], Any]] = {
    "digit_sampler tiny fp32 sampled": _sampler(64, FP32, 0.7),
    "digit_sampler base bf16 sampled": _sampler(384, BF16, 0.7),
    # As stepwise decoding calls it: the residual stream is float32 whatever the weights.
    "digit_sampler base bf16 under fp32 sampled": _sampler(384, BF16, 0.7, FP32),
    "digit_sampler base bf16 under fp32 greedy": _sampler(384, BF16, 0.0, FP32),
    "digit_sampler base fp32 greedy": _sampler(384, FP32, 0.0),
    "digit_sampler odd bf16 greedy": _sampler(90, BF16, 0.0),
    "decode_attention tiny fp32": _attention(4, 16, FP32),
    "decode_attention base bf16": _attention(12, 32, BF16),
    "decode_attention base fp32": _attention(12, 32, FP32),
    "decode_attention odd bf16": _attention(3, 22, BF16),
    "majority of 5": _vote(5, 30),
    "majority of 33": _vote(33, 257),
    "prompts 29": _prompts(29),
    "simplifications 29": _simplifications(29, False),
    "simplifications 256 least first": _simplifications(256, True),
    "answers 29": _answers(29),
    "layer tiny fp32": _layer(1000, 4, 16, FP32),
    "layer tiny bf16": _layer(1000, 4, 16, BF16),
    "layer base fp32": _layer(1000, 12, 32, FP32),
    "layer base bf16": _layer(1000, 12, 32, BF16),
    "acceptance 62 drafted": _acceptance(62, True),
    "acceptance 31 plain": _acceptance(31, False),
}


def main() -> None:
    triton.runtime.driver.set_active(_AbsentGpu())
    run = JITFunction.run
    case = ""

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        usage = {**_resource_usage(kernel.asm["cubin"]), "shared": kernel.metadata.shared}
        seconds = round(time.perf_counter() - started, 2)
        print(json.dumps({"case": case, "kernel": self.fn.__name__, **usage, "seconds": seconds}), flush=True)
        return kernel

    JITFunction.run = compile_only
    for case, call in CASES.items():  # noqa: B007
        call()


if __name__ == "__main__":
    main()
