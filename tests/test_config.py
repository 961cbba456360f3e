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
from sector.engine.tasks import find_task


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
        ({"filter": {"use_chain": False}}, "leave out the checks commutative and shifted"),
        ({"filter": {"use_chain": False, "checks": [], "k": 7}}, "lower k"),
        ({"filter": {"use_chain": False, "checks": []}}, "set think_through to false"),
        ({"filter": {"checks": ["direkt"]}}, "filter.checks: unknown check 'direkt'"),
        ({"filter": {"checks": ["shifted", "commutative"]}}, "names a check twice"),
        ({"filter": {"second_look": "twice"}}, "filter.second_look"),
        ({"filter": {"checks": 5, "direct": False}}, "filter.checks"),
        ({"filter": {"checks": ["direkt"], "direct": False}}, "filter.checks"),
        ({"filter": {"checks": [["direct"]], "second_look": "off"}}, "filter.checks"),
        ({"supervised": {"trainer": {"shard_rows": 0}}}, "supervised.trainer.shard_rows"),
        ({"round": 3}, "round"),
    ],
    ids=str,
)
def test_bad_settings_are_named(values: dict, key: str) -> None:
    with pytest.raises(InputError, match=key) as caught:
        run_config(values, "some.toml")
    assert str(caught.value).startswith("some.toml: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"until = ", "is not TOML"),
        (b"until = 9\nuntil = 10", "is not TOML"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"until = 9 # \xff", "is not a text file in UTF-8"),
    ],
    ids=["half", "twice", "deep", "bytes"],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=reason):
        read_config(path)
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path / "missing.toml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_config_is_read_in_any_encoding_that_tells(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "some.toml").write_bytes("until = 9\r\nseed = 3\r\n".encode(encoding))
    assert read_config(tmp_path / "some.toml") == {"until": 9, "seed": 3}


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\xff\xfe"], ids=["empty", "mark", "mark_utf16"])
def test_a_file_without_text_has_no_settings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.toml").write_bytes(content)
    assert read_config(tmp_path / "some.toml") == {}


def _numbers(settings: type[Settings], prefix: str = "") -> list[tuple[str, type]]:
    """Dotted settings that are numbers."""
    found: list[tuple[str, type]] = []
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            found += _numbers(kind, f"{prefix}{name}.")
        elif kind in (int, float):
            found.append((prefix + name, kind))
    return found


@pytest.mark.parametrize(("key", "kind"), _numbers(RunConfig), ids=str)
def test_every_number_has_two_ends_and_says_them(key: str, kind: type) -> None:
    values = ["-1", "99999999999999999999"] + (["inf", "-inf", "nan", "1e300", "-1e-300"] if kind is float else [])
    for value in values:
        with pytest.raises(InputError, match=rf"{key}: .*; it takes \S+ to (below )?\S+$"):
            run_config(parse_settings([f"{key}={value}{'.0' if kind is float and value.isdecimal() else ''}"]))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("round.trainer.learning_rate=1e-300", "it takes 1e-08 to 10"),
        ("round.trainer.beta2=1.0", "it takes 0 to below 1"),
        ("filter.temperature=1e-300", "choose 0 .greedy. or at least 0.001"),
        ("supervised.trainer.clip_norm=0.0", "it takes 1e-06 to 1e"),
        ("seed=9223372036854775808", "it takes 0 to below 9"),
    ],
    ids=str,
)
def test_numbers_that_lead_nowhere_are_refused(setting: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        run_config(parse_settings([setting]))


@pytest.mark.parametrize("model", [{"pretrained": "model"}, {"preset": "text-tiny"}], ids=["pretrained", "preset"])
@pytest.mark.parametrize(("task", "order"), [("subtraction", "msd"), ("multiplication", "lsd")])
def test_models_of_text_learn_all_tasks(model: dict[str, str], task: str, order: str) -> None:
    config = run_config({**model, "task": task})
    has_hints = "preset" in model and task == "subtraction"
    assert (config.text_layout, config.digit_order) == (("hints", "lsd") if has_hints else ("plain", order))
    rates = [each.round.trainer.learning_rate for each in (config, run_config(model))]
    assert len(set(rates)) == 1, "rates are those of the model, not of the task"


def test_letters_in_the_marks_of_a_task_leave_none_for_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    hinted = {"preset": "text-tiny", "task": "multiplication", "text_layout": "hints"}
    assert run_config(hinted).text_layout == "hints"
    monkeypatch.setattr(type(find_task("multiplication")), "text_marks", ("times",))
    with pytest.raises(InputError, match="hints cannot write multiplication; choose the layout plain"):
        run_config(hinted)


def test_zeros_are_for_columns_of_two_numbers() -> None:
    zeros = {"round": {"trainer": {"zeros": 8}}}
    for model in ({}, {"preset": "text-tiny"}):
        with pytest.raises(InputError, match="zeros is for tasks with two numbers and columns, as addition; leave"):
            run_config({**model, "task": "multiplication", **zeros})
    assert run_config(zeros).round.trainer.zeros == 8
    with pytest.raises(InputError, match="for 50 digits at most, with zeros in front; lower until or trainer"):
        run_config({"preset": "text-tiny", "until": 43, **zeros})
    assert run_config({"pretrained": "model", "task": "subtraction", **zeros}).round.trainer.zeros == 8
    assert run_config({"preset": "text-tiny", "until": 42}).round.trainer.zeros == 8
    without = {"round": {"trainer": {"zeros": 0}}}
    assert run_config({"preset": "text-tiny", "until": 50, **without}).round.trainer.zeros == 0


def test_differences_as_text_have_one_order_of_digits() -> None:
    with pytest.raises(InputError, match="plain text has the most significant digit first"):
        run_config({"pretrained": "model", "task": "subtraction", "digit_order": "lsd"})


def test_a_task_without_a_form_is_for_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(find_task("multiplication")), "writing", None)
    with pytest.raises(InputError, match="cannot learn the task multiplication, which has no text form; leave out"):
        run_config({"pretrained": "model", "task": "multiplication"})


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
        ("vllm.max_digits", "is not a setting; write it as vllm.max_digits=40"),
        ("vllm..rows=3", "is not a setting"),
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
    """Earlier releases had one key per check; a missing key has the default of that release."""
    old = {"second_look": "swapped", "direct": False, "complement": False, "through": "off", "vote": "majority"}
    assert Filter.model_validate(old) == FILTERS["paper"]
    assert Filter.model_validate({"through": "all"}) == FILTERS["thorough"]
    assert Filter.model_validate({"through": True}) == FILTERS["strict"]
    assert Filter.model_validate({"second_look": "off", "through": False}).checks == ("direct", "complement")
    assert not Filter.model_validate({"think": False, "second_look": "off", "through": "off"}).use_chain
    # Over a schedule that asks for another check.
    assert run_config({"filter": {"second_look": "off"}}).filter.checks == ("direct", "complement", "through")
