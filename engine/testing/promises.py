"""The promises of a task to the loop, in the order in which they are tested."""

import tempfile
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from sector.engine.config import FILTERS, Filter, RunConfig, Values, run_config
from sector.engine.errors import InputError
from sector.engine.language import tokens
from sector.engine.language.examples import Examples
from sector.engine.language.layout import Batch, Layout
from sector.engine.language.operands import digit_strings
from sector.engine.models.checkpoint import Model
from sector.engine.policy.improve import Improved, Verdict, improve
from sector.engine.run.directory import RunDir
from sector.engine.run.phases import Phases
from sector.engine.samplers.protocol import Sampler, Sampling
from sector.engine.seeding import generator
from sector.engine.selfplay import run_phases
from sector.engine.tasks import oracle, true_answers
from sector.engine.tasks.check import Check
from sector.engine.tasks.declared import DeclaredTask
from sector.engine.tasks.task import Task
from sector.engine.testing.knowing import Knowing
from sector.engine.testing.promise import LENGTHS, ROWS, BrokenPromise, drawn, hold, promise
from sector.engine.testing.reading import completions, has_step, hold_read_back
from sector.engine.training.dataset import Provenance, labelled_table, read_examples, write_examples
from sector.engine.training.place_rows import lay_out
from sector.engine.training.supervised import kept_examples, label

_ORDERS = ("msd", "lsd")
# Settings of the shortest run with a round.
_SHORTEST: Values = {
    "until": 4,
    "audit_samples": 8,
    "digit_order": "lsd",
    "supervised": {"max_digits": 3, "cycle_steps": 4, "max_cycles": 1, "examples": 8},
    "round": {
        "candidates": 12,
        "cycle_steps": 2,
        "max_cycles": 1,
        "probe": 4,
        "probe_trained": 2,
        "min_agreement": 0.0,
    },
    "filter": {"vote": "off", "checks": []},
}


def _first(wrong: Tensor) -> int:
    """Return the first row that holds true."""
    return int(wrong.int().argmax())


@promise("a seed draws the same problems, with the digits that were asked for")
def _draws(task: Task) -> None:
    for digits in LENGTHS:
        problems, again = drawn(task, digits), drawn(task, digits)
        hold(len(problems) == ROWS, f"draw returns {len(problems)} problems, not {ROWS}")
        hold(problems.digits == digits, f"draw returns problems of {problems.digits} digits, not {digits}")
        hold(problems.texts() == again.texts(), "draw does not depend on its generator alone: draw from `rng` only")
        hold(len(set(problems.texts())) > 1, f"draw returns the same problem each time: {problems.texts()[0]}")


@promise("problems are read as they are written")
def _texts(task: Task) -> None:
    digits = task.digits_of(task.example)
    example = task.parse([task.example], digits)
    hold(len(example) == 1 and example.digits == digits, f"the example {task.example} is not read as one problem")
    problems = drawn(task, 4)
    texts = problems.texts()
    for text, read in zip(texts, task.parse(texts, 4).texts(), strict=True):
        hold(text == read, f"{text} is read as {read}")
    sizes = {task.size_of(text, 4) for text in texts}
    hold(sizes == {problems.size}, f"size_of says {sizes} of problems of size {problems.size}")
    try:
        task.digits_of("12?34")
    except InputError:
        return
    raise BrokenPromise("12?34 is read as a problem; digits_of should raise InputError")


@promise("each step leaves a problem of one digit less, whose answer joins to the whole")
def _steps(task: Task) -> None:
    for digits in LENGTHS:
        problems = drawn(task, digits)
        while task.num_simplifications(problems, 5) > 0:
            examples, texts = label(problems), problems.texts()
            hold(
                examples.rest.digits == problems.digits - 1,
                f"a step from {texts[0]} leaves {examples.rest.digits} digits, not {problems.digits - 1}",
            )
            rest = true_answers(examples.rest)
            joined = task.join(examples.digit.unsqueeze(1), rest)
            for text, whole, answer in zip(texts, digit_strings(joined), digit_strings(examples.answers), strict=True):
                hold(whole == answer, f"a step from {text} joins to {whole}, but its answer is {answer}")
            hold(
                torch.equal(task.rest_answers(examples.answers, rest.shape[1]), rest),
                f"rest_answers is not the inverse of join, as for {texts[0]}",
            )
            problems = examples.rest


@promise("draw gives all values that steps leave in numbers of one digit")
def _coverage(task: Task) -> None:
    # Other tasks say nothing about the numbers of their problems.
    if not isinstance(task, DeclaredTask):
        return
    left = task.truth.simplifications(task.draw(3, 500, generator(0, "left"))).rest.numbers()
    fresh = task.draw(2, 2000, generator(1, "left")).numbers()
    for field, rest, alone in zip(task.form.fields, left, fresh, strict=True):
        if field.width == 1 and (missing := sorted(set(rest.flatten().tolist()) - set(alone.flatten().tolist()))):
            raise BrokenPromise(
                f"a step leaves {field.name} = {missing[0]}, which draw never gives, so it is not learned; let draw "
                "give it"
            )


@promise("the truth is sealed during rounds")
def _sealed(task: Task) -> None:
    problems = drawn(task, 3)
    examples, outputs = label(problems), task.truth.simplifications(problems)
    arguments = {"answer_mistakes": (examples.answers,), "simplification_mistakes": (outputs,)}
    names = [name for name in dir(task.truth) if name[0] != "_" and callable(getattr(task.truth, name))]
    for name in names:
        try:
            with oracle.sealed():
                getattr(task.truth, name)(problems, *arguments.get(name, ()))
        except oracle.OracleSealed:
            continue
        raise BrokenPromise(f"{name} of the truth can be read during rounds")


@promise("tokens are read as they are written, at all places")
def _tokens(task: Task) -> None:
    for digits in LENGTHS:
        problems = drawn(task, digits)
        examples = label(problems)
        for layout in (task.layout(order).shifted(variant) for order in _ORDERS for variant in (0, 2)):
            _check_written(layout, problems, examples)


def _check_written(layout: Layout, problems: Batch, examples: Examples) -> None:
    """Raise BrokenPromise if a layout does not read its own ids back, or if the ids are not those that models write."""
    text = problems.texts()[0]
    hold_read_back(layout, examples)
    for mode, completion in completions(layout, examples).items():
        prompt = layout.prompt_ids(problems, mode)
        hold(torch.equal(prompt[:, :-1], layout.prefix_ids(problems)), f"the prompts of {text} share no prefix")
        ids = torch.cat([prompt, completion], dim=1)
        hold(
            torch.equal(tokens.next_ids(ids[:, :-1], tokens.class_of(ids[:, 1:])), ids[:, 1:]),
            f"the ids of {text} do not follow from their classes",
        )
        classes = tokens.class_of(ids[:, prompt.shape[1] - 1 :])
        hold(bool(tokens.legal_table()[classes[:, :-1], classes[:, 1:]].all()), f"the ids of {text} are not all legal")


@promise("damaged tokens are not read")
def _damage(task: Task) -> None:
    problems = drawn(task, 4)
    examples = label(problems)
    for layout in map(task.layout, _ORDERS):
        answers = _damaged(layout.answer_ids(examples.answers), layout)
        hold(
            not bool(layout.parse_answers(answers, problems.size)[1].any()), "an answer without one of its ids is read"
        )
        steps = _damaged(layout.simplification_ids(examples.rest, examples.digit), layout)
        hold(
            not bool(layout.parse_simplifications(steps, problems.size).valid.any()),
            "a step without one of its ids is read",
        )


def _damaged(ids: Tensor, layout: Layout) -> Tensor:
    """Return ids with padding in the place of one id a row."""
    ids, rows = ids.clone(), torch.arange(len(ids))
    ids[rows, rows % ids.shape[1]] = layout.pad_id
    return ids


@promise("checks hold for right answers, and for no wrong one")
def _checks(task: Task) -> None:
    for digits in LENGTHS:
        problems = drawn(task, digits)
        answers = true_answers(problems)
        wrong = answers.clone()
        wrong[:, -1] = (wrong[:, -1] + 1) % 10
        for check in task.checks:
            _check_relation(check, problems, answers, wrong)


def _check_relation(check: Check, problems: Batch, answers: Tensor, wrong: Tensor) -> None:
    """Raise BrokenPromise if a check fails for a right answer, or holds for a wrong one."""
    posed, posed_of_wrong = check.pose(problems, answers), check.pose(problems, wrong)
    if posed is None or posed_of_wrong is None:
        raise BrokenPromise(
            f"the check {check.name} poses no problem for {problems.texts()[0]}; its pose should return one"
        )
    (other, expected), (again, expected_of_wrong) = posed, posed_of_wrong
    truth, texts = true_answers(other), problems.texts()
    if (failed := ~check.compare(truth, expected)).any():
        row = _first(failed)
        raise BrokenPromise(
            f"the check {check.name} fails for the right answer {_decimal(answers[row])} to {texts[row]}: it poses "
            f"{other.texts()[row]} and expects {_decimal(expected[row])}, but that is {_decimal(truth[row])}"
        )
    if (passed := check.compare(true_answers(again), expected_of_wrong)).any():
        row = _first(passed)
        raise BrokenPromise(f"the check {check.name} holds for the wrong answer {_decimal(wrong[row])} to {texts[row]}")
    if check.needs_answers != (again.texts() != other.texts()):
        raise BrokenPromise(
            f"needs_answers of the check {check.name} is {check.needs_answers}, but the problems that it poses "
            f"{'do not depend' if check.needs_answers else 'depend'} on the answers"
        )


def _decimal(digits: Tensor) -> str:
    """Return the digits of one answer as text; `none` if no answer has them."""
    return "none" if (digits < 0).any() else digit_strings(digits.unsqueeze(0))[0]


@promise("problems that are posed in another way have the answers and steps that follow")
def _restated(task: Task) -> None:
    problems = drawn(task, 4)
    hold(
        torch.equal(true_answers(task.swapped(problems)), true_answers(problems)),
        f"swapped gives {problems.texts()[0]} another answer",
    )
    for digits in (1, *LENGTHS):
        for restated in task.restated(label(drawn(task, digits))):
            truth, text = label(restated.problems), restated.problems.texts()[0]
            hold(
                torch.equal(restated.answers, truth.answers) and has_step(restated.rest, restated.digit, truth),
                f"restated gives {text} another answer or step",
            )


@promise("drafts from a true answer are the true steps")
def _drafts(task: Task) -> None:
    problems = drawn(task, 4)
    examples = label(problems)
    for layout in map(task.layout, _ORDERS):
        written = layout.simplification_ids(examples.rest, examples.digit)
        for answers in (None, examples.answers):
            draft = task.draft(problems, answers, layout)
            hold(
                draft is None or torch.equal(draft, written[:, : draft.shape[1]]),
                f"a draft for {problems.texts()[0]} is not the step, which costs time in each call",
            )


@promise("a model that knows the truth is accepted by every filter, and its examples are true")
def _accepted(task: Task) -> None:
    problems = drawn(task, 4)
    truth = true_answers(problems)
    for name, settings in FILTERS.items():
        improved = _improve(Knowing(task), problems, settings)
        if not improved.accepted.all():
            row = _first(~improved.accepted)
            raise BrokenPromise(
                f"the filter {name} rejects the right answer to {problems.texts()[row]}: {improved.verdicts[row]}"
            )
        hold(torch.equal(improved.ballot.answers, truth), f"the vote on {problems.texts()[0]} is not the truth")
    for examples in _improve(Knowing(task), problems, FILTERS["strict"]).examples_by_step():
        known = label(examples.problems)
        hold(
            torch.equal(examples.answers, known.answers)
            and (examples.rest.is_nothing or examples.rest.texts() == known.rest.texts()),
            f"an example of {examples.problems.texts()[0]} is not its truth",
        )


def _improve(model: Knowing, problems: Batch, settings: Filter) -> Improved:
    """Solve problems with the improved policy, greedily and with three guesses."""
    sampling = Sampling(0.0, 0, torch.arange(len(problems)), stage=0)
    return improve(model, problems, settings.model_copy(update={"k": 3}), model.layout("msd"), sampling)


@promise("an answer with a wrong step is rejected")
def _rejected(task: Task) -> None:
    problems = drawn(task, 4)
    step = label(label(problems[3:4]).rest)
    digits = torch.stack([step.digit, (step.digit + 1) % 10], dim=1).T
    joined = task.join(digits, true_answers(step.rest).expand(2, -1))
    # A task whose answer is that of the rest has no digit to be wrong about.
    if torch.equal(joined[0], joined[1]):
        return
    wrong = step.problems.texts()[0]
    improved = _improve(Knowing(task, lies_about={wrong}), problems, FILTERS["strict"])
    hold(
        bool(improved.verdict[3] != Verdict.ACCEPTED),
        f"{problems.texts()[3]} is accepted although the step from {wrong} is wrong",
    )


@promise("examples are kept in files, and taught as the policies write them")
def _examples(task: Task) -> None:
    config = run_config({"task": task.name, "supervised": {"max_digits": 3, "examples": 6}})
    sets = kept_examples(config)
    lessons = sum(task.num_lessons(digits) for digits in range(1, 4))
    hold(len(sets) == lessons, f"there are {len(sets)} kinds of examples, not {lessons}")
    parts = [labelled_table(part, task.layout("lsd"), Provenance(0, 0, "oracle", "")) for part in sets]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples.parquet"
        write_examples(path, pa.concat_tables(parts))
        read = list(read_examples(path).values())
    written = sorted(map(_as_text, sets))
    hold(sorted(map(_as_text, read)) == written, f"examples such as {written[0][0][0]} are not read back")
    _check_taught(task)


def _as_text(examples: Examples) -> tuple[list[str], list[str], list[str]]:
    """Return problems, answers and remaining problems as texts."""
    return examples.problems.texts(), digit_strings(examples.answers), examples.rest.texts()


def _check_taught(task: Task) -> None:
    """Raise BrokenPromise if rows of training differ from the ids that the policies write."""
    examples = label(drawn(task, 3))
    no_gaps = RunConfig().round.trainer.model_copy(update={"gap_share": 0.0})
    for order in _ORDERS:
        rows = lay_out(examples, order, no_gaps, torch.Generator().manual_seed(0))
        layout = task.layout(order).shifted(rows.ids[:, 0])
        prefix = layout.prefix_ids(examples.problems)
        thought = layout.simplification_ids(examples.rest, examples.digit)
        hold(
            torch.equal(rows.ids[:, : prefix.shape[1]], prefix)
            and torch.equal(rows.targets[:, rows.answer_length :], tokens.class_of(thought))
            and (rows.answer_length > 0) == task.answers_at_once(examples.problems),
            f"{examples.problems.texts()[0]} is taught in another form than the policies write",
        )


class _Told(Phases):
    """Phases of a run whose engine knows the truth, since a new model agrees with itself on nothing."""

    def __init__(self, run: RunDir, config: RunConfig, knowing: Knowing) -> None:
        super().__init__(run, config)
        self._knowing = knowing
        self._layout = knowing.layout(config.digit_order)

    def _engine(self, model: Model) -> Sampler:
        return self._knowing


@promise("a round runs from end to end")
def _round(task: Task) -> None:
    config = run_config({**_SHORTEST, "task": task.name})
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.root.mkdir()
        run.write_config(config)
        for _ in run_phases(_Told(run, config, Knowing(task))):
            pass
        audited = run.metrics()[-1]
        learned = run.round(4).load_checkpoint().config.task
    hold(
        audited.accepted == config.round.candidates and audited.label_error == 0.0,
        f"{audited.accepted} of {config.round.candidates} right answers are accepted in a round",
    )
    hold(audited.frontier is not None and audited.accuracy[4] == 1.0, "right answers are audited as wrong")
    hold(learned == task.name, f"the checkpoint has learned {learned}, not {task.name}")


PROMISES = (
    _draws,
    _texts,
    _steps,
    _coverage,
    _sealed,
    _tokens,
    _damage,
    _checks,
    _restated,
    _drafts,
    _accepted,
    _rejected,
    _examples,
    _round,
)
