"""The record of the settings that a run was made with: refused changes, and allowed ones."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from sector.engine.config import MAY_CHANGE, RunConfig, flat, run_config
from sector.engine.errors import InputError
from sector.engine.report import write_report
from sector.engine.run.directory import RunDir
from sector.engine.run.made_with import SETTINGS
from sector.engine.run.open import open_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has made something."""
    with open_run(tmp_path / "run", {}, "test") as (begun, _):
        (begun.root / "rounds" / "supervised").mkdir(parents=True)
    return begun


def _edit(run: RunDir, key: str, value: Any) -> None:
    """Edit a key of config.toml. Schedule and task change no other setting, since the file holds all of them."""
    values = run_config({}).model_dump()
    *tables, name = key.split(".")
    table = values
    for each in tables:
        table = table[each]
    table[name] = value
    (run.root / "config.toml").write_text(tomli_w.dumps(values))


# Another good value of settings where one more, or half, is none.
_OTHER: dict[str, Any] = {
    "pretrained": "model", "recipe": 1, "preset": "base", "task": "subtraction", "digit_order": "lsd",
    "schedule": "paper", "engine": "hf", "filter.vote": "majority", "filter.checks": ["direct"],
    "filter.gate": "random",
    "round.teacher": "supervised", "supervised.trainer.precision": "bfloat16", "round.trainer.precision": "bfloat16",
    "supervised.trainer.optimizer": "adamw", "round.trainer.optimizer": "adamw",
    "vllm.dtype": "float32", "vllm.compiled": "on", "vllm.max_digits": 40,
}  # fmt: skip

_OF_TEXT = ("micro_batch", "recompute", "lora_rank", "lora_targets", "zeros")


def _settings() -> Iterator[Any]:
    for key, value in flat(RunConfig().model_dump(mode="json")):
        # Refused by themselves where the model is none of text.
        if key == "text_layout" or key.rpartition(".")[2] in _OF_TEXT:
            continue
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value
        other = value / 2 + 0.011 if isinstance(value, float) else other
        yield pytest.param(key, _OTHER.get(key, other), id=key)


@pytest.mark.parametrize(("key", "other"), list(_settings()))
def test_a_setting_edited_between_resumes_is_refused_unless_it_may_change(run: RunDir, key: str, other: Any) -> None:
    # A few settings do not go with the defaults of others, which is refused with other words.
    before = dict(flat(RunConfig().model_dump(mode="json")))[key]
    _edit(run, key, other)
    if key in MAY_CHANGE:
        run.read_config()
        return
    with pytest.raises(InputError) as caught:
        run.read_config()
    message = str(caught.value)
    assert "\n" not in message
    if key not in ("pretrained", "filter.use_chain", "filter.views"):
        assert f"says {key} = {other!r}, but this run was made with {key} = {before!r}; put it back" in message


def _resume(run: RunDir) -> None:
    with open_run(run.root, {}, "test"):
        pass


@pytest.mark.parametrize(
    "read", [_resume, lambda run: write_report([run.root], None)], ids=["run", "report"]
)  # fmt: skip
def test_every_command_that_reads_a_run_refuses_it(run: RunDir, read: Callable[[RunDir], object]) -> None:
    _edit(run, "seed", 1)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="says seed = 1, but this run was made with seed = 0"):
        read(run)
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


def test_until_nothing_is_made_settings_may_be_edited(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", {}, "test") as (run, _):
        pass
    _edit(run, "seed", 1)
    with open_run(run.root, {}, "test") as (_, config):
        assert config.seed == 1
    assert json.loads((run.root / SETTINGS).read_text())["settings"]["seed"] == 1


def test_a_run_without_a_record_gets_one_when_it_goes_on(run: RunDir) -> None:
    kept = (run.root / SETTINGS).read_bytes()
    (run.root / SETTINGS).unlink()
    with open_run(run.root, {}, "test"):
        pass
    assert (run.root / SETTINGS).read_bytes() == kept


@pytest.mark.parametrize("damage", ["", "[]", '{"sha256": "0"}', "other"], ids=["empty", "list", "half", "edited"])
def test_a_damaged_record_is_one_line(run: RunDir, damage: str) -> None:
    record = run.root / SETTINGS
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1') if damage == "other" else damage)
    with pytest.raises(InputError, match=r"settings\.json is damaged") as caught:
        run.read_config()
    assert "\n" not in str(caught.value)


def test_what_may_change_is_asked_for_and_kept(run: RunDir) -> None:
    with open_run(run.root, {"until": 12, "blocks": 3, "vllm": {"rows": 7, "draft_tokens": 0}}, "test") as (_, config):
        assert (config.until, config.blocks, config.vllm.rows, config.vllm.draft_tokens) == (12, 3, 7, 0)
    assert run.read_config() == config
    with pytest.raises(InputError, match="was started with seed = 0, not 1"), open_run(run.root, {"seed": 1}, "test"):
        pass
    with (
        pytest.raises(InputError, match="was started with pretrained = '', not 'model'"),
        open_run(run.root, {"pretrained": "model"}, "test"),
    ):
        pass
