"""The digit sampler in vLLM: the choice of next ids from rows of the model, for the samplers of both model runners.

vLLM's own sampler wants logits over all ids, a few hundred times as many as there are classes that may follow. Here
the model passes on its rows instead, and the kernel of `native` chooses from them (`kernels/digit_sampler.py`). Every
token is the model's own choice, with the same noise as in other engines: samples at temperature > 0 are the same, too.

Legend: T rows of a step, R columns of a row, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from vllm import SamplingParams

from sector.engine.language import tokens
from sector.engine.samplers.protocol import Sampling
from sector.engine.samplers.vllm.model import SectorForVllm, split_ids
from sector.kernels.digit_sampler import Head, sample_digits
from sector.kernels.philox import Stream

# Key of `SamplingParams.extra_args`: row and stage of a request in the random stream.
POSITION = "position"


class DigitChoice:
    """The choice of next ids from rows of the model.

    sampling: temperature and seed of the call in progress; its rows and stage are those of the requests.
    """

    def __init__(self, model: SectorForVllm) -> None:
        self.sampling: Sampling | None = None
        self._model = model

    def logits(self, rows: Tensor) -> Tensor:
        """Return logits `[T, V]` for vLLM's own sampler."""
        return self._model.logits(rows)

    def ids(self, rows: Tensor, positions: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Choose the ids `[T]` that follow rows `[T, R]`.

        positions: function that returns rows, stages and steps `[T]` of the random stream; for temperature > 0 only.
        """
        hidden, ids = split_ids(rows)
        head = Head(self._model.norm.weight, self._model.head.weight, self._model.norm.variance_epsilon)
        temperature, stream = 0.0, None
        if self.sampling is not None and self.sampling.temperature > 0:
            temperature = self.sampling.temperature
            seed = torch.tensor([self.sampling.seed], dtype=torch.int64, device=ids.device)
            stream = Stream(seed, *(position.to(ids.device).contiguous() for position in positions()))
        return sample_digits(hidden, ids, head, tokens.kernel_table(ids.device), temperature, stream).ids


def position_of(params: SamplingParams) -> tuple[int, int]:
    """Return row and stage of a request in the random stream."""
    return params.extra_args[POSITION] if params.extra_args else (0, 0)
