"""Generating: which of the drawn problems become candidates, and that nothing else depends on pools and blocks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from declared_tasks import Parity
from empty_doors import empty_doors
from scripted import Scripted
from torch import Tensor

from sector.engine.config import FILTERS, Filter
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.rows import cat
from sector.engine.models.checkpoint import load_sector
from sector.engine.models.sector import SectorForCausalLM
from sector.engine.policy.generate import BLOCK, Assignment, generate, generate_blocks
from sector.engine.policy.improve import Improved
from sector.engine.samplers.gpu import GpuSampler
from sector.engine.samplers.native import NativeSampler
from sector.engine.samplers.protocol import Sampler
from sector.engine.seeding import generator
from sector.engine.tasks import TASK_DOOR, find_task
from sector.engine.tasks.declared import as_task
from sector.engine.testing.knowing import Knowing

DIGITS, SEED, POOL = 6, 5, 2
QUICK = Filter(vote="off", checks=(), k=1, think_through=False)


def assignment(count: int = BLOCK, pool: int = POOL) -> Assignment:
    return Assignment(find_task("addition"), PlaceLayout(), DIGITS, count, QUICK, SEED, 0.5, pool)


def drawn(start: int = 0, pool: int = POOL) -> Problems:
    return draw_problems(DIGITS, BLOCK * pool, generator(SEED, "problems", DIGITS, start), 0.5)


def test_without_a_pool_candidates_are_as_they_are_drawn() -> None:
    _, block = generate_blocks(Scripted(), BLOCK, assignment(2 * BLOCK, pool=1))
    assert block.problems.texts() == drawn(BLOCK, pool=1).texts()


def test_where_nothing_is_doubted_the_first_problems_of_the_pool_are_candidates() -> None:
    _, block = generate_blocks(Scripted(), 0, assignment())
    _, alone = generate_blocks(Scripted(), 0, assignment(pool=1))
    assert block.problems.texts() == drawn().texts()[:BLOCK]
    # Two fast answers to every problem of the pool.
    assert block.tokens - alone.tokens == 2 * POOL * BLOCK * (DIGITS + 2)


def test_nothing_is_doubted_that_is_not_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such answers are not taught, so they say nothing, and their tokens would be lost."""
    task = as_task(Parity())
    empty_doors(monkeypatch)
    TASK_DOOR.register(task)
    engine = Knowing(task)
    pooled = replace(assignment(), task=task, layout=engine.layout("msd"))
    _, block = generate_blocks(engine, 0, pooled)
    _, alone = generate_blocks(engine, 0, replace(pooled, pool=1))
    assert block.problems.texts() == alone.problems.texts() and block.tokens == alone.tokens


def test_what_the_fast_policy_contradicts_itself_on_is_tried() -> None:
    """Its answer to one problem at the end of the pool is wrong, and so is the one to another's complement."""
    pool = drawn()
    doubted, by_complement = pool[-1:], pool[-7:-6]
    wrong = {doubted.texts()[0]: 1, by_complement.complement().texts()[0]: 1}
    rows, block = generate_blocks(Scripted(wrong), 0, assignment())
    assert block.problems.texts() == [*pool.texts()[: BLOCK - 2], by_complement.texts()[0], doubted.texts()[0]]
    assert rows.tolist() == list(range(BLOCK))


def test_doubts_are_half_of_the_candidates_at_most() -> None:
    pool = drawn()
    wrong = dict.fromkeys(pool.texts()[BLOCK:], 1)
    _, block = generate_blocks(Scripted(wrong), 0, assignment())
    assert sum(text in wrong for text in block.problems.texts()) == BLOCK // 2


def test_a_pool_of_nothing_but_doubts_is_tried_as_it_is_drawn() -> None:
    pool = drawn()
    _, block = generate_blocks(Scripted(dict.fromkeys(pool.texts(), 1)), 0, assignment())
    assert block.problems.texts() == pool.texts()[:BLOCK]


def test_a_block_cut_short_begins_like_the_whole() -> None:
    wrong = dict.fromkeys(drawn().texts()[::9], 1)
    whole, part = (generate_blocks(Scripted(wrong), 0, assignment(count))[1] for count in (BLOCK, 30))
    assert part.problems.texts() == whole.problems.texts()[:30]


@pytest.fixture(scope="module")
def model() -> SectorForCausalLM:
    """A model that has learned 6 digits, so that the filter rejects some problems of 8, and not all."""
    return load_sector(Path(__file__).parent / "data" / "supervised").to(torch.device("cpu"))


def solved(sampler: Sampler, asked: Assignment) -> tuple[list[int], Tensor, Improved]:
    """Return the rows of each group of blocks, and all rows and candidates."""
    rows, parts = zip(*generate(sampler, asked), strict=True)
    return [len(part) for part in rows], torch.cat(rows), cat(parts)


def assert_same(improved: Improved, expected: Improved) -> None:
    assert improved.tokens == expected.tokens and improved.verdicts == expected.verdicts
    lessons = zip(improved.examples_by_step(), expected.examples_by_step(), strict=True)
    for mine, wanted in lessons:
        assert mine.problems.texts() == wanted.problems.texts() and mine.rest.texts() == wanted.rest.texts()
        assert torch.equal(mine.answers, wanted.answers) and torch.equal(mine.digit, wanted.digit)
    for check, wanted_check in zip(improved.checks, expected.checks, strict=True):
        assert torch.equal(check.answers, wanted_check.answers) and torch.equal(check.agrees, wanted_check.agrees)


@pytest.mark.parametrize("settings", [*("none", "paper", "strict"), "at a temperature"])
def test_examples_do_not_depend_on_the_blocks_that_are_solved_together(model: SectorForCausalLM, settings: str) -> None:
    """Seven blocks, the last one cut short."""
    chosen = FILTERS.get(settings) or Filter(temperature=0.5)
    asked = replace(assignment(6 * BLOCK + 30, pool=1), digits=8, settings=chosen)
    sampler = NativeSampler(model, num_threads=1)
    sizes, rows, alone = solved(sampler, replace(asked, blocks=1))
    assert sizes == [BLOCK] * 6 + [30] and torch.equal(rows, torch.arange(asked.count))
    assert alone.accepted.any() and (settings == "none" or not alone.accepted.all())
    for blocks, expected_sizes in ((2, [2 * BLOCK] * 3 + [30]), (7, [asked.count])):
        sizes, rows, together = solved(sampler, replace(asked, blocks=blocks))
        assert sizes == expected_sizes and torch.equal(rows, torch.arange(asked.count))
        assert_same(together, alone)


def test_pools_do_not_depend_on_the_blocks_that_are_solved_together(model: SectorForCausalLM) -> None:
    asked = replace(assignment(2 * BLOCK + 30, pool=3), digits=8)
    sampler = NativeSampler(model, num_threads=1)
    *_, alone = solved(sampler, replace(asked, blocks=1))
    *_, plain = solved(sampler, replace(asked, blocks=1, pool=1))
    *_, together = solved(sampler, replace(asked, blocks=3))
    assert together.problems.texts() == alone.problems.texts() != plain.problems.texts()
    assert_same(together, alone)


def test_an_engine_gets_the_blocks_that_it_has_room_for(model: SectorForCausalLM) -> None:
    """One on a CPU. The engine for GPUs: as many as fit its cache, at most 64."""
    asked = replace(assignment(2 * BLOCK + 30, pool=1), digits=3)
    sizes, _, expected = solved(NativeSampler(model, num_threads=1), asked)
    assert sizes == [BLOCK, BLOCK, 30]
    config = model.config
    # Keys and values of 64 slots in float32.
    row_bytes = 2 * config.num_hidden_layers * config.hidden_size * 64 * 4
    for rows, expected_sizes in ((BLOCK - 1, [BLOCK, BLOCK, 30]), (2 * BLOCK, [2 * BLOCK, 30]), (800, [530])):
        sizes, _, improved = solved(GpuSampler(model, cache_bytes=rows * row_bytes), asked)
        assert sizes == expected_sizes
        assert_same(improved, expected)
