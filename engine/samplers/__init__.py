"""Engines: prompts in, completions out; `native`, `hf` and `vllm` behind one protocol.

May import: `models` and below. Open `protocol.py` first: it defines the one call that completes prompts. `native.py` is
the engine for CPUs, `gpu.py` the one for GPUs, `text.py` the one for models of text; `vllm/` puts our model into vLLM,
and `outside.py` makes engines of users.
"""

from sector.engine.config import ENGINE_DOOR, VllmConfig
from sector.engine.models.checkpoint import Model
from sector.engine.models.text import TextModel
from sector.engine.samplers.protocol import Sampler


def check_engine(engine: str) -> None:
    """Raise InputError if an engine is not installed, so that a user learns it before long work."""
    if engine == "vllm":
        from sector.engine.samplers.vllm.start import check_installed

        check_installed()
    elif engine not in ENGINE_DOOR.built_in():
        ENGINE_DOOR.find(engine)


def make_sampler(engine: str, model: Model, vllm: VllmConfig | None = None, num_threads: int | None = None) -> Sampler:
    """Return the engine of that name with the model's weights.

    The native engine runs on the device of the model: plain torch on a CPU, our kernels on a GPU; for models of text it
    is transformers with our decoding. Raise InputError if the name is unknown, if the engine is not installed, or if it
    cannot run this kind of model.

    vllm: settings of the engine vllm.
    num_threads: threads of the native engine on a CPU, and of engines of users that take them; by default one per core.
    """
    # The dependencies of an engine are imported only if it is used.
    if engine == "native":
        if isinstance(model, TextModel):
            from sector.engine.samplers.text import TextSampler

            return TextSampler(model, num_threads)
        if model.device.type == "cuda":
            from sector.engine.samplers.gpu import GpuSampler

            return GpuSampler(model)
        from sector.engine.samplers.native import NativeSampler

        return NativeSampler(model, num_threads)
    if engine == "hf":
        from sector.engine.samplers.hf import HuggingFaceSampler

        return HuggingFaceSampler(model)
    if engine == "vllm":
        from sector.engine.samplers.vllm.sampler import VllmSampler

        return VllmSampler(model, vllm or VllmConfig())
    from sector.engine.samplers.outside import made

    return made(engine, ENGINE_DOOR.find(engine), model, num_threads)
