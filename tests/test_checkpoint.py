"""Checkpoints: the digest, the files, and the errors for damaged ones."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sector.engine.errors import InputError
from sector.engine.models.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint, weights_sha256
from sector.engine.models.sector import SectorForCausalLM, new_model


@pytest.fixture
def model() -> SectorForCausalLM:
    return new_model("tiny", seed=3, digit_order="lsd")


@pytest.fixture
def checkpoint(model: SectorForCausalLM, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path / "model")
    return tmp_path / "model"


def test_fingerprint_is_that_of_the_file(model: SectorForCausalLM, checkpoint: Path) -> None:
    data = (checkpoint / "model.safetensors").read_bytes()
    assert weights_sha256(model) == hashlib.sha256(data).hexdigest()


def test_fingerprint_tells_weights_apart(model: SectorForCausalLM) -> None:
    before = weights_sha256(model)
    assert before == weights_sha256(new_model("tiny", seed=3))
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-3
    assert weights_sha256(model) != before


def test_round_trip_is_exact(model: SectorForCausalLM, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert not loaded.training
    assert loaded.config.digit_order == "lsd"
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert weights_sha256(loaded) == weights_sha256(model)


def test_loads_in_hugging_face_form(model: SectorForCausalLM, checkpoint: Path) -> None:
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(checkpoint)) == weights_sha256(model)
    assert AutoTokenizer.from_pretrained(checkpoint).digit_order == "lsd"


def test_saving_replaces_and_leaves_nothing_else(checkpoint: Path) -> None:
    other = new_model("tiny", seed=4)
    (checkpoint / "stale").touch()
    save_checkpoint(other, checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]
    assert not (checkpoint / "stale").exists()
    assert weights_sha256(load_checkpoint(checkpoint)) == weights_sha256(other)


def test_older_checkpoints_load_as_they_were(model: SectorForCausalLM, checkpoint: Path) -> None:
    """They hold weights, config and tokenizer, and nothing about generation or chats."""
    kept = {"config.json", "model.safetensors", "tokenizer_config.json"}
    others = {path.name for path in checkpoint.iterdir()} - kept
    assert others == {"generation_config.json", "chat_template.jinja", "learned.json"}
    for name in others:
        (checkpoint / name).unlink()
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    del tokenizer["task"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert weights_sha256(load_checkpoint(checkpoint)) == weights_sha256(model)
    assert AutoTokenizer.from_pretrained(checkpoint).encode("12+34=", return_tensors="pt").shape == (1, 10)
    settings = AutoModelForCausalLM.from_pretrained(checkpoint).generation_config
    for name in ("max_length", "max_new_tokens", "do_sample", "eos_token_id", "pad_token_id"):
        assert getattr(settings, name) == getattr(model.generation_config, name)


def test_a_checkpoint_remembers_its_task(tmp_path: Path) -> None:
    save_checkpoint(new_model("tiny", seed=3, task="subtraction"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("34-12=")["input_ids"]) == "34-12="
    with pytest.raises(InputError, match="write two non-negative integers as 456-123"):
        tokenizer("12+34=")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_half_precision_are_read_as_float32(
    model: SectorForCausalLM, dtype: torch.dtype, tmp_path: Path
) -> None:
    rounded = {name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()}
    model.to(dtype).save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.dtype == torch.float32
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in loaded.state_dict().items())


def test_a_run_directory_means_its_best(model: SectorForCausalLM, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "run" / "checkpoints" / "best")
    assert resolve_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "best"
    assert weights_sha256(load_checkpoint(tmp_path / "run")) == weights_sha256(model)


def test_an_unwritable_place_is_named(model: SectorForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        save_checkpoint(model, tmp_path / "file" / "model")


def _truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def _edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


DAMAGES = [
    pytest.param(_truncate, id="truncated_weights"),
    pytest.param(lambda path: (path / "model.safetensors").write_bytes(b""), id="empty_weights"),
    pytest.param(lambda path: (path / "model.safetensors").write_bytes(b"\0" * 500), id="not_safetensors"),
    pytest.param(lambda path: (path / "model.safetensors").unlink(), id="no_weights"),
    pytest.param(lambda path: (path / "config.json").unlink(), id="no_config"),
    pytest.param(lambda path: (path / "config.json").write_text("{"), id="broken_config"),
    pytest.param(lambda path: (path / "config.json").write_text("[]"), id="config_of_another_kind"),
    pytest.param(lambda path: _edit_config(path, hidden_size=32), id="smaller_config"),
    pytest.param(lambda path: _edit_config(path, num_hidden_layers=2), id="fewer_layers"),
    pytest.param(lambda path: _edit_config(path, hidden_size="64"), id="config_of_wrong_type"),
    pytest.param(lambda path: _edit_config(path, num_attention_heads=0), id="no_heads"),
    pytest.param(lambda path: _edit_config(path, num_attention_heads=5), id="odd_heads"),
    pytest.param(lambda path: _edit_config(path, rope_theta="150"), id="rope_of_wrong_type"),
    pytest.param(lambda path: _edit_config(path, model_type="gpt2"), id="another_model"),
    pytest.param(lambda path: _edit_config(path, digit_order="middle"), id="unknown_order"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_line(damage: Callable[[Path], object], checkpoint: Path) -> None:
    damage(checkpoint)
    with pytest.raises(InputError) as caught:
        load_checkpoint(checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    assert str(checkpoint) in message


@pytest.mark.parametrize("name", ["nothing", "file", "empty"])
def test_a_place_that_is_no_checkpoint_is_one_clear_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_run_without_a_best_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="best"):
        load_checkpoint(tmp_path)
