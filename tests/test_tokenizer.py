"""Text to ids and back, through the interface of transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from declared_tasks import Parity, Quotients
from transformers import AddedToken, AutoTokenizer

import sector  # noqa: F401 (registers)
from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_ids import DigitOrder
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.models.sector_config import SectorConfig
from sector.engine.models.tokenizer import SectorTokenizer
from sector.engine.tasks import TASK_DOOR
from sector.engine.tasks.declared import as_task
from sector.engine.training import supervised

ORDERS = pytest.mark.parametrize("order", list(DigitOrder), ids=str)

TEXTS = [
    pytest.param("123+456=", "123+456=", id="fast"),
    pytest.param("123+456+1=", "123+456+1=", id="fast_carry"),
    pytest.param("123+456>", "123+456>", id="slow"),
    pytest.param("123+456+1>", "123+456+1>", id="slow_carry"),
    pytest.param("123+456+0=", "123+456=", id="carry_0"),
    pytest.param(" 12 + 34 + 1 = ", "12+34+1=", id="spaces"),
    pytest.param("7+8=", "7+8=", id="one_digit"),
    pytest.param("5+123=", "005+123=", id="short_operand"),
    pytest.param("0123+0456=", "0123+0456=", id="zeros_typed"),
    pytest.param("123+456+1=0580", "123+456+1=0580", id="answer"),
    pytest.param("123+456+1=580", "123+456+1=0580", id="short_answer"),
    pytest.param("123+456+1>12+45+1|0", "123+456+1>12+45+1|0", id="simplification"),
    pytest.param("123+456>12+45|9", "123+456>12+45|9", id="simplification_no_carry"),
    pytest.param("123+456>2+45+0|9", "123+456>02+45|9", id="short_rest"),
    pytest.param("~12+34=", "~12+34=", id="shifted_1"),
    pytest.param("~~12+34+1>1+3+1|7", "~~12+34+1>1+3+1|7", id="shifted_2"),
    pytest.param("9" * 256 + "+1=", "9" * 256 + "+" + "1".zfill(256) + "=", id="256_digits"),
]


@ORDERS
@pytest.mark.parametrize(("typed", "shown"), TEXTS)
def test_text_round_trips(order: DigitOrder, typed: str, shown: str) -> None:
    tokenizer = SectorTokenizer(order)
    ids = tokenizer(typed)["input_ids"]
    assert tokenizer.decode(ids) == shown
    assert tokenizer.decode(ids, skip_special_tokens=True) == shown
    assert tokenizer(shown)["input_ids"] == ids


@ORDERS
@pytest.mark.parametrize("variant", range(tokens.NUM_SHIFTS), ids="variant{}".format)
def test_ids_are_those_of_the_policies(order: DigitOrder, variant: int, draws: torch.Generator) -> None:
    tokenizer, layout = SectorTokenizer(order), PlaceLayout(order, variant)
    examples = supervised.label(draw_problems(5, 8, draws, hard_share=0.5))
    problems = examples.problems
    fast = torch.cat([layout.prompt_ids(problems, tokens.ANSWER), layout.answer_ids(examples.answers)], dim=1)
    slow = torch.cat(
        [
            layout.prompt_ids(problems, tokens.THINK),
            layout.simplification_ids(examples.rest, examples.digit),
        ],
        dim=1,
    )
    for ids in (fast, slow):
        texts = tokenizer.batch_decode(ids)
        assert all(text.startswith("~" * variant) for text in texts)
        assert tokenizer(texts, return_tensors="pt")["input_ids"].tolist() == ids.tolist()


def test_golden_ids() -> None:
    assert SectorTokenizer()("12+34=")["input_ids"] == [0, 17, 34, 42, 9, 19, 36, 42, 43, 3]


def test_batches_are_padded_on_the_left() -> None:
    tokenizer = SectorTokenizer()
    batch = tokenizer(["1+2=", "123+456="], padding=True, return_tensors="pt")
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"][0, :4].tolist() == [tokens.PAD_ID] * 4
    assert batch["attention_mask"].sum(dim=1).tolist() == [8, 12]
    assert tokenizer.batch_decode(batch["input_ids"]) == ["1+2=", "123+456="]


@ORDERS
def test_completions_alone_decode(order: DigitOrder) -> None:
    tokenizer, layout = SectorTokenizer(order), PlaceLayout(order)
    answer = layout.answer_ids(torch.tensor([[0, 5, 8, 0]]))[0]
    padding = torch.full((3,), tokens.PAD_ID)
    assert tokenizer.decode(torch.cat([answer, padding])) == "0580"
    simplification = layout.simplification_ids(Problems.parse(["12+45+1"]), torch.tensor([0]))[0]
    assert tokenizer.decode(torch.cat([simplification, padding]), skip_special_tokens=True) == "12+45+1|0"


def test_anything_a_model_may_emit_decodes() -> None:
    tokenizer = SectorTokenizer()
    assert isinstance(tokenizer.decode(list(range(tokens.VOCAB_SIZE))), str)
    assert tokenizer.decode([]) == ""


BAD = [
    pytest.param("", id="empty"),
    pytest.param("123+456", id="no_mode"),
    pytest.param("12+x=", id="letter"),
    pytest.param("-5+3=", id="negative"),
    pytest.param("1+2+2=", id="carry_2"),
    pytest.param("1 2+3=", id="space_in_number"),
    pytest.param("\u0661+2=", id="other_digits"),
    pytest.param("12+\n34\n5=", id="line_break"),
    pytest.param("1+2=333", id="long_answer"),
    pytest.param("1+2=\u0663", id="answer_other_digits"),
    pytest.param("1+2=3=", id="two_modes"),
    pytest.param("12+34>1+3", id="no_digit"),
    pytest.param("12+34>12+34|6", id="rest_not_shorter"),
    pytest.param("1+2>+|3", id="one_digit_simplification"),
    pytest.param("~~~1+2=", id="three_shifts"),
    pytest.param("1" * 257 + "+1=", id="257_digits"),
    pytest.param("<pad>", id="padding"),
    pytest.param("1+2=<pad>", id="padding_behind"),
]


@pytest.mark.parametrize("text", BAD)
def test_bad_text_says_the_mend_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        SectorTokenizer()(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 200
    assert "write" in message or "end it" in message or "ask" in message


def test_unknown_ids_are_named() -> None:
    with pytest.raises(InputError, match=str(tokens.VOCAB_SIZE)):
        SectorTokenizer().decode([tokens.VOCAB_SIZE])


def test_labels_without_loss_do_not_decode() -> None:
    with pytest.raises(InputError, match=f"put {tokens.PAD_ID}, the id of padding"):
        SectorTokenizer().decode([0, -100])


@pytest.mark.parametrize("name", ["7", "zz", "<unk>", "7@9999", "~"])
def test_names_of_no_token_are_refused(name: str) -> None:
    for read in (
        SectorTokenizer().convert_tokens_to_ids,
        lambda name: SectorTokenizer().convert_tokens_to_string([name]),
    ):
        with pytest.raises(InputError, match="is no token") as caught:
            read(name)
        assert "\n" not in str(caught.value)


def test_a_token_that_says_nothing_is_not_shown() -> None:
    assert SectorTokenizer().convert_tokens_to_string(["1@1", "", "<pad>"]) == "1"


@pytest.mark.parametrize(
    "add",
    [
        lambda tokenizer: tokenizer.add_tokens(["7@3", "hello"]),
        lambda tokenizer: tokenizer.add_special_tokens({"bos_token": "<s>"}),
        lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["7@3", AddedToken("<s>")]}),
        lambda tokenizer: tokenizer.add_special_tokens({"eos_token": "E@3", "extra_special_tokens": ["<s>"]}),
        lambda tokenizer: setattr(tokenizer, "bos_token", "<s>"),
        lambda tokenizer: setattr(tokenizer, "extra_special_tokens", ["<s>"]),
        lambda tokenizer: SectorTokenizer(additional_special_tokens=["<s>"]),
    ],
    ids=["tokens", "special", "more special", "the second", "attribute", "more attributes", "new"],
)
def test_the_vocabulary_takes_no_more_tokens(add: Callable[[SectorTokenizer], object]) -> None:
    """A refused token leaves no trace that later decoding would find."""
    tokenizer = SectorTokenizer()
    before = tokenizer.special_tokens_map
    with pytest.raises(InputError, match="cannot be added"):
        add(tokenizer)
    assert tokenizer.special_tokens_map == before and len(tokenizer) == tokens.VOCAB_SIZE
    assert tokenizer.decode(tokenizer("1+2=3")["input_ids"], skip_special_tokens=True) == "1+2=03"


def test_names_of_the_vocabulary_are_no_more_tokens() -> None:
    tokenizer = SectorTokenizer()
    assert tokenizer.add_tokens(["<pad>", "7@3"]) == 0
    tokenizer.eos_token = "E@3"
    tokenizer.bos_token = None
    assert tokenizer.eos_token_id == tokenizer.get_vocab()["E@3"] and len(tokenizer) == tokens.VOCAB_SIZE


def test_a_problem_is_not_cut() -> None:
    tokenizer = SectorTokenizer()
    with pytest.raises(InputError, match="raise max_length by 4"):
        tokenizer("123+456=", truncation=True, max_length=8)
    assert tokenizer("123+456=", truncation=True, max_length=12) == tokenizer("123+456=")


def test_a_prompt_stands_alone() -> None:
    with pytest.raises(InputError, match="not as a pair"):
        SectorTokenizer()("1+2=", "3+4=")


def test_the_last_message_of_a_chat_is_the_prompt(tmp_path: Path) -> None:
    SectorTokenizer().save_pretrained(tmp_path)
    chat = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
    for tokenizer in (SectorTokenizer(), SectorTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer.apply_chat_template([*chat, {"role": "user", "content": "12+34="}])["input_ids"]
        assert ids == tokenizer("12+34=")["input_ids"]


OTHER_TEXTS = [
    pytest.param("subtraction", "123-45=", "123-045=", id="difference"),
    pytest.param("subtraction", "452-129-1=322", "452-129-1=0322", id="borrow"),
    pytest.param("subtraction", "452-129>45-12-1|3", "452-129>45-12-1|3", id="difference_step"),
    pytest.param("multiplication", "12 * 34 =", "12*034+00=", id="product"),
    pytest.param("multiplication", "12*34+56=", "12*034+56=", id="product_of_a_chain"),
    pytest.param("multiplication", "~12*0+56=56", "~12*0+56=56", id="product_of_no_digits"),
    pytest.param(
        "multiplication",
        "12*34>0,48,00,48,00:48|3*12",
        "12*034+00>00,48,00,048,00:048|03*12",
        id="product_step",
    ),
    pytest.param("quotients", "8432/7=12044", "8432/7+0=12044", id="quotient"),
    pytest.param("quotients", "084/7+3>84/7+3|0", "084/7+3>84/7+3|0", id="quotient_step"),
    pytest.param("parity", "~~1234;1=", "~~1234;1=", id="parity"),
]


@pytest.fixture
def _declared(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {declaration.name: as_task(declaration()) for declaration in (Quotients, Parity)}
    monkeypatch.setattr(TASK_DOOR, "things", declared)


@ORDERS
@pytest.mark.usefixtures("_declared")
@pytest.mark.parametrize(("task", "typed", "shown"), OTHER_TEXTS)
def test_texts_of_other_tasks_round_trip(order: DigitOrder, task: str, typed: str, shown: str) -> None:
    tokenizer = SectorTokenizer(order, task)
    ids = tokenizer(typed)["input_ids"]
    assert tokenizer.decode(ids) == shown
    assert tokenizer(shown)["input_ids"] == ids
    start = next(index for index, name in enumerate(tokenizer.convert_ids_to_tokens(ids)) if name[0] in "=>")
    assert tokenizer.decode(ids[start + 1 :]) == shown.replace(">", "=").partition("=")[2], "completions alone decode"


OTHER_BAD = [
    pytest.param("subtraction", "12+34=", id="sum"),
    pytest.param("multiplication", "12+34=", id="product_of_sums"),
    pytest.param("multiplication", "12*34=00408", id="long_product"),
    pytest.param("multiplication", "12*0+34>1,2", id="nothing_to_simplify"),
    pytest.param("multiplication", "1*2>1,2", id="no_step"),
    pytest.param("multiplication", "1" * 250 + "*" + "1" * 250 + "=", id="500_digits"),
    pytest.param("quotients", "8432/77=", id="wide_divisor"),
    pytest.param("quotients", "8432/7>8432/7+0|1", id="rest_not_shorter"),
    pytest.param("quotients", "8/7>/7+1|1", id="one_digit_simplification"),
    pytest.param("no_such_task", "1+2=", id="no_such_task"),
]


@pytest.mark.usefixtures("_declared")
@pytest.mark.parametrize(("task", "text"), OTHER_BAD)
def test_bad_texts_of_other_tasks_say_the_mend_in_one_line(task: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        SectorTokenizer(task=task)(text)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 250
    assert any(mend in message for mend in ("write", "ask", "number of 1 digits", "name its file"))


@pytest.mark.usefixtures("_declared")
@pytest.mark.parametrize("task", ["subtraction", "multiplication", "quotients"])
def test_anything_a_model_of_another_task_may_emit_decodes(task: str) -> None:
    assert isinstance(SectorTokenizer(task=task).decode(list(range(tokens.VOCAB_SIZE))), str)


def test_the_task_of_a_checkpoint_is_that_of_its_texts(tmp_path: Path) -> None:
    SectorTokenizer(task="subtraction").save_pretrained(tmp_path)
    SectorConfig(task="subtraction").save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.decode(loaded("12-3=")["input_ids"]) == "12-03="


def test_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="middle"):
        SectorTokenizer("middle")


@ORDERS
def test_auto_tokenizer_round_trip(order: DigitOrder, tmp_path: Path) -> None:
    tokenizer = SectorTokenizer(order)
    tokenizer.save_pretrained(tmp_path)
    SectorConfig(digit_order=order).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, SectorTokenizer)
    assert loaded.digit_order is order
    assert loaded("123+456+1=580")["input_ids"] == tokenizer("123+456+1=580")["input_ids"]
    assert loaded.pad_token_id == tokens.PAD_ID
    assert len(loaded) == tokens.VOCAB_SIZE
