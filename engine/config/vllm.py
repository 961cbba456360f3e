"""Settings of the engine `vllm`."""

from typing import Annotated, Literal

from pydantic import Field

from sector.engine.config.values import MAX_DIGITS, Count, Settings


class VllmConfig(Settings):
    """Settings of the engine `vllm` (`vllm/start.py` maps them to arguments of vLLM)."""

    dtype: Literal["model", "float32", "bfloat16"] = "model"
    """Number type of the computation; `model` is that of the weights. Choose bfloat16 for speed on a GPU."""
    compiled: Literal["auto", "on", "off"] = "auto"
    """Whether to compile the model at the start, which takes half a minute. `auto` compiles on a GPU only."""
    max_digits: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = MAX_DIGITS
    """Digits of the longest operand that the engine accepts. Lower it to save memory."""
    rows: Count = 1024
    """Prompts generated at the same time. Lower it if memory runs out."""
    memory_mib: Annotated[int, Field(ge=1, le=2**40)] = 1024
    """MiB of memory for the KV cache. Raise it for long operands or many prompts at a time."""
    prefix_caching: bool = True
    """Whether to compute shared prefixes of prompts once. Turn it off only to compare."""
    draft_tokens: Annotated[int, Field(ge=0, le=128)] = 64
    """Tokens of a draft that vLLM verifies in one step (speculative decoding). 0 generates token by token."""
