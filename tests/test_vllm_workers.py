"""vLLM in workers of Ray: one engine a process, new weights into live engines, and the bytes of an engine alone."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_workers import ASKED, in_files

from sector.engine.config import Filter, VllmConfig
from sector.engine.models.checkpoint import load_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.policy.generate import generate
from sector.engine.policy.workers import Workers, with_weights
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.vllm.sampler import VllmSampler

if sys.platform != "linux":
    pytest.skip("vLLM is for Linux", allow_module_level=True)

SETTINGS = VllmConfig(rows=128, memory_mib=64, max_digits=20)
# One guess and no second look: vLLM is slow here.
LOOKS = {"k": 1, "checks": ("direct",)}


def test_workers_with_vllm_write_what_one_engine_writes(supervised_run: Path, tmp_path: Path) -> None:
    """`native` writes the same, too. The engines live on when other weights come."""
    model = load_checkpoint(supervised_run)
    engine = VllmSampler(new_model("tiny", seed=3), SETTINGS)
    with Workers(2, "vllm", SETTINGS) as crew:
        crew.load(new_model("tiny", seed=3), engine)
        first = dict(crew.proofs)
        assert len({proof.pid for proof in first.values()} | {os.getpid()}) == 3

        engine.load(model)
        for temperature in (0.0, 0.5):
            asked = replace(ASKED, count=260, settings=Filter(**LOOKS, temperature=temperature))
            shared = in_files(tmp_path / f"shared{temperature}", with_weights(crew, model, engine)(asked))
            assert shared == in_files(tmp_path / f"alone{temperature}", generate(engine, asked))
            assert shared == in_files(tmp_path / f"native{temperature}", generate(NativeSampler(model), asked))
        # The engines that had the other weights before: none was started anew.
        assert {proof.pid for proof in crew.proofs.values()} == {proof.pid for proof in first.values()}
        assert {proof.weights_sha256 for proof in crew.proofs.values()} == {engine.weights_sha256}
