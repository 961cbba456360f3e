"""The drafts of a call, proposed to vLLM for its speculative decoding.

vLLM verifies a draft in one pass: it keeps the tokens that the model would have chosen, and the model's own token after
them. Completions are the same with and without drafts. vLLM's own rejection sampler (Leviathan et al. 2023, arXiv
2211.17192) would draw other samples with a draft, so where it draws, at temperature > 0, `sampler.py` passes no drafts.

vLLM creates the proposer by its name (`speculative_config`, method `custom_class`) and calls it after every step. The
interface is experimental: where a release does not have it, `start.py` starts vLLM without drafts.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vllm import LLM

# The number type of the tokens that vLLM passes to a proposer.
_ID = np.int32


def takes_drafts() -> bool:
    """Return whether the installed release of vLLM accepts a proposer of ours."""
    from vllm.config import speculative

    return "custom_class" in get_args(speculative.SpeculativeMethod)


class DraftProposer:
    """The proposer of one vLLM engine, in the process of the engine.

    A draft is found by the tokens before it, so neither requests nor the order of rows matter.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._limit: int = vllm_config.speculative_config.num_speculative_tokens
        self._drafts: dict[bytes, NDArray[np.int32]] = {}
        self.proposed = 0

    def load_model(self, *_: Any, **__: Any) -> None:
        """Do nothing: drafts come from the caller, not from a model."""

    def expect(self, drafts: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Replace all drafts by these pairs of prompt and draft; of two drafts of a prompt, keep the longer one."""
        ordered = sorted(drafts, key=lambda pair: len(pair[1]))
        self._drafts = {_key(prompt): np.asarray(draft, _ID) for prompt, draft in ordered if draft}

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        **_: Any,
    ) -> list[list[int]]:
        """Return the draft tokens of every row, at most `num_speculative_tokens`.

        sampled_token_ids: the new tokens of each row; none while its prompt is read in parts.
        num_tokens_no_spec: `[rows]` numbers of tokens, the new ones included.
        token_ids_cpu: `[rows, tokens]` prompts and completions.
        """
        lengths = num_tokens_no_spec.tolist()
        return [
            self._rest(token_ids_cpu[row, : lengths[row]]) if new else [] for row, new in enumerate(sampled_token_ids)
        ]

    def _rest(self, known: NDArray[np.int32]) -> list[int]:
        """Return the draft after the known tokens of a row, if the last of them is its first token."""
        before = known[:-1].tobytes()
        draft = self._drafts.get(before)
        if draft is None or len(draft) < 2 or draft[0] != known[-1]:
            return []
        now, later = draft[1 : self._limit + 1], draft[self._limit + 1 :]
        if len(later):
            # Found again if all of `now` is accepted; vLLM then generates one token more, the first of `later`.
            self._drafts[before + draft[: self._limit + 1].tobytes()] = later
        self.proposed += len(now)
        return now.tolist()


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, _ID).tobytes()


def proposer_of(llm: "LLM") -> DraftProposer | None:
    """Return the proposer of an engine in this process, or None if the engine runs without drafts."""
    (drafter,) = llm.collective_rpc(_drafter)
    return drafter if isinstance(drafter, DraftProposer) else None


def _drafter(worker: Any) -> object:
    return getattr(worker.model_runner, "drafter", None)
