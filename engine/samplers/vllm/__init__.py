"""Our model inside vLLM, by its public plug-in points and nothing else.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). From then on `LLM(model=DIR)` and
`vllm serve DIR` load a checkpoint directory of ours as it is. Nothing here is imported before vLLM asks for it.
"""


def register() -> None:
    """Tell vLLM and transformers of our config, tokenizer and model, and of the tokenizer that a server shows."""
    from vllm import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    # Registers config and tokenizer with the Auto classes of transformers.
    import sector.engine.models.tokenizer  # noqa: F401

    # By name: the class is only imported where a model is made.
    ModelRegistry.register_model("SectorForCausalLM", "sector.engine.samplers.vllm.model:SectorForVllm")
    if SERVED not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(SERVED, "sector.engine.samplers.vllm.server_tokenizer", "ServedTokenizer")
        RENDERER_REGISTRY.register(SERVED, "vllm.renderers.hf", "HfRenderer")


# The tokenizer mode of `vllm serve` that shows plain decimals.
SERVED = "sector"
