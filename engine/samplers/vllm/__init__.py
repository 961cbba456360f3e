"""Our model inside vLLM, through its public plug-in points only.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Then `LLM(model=DIR)` and
`vllm serve DIR` load a checkpoint directory of ours unchanged. vLLM is imported only when `register` is called.
"""


def register() -> None:
    """Register our config, tokenizer and model, and a server's tokenizer and renderer, with vLLM and transformers."""
    from vllm import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    # This import registers config and tokenizer with the Auto classes of transformers.
    import sector.engine.models.tokenizer  # noqa: F401

    # By name, so that the class is imported only when a model is built.
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "sector.engine.samplers.vllm.model:SectorForVllm")
    if SERVED not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(SERVED, "sector.engine.samplers.vllm.server_tokenizer", "ServedTokenizer")
        RENDERER_REGISTRY.register(SERVED, "sector.engine.samplers.vllm.server_renderer", "ServedRenderer")


# The name of our model in a checkpoint.
ARCHITECTURE = "SectorForCausalLM"

# The tokenizer mode of `vllm serve` for plain decimals.
SERVED = "sector"
