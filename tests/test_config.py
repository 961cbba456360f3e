"""Settings: a resolved config says everything, and no typo passes."""

from pathlib import Path

import pytest

from sector.engine.config import (
    FILTERS,
    Filter,
    RunConfig,
    Settings,
    VllmConfig,
    dump_config,
    parse_settings,
    read_config,
    run_config,
    vllm_config,
)
from sector.engine.errors import InputError


def test_a_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    config = run_config({"until": 12, "filter": {"k": 3}, "round": {"trainer": {"learning_rate": 1e-3}}})
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert run_config(read_config(tmp_path / "config.toml")) == config


def test_one_setting_of_a_rounds_trainer_leaves_the_others_as_they_are() -> None:
    default = run_config({}).round.trainer
    changed = run_config({"round": {"trainer": {"learning_rate": 1e-3}}}).round.trainer
    assert changed.model_dump() == {**default.model_dump(), "learning_rate": 1e-3}
    assert default.warmup_steps < run_config({}).supervised.trainer.warmup_steps


def test_a_task_has_defaults_of_its_own_which_what_is_given_overrides() -> None:
    task = run_config({"task": "multiplication", "round": {"trainer": {"learning_rate": 1e-3}}})
    assert (task.digit_order, task.supervised.max_digits) == ("lsd", 3)
    assert (task.round.trainer.learning_rate, task.round.trainer.muon_learning_rate) == (1e-3, 2e-3)
    assert run_config({"task": "multiplication", "digit_order": "msd"}).digit_order == "msd"
    assert run_config({"task": "addition"}) == run_config({})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"untill": 9}, "untill"),
        ({"round": {"candidate": 9}}, "round.candidate"),
        ({"until": "9"}, "until"),
        ({"until": 9.5}, "until"),
        ({"until": 5}, "until"),
        ({"until": 10_000}, "until"),
        ({"filter": {"vote": "most"}}, "filter.vote"),
        ({"hard_share": 1.5}, "hard_share"),
        ({"filter": {"use_chain": False}}, "leave that check out"),
        ({"filter": {"use_chain": False, "checks": [], "k": 7}}, "lower k"),
        ({"filter": {"use_chain": False, "checks": []}}, "set think_through to false"),
        ({"filter": {"checks": ["direkt"]}}, "unknown check 'direkt'"),
        ({"filter": {"checks": ["shifted", "commutative"]}}, "names a check twice"),
        ({"filter": {"second_look": "twice"}}, "filter.second_look"),
        ({"supervised": {"trainer": {"shard_rows": 0}}}, "supervised.trainer.shard_rows"),
        ({"round": 3}, "round"),
    ],
    ids=str,
)
def test_bad_settings_are_named(values: dict, key: str) -> None:
    with pytest.raises(InputError, match=key) as caught:
        run_config(values, "some.toml")
    assert str(caught.value).startswith("some.toml: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["until = ", "until = 9\nuntil = 10", b"\xff\xfe"], ids=["half", "twice", "bytes"])
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="TOML"):
        read_config(path)
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path / "missing.toml")


def settings_classes() -> list[type[Settings]]:
    return [RunConfig, *Settings.__subclasses__()]


@pytest.mark.parametrize("settings", settings_classes(), ids=lambda each: each.__name__)
def test_every_setting_has_a_default_and_says_what_it_is(settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        assert not field.is_required(), name
        assert field.description, name


def test_settings_one_by_one() -> None:
    given = parse_settings(["vllm.max_digits=40", "vllm.dtype=bfloat16", "vllm.prefix_caching = false", "until=9"])
    vllm = {"max_digits": 40, "dtype": "bfloat16", "prefix_caching": False}
    assert given == {"vllm": vllm, "until": 9}
    settings = vllm_config({"vllm": vllm}, VllmConfig(rows=5))
    assert (settings.max_digits, settings.rows, settings.dtype) == (40, 5, "bfloat16")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vllm.max_digits", "is no setting; write it as vllm.max_digits=40"),
        ("vllm..rows=3", "is no setting"),
        ("vllm.max_digitz=3", "vllm.max_digitz: unknown key"),
        ("vllm.rows=many", "vllm.rows: Input should be a valid integer"),
        ("until=3", "--set until: only settings of the engine vllm can be given here"),
    ],
    ids=["no_value", "no_key", "unknown", "no_number", "not_of_vllm"],
)
def test_settings_one_by_one_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        vllm_config(parse_settings([text]), VllmConfig())


def test_filters_of_earlier_releases_are_read_as_checks() -> None:
    """They had a key a check; what is left out is as it was by default then."""
    old = {"second_look": "swapped", "direct": False, "complement": False, "through": "off", "vote": "majority"}
    assert Filter.model_validate(old) == FILTERS["paper"]
    assert Filter.model_validate({"through": "all"}) == FILTERS["thorough"]
    assert Filter.model_validate({"through": True}) == FILTERS["strict"]
    assert Filter.model_validate({"second_look": "off", "through": False}).checks == ("direct", "complement")
    assert not Filter.model_validate({"think": False, "second_look": "off", "through": "off"}).use_chain
    # Over a schedule that asks for another check.
    assert run_config({"filter": {"second_look": "off"}}).filter.checks == ("direct", "complement", "through")
