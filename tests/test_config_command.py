"""`sector config`: every setting, as JSON and as a table that cuts nothing."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sector.cli.app import app
from sector.engine.config import RunConfig, flat, run_config
from sector.engine.errors import InputError


def config(*args: str, columns: int = 80) -> Result:
    """Run `sector config` in this process, for a terminal of some width."""
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(app, ["config", *args], prog_name="sector", catch_exceptions=False)


def settings(*args: str) -> dict[str, dict[str, Any]]:
    """Return the settings that `sector config --json` lists, by name."""
    result = config(*args, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    record = json.loads(line)
    assert record.keys() == {"settings"}
    return {setting["name"]: setting for setting in record["settings"]}


def test_every_setting_of_a_run_is_listed_with_its_default() -> None:
    listed = settings()
    assert listed.pop("network") | {"meaning": ""} == {"name": "network", "type": "table", "default": {}, "meaning": ""}
    expected = dict(flat(RunConfig().model_dump(mode="json")))
    assert {name: setting["default"] for name, setting in listed.items()} == expected
    assert list(listed) == list(expected) and len(listed) > 60
    for setting in listed.values():
        assert setting.keys() == {"name", "type", "default", "meaning"}
        assert setting["meaning"] and "\n" not in setting["meaning"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("until", "whole number, 2 to 255"),
        ("round.max_leap", "whole number, 1 to 256"),
        ("round.probe_trained", "whole number, 0 or more"),
        ("seed", "whole number, 0 to 9223372036854775807"),
        ("hard_share", "number, 0 to 1"),
        ("supervised.trainer.learning_rate", "number, 1e-08 to 10"),
        ("supervised.trainer.beta1", "number, 0 to below 1"),
        ("filter.temperature", "number, 0 to 10"),
        ("filter.vote", "one of: off, majority, unanimous, harmonic"),
        ("filter.checks", "list of: direct, commutative, complement, through, shifted, remainder"),
        ("task", "one of: addition, multiplication, subtraction"),
        ("vllm.prefix_caching", "true or false"),
        ("pretrained", "text"),
    ],
    ids=str,
)
def test_types_are_in_words_with_choices_and_range(name: str, words: str) -> None:
    assert settings()[name]["type"] == words


def test_every_number_has_a_range() -> None:
    numbers = [setting["type"] for setting in settings().values() if "number" in setting["type"].split(",")[0].split()]
    assert len(numbers) > 40 and all(" to " in words or words.endswith(" or more") for words in numbers), numbers


def test_defaults_are_those_of_the_task_and_the_schedule() -> None:
    assert settings("--schedule", "paper")["round.max_leap"]["default"] == 1
    assert settings("--task", "multiplication")["digit_order"]["default"] == "lsd"
    assert settings()["round.max_leap"]["default"] > 1 and settings()["digit_order"]["default"] == "msd"


@pytest.mark.parametrize("columns", [80, 200], ids="columns{}".format)
def test_the_table_cuts_nothing(columns: int) -> None:
    result = config(columns=columns)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns and "…" not in result.stdout
    listed = settings()
    margin = 2 + max(map(len, listed))
    starts = [line[:margin].rstrip() for line in lines]
    words = " ".join(line[margin:] for line in lines).split()
    expected = [
        word
        for setting in listed.values()
        for word in f"{json.dumps(setting['default'])} ({setting['type']}) {setting['meaning']}".split()
    ]
    assert [start for start in starts if start] == ["setting", *listed]
    assert words == ["default,", "type", "and", "meaning", *expected]


def test_an_unknown_key_names_the_command() -> None:
    with pytest.raises(InputError, match="untill: unknown key; `sector config` lists all settings"):
        run_config({"untill": 9}, "some.toml")


def test_an_unknown_task_is_one_line() -> None:
    result = config("--task", "nothing")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("sector: --task nothing: ") and result.stderr.count("\n") == 1
