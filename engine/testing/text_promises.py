"""The promises of a task about text, for models of text and for tokenizers."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from sector.engine.language.alphabet import Alphabet, read_alphabet, with_letters, with_marks
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Layout, Mode
from sector.engine.language.place_ids import DigitOrder
from sector.engine.models.ordinary import character_tokenizer
from sector.engine.models.token_text import has_token_text
from sector.engine.models.tokenizer import SectorTokenizer
from sector.engine.seeding import generator
from sector.engine.tasks.task import Task
from sector.engine.testing.promise import LENGTHS, hold, promise
from sector.engine.testing.reading import completions, hold_read_back
from sector.engine.training.supervised import label

# Problems of each length: 1,000 in all.
_ROWS = 500


@promise("problems, answers and steps go to text and back")
def _written(task: Task) -> None:
    # Tasks of tensors may have no text.
    if not task.has_text:
        return
    tokenizer = character_tokenizer()
    alphabet = _alphabet(task, tokenizer)
    for digits in LENGTHS:
        examples = label(task.draw(digits, _ROWS, generator(digits, "text"), hard_share=0.5))
        for layout in _layouts(task, alphabet, with_letters(alphabet, tokenizer, "the test")):
            hold_read_back(layout, examples)
            _check_tokens(layout, examples, tokenizer)
            _check_damage(layout, examples)


@promise("tokens of prompts and completions go to text and back")
def _shown(task: Task) -> None:
    if not has_token_text(task):
        return
    for digits in LENGTHS:
        for order in DigitOrder:
            drawn = task.draw(digits, _ROWS // len(DigitOrder), generator(digits, "text", order), hard_share=0.5)
            _check_shown(task.layout(order), label(drawn), SectorTokenizer(order, task.name))


def _layouts(task: Task, plain: Alphabet, lettered: Alphabet) -> Iterator[Layout]:
    """Yield the layouts of a task as text, without letters before digits and with them."""
    for order in task.text_orders:
        yield task.text_layout(plain, order)
    if task.has_hints:
        for order in DigitOrder:
            yield task.hint_layout(lettered, order).shifted(torch.arange(_ROWS))


def _check_shown(layout: Layout, examples: Examples, tokenizer: SectorTokenizer) -> None:
    """Raise BrokenPromise if a tokenizer does not read a text as the place-coupled ids that it was shown from."""
    for ids in _sequences(layout, examples):
        shown = str(tokenizer.decode(ids))
        hold(tokenizer(shown)["input_ids"] == ids, f"{shown!r} is not read as the tokens that it shows")


def _alphabet(task: Task, tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """Return the alphabet of a tokenizer with the marks of a task."""
    plain = read_alphabet(tokenizer, "the test", len(tokenizer))
    return with_marks(plain, tokenizer, "the test", task.text_marks)


def _check_tokens(layout: Layout, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BrokenPromise if a tokenizer does not read the shown text as the ids that it was shown from."""
    for ids in _sequences(layout, examples):
        written = [index for index in ids if index != layout.pad_id]
        # It shows a space between tokens.
        shown = str(tokenizer.decode(written)).replace(" ", "")
        hold(tokenizer(shown)["input_ids"] == written, f"{shown!r} is not read as it is written")


def _sequences(layout: Layout, examples: Examples) -> Iterator[list[int]]:
    """Yield the ids of each prompt with its completion, in both modes."""
    for mode, completion in completions(layout, examples).items():
        yield from torch.cat([layout.prompt_ids(examples.problems, mode), completion], dim=1).tolist()


def _check_damage(layout: Layout, examples: Examples) -> None:
    """Raise BrokenPromise if texts that lack one of their characters are read."""
    size, rows = examples.problems.size, torch.arange(len(examples))
    for mode, ids in completions(layout, examples).items():
        ids = ids.clone()
        ids[rows, rows % (ids != layout.pad_id).sum(dim=1)] = layout.pad_id
        valid = (
            layout.parse_answers(ids, size)[1] if mode is Mode.ANSWER else layout.parse_simplifications(ids, size).valid
        )
        hold(not bool(valid.any()), f"a {mode.name} text without one of its characters is read")


PROMISES = (_written, _shown)
