"""Adapters (LoRA): the form of peft on disk, the plain model beside it, and runs that are killed and resumed."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_text import save_text_model, small_text_model
from small_text_run import kill, start, weights_of
from torch import Tensor
from transformers import AutoModelForCausalLM
from two_ranks import command_of_two, labelled
from typer.testing import CliRunner

from sector.cli.app import app
from sector.engine.config import TrainerConfig, run_config
from sector.engine.errors import InputError
from sector.engine.models.adapter import ADAPTER, ADAPTER_WEIGHTS, AdaptedModel, targets_of
from sector.engine.models.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    trained_parameters,
    weights_sha256,
)
from sector.engine.models.text import TextModel
from sector.engine.run.directory import RunDir
from sector.engine.run.phases import Phases
from sector.engine.selfplay import self_play
from sector.engine.training.batches import mixed_batches
from sector.engine.training.distill import start_training, state_tensors, train_cycle

peft = pytest.importorskip("peft")

KINDS = pytest.mark.parametrize("kind", ["llama", "qwen"])
IDS = torch.arange(12).unsqueeze(0)
LORA = {"lora_rank": 4, "learning_rate": 2e-2}
# Everything that saves memory, and an average.
ALL = {"average": 0.8, "micro_batch": 9, "recompute": True, "precision": "bfloat16"}


def _adapted(kind: str = "llama", targets: tuple[str, ...] = (), base: Path = Path("base")) -> AdaptedModel:
    return AdaptedModel(small_text_model(kind, initializer_range=0.05), 4, targets, 3, base)


def _train(model: AdaptedModel, steps: int = 6, **settings: Any) -> list[float]:
    config = TrainerConfig(num_shards=2, warmup_steps=2, learning_rate=5e-2, **settings)
    batches = mixed_batches([labelled(3)], [labelled(2)], 2, 16, 0.5, seed=5)
    return [loss for _, loss in train_cycle(start_training(model, config), batches, config, steps, seed=7)]


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    return model(IDS).logits


@KINDS
def test_a_new_adapter_changes_nothing_and_does_not_touch_the_global_stream(kind: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model, base = _adapted(kind), small_text_model(kind, initializer_range=0.05)
    assert torch.equal(torch.rand(1), expected)
    assert weights_sha256(model) == weights_sha256(base) and torch.equal(_logits(model), _logits(base))
    names = model.trained_weights()
    assert len(names) == 2 * 7 * 2 and all(".lora_" in name for name in names)
    assert _adapted(kind).trained_weights().keys() == names.keys()
    assert all(torch.equal(tensor, _adapted(kind).trained_weights()[name]) for name, tensor in names.items())


@KINDS
def test_training_changes_the_adapter_alone_and_a_snapshot_holds_no_more(kind: str) -> None:
    model = _adapted(kind)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    losses = _train(model, steps=30)
    assert losses[-1] < 0.9 * losses[0]
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".lora_" not in name), name
    state = start_training(model, TrainerConfig(average=0.9))
    trained = sum(parameter.numel() for parameter in trained_parameters(model))
    assert sum(tensor.numel() for tensor in state_tensors(state).values()) == 2 * trained


@KINDS
@pytest.mark.parametrize("targets", [(), ("v_proj", "q_proj")], ids=["all", "two"])
def test_a_checkpoint_is_a_plain_model_and_an_adapter_that_peft_reads(
    kind: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    base = save_text_model(small_text_model(kind, initializer_range=0.05), tmp_path / "base")
    model = _adapted(kind, targets, base)
    _train(model)
    save_checkpoint(model, tmp_path / "checkpoint")
    assert (_logits(model) - _logits(load_checkpoint(base))).abs().max() > 0.01

    opened = AutoModelForCausalLM.from_pretrained(base)
    by_peft = peft.PeftModel.from_pretrained(opened, tmp_path / "checkpoint" / ADAPTER)
    assert torch.equal(_logits(by_peft), _logits(model))
    torch.testing.assert_close(_logits(by_peft.merge_and_unload()), _logits(model), rtol=0, atol=1e-5)
    form = json.loads((tmp_path / "checkpoint" / ADAPTER / "adapter_config.json").read_text())
    assert form["base_model_name_or_path"] == str(base) and form["inference_mode"]
    assert form["target_modules"] == sorted(targets) or (not targets and len(form["target_modules"]) == 7)

    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert isinstance(loaded, TextModel) and not isinstance(loaded, AdaptedModel)
    assert loaded.weights().keys() == load_checkpoint(base).weights().keys()
    assert weights_sha256(loaded) == weights_sha256(model) == weights_sha256(model.plain())
    torch.testing.assert_close(_logits(loaded), _logits(model), rtol=0, atol=1e-5)
    # transformers would load an adapter beside the weights on top of them.
    torch.testing.assert_close(
        _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")), _logits(loaded), rtol=0, atol=1e-6
    )
    again = _adapted(kind, targets, base)
    again.load_adapter(tmp_path / "checkpoint")
    assert torch.equal(_logits(again), _logits(model))


def test_an_adapter_that_is_missing_damaged_or_of_another_form_is_named(tmp_path: Path) -> None:
    model = _adapted()
    save_checkpoint(model, tmp_path)
    with pytest.raises(InputError, match="is an adapter of another form; restore it, or train again"):
        _adapted(targets=("q_proj",)).load_adapter(tmp_path)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes((tmp_path / ADAPTER_WEIGHTS).read_bytes()[:-5])
    for _ in range(2):
        with pytest.raises(InputError, match="is no readable adapter") as caught:
            model.load_adapter(tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / ADAPTER_WEIGHTS).unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "norm", "c_attn"])
def test_a_target_must_be_a_matrix_of_the_blocks(name: str) -> None:
    with pytest.raises(InputError, match=f"no matrix {name}; choose from down_proj, gate_proj, k_proj"):
        targets_of(small_text_model().network, ["q_proj", name])


# Settings


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "trainer.lora_rank adapts a pretrained model; give --pretrained, or leave it out"),
        ({"preset": "text-tiny"}, "trainer.lora_rank adapts a pretrained model"),
    ],
    ids=["native", "text"],
)
def test_adapters_are_for_pretrained_models(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        run_config({**given, "supervised": {"trainer": {"lora_rank": 4}}, "round": {"trainer": {"lora_rank": 4}}})


def test_a_run_has_one_adapter() -> None:
    for other in ({}, {"lora_rank": 8}, {"lora_rank": 4, "lora_targets": ["q_proj"]}):
        with pytest.raises(InputError, match="a run has one adapter"):
            run_config({"pretrained": "x", "supervised": {"trainer": {"lora_rank": 4}}, "round": {"trainer": other}})
    with pytest.raises(InputError, match=r"lora_targets: 'model\.q' is no name of a matrix; write it as q_proj"):
        run_config({"pretrained": "x", "round": {"trainer": {"lora_targets": ["model.q"]}}})


def test_an_adapter_has_higher_rates_by_default() -> None:
    lora = {"trainer": {"lora_rank": 4}}
    plain_run, adapted = (run_config({"pretrained": "x", **more}) for more in ({}, {"supervised": lora, "round": lora}))
    for name in ("supervised", "round"):
        rates = [getattr(config, name).trainer.learning_rate for config in (plain_run, adapted)]
        assert rates[1] == pytest.approx(10 * rates[0])
        assert getattr(adapted, name).trainer.weight_decay == getattr(plain_run, name).trainer.weight_decay
    own = {"trainer": {"lora_rank": 4, "learning_rate": 3e-4}}
    assert run_config({"pretrained": "x", "supervised": own, "round": lora}).supervised.trainer.learning_rate == 3e-4


# Runs


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(small_text_model(initializer_range=0.05), tmp_path_factory.mktemp("pretrained") / "model")


def _start(root: Path, pretrained: Path, more: dict[str, Any]) -> RunDir:
    trainer = {"trainer": {**LORA, **more}}
    return start(root, pretrained, supervised={**trainer, "cycle_steps": 25}, round=trainer)


@pytest.fixture(scope="module", params=[{}, ALL], ids=["adapter", "all"])
def finished(pretrained: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunDir:
    run = _start(tmp_path_factory.mktemp("runs") / "first", pretrained, request.param)
    for _ in self_play(run, run.read_config()):
        pass
    return run


def _more(run: RunDir) -> dict[str, Any]:
    trainer = run.read_config().round.trainer
    return ALL if trainer.average else {}


def test_a_whole_run(finished: RunDir, pretrained: Path) -> None:
    assert weights_of(finished, 0) == weights_sha256(load_checkpoint(pretrained))
    assert len({weights_of(finished, digits) for digits in (0, 2, 3)}) == 3
    # What generates the examples of a round is the checkpoint before it, average and adapter included.
    generated = json.loads((finished.round(3).folder / "generation.json").read_text())
    assert generated["weights_sha256"] == weights_of(finished, 2) and finished.metrics()[-1].accepted > 0
    for digits in (2, 3):
        checkpoint = finished.round(digits).checkpoint
        base = AutoModelForCausalLM.from_pretrained(finished.pretrained)
        by_peft = peft.PeftModel.from_pretrained(base, checkpoint / ADAPTER)
        torch.testing.assert_close(_logits(by_peft), _logits(load_checkpoint(checkpoint)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("at", "step"), [("train", 22), ("goal", 0)], ids=["train", "goal"])
def test_a_killed_run_ends_with_the_same_weights(
    finished: RunDir, pretrained: Path, tmp_path: Path, at: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sector.engine.run.phases.SNAPSHOT_STEPS", 20)
    run = _start(tmp_path / "run", pretrained, _more(finished))
    kill(run, at, step)
    for _ in self_play(run, run.read_config()):
        pass
    for digits in (0, 2, 3):
        assert weights_of(run, digits) == weights_of(finished, digits)
    adapters = [load_file(each.round(3).checkpoint / ADAPTER_WEIGHTS) for each in (run, finished)]
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())


def test_two_processes_train_to_the_weights_of_one(finished: RunDir, pretrained: Path, tmp_path: Path) -> None:
    """Tolerance: none."""
    run = _start(tmp_path / "two", pretrained, _more(finished))
    with command_of_two("run", "--out", run.root):
        pass
    assert [weights_of(run, digits) for digits in (2, 3)] == [weights_of(finished, digits) for digits in (2, 3)]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"short")], ids=["missing", "damaged"])
def test_a_lost_adapter_is_made_again(finished: RunDir, tmp_path: Path, damage: Any) -> None:
    run = RunDir(Path(shutil.copytree(finished.root, tmp_path / "run", symlinks=True)))
    damage(run.round(3).checkpoint / ADAPTER_WEIGHTS)
    result = CliRunner().invoke(app, ["run", "--out", str(run.root)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert weights_of(run, 3) == weights_of(finished, 3)
    assert (run.round(3).checkpoint / ADAPTER_WEIGHTS).read_bytes() == (
        finished.round(3).checkpoint / ADAPTER_WEIGHTS
    ).read_bytes()


def test_distill_goes_on_with_the_adapter_of_a_run(finished: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "new"
    command = ["distill", "--model", finished.root, "--data", finished.round(3).examples, "--out", out, "--steps", 2]
    result = CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    base = AutoModelForCausalLM.from_pretrained(finished.pretrained)
    by_peft = peft.PeftModel.from_pretrained(base, out / ADAPTER)
    torch.testing.assert_close(_logits(by_peft), _logits(load_checkpoint(out)), rtol=0, atol=1e-4)
    assert weights_sha256(load_checkpoint(out)) != weights_of(finished, 3)


@pytest.mark.parametrize("fault", ["peft", "target"])
def test_a_run_that_cannot_be_trained_leaves_nothing(
    pretrained: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the blocks have no matrix c_attn; choose from down_proj"
    targets = ["c_attn"]
    if fault == "peft":
        monkeypatch.setitem(sys.modules, "peft", None)
        reason, targets = "trainer.lora_rank needs peft; pip install 'sector-lm[lora]'", []
    command = ["run", "--out", str(tmp_path / "run"), "--pretrained", str(pretrained)]
    for phase in ("supervised", "round"):
        command += ["--set", f"{phase}.trainer.lora_rank=4", "--set", f"{phase}.trainer.lora_targets={targets}"]
    result = CliRunner().invoke(app, command, prog_name="sector", catch_exceptions=False)
    assert result.exit_code == 2 and reason in result.stderr and result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_run_without_an_adapter_needs_no_peft(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    config = run_config({"pretrained": str(pretrained), "until": 3, "supervised": {"max_digits": 2}})
    Phases(RunDir(tmp_path), config)
    assert load_checkpoint(pretrained).plain().weights()
