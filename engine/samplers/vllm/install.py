"""The installation of the digit sampler in a worker of vLLM."""

from typing import Any

from vllm.v1.sample.sampler import Sampler

from sector.engine.samplers.vllm.digit_choice import DigitChoice
from sector.engine.samplers.vllm.first_runner import DigitSampler, replace_samplers
from sector.engine.samplers.vllm.model import SectorForVllm


def install(worker: Any) -> DigitChoice | None:
    """Have the digit sampler choose in a worker; return its choice, or None if vLLM's own sampler stays.

    worker: a worker in this process, with the first or the second model runner.
    """
    runner, model = worker.model_runner, worker.get_model()
    sampler = getattr(runner, "sampler", None)
    if not isinstance(model, SectorForVllm):
        return None
    if isinstance(sampler, Sampler) and not isinstance(sampler, DigitSampler):
        replace_samplers(runner, DigitChoice(model))
    # In the second runner the model has put its sampler in place at the start (`second_runner.py`).
    choice = getattr(runner.sampler, "choice", None)
    model.returns_rows = isinstance(choice, DigitChoice)
    return choice if isinstance(choice, DigitChoice) else None
