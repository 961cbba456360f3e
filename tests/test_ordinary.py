"""Ordinary transformers from scratch: a run with letters before digits, resumed to the bit, read by commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from told import told_events
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from sector.cli.app import app
from sector.engine.config import run_config
from sector.engine.errors import InputError
from sector.engine.language.layout import Mode
from sector.engine.language.number_text import HintedNumberText
from sector.engine.language.operands import Problems
from sector.engine.models.checkpoint import load_checkpoint, task_and_layout, weights_sha256
from sector.engine.models.ordinary import TEXT_PRESETS, new_text_model
from sector.engine.models.text import TextModel
from sector.engine.policy.chain import answer_branch
from sector.engine.report.facts import changed_settings
from sector.engine.run.directory import RunDir
from sector.engine.run.events import TrainingStep
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampling
from sector.engine.training.distill import start_training

# Hardly trained.
SMALL: dict[str, Any] = {
    "preset": "text-tiny",
    "until": 3,
    "audit_samples": 4,
    "supervised": {"max_digits": 2, "cycle_steps": 60, "max_cycles": 1, "examples": 20},
    "round": {
        "candidates": 60,
        "cycle_steps": 4,
        "max_cycles": 1,
        "probe": 8,
        "probe_trained": 0,
        "min_agreement": 0.0,
    },
    "filter": {"vote": "off", "checks": [], "k": 1, "think_through": False},
}


def _start(root: Path) -> RunDir:
    run = RunDir(root)
    run.root.mkdir(parents=True)
    run.write_config(run_config(SMALL))
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = _start(tmp_path_factory.mktemp("runs") / "first")
    for _ in told_events(run):
        pass
    return run


def _sector(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="sector")


def test_a_run_learns_text_with_letters(finished: RunDir) -> None:
    model = load_checkpoint(finished.root)
    assert isinstance(model, TextModel) and (model.layout, model.digit_order, model.task) == (
        "hints",
        "lsd",
        "addition",
    )
    assert isinstance(task_and_layout(model)[1], HintedNumberText)
    assert [line.digits for line in finished.metrics()] == [2, 3]
    assert (finished.metrics()[-1].accepted, finished.metrics()[-1].label_error) == (60, 0.0)


def test_a_run_that_stops_in_the_middle_ends_with_the_same_weights(finished: RunDir, tmp_path: Path) -> None:
    run = _start(tmp_path / "run")
    events = told_events(run)
    for event in events:
        if isinstance(event, TrainingStep) and event.step == 30:
            break
    events.close()  # type: ignore[attr-defined]
    for _ in told_events(run):
        pass
    for digits in (2, 3):
        checkpoints = [each.round(digits).load_checkpoint() for each in (run, finished)]
        assert len({weights_sha256(model) for model in checkpoints}) == 1


def test_transformers_writes_what_the_engines_write(finished: RunDir) -> None:
    path = finished.root / "checkpoints" / "best"
    network, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    model = load_checkpoint(path)
    _, layout = task_and_layout(model)
    problems = Problems.parse(["12+34"])
    prompt = tokenizer("a2b1c0+a4b3c0+a0=", return_tensors="pt")
    assert torch.equal(prompt.input_ids, layout.prompt_ids(problems, Mode.ANSWER))
    length = layout.answer_length(2)
    ids = network.generate(**prompt, max_new_tokens=length, do_sample=False, eos_token_id=model.alphabet.ends)
    sampling = Sampling(0.0, 0, torch.arange(1), stage=0)
    for engine in ("native", "hf"):
        branch = answer_branch(problems, layout, None)
        (written,) = make_sampler(engine, model).sample(layout.prefix_ids(problems), [branch], sampling)
        text = ids[0, prompt.input_ids.shape[1] :].tolist()
        assert written[0].tolist()[: len(text)] == text


def test_a_seed_makes_the_same_model_and_keys_change_it() -> None:
    first, again, other = (new_text_model("text-tiny", seed, {}) for seed in (0, 0, 1))
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert 200_000 < sum(tensor.numel() for tensor in first.parameters()) < 400_000
    wide = new_text_model("text-tiny", 0, {"hidden_size": 32})
    assert wide.config.hidden_size == 32 and wide.config.num_hidden_layers == 4
    short = new_text_model("text-tiny", 0, {"num_hidden_layers": 2}).config
    assert short.layer_types == ["sliding_attention", "full_attention"] and short.no_rope_layers == [1, 0]
    plain = new_text_model("text-tiny", 0, {"layer_types": ["full_attention"] * 4, "no_rope_layers": [1] * 4}).config
    assert plain.layer_types == ["full_attention"] * 4 and plain.no_rope_layers == [1] * 4
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = new_text_model("text-tiny", 0, {"model_type": "llama", **sizes})
    assert llama.config.model_type == "llama" and not hasattr(llama.config, "no_rope_layers")
    with pytest.raises(InputError, match="network: transformers does not make a causal model"):
        new_text_model("text-tiny", 0, {"model_type": "none"})
    with pytest.raises(InputError, match="network: transformers does not make a causal model"):
        new_text_model("text-tiny", 0, {"hidden_act": "none"})
    with pytest.raises(InputError, match="network: transformers does not make a causal model"):
        new_text_model("text-tiny", 0, {"num_hidden_layers": 2.5})


def test_the_base_preset_has_the_size_that_the_help_says() -> None:
    with torch.device("meta"):
        keys = TEXT_PRESETS["text-base"]
        hidden, inner, layers = keys["hidden_size"], keys["intermediate_size"], keys["num_hidden_layers"]
    assert round(layers * (4 * hidden**2 + 3 * hidden * inner) / 1e6) == 14


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    model = new_text_model("text-tiny", 0, {})
    config = run_config({"preset": "text-tiny"}).supervised.trainer
    state = start_training(model, config)
    assert state.muon is not None
    by_muon = {id(weight) for group in state.muon.param_groups for weight in group["params"]}
    by_adamw = {id(weight) for group in state.adamw.param_groups for weight in group["params"]}
    assert not by_muon & by_adamw and by_muon | by_adamw == {id(weight) for weight in model.parameters()}
    ends = (model.network.get_input_embeddings().weight, model.network.get_output_embeddings().weight)
    assert {id(weight) for weight in ends} <= by_adamw and len(by_muon) == 4 * 7
    assert start_training(model, config.model_copy(update={"optimizer": "adamw"})).muon is None


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"text_layout": "hints"}, "text_layout is for models of text"),
        ({"pretrained": "x", "network": {"hidden_size": 8}}, "network changes a new model"),
        ({"preset": "text-tiny", "until": 51}, "for 50 digits at most, with zeros in front; lower until"),
        ({"preset": "text-tiny", "text_layout": "plain"}, "plain text has the most significant digit first"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        run_config(settings)


def test_only_settings_that_a_user_changed_are_told(finished: RunDir) -> None:
    assert changed_settings(run_config({"preset": "text-tiny"})) == {"preset": "text-tiny"} or not changed_settings(
        run_config({"preset": "text-tiny"})
    )
    told = changed_settings(run_config({"preset": "text-tiny", "network": {"hidden_size": 32}}))
    assert told.get("network.hidden_size") == 32


def test_a_network_is_that_of_the_run_for_ever(finished: RunDir) -> None:
    result = _sector("run", "--out", finished.root, "--set", "network.hidden_size=32")
    assert result.exit_code == 2 and "network.hidden_size" in result.stderr and result.stderr.count("\n") == 1


def test_commands_read_the_model(finished: RunDir, tmp_path: Path) -> None:
    solved = _sector("solve", "12+34", "--model", finished.root, "--show")
    assert solved.exit_code == 0, solved.stderr
    out = tmp_path / "out.parquet"
    made = _sector("generate", "--model", finished.root, "--digits", 3, "--count", 20, "--out", out, "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["tried"] == 20
    scored = _sector("eval", "--model", finished.root, "--digits", "1-3", "--samples", 4, "--json")
    assert [line["samples"] for line in json.loads(scored.stdout)["lengths"]] == [4, 4, 4]


def test_the_tokenizer_writes_what_it_reads() -> None:
    tokenizer = new_text_model("text-tiny", 0, {}).tokenizer
    text = "a3b2c1d0+a6b5c4d0+a0>\n 12|3"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@torch.no_grad()
def test_an_export_with_wide_heads(finished: RunDir, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(finished.root), "--to", str(tmp_path / "out"), "--wide-heads"])
    assert result.exit_code == 0, result.output
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert wide.config.head_dim == 32
    model = load_checkpoint(finished.root)
    ids = torch.tensor(
        [AutoTokenizer.from_pretrained(tmp_path / "out" / "model")("a3b2c1d0+a6b5c4d0+a0=")["input_ids"]]
    )
    assert torch.allclose(wide(ids).logits, model(ids).logits, atol=1e-4)
    assert "Its heads of attention are widened" in (tmp_path / "out" / "model" / "README.md").read_text()
