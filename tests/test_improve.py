"""The improved policy: the vote, the checks, and the verdicts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import Scripted

from sector.engine.config import FILTERS, Filter
from sector.engine.language.operands import Problems, draw_problems
from sector.engine.language.place_layout import PlaceLayout
from sector.engine.language.rows import cat
from sector.engine.models.checkpoint import load_sector
from sector.engine.policy.improve import STAGES, Improved, Verdict, improve
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampling
from sector.engine.tasks import true_answers
from sector.engine.training.supervised import label
from sector.kernels import layout, simplification

K = 5
# All looks of the filter `strict`, and what they reject is rejected.
LOOKS = FILTERS["strict"].model_copy(update={"think_through": False})


def without(settings: Filter, *names: str) -> Filter:
    """A filter without some of its checks."""
    return settings.model_copy(update={"checks": tuple(name for name in settings.checks if name not in names)})


def ask(sampler: Scripted, problems: Problems, settings: Filter, k: int = K):
    sampling = Sampling(0.0, 0, torch.arange(len(problems)), 0)
    return improve(sampler, problems, settings.model_copy(update={"k": k}), PlaceLayout(), sampling)


def found(improved: Improved, name: str) -> torch.Tensor:
    """The answers to the problems that a check poses."""
    return next(check.answers for check in improved.checks if check.name == name)


@pytest.fixture
def problems() -> Problems:
    return draw_problems(8, 16, torch.Generator().manual_seed(3), hard_share=0.5)


@pytest.mark.parametrize("name", FILTERS, ids=str)
@pytest.mark.parametrize("digits", [1, 2, 3, 8], ids=str)
def test_a_true_model_is_believed(name: str, digits: int) -> None:
    problems = draw_problems(digits, 16, torch.Generator().manual_seed(3))
    improved = ask(Scripted(), problems, FILTERS[name])
    assert improved.accepted.all() and improved.agreement == 1
    truth = label(problems)
    assert torch.equal(improved.examples().answers, truth.answers)
    assert torch.equal(improved.examples().digit, truth.digit)
    if digits > 1:
        assert torch.equal(improved.examples().rest.a, truth.rest.a)
        assert torch.equal(improved.examples().rest.carry, truth.rest.carry)


def test_each_look_names_its_own_reason(problems: Problems) -> None:
    texts = problems.texts()
    in_complement = problems[5:6].complement().texts()[0]
    after_two = Problems.cat([label(label(problems[1:2]).rest).rest]).texts()[0]
    wrong_direct, wrong_swapped = texts[2], problems[3:4].swapped()
    swapped_guess = label(wrong_swapped).rest.texts()[0]
    sampler = Scripted({after_two: 1, wrong_direct: 1, swapped_guess: 1, in_complement: 1}, {texts[4]})
    expected = ["accepted", "outvoted", "not_direct", "not_commutative", "unparsable", "not_complement"]
    assert ask(sampler, problems, LOOKS).verdicts == expected + ["accepted"] * (len(problems) - 6)
    rejected = ask(sampler, problems, LOOKS).rejected()
    reasons = ("unparsable", "outvoted", "not_direct", "not_commutative", "not_complement")
    assert rejected == {**dict.fromkeys(reasons, 1), "not_through": 0}


def test_a_majority_outvotes_one_wrong_guess(problems: Problems) -> None:
    after_two = label(label(problems[:1]).rest).rest.texts()[0]
    improved = ask(Scripted({after_two: 1}), problems, FILTERS["paper"])
    assert improved.accepted.all()
    assert improved.ballot.votes[0] == K - 1
    assert torch.equal(improved.ballot.answers, true_answers(problems))


def test_rows_whose_fate_is_sealed_take_no_second_look(problems: Problems) -> None:
    sampler = Scripted({problems.texts()[0]: 1})
    ask(sampler, problems, LOOKS)
    assert label(problems[:1].swapped()).rest.texts()[0] not in sampler.asked
    assert label(problems[1:2].swapped()).rest.texts()[0] in sampler.asked


def test_same_mistake_in_both_orders_passes_but_for_the_direct_look(problems: Problems) -> None:
    row, wrong = problems[:1], {}
    for each in (row, row.swapped()):
        for _ in range(K):
            each = label(each).rest
            wrong[each.texts()[0]] = 1
    paper = ask(Scripted(wrong), problems, FILTERS["paper"])
    strict = ask(Scripted(wrong), problems, LOOKS)
    assert paper.verdict[0] == Verdict.ACCEPTED and strict.verdicts[0] == "not_direct"


def test_only_the_complement_sees_a_carry_that_every_other_look_misses(problems: Problems) -> None:
    """The mistake that strict once learned: direct answer, guesses and swapped operands miss the same carry."""
    row, wrong = problems[:1], {}
    for each in (row, row.swapped()):
        for _ in range(K + 1):
            wrong[each.texts()[0]] = 1
            each = label(each).rest
    blind = without(LOOKS, "complement")
    assert ask(Scripted(wrong), problems, blind).verdict[0] == Verdict.ACCEPTED
    assert ask(Scripted(wrong), problems, LOOKS).verdicts[0] == "not_complement"


def misled(problems: Problems) -> Scripted:
    """An engine that errs once in one look at each of the rows 1 to 4.

    It does not think about row 5, and of row 6 the direct answer and the end of the chain are wrong.
    """
    texts = problems.texts()
    after_two = label(label(problems[1:2]).rest).rest.texts()[0]
    swapped_guess = label(problems[3:4].swapped()).rest.texts()[0]
    last = problems[6:7]
    while last.digits > 1:
        last = label(last).rest
    wrong = {after_two: 1, texts[2]: 1, swapped_guess: 1, problems[4:5].complement().texts()[0]: 1, texts[6]: 1}
    return Scripted({**wrong, last.texts()[0]: 1}, {texts[5]})


def test_what_looks_reject_is_thought_through(problems: Problems) -> None:
    """Guesses err, simplifications do not: chains to the end give the right answer, and both orders say so."""
    sampler = misled(problems)
    rejected, improved = (ask(sampler, problems, settings) for settings in (LOOKS, FILTERS["strict"]))
    through = improved.verdict == Verdict.THOUGHT_THROUGH
    assert through.nonzero().squeeze(1).tolist() == [1, 2, 3, 4] and improved.num_thought_through == 4
    assert improved.verdicts[5:7] == ["unparsable", "not_direct"]
    assert sum(improved.rejected().values()) == 2 and improved.agreement == rejected.agreement == 10 / 16
    truth, examples = label(problems), improved.examples()
    assert torch.equal(examples.answers, truth.answers[improved.accepted])
    assert examples.rest.texts() == truth.rest[improved.accepted].texts()
    assert torch.equal(examples.digit, truth.digit[improved.accepted])
    assert (
        torch.equal(found(improved, "commutative")[through], truth.answers[through])
        and improved.commutes[through].all()
    )
    # Of five guesses one was wrong; what only another look had rejected has all five.
    assert improved.ballot.votes[through].tolist() == [K - 1, K, K, K]
    assert improved.tokens > rejected.tokens


def test_a_column_that_is_always_added_up_wrongly_does_not_agree_with_its_complement() -> None:
    """0+0 with a carry is wrong in both orders at every place; 9+9 without one is right."""
    problems = Problems.parse(["12038+45067", "12345+54321"], 5)
    sampler = Scripted(wrong_column=(0, 0, 1))
    orders_only = without(FILTERS["strict"], "complement")
    assert ask(sampler, problems, orders_only).verdict.tolist() == [Verdict.THOUGHT_THROUGH, Verdict.ACCEPTED]
    assert ask(sampler, problems, FILTERS["strict"]).verdict.tolist() == [Verdict.OUTVOTED, Verdict.ACCEPTED]


def wrong_guesses(row: Problems) -> dict[str, int]:
    """Faults by which the direct answer and all guesses of both operand orders are wrong alike."""
    wrong = {}
    for each in (row, row.swapped()):
        for _ in range(K + 1):
            wrong[each.texts()[0]] = 1
            each = label(each).rest
    return wrong


def test_a_chain_to_the_end_finds_that_all_looks_guess_wrong_alike(problems: Problems) -> None:
    """`strict` accepts the answers; `thorough` thinks them through, and finds the right ones."""
    sampler = Scripted(wrong_guesses(problems[:1]))
    strict, thorough = (ask(sampler, problems, without(FILTERS[name], "complement")) for name in ("strict", "thorough"))
    truth = true_answers(problems)
    assert strict.verdict[0] == Verdict.ACCEPTED and not torch.equal(strict.ballot.answers[0], truth[0])
    assert thorough.verdict[0] == Verdict.THOUGHT_THROUGH and torch.equal(thorough.ballot.answers, truth)
    assert thorough.agreement == 15 / 16 and thorough.tokens > strict.tokens


def test_a_chain_that_only_one_problem_bears_out_is_not_believed(problems: Problems) -> None:
    """The chain contradicts all looks, and that of the other operand order does not parse."""
    sampler = Scripted(wrong_guesses(problems[:1]), {problems[:1].swapped().texts()[0]})
    settings = without(FILTERS["thorough"], "complement", "shifted")
    improved = ask(sampler, problems, settings)
    assert improved.verdicts[0] == "not_through" and improved.rejected()["not_through"] == 1
    assert improved.accepted[1:].all()


def test_what_all_looks_agree_on_is_not_thought_through(problems: Problems) -> None:
    sampler = Scripted()
    assert not ask(sampler, problems, FILTERS["strict"]).num_thought_through
    # The looks leave off at three digits of eight.
    assert min(len(text.split("+")[0]) for text in sampler.asked) == problems.digits - K


def test_problems_of_one_digit_cannot_be_thought_through() -> None:
    problems = draw_problems(1, 16, torch.Generator().manual_seed(3))
    assert ask(Scripted({problems.swapped().texts()[0]: 1}), problems, FILTERS["strict"]).num_thought_through == 0


def test_looks_draw_from_random_streams_of_their_own(problems: Problems) -> None:
    sampler = misled(problems)
    ask(sampler, problems, FILTERS["strict"], k=problems.digits - 1)
    assert len(set(sampler.stages)) == len(sampler.stages)
    assert max(sampler.stages) < STAGES


def test_cat_is_the_whole_batch(problems: Problems) -> None:
    sampler = Scripted({problems.texts()[9]: 1})
    whole = ask(sampler, problems, FILTERS["strict"])
    parts = cat([ask(sampler, problems[:5], FILTERS["strict"]), ask(sampler, problems[5:], FILTERS["strict"])])
    assert torch.equal(whole.verdict, parts.verdict) and whole.tokens == parts.tokens
    assert torch.equal(whole.ballot.guesses, parts.ballot.guesses)


def test_vote_off_is_one_simplification(problems: Problems) -> None:
    improved = ask(Scripted(), problems, FILTERS["none"])
    assert improved.ballot.guesses.shape == (16, 1, 9)


@pytest.mark.parametrize("name", FILTERS, ids=str)
@pytest.mark.parametrize("digits", [1, 2, 8], ids="digits{}".format)
def test_layout_by_kernels_changes_nothing(name: str, digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = draw_problems(digits, 16, torch.Generator().manual_seed(3))
    texts = problems.texts()
    sampler = Scripted({texts[2]: 1, problems[3:4].complement().texts()[0]: 1}, {texts[4]})
    plain = ask(sampler, problems, FILTERS[name])
    for module in (layout, simplification):
        monkeypatch.setattr(module, "runs_kernel", lambda tensor: True)
    by_kernels = ask(sampler, problems, FILTERS[name])
    assert plain.tokens == by_kernels.tokens and torch.equal(plain.verdict, by_kernels.verdict)
    for field in ("guesses", "valid", "answers", "direct", "digit"):
        assert torch.equal(getattr(plain.ballot, field), getattr(by_kernels.ballot, field))
    assert plain.ballot.rest.texts() == by_kernels.ballot.rest.texts()
    for one, other in zip(plain.checks, by_kernels.checks, strict=True):
        assert torch.equal(one.answers, other.answers) and torch.equal(one.agrees, other.agrees)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_improved_policy_is_the_same_on_a_gpu() -> None:
    """With trained weights, which choose clearly; of untrained ones two logits may differ by less than rounding."""
    problems = draw_problems(20, 200, torch.Generator().manual_seed(3), hard_share=0.5)
    model = load_sector(Path(__file__).parent / "data" / "taught")
    results = []
    for device in ("cpu", "cuda"):
        sampler = make_sampler("native", model.to(device))
        results.append(ask(sampler, problems, FILTERS["strict"]))
    assert torch.equal(results[0].verdict, results[1].verdict)
    assert torch.equal(results[0].ballot.guesses, results[1].ballot.guesses)


FAST = Filter(vote="majority", checks=(), use_chain=False, think_through=False)


def test_without_thinking_every_guess_reads_another_prompt(problems: Problems) -> None:
    prompts: list[torch.Tensor] = []

    class Reading(Scripted):
        def sample(self, prefix: torch.Tensor, *args: Any) -> list[torch.Tensor]:
            prompts.append(prefix)
            return super().sample(prefix, *args)

    improved = ask(Reading(), problems, FAST, k=6)
    assert improved.accepted.all() and (improved.ballot.votes == 6).all()
    assert torch.equal(improved.examples().answers, label(problems).answers)
    assert len({tuple(each[0].tolist()) for each in prompts}) == 6 == len(prompts)
    plain = PlaceLayout().prefix_ids(problems)
    assert torch.equal(prompts[0], plain)


def test_without_thinking_there_is_no_simplification_and_the_majority_decides(problems: Problems) -> None:
    texts, swapped = problems.texts(), problems.swapped().texts()
    # The plain order is asked in turns 0, 2 and 4 of five, the other in 1 and 3.
    sampler = Scripted({texts[0]: 1, swapped[1]: 1})
    improved = ask(sampler, problems, FAST)
    assert improved.accepted.all() and improved.examples().rest.digits == 0
    right = (improved.ballot.answers == label(problems).answers).all(dim=1)
    assert right.tolist() == [row != 0 for row in range(len(problems))]
    assert improved.ballot.votes[:3].tolist() == [3, 3, 5]
    assert improved.tokens == 5 * len(problems) * PlaceLayout().answer_length(problems.digits)
    verdict = ask(sampler, problems, FAST.model_copy(update={"vote": "unanimous"})).verdict
    assert verdict[:3].tolist() == [Verdict.OUTVOTED, Verdict.OUTVOTED, Verdict.ACCEPTED]


def test_without_a_vote_the_direct_answer_is_the_guess(problems: Problems) -> None:
    improved = ask(Scripted(), problems, FAST.model_copy(update={"vote": "off"}))
    assert torch.equal(improved.ballot.guesses[:, 0], improved.ballot.direct)
    assert improved.ballot.guesses.shape[1] == 1


@pytest.mark.parametrize(("uses_all_cores", "num_threads"), [(True, 1), (False, 2)])
def test_an_engine_that_uses_all_cores_leaves_one_thread_to_the_policy(
    uses_all_cores: bool, num_threads: int, problems: Problems
) -> None:
    threads: set[int] = set()

    class Counting(Scripted):
        def sample(self, *args: Any) -> list[torch.Tensor]:
            threads.add(torch.get_num_threads())
            return super().sample(*args)

    engine, before = Counting(), torch.get_num_threads()
    engine.uses_all_cores = uses_all_cores
    torch.set_num_threads(2)
    try:
        ask(engine, problems, FAST)
        assert threads == {num_threads} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
