"""Token ids: class and place, the id that follows, and the legal next classes."""

import pytest
import torch

from sector.engine.language import tokens

ALL_IDS = torch.arange(tokens.VOCAB_SIZE)
MARKS = [tokens.START, tokens.ANSWER, tokens.THINK, tokens.PLUS, tokens.JOIN]


def _next_id(index: int, next_class: int) -> int:
    """The place rule of the module docstring, one pair at a time."""
    if next_class >= tokens.NUM_LOCAL:
        return next_class - tokens.NUM_LOCAL
    place = index // tokens.NUM_LOCAL
    if index < tokens.PAD_ID:
        place = tokens.SHIFTS[index % tokens.NUM_SHIFTS]
    if next_class < tokens.NUM_DIGITS:
        place += 1
    return next_class + tokens.NUM_LOCAL * min(place, tokens.MAX_PLACE)


def test_class_and_place_make_the_id() -> None:
    classes, places = tokens.class_of(ALL_IDS), tokens.place_of(ALL_IDS)
    local = ALL_IDS >= tokens.NUM_LOCAL
    assert torch.equal(places == 0, ~local)
    assert torch.equal(classes >= tokens.NUM_LOCAL, ~local)
    rebuilt = torch.where(local, classes + tokens.NUM_LOCAL * places, classes - tokens.NUM_LOCAL)
    assert torch.equal(rebuilt, ALL_IDS)


def test_every_class_has_its_own_number() -> None:
    locals_ = [*range(tokens.NUM_DIGITS), tokens.END, tokens.CARRY_0, tokens.CARRY_1, tokens.EOS]
    marks = [mark + variant for mark in MARKS for variant in range(tokens.NUM_SHIFTS)]
    assert len({*locals_, *marks, tokens.PAD}) == len(locals_) + len(marks) + 1
    assert max(locals_) < tokens.NUM_LOCAL
    assert min(marks) >= tokens.NUM_LOCAL
    assert tokens.PAD < tokens.NUM_CLASSES
    assert tokens.SHIFTS[0] == 0


def test_next_ids_follow_the_place_rule() -> None:
    table = tokens.next_ids(ALL_IDS.unsqueeze(1), torch.arange(tokens.NUM_CLASSES))
    assert table.shape == (tokens.VOCAB_SIZE, tokens.NUM_CLASSES)
    # Padding (id 15) is followed by padding alone; the place of anything else behind it means nothing.
    for index in (*range(tokens.PAD_ID), *range(tokens.NUM_LOCAL, tokens.VOCAB_SIZE, 7), tokens.VOCAB_SIZE - 1):
        expected = [_next_id(index, next_class) for next_class in range(tokens.NUM_CLASSES)]
        assert table[index].tolist() == expected, index


def test_next_ids_stay_in_the_vocabulary() -> None:
    table = tokens.next_ids(ALL_IDS.unsqueeze(1), torch.arange(tokens.NUM_CLASSES))
    assert int(table.min()) == 0
    assert int(table.max()) < tokens.VOCAB_SIZE


@pytest.mark.parametrize("variant", range(tokens.NUM_SHIFTS), ids="variant{}".format)
def test_longest_answer_fits_whatever_the_shift(variant: int) -> None:
    current = torch.tensor(tokens.ANSWER - tokens.NUM_LOCAL + variant)
    for _ in range(tokens.MAX_DIGITS + 1):
        current = tokens.next_ids(current, torch.tensor(9))
    assert int(tokens.place_of(current)) == tokens.MAX_DIGITS + 1 + tokens.SHIFTS[variant] <= tokens.MAX_PLACE


def test_legal_table_allows_what_sequences_hold() -> None:
    legal = tokens.legal_table()
    assert legal.shape == (tokens.NUM_CLASSES, tokens.NUM_CLASSES)
    assert bool(legal.any(dim=1).all())
    digits = set(range(tokens.NUM_DIGITS))
    joins = {tokens.JOIN + variant for variant in range(tokens.NUM_SHIFTS)}
    carries = {tokens.CARRY_0, tokens.CARRY_1}
    expected = {
        7: digits | {tokens.END, tokens.EOS},
        tokens.ANSWER: digits,
        tokens.THINK + 2: digits,
        tokens.JOIN + 1: digits,
        tokens.END: joins | carries,
        tokens.CARRY_1: digits,
        tokens.EOS: {tokens.PAD},
        tokens.PAD: {tokens.PAD},
    }
    for current, allowed in expected.items():
        assert set(legal[current].nonzero().flatten().tolist()) == allowed, current


def test_prompt_marks_are_never_generated() -> None:
    legal = tokens.legal_table()
    assert not legal[:, tokens.START : tokens.JOIN].any()


def test_eos_is_known_at_every_place() -> None:
    assert ALL_IDS[tokens.is_eos(ALL_IDS)].tolist() == tokens.eos_ids()
    assert len(tokens.eos_ids()) == tokens.MAX_PLACE
    assert bool((tokens.class_of(torch.tensor(tokens.eos_ids())) == tokens.EOS).all())
