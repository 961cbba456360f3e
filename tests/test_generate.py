"""Generating: which of the drawn problems become candidates, and that the pool they come from changes nothing else."""

from scripted import Scripted

from sector.engine.config import Filter
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.policy.generate import BLOCK, Assignment, generate_block
from sector.engine.seeding import generator
from sector.engine.tasks import find_task

DIGITS, SEED, POOL = 6, 5, 2
QUICK = Filter(vote="off", checks=(), k=1, think_through=False)


def assignment(count: int = BLOCK, pool: int = POOL) -> Assignment:
    return Assignment(find_task("addition"), PlaceLayout(), DIGITS, count, QUICK, SEED, 0.5, pool)


def drawn(start: int = 0, pool: int = POOL) -> Problems:
    return draw_problems(DIGITS, BLOCK * pool, generator(SEED, "problems", DIGITS, start), 0.5)


def test_without_a_pool_candidates_are_as_they_are_drawn() -> None:
    _, block = generate_block(Scripted(), BLOCK, assignment(2 * BLOCK, pool=1))
    assert block.problems.texts() == drawn(BLOCK, pool=1).texts()


def test_where_nothing_is_doubted_the_first_problems_of_the_pool_are_candidates() -> None:
    _, block = generate_block(Scripted(), 0, assignment())
    _, alone = generate_block(Scripted(), 0, assignment(pool=1))
    assert block.problems.texts() == drawn().texts()[:BLOCK]
    # Two fast answers to every problem of the pool.
    assert block.tokens - alone.tokens == 2 * POOL * BLOCK * (DIGITS + 2)


def test_what_the_fast_policy_contradicts_itself_on_is_tried() -> None:
    """Its answer to one problem at the end of the pool is wrong, and so is the one to another's complement."""
    pool = drawn()
    doubted, by_complement = pool[-1:], pool[-7:-6]
    wrong = {doubted.texts()[0]: 1, by_complement.complement().texts()[0]: 1}
    rows, block = generate_block(Scripted(wrong), 0, assignment())
    assert block.problems.texts() == [*pool.texts()[: BLOCK - 2], by_complement.texts()[0], doubted.texts()[0]]
    assert rows.tolist() == list(range(BLOCK))


def test_doubts_are_half_of_the_candidates_at_most() -> None:
    pool = drawn()
    wrong = dict.fromkeys(pool.texts()[BLOCK:], 1)
    _, block = generate_block(Scripted(wrong), 0, assignment())
    assert sum(text in wrong for text in block.problems.texts()) == BLOCK // 2


def test_a_pool_of_nothing_but_doubts_is_tried_as_it_is_drawn() -> None:
    pool = drawn()
    _, block = generate_block(Scripted(dict.fromkeys(pool.texts(), 1)), 0, assignment())
    assert block.problems.texts() == pool.texts()[:BLOCK]


def test_a_block_cut_short_begins_like_the_whole() -> None:
    wrong = dict.fromkeys(drawn().texts()[::9], 1)
    whole, part = (generate_block(Scripted(wrong), 0, assignment(count))[1] for count in (BLOCK, 30))
    assert part.problems.texts() == whole.problems.texts()[:30]
