"""Plain greedy decoding by one engine, in a separate process that is controlled by JSON lines on stdin.

    python -P decoders.py ENGINE MODEL PROMPTS.safetensors NEW_TOKENS INDEX PROCESSES

The process loads the model, takes every PROCESSES-th prompt from INDEX on, and prints `{}` when it is ready. On a line
`{"rows": 500, "batch": 32, "show": 0}` it decodes its first 500 prompts, and prints the count of generated tokens and
the ids of the first `show` rows.

The process of a peer imports neither this package nor torch, so that only the peer's threads run.
"""

import json
import os
import sys
from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Ids = NDArray[np.int64]


class Decoder(ABC):
    """One engine with its prompts `[B, P]`; it continues each prompt by `new_tokens` tokens."""

    def __init__(self, model: Path, prompts: Ids, new_tokens: int) -> None:
        self._prompts, self._new_tokens = prompts, new_tokens
        self._load(model)

    @abstractmethod
    def _load(self, model: Path) -> None: ...

    @abstractmethod
    def decode(self, rows: int, batch: int) -> Ids:
        """Continue the first `rows` prompts, at most `batch` at a time; return the new ids `[rows, new_tokens]`."""

    def count(self, ids: Ids) -> int:
        """Return the count of tokens in ids that `decode` returned."""
        return ids.size

    def _parts(self, rows: int, batch: int) -> list[slice]:
        """Return slices of about equal size."""
        cuts = np.linspace(0, rows, -(-rows // batch) + 1).round().astype(int)
        return [slice(start, stop) for start, stop in pairwise(cuts.tolist())]


class Ctranslate2(Decoder):
    """CTranslate2: one thread per batch and one batch per core; no token ends a row early."""

    def _load(self, model: Path) -> None:
        from ctranslate2 import Generator

        cores = os.cpu_count() or 1
        self._generator = Generator(
            str(model), device="cpu", compute_type="float32", inter_threads=cores, intra_threads=1
        )
        self._words = [[f"t{index}" for index in row] for row in self._prompts.tolist()]

    def decode(self, rows: int, batch: int) -> Ids:
        """See `Decoder`."""
        results = self._generator.generate_batch(
            self._words[:rows],
            max_batch_size=batch,
            max_length=self._new_tokens,
            min_length=self._new_tokens,
            beam_size=1,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
        )
        return np.array([result.sequences_ids[0] for result in results])


class OnnxruntimeGenai(Decoder):
    """onnxruntime-genai: one thread per process, set in the model's files; at most 32 rows (version 0.18)."""

    def _load(self, model: Path) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(model))
        self._prompts32 = self._prompts.astype(np.int32)

    def decode(self, rows: int, batch: int) -> Ids:
        """See `Decoder`."""
        return np.concatenate([self._decode_batch(self._prompts32[part]) for part in self._parts(rows, batch)])

    def _decode_batch(self, prompts: NDArray[np.int32]) -> Ids:
        rows, length = prompts.shape
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(batch_size=rows, max_length=length + self._new_tokens, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(prompts)
        while not generator.is_done():
            generator.generate_next_token()
        return np.stack([generator.get_sequence(row)[length:] for row in range(rows)]).astype(np.int64)


class Native(Decoder):
    """The native engine without any of its savings; the last token of a prompt is its mark."""

    def _load(self, model: Path) -> None:
        import torch

        from sector.engine.models.checkpoint import load_sector, task_and_layout
        from sector.engine.samplers.native import NativeSampler
        from sector.engine.samplers.protocol import Savings
        from sector.engine.training.distill import tune_allocator

        tune_allocator()
        weights = load_sector(model)
        savings = Savings(shared_prefix=False, shared_beginning=False, drafts=False, drop_finished=False)
        self._sampler, self._layout = NativeSampler(weights, savings=savings), task_and_layout(weights)[1]
        self._ids = torch.from_numpy(self._prompts)

    def decode(self, rows: int, batch: int) -> Ids:
        """See `Decoder`; rows that end early are padded."""
        import torch

        from sector.engine.samplers.protocol import Branch, Sampling

        parts = []
        for part in self._parts(rows, batch):
            prefix, mark = self._ids[part].split([self._ids.shape[1] - 1, 1], dim=1)
            sampling = Sampling(0.0, 0, torch.arange(len(prefix)), stage=0)
            parts += self._sampler.sample(prefix, [Branch(mark, self._new_tokens)], sampling)
        ids: Ids = torch.cat(parts).numpy()
        return ids

    def count(self, ids: Ids) -> int:
        """See `Decoder`; padding is not counted."""
        import torch

        return int(self._layout.count_tokens(torch.from_numpy(ids)))


DECODERS: dict[str, type[Decoder]] = {
    "ctranslate2": Ctranslate2,
    "onnxruntime-genai": OnnxruntimeGenai,
    "native": Native,
}


def main() -> None:
    """Load the model, then serve one request per line of stdin."""
    name, model, prompts, *numbers = sys.argv[1:]
    new_tokens, index, processes = map(int, numbers)
    # Output of libraries goes to stderr: stdout is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values: dict[str, object]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    decoder = DECODERS[name](Path(model), load_file(prompts)["prompts"][index::processes], new_tokens)
    answer({})
    for line in sys.stdin:
        request = json.loads(line)
        ids = decoder.decode(request["rows"], request["batch"])
        answer({"tokens": decoder.count(ids), "ids": ids[: request["show"]].tolist()})


if __name__ == "__main__":
    main()
