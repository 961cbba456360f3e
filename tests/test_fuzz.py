"""Every parser on arbitrary input: it reads valid input, or raises InputError with one line; no other error occurs."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sector.engine.config import RunConfig, dump_config, read_config, run_config
from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.operands import Problems, draw_problems, problem_digits
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.checkpoint import load_checkpoint, save_checkpoint
from sector.engine.models.sector import new_model
from sector.engine.models.tokenizer import SectorTokenizer
from sector.engine.run.directory import RunDir
from sector.engine.run.records import GenerationRecord
from sector.engine.run.repair import remove_damaged
from sector.engine.seeding import generator
from sector.engine.training.dataset import Provenance, labelled_table, read_candidates, read_examples, write_examples
from sector.engine.training.supervised import label

fuzz = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
fuzz_files = settings(fuzz, max_examples=60)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PROBLEM_LIKE = st.text(alphabet="0123456789+= -\n\t\u0661\u00b2e.", max_size=40)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read_or_refuse(read: Callable[[], Any]) -> Any:
    """Return the value that was read, or None if it was refused as it should be. Any other exception is a finding."""
    try:
        return read()
    except InputError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return None


# Problem text


@fuzz
@given(st.one_of(PROBLEM_LIKE, st.text(max_size=40)))
def test_problem_text(text: str) -> None:
    problems = read_or_refuse(lambda: Problems.parse([text]))
    if problems is not None:
        assert text.isascii() and problem_digits(text) == problems.digits
        (again,) = problems.texts()
        same = Problems.parse([again], problems.digits)
        assert torch.equal(same.a, problems.a) and torch.equal(same.b, problems.b) and same.carry == problems.carry


@fuzz
@given(st.one_of(PROBLEM_LIKE, st.text(max_size=60)))
def test_text_for_the_tokenizer(text: str) -> None:
    ids = read_or_refuse(lambda: SectorTokenizer()(text)["input_ids"])
    assert ids is None or all(0 <= each < tokens.VOCAB_SIZE for each in ids)


# What a model wrote


@fuzz
@given(st.data(), st.integers(1, 6), st.sampled_from(list(DigitOrder)))
def test_generated_ids(data: st.DataObject, digits: int, order: DigitOrder) -> None:
    """From any ids, digits are parsed as digits, and valid simplifications can be posed as problems."""
    width = 2 * digits + 4
    ids = st.lists(st.integers(0, tokens.VOCAB_SIZE - 1), min_size=width, max_size=width)
    rows = torch.tensor(data.draw(st.lists(ids, min_size=1, max_size=4)))
    layout = PlaceLayout(order)
    answers, parsed = layout.parse_answers(rows[:, : digits + 2], digits)
    assert answers.shape == (len(rows), digits + 1) and ((answers[parsed] >= 0) & (answers[parsed] <= 9)).all()
    if digits > 1:
        step = layout.parse_simplifications(rows, digits)
        for part in (step.rest.a, step.rest.b, step.digit):
            assert ((part >= 0) & (part <= 9)).all()
        assert ((step.rest.carry == 0) | (step.rest.carry == 1)).all()


@fuzz
@given(st.integers(2, 6), st.data())
def test_a_simplification_changed_anywhere_is_refused_or_another(digits: int, data: st.DataObject) -> None:
    """One token of a right one replaced: it does not parse, or it says something else; never the same."""

    layout = PlaceLayout(DigitOrder.MSD)
    truth = label(draw_problems(digits, 1, generator(digits, "fuzz")))
    ids = layout.simplification_ids(truth.rest, truth.digit)
    at = data.draw(st.integers(0, ids.shape[1] - 1))
    other = data.draw(st.integers(0, tokens.VOCAB_SIZE - 1).filter(lambda each: each != int(ids[0, at])))
    ids[0, at] = other
    step = layout.parse_simplifications(ids, digits)
    said = (step.rest.texts(), step.digit.tolist())
    assert not step.valid.item() or said != (truth.rest.texts(), truth.digit.tolist())


# Config

KEYS = sorted(RunConfig.model_fields)


@fuzz
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), JSON, max_size=4))
def test_config_values(values: dict[str, Any]) -> None:
    config = read_or_refuse(lambda: run_config(values))
    if config is not None:
        import tomllib

        assert run_config(tomllib.loads(dump_config(config))) == config


@fuzz_files
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_config_files(folder: Path, content: bytes) -> None:
    path = folder / "config.toml"
    path.write_bytes(content)
    read_or_refuse(lambda: run_config(read_config(path), str(path)))


@fuzz_files
@given(st.sampled_from(["preset", "engine", "digit_order"]), st.sampled_from(["../x", "/etc/passwd", "a/b", "..", "~"]))
def test_no_setting_takes_a_path(key: str, value: str) -> None:
    with pytest.raises(InputError):
        run_config({key: value})


# Parquet


@pytest.fixture(scope="module")
def table() -> pa.Table:
    problems = label(draw_problems(4, 12, generator(0, "fuzz")))
    return labelled_table(problems, PlaceLayout(), Provenance(4, 0, "oracle", ""))


def check_examples(sets: dict[int, Examples] | None) -> None:
    for digits, examples in (sets or {}).items():
        assert examples.digits == digits >= 1 and len(examples) > 0
        for part in (examples.problems.a, examples.answers, examples.digit, examples.rest.a):
            assert ((part >= 0) & (part <= 9)).all()


@fuzz_files
@given(at=st.integers(0, 20_000), bits=st.integers(1, 255), length=st.integers(0, 20_000))
def test_parquet_with_a_byte_changed_and_an_end_missing(
    folder: Path, table: pa.Table, at: int, bits: int, length: int
) -> None:
    path = folder / "some.parquet"
    write_examples(path, table)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= bits
    path.write_bytes(content if length % 2 else content[: length % len(content)])
    check_examples(read_or_refuse(lambda: read_examples(path)))


ANYTHING = (
    st.none()
    | st.text(max_size=12)
    | PROBLEM_LIKE
    | st.sampled_from(["1+2", "12+34|5", "1+1+1|\u0665", "|", "9" * 300])
)


@fuzz_files
@given(
    rows=st.lists(
        st.tuples(ANYTHING, ANYTHING, ANYTHING, st.none() | st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3)),
        max_size=4,
    )
)
def test_parquet_of_any_values(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    path = folder / "any.parquet"
    names = ("problem", "answer", "simplification", "digits")
    kinds = (pa.string(), pa.string(), pa.string(), pa.int32())
    columns = list(zip(*rows, strict=True)) or [()] * 4
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    pq.write_table(pa.table(dict(zip(names, arrays, strict=True))), path)
    check_examples(read_or_refuse(lambda: read_examples(path)))


@fuzz_files
@given(rows=st.lists(st.tuples(ANYTHING, ANYTHING), max_size=4))
def test_candidates_of_any_values(folder: Path, rows: list[tuple[Any, Any]]) -> None:
    path = folder / "candidates.parquet"
    problem, direct = zip(*rows, strict=True) if rows else ((), ())
    pq.write_table(pa.table({"problem": pa.array(problem, pa.string()), "direct": pa.array(direct, pa.string())}), path)
    read_or_refuse(lambda: read_candidates(path, 3))


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    save_checkpoint(new_model("tiny", 0), folder / "model")
    return folder / "model"


@fuzz_files
@given(changes=st.dictionaries(st.sampled_from([
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "model_type", "digit_order",
    "architecture_version", "rms_norm_eps", "vocab_size", "auto_map", "architectures", "torch_dtype", "dtype",
]), JSON | st.integers(-5, 70), min_size=1, max_size=3))  # fmt: skip
def test_config_json_of_a_checkpoint(checkpoint: Path, changes: dict[str, Any]) -> None:
    path = checkpoint / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        model = read_or_refuse(lambda: load_checkpoint(checkpoint))
        assert model is None or type(model).__module__ == "sector.engine.models.sector"
    finally:
        path.write_text(before)


@fuzz_files
@given(at=st.integers(0, 3000), bits=st.integers(1, 255), keep=st.integers(1, 100))
def test_weights_with_a_byte_changed_and_an_end_missing(checkpoint: Path, at: int, bits: int, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    before = path.read_bytes()
    changed = bytearray(before)
    changed[at] ^= bits
    path.write_bytes(changed[: len(changed) * keep // 100])
    try:
        read_or_refuse(lambda: load_checkpoint(checkpoint))
    finally:
        path.write_bytes(before)


@fuzz_files
@given(content=JSON.map(json.dumps).map(str.encode) | st.binary(max_size=80))
def test_records_of_a_run(folder: Path, content: bytes) -> None:
    """Any content in the place of metrics or a record is removed, and the remaining files can be read."""
    run = RunDir(folder / "run")
    (run.root / "rounds" / "07").mkdir(parents=True, exist_ok=True)
    (run.root / "config.toml").write_text(tomli_w.dumps({}))
    (run.root / "metrics.jsonl").write_bytes(content)
    (run.root / "rounds" / "07" / "generation.json").write_bytes(content)
    remove_damaged(run)
    assert run.metrics() == [] and run.round(7).read(GenerationRecord) is None
