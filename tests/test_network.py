"""Models of sector's own of another size than a preset's, by the settings `network`."""

from pathlib import Path

import pytest
from small_run import SMALL
from typer.testing import CliRunner, Result

import sector
from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.models.checkpoint import load_checkpoint
from sector.engine.models.sector_config import CHOSEN, PRESETS, SectorConfig
from sector.engine.run.plan import new_sector_model

# One head, two layers, sizes that are no powers of two.
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}


def _run(out: Path, *words: str) -> Result:
    command = ["run", "--out", str(out), *words]
    return CliRunner().invoke(app, command, prog_name="sector", catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "narrow"
    supervised = {"max_digits": 2, "cycle_steps": 30, "max_cycles": 1, "examples": 20}
    with sector.run(root, **{**SMALL, "until": 2, "supervised": supervised, "network": SIZES}) as events:
        assert list(events)
    return root


def test_a_run_trains_the_size_that_was_asked_for(finished: Path) -> None:
    model = load_checkpoint(finished / "checkpoints" / "02")
    assert {name: getattr(model.config, name) for name in SIZES} == SIZES
    rotation = {name: getattr(model.config, name) for name in CHOSEN if name not in SIZES}
    default = SectorConfig()
    assert rotation == {name: getattr(default, name) for name in rotation}
    assert sum(parameter.numel() for parameter in model.parameters()) < 20_000


def test_both_engines_answer_alike(finished: Path) -> None:
    texts = ["12+34", "99+1", "5+7"]
    native, plain = (sector.solve(texts, finished, policy="fast", engine=engine) for engine in ("native", "hf"))
    assert [answer.answer for answer in native] == [answer.answer for answer in plain]


def test_without_network_a_model_is_that_of_its_preset() -> None:
    model = new_sector_model(run_config({}))
    assert {name: getattr(model.config, name) for name in PRESETS["tiny"]} == PRESETS["tiny"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("hidden_size=63", "hidden_size 63 must be a multiple of twice num_attention_heads, 4"),
        ("hidden_size=0", "hidden_size must be a positive integer"),
        ("num_hidden_layers=true", "num_hidden_layers must be a positive integer, not True"),
        ("rope_theta=inf", "rope_theta must be a finite number, not inf"),
        ("rope_theta=0", "rope_theta must be a positive number, not 0"),
        ("vocab_size=100", "the preset tiny has no vocab_size; choose from hidden_size"),
        ("layers=2", "the preset tiny has no layers"),
    ],
    ids=str,
)
def test_sizes_that_no_model_can_have_are_refused_and_leave_nothing(tmp_path: Path, setting: str, reason: str) -> None:
    result = _run(tmp_path / "run", "--set", f"network.{setting}")
    assert result.exit_code == 2 and reason in result.stderr and result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_size(finished: Path) -> None:
    result = _run(finished, "--set", "network.hidden_size=48")
    assert result.exit_code == 2 and "was started with network.hidden_size = 24, not 48" in result.stderr
