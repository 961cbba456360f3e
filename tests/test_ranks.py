"""Training in several processes: the loss curve and the weights of one, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.checkpoint import save_checkpoint
from sector.engine.config import TrainerConfig
from sector.engine.dataset import Provenance, labelled_table, write_examples
from sector.engine.distill import start_training, train_cycle
from sector.engine.errors import InputError
from sector.engine.examples import mixed_batches
from sector.engine.model import new_model
from sector.engine.policy import PlaceLayout
from sector.engine.problem import draw_problems
from sector.engine.ranks import joined
from sector.engine.seeding import generator
from sector.engine.supervised import label

TORCHRUN = Path(sys.executable).with_name("torchrun")


def labelled(digits: int):
    return label(draw_problems(digits, 60, generator(0, "ranks", digits)))


def curve(num_shards: int, ranks: Any = None) -> list[float]:
    """Losses of twelve steps; the last says everything about the weights before."""
    config = TrainerConfig(num_shards=num_shards, shard_rows=8, warmup_steps=2)
    batches = mixed_batches([labelled(5)], [labelled(3)], num_shards, 8, 0.5, seed=5)
    state = start_training(new_model("tiny", 0), config)
    return [loss for _, loss in train_cycle(state, batches, config, 12, 7, ranks)]


def under_torchrun(*command: str) -> str:
    """Two processes of one thread each; what they print."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    launch = [str(TORCHRUN), "--standalone", "--nproc-per-node", "2", *command]
    return subprocess.run(launch, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.parametrize("num_shards", [2, 3], ids=["even", "odd"])
def test_two_processes_have_the_loss_curve_of_one(num_shards: int, tmp_path: Path) -> None:
    """Tolerance: none. With three shards one process has two of them and the other one."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json\n"
        "from test_ranks import curve, joined\n"
        f"with joined({num_shards}) as ranks:\n"
        f"    losses = curve({num_shards}, ranks)\n"
        "    print(json.dumps([ranks.rank, losses]) + '\\n', end='', flush=True)\n"
    )
    said = [json.loads(line) for line in under_torchrun(str(program)).splitlines()]
    assert sorted(rank for rank, _ in said) == [0, 1]
    assert [losses for _, losses in said] == [curve(num_shards)] * 2


def test_distill_under_torchrun_writes_the_same_checkpoint_once(tmp_path: Path) -> None:
    save_checkpoint(new_model("tiny", 0), tmp_path / "model")
    for digits in (3, 5):
        table = labelled_table(labelled(digits), PlaceLayout(), Provenance(digits, 0, "oracle", ""))
        write_examples(tmp_path / f"{digits}.parquet", table)
    command = ["distill", "--model", str(tmp_path / "model"), "--steps", "3", "--json"]
    command += ["--data", str(tmp_path / "5.parquet"), "--replay", str(tmp_path / "3.parquet"), "--out"]
    alone = json.loads(CliRunner().invoke(app, [*command, str(tmp_path / "one")], catch_exceptions=False).stdout)
    (line,) = under_torchrun(
        "--no-python", str(TORCHRUN.with_name("sector")), *command, str(tmp_path / "two")
    ).splitlines()
    together = json.loads(line)
    for key in ("loss", "tokens", "weights_sha256"):
        assert together[key] == alone[key]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_more_processes_than_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match="4 shards"), joined(4):
        pass
