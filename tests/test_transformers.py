"""The model as users of transformers meet it: `generate`, pipelines, dtypes, devices, Trainer, adapters, tracers."""

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import model_that_knows
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.models.checkpoint import save_checkpoint
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.models.tokenizer import SectorTokenizer

# The answers the model knows, as it writes them. The longer one takes more than the 20 tokens that transformers allows.
SHORT = "123+456=0579"
LONG = "3141592653589793238462643+2718281828459045235360287=05859874482048838473822930"
BATCH = ["123+456=", "12+34+1="]

TOKENIZER = SectorTokenizer()


@pytest.fixture(scope="module")
def new_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "new"
    save_checkpoint(model_that_knows([text.partition("=")[0] for text in (SHORT, LONG)]), path)
    return path


@pytest.fixture(scope="module")
def old_checkpoint(new_checkpoint: Path) -> Path:
    """As checkpoints were before they held settings of `generate` and a chat template."""
    path = Path(shutil.copytree(new_checkpoint, new_checkpoint.with_name("old")))
    (path / "generation_config.json").unlink()
    (path / "chat_template.jinja").unlink()
    return path


@pytest.fixture(params=["new", "old"])
def checkpoint(request: pytest.FixtureRequest, new_checkpoint: Path, old_checkpoint: Path) -> Path:
    return {"new": new_checkpoint, "old": old_checkpoint}[request.param]


@pytest.fixture
def model(new_checkpoint: Path) -> SectorForCausalLM:
    return AutoModelForCausalLM.from_pretrained(new_checkpoint)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """Return the warnings of transformers."""
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        yield caplog.records
    transformers_logging.disable_propagation()


def _completed(model: SectorForCausalLM, texts: list[str], **options: Any) -> list[str]:
    batch = TOKENIZER(texts, padding=True, return_tensors="pt").to(options.pop("device", "cpu"))
    return TOKENIZER.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)


def _prompt(text: str) -> str:
    return text.partition("=")[0] + "="


# --- a plain call -----------------------------------------------------------------------------------------------------


def test_a_plain_call_writes_the_whole_answer(checkpoint: Path, said: list[logging.LogRecord]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert _completed(model, [_prompt(LONG)]) == [LONG]
    assert _completed(model, [_prompt(SHORT), _prompt(LONG)]) == [SHORT, LONG]
    assert [record.getMessage() for record in said] == []


def test_what_generate_does_is_saved(new_checkpoint: Path, model: SectorForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for folder in (new_checkpoint, tmp_path):
        saved = GenerationConfig.from_pretrained(folder)
        assert (saved.max_length, saved.do_sample) == (model.config.max_position_embeddings, False)
        assert (saved.eos_token_id, saved.pad_token_id) == (model.config.eos_token_id, model.config.pad_token_id)


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"max_new_tokens": 3}, id="new_tokens"),
        pytest.param({"max_length": 15}, id="length"),
        pytest.param({"generation_config": GenerationConfig(max_new_tokens=3)}, id="config_of_new_tokens"),
        pytest.param({"generation_config": GenerationConfig(max_length=15)}, id="config_of_length"),
    ],
)
def test_a_callers_own_limit_holds(checkpoint: Path, limits: dict[str, Any], said: list[logging.LogRecord]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert _completed(model, [_prompt(SHORT)], **limits) == [SHORT[:-1]]
    assert [record.getMessage() for record in said] == []


def test_what_runs_on_is_cut_by_the_length_of_its_prompt(model: SectorForCausalLM) -> None:
    batch = TOKENIZER(_prompt(SHORT), return_tensors="pt")
    endless = {**batch, "suppress_tokens": tokens.eos_ids()}
    assert model.generate(**endless).shape == (1, 5 * batch["input_ids"].shape[1])
    assert model.generate(**endless, max_length=70).shape == (1, 70)


def test_settings_that_a_user_saved_are_kept(new_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(new_checkpoint, tmp_path / "model")
    GenerationConfig(max_new_tokens=3, do_sample=True, temperature=0.5).save_pretrained(tmp_path / "model")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config
    assert (config.max_new_tokens, config.max_length, config.do_sample, config.temperature) == (3, None, True, 0.5)


WAYS = [
    pytest.param({"use_cache": False}, id="no_cache"),
    pytest.param({"cache_implementation": "dynamic"}, id="dynamic_cache"),
    pytest.param({"cache_implementation": "static"}, id="static_cache"),
    pytest.param({"prefill_chunk_size": 5}, id="prefill_in_chunks"),
    pytest.param({"num_beams": 2}, id="beams"),
    pytest.param({"do_sample": True, "top_k": 1}, id="sampling"),
    pytest.param({"repetition_penalty": 1.01}, id="penalty"),
]


@pytest.mark.parametrize("options", WAYS)
def test_every_way_to_decode_gives_the_answer(model: SectorForCausalLM, options: dict[str, Any]) -> None:
    assert _completed(model, [_prompt(SHORT), _prompt(LONG)], **options) == [SHORT, LONG]


def test_drafts_give_the_answer(model: SectorForCausalLM, new_checkpoint: Path) -> None:
    assistant = AutoModelForCausalLM.from_pretrained(new_checkpoint)
    assert _completed(model, [_prompt(LONG)], assistant_model=assistant) == [LONG]
    assert _completed(model, [_prompt(LONG)], prompt_lookup_num_tokens=3) == [LONG]


REFUSED = [
    pytest.param({"cache_implementation": "quantized"}, "quantized", id="quantized_cache"),
    pytest.param({"cache_implementation": "paged"}, "paged", id="paged_cache"),
    pytest.param({"stop_strings": ["5"], "tokenizer": TOKENIZER}, "stop_strings", id="stop_strings"),
    pytest.param({"guidance_scale": 1.5}, "guidance_scale", id="guidance"),
    pytest.param({"inputs_embeds": torch.zeros(1, 3, 64)}, "inputs_embeds", id="embeddings"),
    pytest.param({"no_such_thing": 1}, "no_such_thing", id="unknown"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_what_generate_cannot_do_is_one_clear_line(
    model: SectorForCausalLM, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        _completed(model, [_prompt(SHORT)], **options)
    assert "\n" not in str(caught.value)


def test_continuous_batching_is_refused(model: SectorForCausalLM) -> None:
    with pytest.raises(ValueError, match="continuous batching"):
        model.generate_batch([TOKENIZER.encode(_prompt(SHORT))])


def test_scores_and_attentions_come_with_generation(model: SectorForCausalLM) -> None:
    output = model.generate(
        **TOKENIZER(_prompt(SHORT), return_tensors="pt"),
        return_dict_in_generate=True, output_scores=True, output_attentions=True, output_hidden_states=True,
    )  # fmt: skip
    assert len(output.scores) == len(output.attentions) == len(output.hidden_states) == 5
    assert output.attentions[0][0].shape == (1, 4, 12, 12) and output.attentions[1][0].shape == (1, 4, 1, 13)


# --- pipelines --------------------------------------------------------------------------------------------------------


def test_a_pipeline_completes(checkpoint: Path, said: list[logging.LogRecord]) -> None:
    ask = pipeline("text-generation", model=str(checkpoint))
    assert ask(_prompt(LONG)) == [{"generated_text": LONG}]
    assert ask([_prompt(SHORT), _prompt(LONG)], batch_size=2) == [
        [{"generated_text": SHORT}],
        [{"generated_text": LONG}],
    ]
    assert [record.getMessage() for record in said] == []


def test_the_last_message_of_a_chat_is_the_prompt(checkpoint: Path) -> None:
    ask = pipeline("text-generation", model=str(checkpoint))
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": _prompt(SHORT)}]
    answer = {"role": "assistant", "content": "0579"}
    assert ask(chat)[0]["generated_text"] == [*chat, answer]
    again = [*chat, answer, {"role": "user", "content": _prompt(LONG)}]
    assert ask(again)[0]["generated_text"][-1]["content"] == LONG.partition("=")[2]


@pytest.mark.parametrize(
    "chat",
    [
        pytest.param([{"role": "user", "content": "hello"}], id="no_sum"),
        pytest.param([{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "03"}], id="answered"),
        pytest.param([{"role": "user", "content": [{"type": "text", "text": "1+2="}]}], id="parts"),
    ],
)
def test_a_chat_that_ends_with_no_prompt_is_one_clear_line(model: SectorForCausalLM, chat: list[Any]) -> None:
    with pytest.raises(InputError, match=r"is no prompt|is not a problem") as caught:
        pipeline("text-generation", model=model, tokenizer=TOKENIZER)(chat)
    assert "\n" not in str(caught.value)


# --- dtypes and devices -----------------------------------------------------------------------------------------------

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)


@DTYPES
def test_every_dtype_answers(new_checkpoint: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(new_checkpoint, dtype=dtype)
    moved = AutoModelForCausalLM.from_pretrained(new_checkpoint)
    _completed(moved, [_prompt(SHORT)])
    moved.to(dtype)
    for model in (loaded, moved):
        assert model.dtype == dtype
        assert _completed(model, [_prompt(SHORT), _prompt(LONG)]) == [SHORT, LONG]
    moved.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype
    # There and back again: the table of angles has not lost anything.
    assert torch.equal(moved.float().rope(), AutoModelForCausalLM.from_pretrained(new_checkpoint).rope())


def test_autocast_answers(model: SectorForCausalLM) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _completed(model, [_prompt(SHORT), _prompt(LONG)]) == [SHORT, LONG]


@pytest.mark.filterwarnings("ignore:You are calling .generate")
@pytest.mark.parametrize("away", ["embed", "blocks.0", "blocks.2", "norm", "head"])
def test_weights_may_lie_on_the_disk(new_checkpoint: Path, away: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    places = dict.fromkeys(["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"], "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        new_checkpoint, device_map={**places, away: "disk"}, offload_folder=str(tmp_path)
    )
    assert any(parameter.is_meta for parameter in model.parameters())
    assert _completed(model, [_prompt(SHORT), _prompt(LONG)]) == [SHORT, LONG]


def test_shapes_follow_without_values(model: SectorForCausalLM) -> None:
    """For tools that count memory or operations before there are weights."""
    prompts = {
        name: value.to("meta")
        for name, value in TOKENIZER(["1+2=", _prompt(LONG)], return_tensors="pt", padding=True).items()
    }
    output = model.to("meta")(**prompts, labels=prompts["input_ids"], output_attentions=True, use_cache=True)
    assert output.logits.shape == (*prompts["input_ids"].shape, model.config.vocab_size) and output.logits.is_meta
    assert output.loss.shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("away", ["embed", "blocks.1", "norm", "head"])
def test_weights_may_lie_on_two_devices(new_checkpoint: Path, away: str) -> None:
    pytest.importorskip("accelerate")
    places: dict[str, Any] = dict.fromkeys(["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"], 0)
    model = AutoModelForCausalLM.from_pretrained(new_checkpoint, device_map={**places, away: "cpu"})
    assert _completed(model, [_prompt(SHORT), _prompt(LONG)], device="cuda") == [SHORT, LONG]


def test_shards_are_read_back(model: SectorForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert _completed(AutoModelForCausalLM.from_pretrained(tmp_path), [_prompt(LONG)]) == [LONG]


# --- training ---------------------------------------------------------------------------------------------------------


def _rows() -> list[dict[str, Tensor]]:
    texts = [f"{first}23+{first}56={200 * first + 79}" for first in range(1, 9)]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in TOKENIZER(texts, return_tensors="pt")["input_ids"]]


def _rows_of_many_lengths() -> list[dict[str, list[int]]]:
    return [{"input_ids": TOKENIZER(f"{10**length}+{length}=")["input_ids"]} for length in range(8)]


def _trainer(model: SectorForCausalLM, folder: Path, **options: Any) -> Trainer:
    pytest.importorskip("accelerate")
    collator, rows = options.pop("data_collator", None), options.pop("rows", _rows())
    arguments = TrainingArguments(
        str(folder), max_steps=1, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, seed=0, **{"learning_rate": 0.0, **options},
    )  # fmt: skip
    return Trainer(model, arguments, data_collator=collator, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("collator", ["stacked", "padded", "packed"])
def test_accumulating_gradients_changes_no_loss(model: SectorForCausalLM, tmp_path: Path, collator: str) -> None:
    """Padding stands on the right: behind padding, transformers counts the first token of a row as one to predict."""
    right = SectorTokenizer(padding_side="right")
    options: dict[str, Any] = {
        "stacked": {},
        "padded": {"data_collator": DataCollatorForLanguageModeling(right, mlm=False), "rows": _rows_of_many_lengths()},
        "packed": {"data_collator": DataCollatorWithFlattening(), "rows": _rows_of_many_lengths()},
    }[collator]
    logged = []
    for steps in (1, 4, 8):
        trainer = _trainer(
            model, tmp_path, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, **options
        )
        trainer.train()
        logged.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
    assert logged[0][0] > 0
    for other in logged[1:]:
        assert other == pytest.approx(logged[0], rel=1e-4)


def test_trainer_learns_and_evaluates_by_the_usual_collator(model: SectorForCausalLM, tmp_path: Path) -> None:
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    trainer = _trainer(
        model, tmp_path, data_collator=collator, learning_rate=1e-3, gradient_checkpointing=True, bf16=True
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert math.isfinite(before) and trainer.evaluate()["eval_loss"] < before
    assert trainer.predict(_rows()).predictions.shape[:2] == (8, 17)


def test_label_smoothing_is_refused_before_a_weight_changes(model: SectorForCausalLM, tmp_path: Path) -> None:
    """Its loss is infinite. Trainer would log zero and train on the rest."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match="leave out label_smoothing_factor") as caught:
        _trainer(model, tmp_path, label_smoothing_factor=0.1, learning_rate=1e-3).train()
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_loss_of_ones_own_on_tokens_that_can_follow_has_the_gradient_of_the_models(model: SectorForCausalLM) -> None:
    ids = TOKENIZER([SHORT], return_tensors="pt")["input_ids"]
    answer = slice(ids.shape[1] - 5, None)
    labels = torch.full_like(ids, -100)
    labels[:, answer] = ids[:, answer]
    gradients = []
    for own in (True, False):
        model.zero_grad()
        if own:
            logits = model(ids).logits[:, :-1].flatten(0, 1)
            nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).backward()
        else:
            model(ids, labels=labels).loss.backward()
        gradients.append(model.head.weight.grad.clone())
    model.zero_grad()
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


class _Adapter(nn.Module):
    """The layer that peft puts in the place of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_adapters_of_a_frozen_model_learn(model: SectorForCausalLM, reentrant: bool) -> None:
    """The calls that peft makes, with gradient checkpoints: gradients must come through the frozen embedding."""
    model.requires_grad_(False)
    model.blocks[0].attention.qkv = _Adapter(model.blocks[0].attention.qkv)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    ids = torch.stack([row["input_ids"] for row in _rows()])
    model(input_ids=ids, labels=ids).loss.backward()
    assert bool(model.blocks[0].attention.qkv.up.weight.grad.any())
    assert model.get_output_embeddings() is model.head


def test_lora_by_peft(model: SectorForCausalLM, new_checkpoint: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    adapted = peft.get_peft_model(model, settings)
    assert not any("head" in name for name, _ in adapted.named_parameters() if "lora" in name)
    ids = torch.stack([row["input_ids"] for row in _rows()])
    adapted(input_ids=ids, labels=ids).loss.backward()
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(new_checkpoint), tmp_path)
    assert _completed(loaded.merge_and_unload(), [_prompt(LONG)]) == [LONG]


# --- tracers ----------------------------------------------------------------------------------------------------------


def test_export_leaves_the_model_as_it_was(model: SectorForCausalLM) -> None:
    ids = torch.stack([row["input_ids"] for row in _rows()])
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    # Before anything else has run.
    exported = torch.export.export(model, (ids,), dynamic_shapes={"input_ids": sizes}).module()
    for some in (ids, ids[:3, :9]):
        expected = model(some).logits
        assert type(expected) is Tensor
        torch.testing.assert_close(exported(some).logits, expected)


def test_compiles_in_one_piece(model: SectorForCausalLM) -> None:
    batch = TOKENIZER(BATCH, padding=True, return_tensors="pt")
    compiled: Callable[..., Any] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
