"""Models of text with other tasks than addition: a round of each, and engines that write the same tokens."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from declared_tasks import Quotients
from small_text import MARKS, save_text_model, small_text_model
from told import told_events
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from sector.cli.app import app
from sector.engine.config import VllmConfig, run_config
from sector.engine.errors import InputError
from sector.engine.language.layout import Mode
from sector.engine.language.number_text import HintedNumberText, NumberText
from sector.engine.language.text_layout import TextLayout
from sector.engine.models.checkpoint import load_checkpoint, task_and_layout, weights_sha256
from sector.engine.models.ordinary import new_text_model
from sector.engine.models.text import TextModel
from sector.engine.policy.chain import answer_branch, think_branch
from sector.engine.run.directory import RunDir
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampling
from sector.engine.samplers.vllm.start import max_tokens
from sector.engine.tasks import TASK_DOOR, built_in, find_task
from sector.engine.tasks.declared import as_task

# Hardly trained.
SMALL: dict[str, Any] = {
    "until": 3,
    "audit_samples": 4,
    "supervised": {"max_digits": 2, "cycle_steps": 4, "more_steps": 4, "max_cycles": 1, "examples": 20},
    "round": {
        "candidates": 20,
        "cycle_steps": 2,
        "max_cycles": 1,
        "probe": 4,
        "probe_trained": 0,
        "min_agreement": 0.0,
    },
    "filter": {"vote": "off", "checks": [], "k": 1, "think_through": False},
}
NAMES = (*built_in(), "quotients")


@pytest.fixture(scope="module", autouse=True)
def _registry() -> Any:
    TASK_DOOR.register(as_task(Quotients()))
    yield
    del TASK_DOOR.things["quotients"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a token a character."""
    model = small_text_model(characters=MARKS, initializer_range=0.05)
    return save_text_model(model, tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="module", params=NAMES)
def finished(request: pytest.FixtureRequest, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of each task to its round at 3 digits."""
    run = RunDir(tmp_path_factory.mktemp("runs") / request.param)
    run.root.mkdir(parents=True)
    run.write_config(run_config({**SMALL, "task": request.param, "pretrained": str(pretrained)}))
    for _ in told_events(run):
        pass
    return run


def _sector(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="sector", catch_exceptions=False)


def test_a_round_of_each_task(finished: RunDir) -> None:
    model = load_checkpoint(finished.root)
    assert isinstance(model, TextModel) and model.task == finished.read_config().task
    assert model.digit_order == finished.read_config().digit_order
    assert [line.digits for line in finished.metrics()] == [2, 3]
    assert (finished.metrics()[-1].accepted, finished.metrics()[-1].label_error) == (20, 0.0)
    digests = {weights_sha256(load_checkpoint(finished.round(digits).checkpoint)) for digits in (0, 2, 3)}
    assert len(digests) == 3, "each phase trains"


@torch.no_grad()
def test_transformers_writes_what_the_engines_write(finished: RunDir) -> None:
    path = finished.root / "checkpoints" / "best"
    network, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    model = load_checkpoint(path)
    task, layout = task_and_layout(model)
    problems = task.draw(3, 5, torch.Generator().manual_seed(1))
    sampling = Sampling(0.0, 0, torch.arange(5), stage=0)
    for mode, branch_of in ((Mode.ANSWER, answer_branch), (Mode.THINK, think_branch)):
        branch = branch_of(problems, layout, None)
        native, hf = (
            make_sampler(engine, model).sample(layout.prefix_ids(problems), [branch], sampling)[0]
            for engine in ("native", "hf")
        )
        assert torch.equal(native, hf)
        for row, written in zip(layout.prompt_ids(problems, mode).tolist(), native.tolist(), strict=True):
            text = tokenizer.decode([index for index in row if index != layout.pad_id])
            prompt = tokenizer(text, return_tensors="pt")
            ids = network.generate(
                **prompt, max_new_tokens=branch.length, do_sample=False, eos_token_id=model.alphabet.ends
            )
            completion = ids[0, prompt.input_ids.shape[1] :].tolist()
            assert written[: len(completion)] == completion


def test_commands_take_the_model(finished: RunDir, tmp_path: Path) -> None:
    task = find_task(finished.read_config().task)
    solved = _sector("solve", task.example, "--model", finished.root, "--policy", "slow", "--json")
    assert json.loads(solved.stdout)["problem"] == task.example
    out = tmp_path / "out.parquet"
    made = _sector("generate", "--model", finished.root, "--digits", 2, "--count", 10, "--out", out, "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["tried"] == 10
    scored = _sector("eval", "--model", finished.root, "--digits", "1-2", "--samples", 4, "--json")
    assert [line["samples"] for line in json.loads(scored.stdout)["lengths"]] == [4, 4]


def test_a_whole_run_by_the_command(pretrained: Path, tmp_path: Path) -> None:
    """Fast answers of a model so new parse only now and then; those are learned."""
    sizes = {"supervised.max_digits": 2, "until": 3, "supervised.cycle_steps": 60, "supervised.max_cycles": 1}
    sizes |= {
        "supervised.trainer.learning_rate": 3e-3,
        "supervised.examples": 20,
        "round.candidates": 100,
        "round.cycle_steps": 2,
        "round.max_cycles": 1,
    }
    sizes |= {"audit_samples": 4, "round.probe": 4, "round.probe_trained": 0, "round.min_agreement": 0.0}
    loose = {"filter.vote": '"off"', "filter.checks": [], "filter.k": 1, "filter.temperature": 1.0}
    loose |= {"filter.think_through": "false", "filter.use_chain": "false"}
    settings = [word for key, value in (sizes | loose).items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    ran = _sector("run", "--pretrained", pretrained, "--task", "subtraction", "--out", out, *settings, "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout.splitlines()[-1])["frontier"] == 3


def test_a_tokenizer_without_a_mark_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = save_text_model(small_text_model(), tmp_path / "model")
    refused = _sector("run", "--pretrained", model, "--task", "multiplication", "--out", tmp_path / "run")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert "has no token for '*'; choose another model" in refused.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_model_learns_another_form_than_before() -> None:
    model = new_text_model("text-tiny", 0, {"hidden_size": 32})
    model.learns("addition", "hints", "lsd")
    assert isinstance(task_and_layout(model)[1], HintedNumberText)
    model.learns("subtraction")
    assert (model.layout, model.digit_order) == ("plain", "msd")
    assert isinstance(task_and_layout(model)[1], TextLayout)
    model.learns("multiplication", digit_order="lsd")
    assert isinstance(layout := task_and_layout(model)[1], NumberText) and layout.order == "lsd"


@pytest.mark.skipif(sys.platform != "linux", reason="vLLM is for Linux")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["plain", "hints"])
def test_vllm_has_room_for_the_longest_problem(name: str, form: str) -> None:
    model = new_text_model("text-tiny", 0, {"hidden_size": 32})
    model.learns(name, form)
    task, layout = task_and_layout(model)
    problems = task.draw(9, 2, torch.Generator().manual_seed(1))
    prompt = layout.prompt_ids(problems, Mode.THINK).shape[1]
    completion = max(layout.answer_length(problems.size), layout.simplification_length(problems.size))
    assert max_tokens(model, VllmConfig(max_digits=9)) == prompt + completion


def test_a_task_that_is_not_known_is_named(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_checkpoint(pretrained)
    assert isinstance(model, TextModel)
    model.learns("quotients")
    assert task_and_layout(model)[0].name == "quotients"
    monkeypatch.setattr(TASK_DOOR, "things", {})
    with pytest.raises(InputError, match=r"unknown task 'quotients'.* --task FILE\.py:NAME"):
        task_and_layout(model)
