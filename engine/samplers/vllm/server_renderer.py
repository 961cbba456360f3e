"""The renderer of `vllm serve`, which lets the tokenizer see the end of a completion.

vLLM shows no text for the token at which generation stops. A text that is turned round at its end needs that token. So
generation stops one token later: behind an end only padding is legal.
"""

from pathlib import Path
from typing import Any

from vllm.renderers.hf import HfRenderer

from sector.engine.language.place_ids import DigitOrder

# Folder of a generation_config.json that stops at padding.
ENDS_AT_PADDING = Path(__file__).parent / "ends_at_padding"


class ServedRenderer(HfRenderer):  # type: ignore[misc]
    """`HfRenderer` under which a model that writes the least significant digit first stops at padding."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        # vLLM makes the renderer first, and then reads from this folder at which tokens requests stop.
        if config.model_config.hf_config.digit_order == DigitOrder.LSD:
            config.model_config.generation_config = str(ENDS_AT_PADDING)
        super().__init__(config, *arguments, **options)
