"""The phases of a run: supervise, generate, distill, audit, advance. Each does nothing when its files are there."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from sector.engine.config import Filter, RunConfig
from sector.engine.errors import NoAgreement
from sector.engine.language.layout import Layout
from sector.engine.language.rows import cat
from sector.engine.models.checkpoint import Model, save_checkpoint, task_and_layout
from sector.engine.models.pretrained import open_pretrained
from sector.engine.policy.generate import Assignment, generate
from sector.engine.policy.solver import Solver
from sector.engine.policy.workers import Workers, with_weights
from sector.engine.run import audit, rollback
from sector.engine.run.directory import RunDir
from sector.engine.run.followers import announce
from sector.engine.run.plan import TrainingPlan, plan_of, untrained
from sector.engine.run.plots import plot_run
from sector.engine.run.stopping import Stopping
from sector.engine.samplers import make_sampler
from sector.engine.samplers.protocol import Sampler
from sector.engine.seeding import generator, stream_seed
from sector.engine.tasks import find_task
from sector.engine.training import supervised
from sector.engine.training.data_parallel import Ranks, check_useful
from sector.engine.training.dataset import (
    Provenance,
    candidates_table,
    improved_table,
    labelled_table,
    read_candidates,
    read_examples,
    write_examples,
    write_table,
)
from sector.engine.training.distill import start_training, train_cycle, tune_allocator

SNAPSHOT_STEPS = 200
GOAL_SAMPLES = 300

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """Did training get where it should?

    agreement: one digit further. accuracy: lowest of the supervised lengths, in their own phase alone.
    trained: lowest agreement at a trained length; not measured if the settings say so.
    """

    met: bool
    agreement: float
    accuracy: float | None = None
    trained: float | None = None


class Phases:
    """What a run does, one method a phase; `digits` 0 stands for the supervised phase."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        workers: Workers | None = None,
        stopping: Stopping | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Who does the work, if not this process alone: `workers` generate, `ranks` share the training.

        stopping: says when to save and expect the end.
        InputError if there are more ranks than shards.
        """
        check_useful(max(config.supervised.trainer.num_shards, config.round.trainer.num_shards))
        tune_allocator()
        self._run, self._config = run, config
        self._workers, self._ranks, self._stopping = workers, ranks, stopping or Stopping()
        self._task = find_task(config.task)
        self._sampler: Sampler | None = None
        self._first = config.supervised.max_digits
        # What the probes of the training under way have generated.
        self._tokens_probed = 0
        self._started = time.perf_counter() - sum(line["seconds_total"] for line in run.metrics()[-1:])

    def supervise(self) -> Iterator[Event]:
        """The supervised phase: until short problems are right and the model agrees with itself one digit further."""
        for name in self._run.mended:
            yield {"event": "mended", "file": name}
        self._fetch()
        self._write_labelled()
        if not self._run.has_checkpoint(self._first):
            model = untrained(self._run, self._config)
            yield from self._train(
                model,
                lesson=plan_of(self._run, self._config, 0, self._config.seed),
                goal=self._supervised_goal,
            )
            self._run.save_checkpoint(model, self._first)
        yield from self.audit(0)
        self._run.mark_best(self._first)

    def frontiers(self) -> Iterator[int]:
        """Digits of the rounds up to `until`, one when the one before is over: those that have begun, then by leaps."""
        digits = self._first
        while digits < self._config.until:
            leap = self._record(0 if digits == self._first else digits, "training").get("leap", 1)
            digits = self._run.following(digits, leap)
            if digits <= self._config.until:
                yield digits

    def generate(self, digits: int) -> Iterator[Event]:
        """Try candidates of `digits` digits with the improved policy and keep what the filter accepts."""
        if self._run.examples(digits).exists():
            return
        config, seed = self._config, rollback.seed_of_attempt(self._run, self._config.seed, digits)
        model = self._run.load_checkpoint(self._before(digits) if config.round.teacher == "last" else self._first)
        sampler = self._engine(model)
        provenance = Provenance(digits, seed, config.engine, sampler.weights_sha256)
        solve = with_weights(self._workers, model, sampler)
        start, parts, rows = time.perf_counter(), [], []
        for block_rows, block in solve(
            self._assignment(digits, config.round.candidates, config.filter, seed, config.round.pool)
        ):
            parts.append(block)
            rows.append(block_rows)
            yield {
                "event": "generate",
                "digits": digits,
                "tried": sum(len(part.problems) for part in parts),
                "of": config.round.candidates,
                "accepted": sum(int(part.accepted.sum()) for part in parts),
                "tokens_per_s": sum(part.tokens for part in parts) / (time.perf_counter() - start),
            }
        improved = cat(parts)
        seconds = time.perf_counter() - start
        write_table(self._run.candidates(digits), candidates_table(improved))
        self._run.write_json(
            digits,
            "generation",
            {
                "tried": len(improved.problems),
                "accepted": int(improved.accepted.sum()),
                "thought_through": improved.num_thought_through,
                "rejected": improved.rejected(),
                "agreement": improved.agreement,
                "tokens": improved.tokens,
                "seconds": seconds,
                "engine": config.engine,
                "weights_sha256": sampler.weights_sha256,
            },
        )
        write_examples(self._run.examples(digits), improved_table(improved, torch.cat(rows), self._layout, provenance))

    def distill(self, digits: int) -> Iterator[Event]:
        """Train on the round's examples and a replay of all earlier ones, until the next frontier is within reach."""
        if self._run.has_checkpoint(digits):
            return
        while True:
            model, reached = yield from self._train_round(digits)
            before = rollback.agreement_lost(self._run, digits, reached.trained, self._config.round.max_fall)
            if before is None:
                break
            self._run.take_back(digits)
            failed = self._run.num_failed(digits)
            yield {
                "event": "rollback", "digits": digits, "failed": failed, "before": before, "trained": reached.trained
            }  # fmt: skip
            yield from self.generate(digits)
        self._run.save_checkpoint(model, digits)

    @cached_property
    def _layout(self) -> Layout:
        """How the weights read and write problems: for text that is its tokenizer's to say."""
        config = self._config
        return (
            task_and_layout(self._run.load_checkpoint(0))[1]
            if config.pretrained
            else self._task.layout(config.digit_order)
        )

    def _before(self, digits: int) -> int:
        """Digits of the round before the one at `digits`, or of the supervised phase."""
        return max((each for each in self._run.rounds() if each < digits), default=self._first)

    def _fetch(self) -> None:
        """Keep a pretrained model as checkpoint 0, once: from then on the run needs no file outside of it."""
        if self._config.pretrained and not self._run.has_checkpoint(0):
            model = open_pretrained(Path(self._config.pretrained))
            model.task = self._config.task
            task_and_layout(model)
            save_checkpoint(model, self._run.checkpoint(0))

    def _train_round(self, digits: int) -> Generator[Event, None, tuple[Model, Goal]]:
        """The weights of the last round, trained on the examples of this one; and where that led."""
        seed = rollback.seed_of_attempt(self._run, self._config.seed, digits)
        lesson = plan_of(self._run, self._config, digits, seed)
        model = self._run.load_checkpoint(self._before(digits))
        reached = yield from self._train(model, lesson, goal=partial(self._frontier_goal, digits))
        return model, reached

    def audit(self, digits: int) -> Iterator[Event]:
        """What the truth says of the round, for people only: a line of metrics.jsonl."""
        if any(line["digits"] == (digits or self._first) for line in self._run.metrics()):
            return
        start = time.perf_counter()
        report = self._report(digits)
        now = time.perf_counter()
        report |= {"seconds_audit": now - start, "seconds_total": now - self._started}
        self._run.add_metrics(report)
        plot_run(self._run)
        yield {"event": "round", **report}

    def advance(self, digits: int) -> Iterator[Event]:
        """Move the frontier, if the model agrees with itself one digit further. Sees nothing true."""
        agreement = self._record(digits, "training")["agreement"]
        if agreement < self._config.round.min_agreement:
            raise NoAgreement(
                f"at {digits + 1} digits the model agrees with itself on {agreement:.1%} of the problems only, less "
                f"than round.min_agreement ({self._config.round.min_agreement:.0%})"
            )
        self._run.mark_best(digits)
        yield {"event": "frontier", "digits": digits}

    def _train(
        self,
        model: Model,
        lesson: TrainingPlan,
        goal: Callable[[Sampler, int], Goal],
    ) -> Generator[Event, None, Goal]:
        """Train cycle after cycle until the goal is met or the cycles are used up; snapshots on the way."""
        digits, cycles = lesson.digits, lesson.cycles
        # What is left of an attempt that was taken back is no snapshot of the next.
        phase = f"{digits}.{self._run.num_failed(digits)}" if self._run.num_failed(digits) else str(digits)
        resumed = self._run.load_training(model, lesson.trainer, phase)
        state, cycle, seconds = resumed or (start_training(model, lesson.trainer), 0, 0.0)
        start = time.perf_counter() - seconds
        probing, self._tokens_probed = 0.0, 0
        while True:
            if self._ranks:
                announce(self._ranks, self._run, self._config, lesson, cycle, state)
            batches, draws = lesson.batches(cycle), lesson.draws(cycle)
            for step, loss in train_cycle(state, batches, lesson.trainer, cycles[cycle], draws, self._ranks):
                if step % SNAPSHOT_STEPS == 0 or step == cycles[cycle] or self._stopping.asked:
                    self._run.save_training(state, phase, cycle, time.perf_counter() - start)
                yield {
                    "event": "train",
                    "digits": digits,
                    "cycle": cycle + 1,
                    "step": step,
                    "of": cycles[cycle],
                    "loss": loss,
                    "tokens_per_s": state.tokens / (time.perf_counter() - start),
                }
            trained = time.perf_counter() - start
            sampler = self._engine(model)
            reached = goal(sampler, cycle)
            probing += time.perf_counter() - start - trained
            yield {"event": "goal", "digits": digits, "cycle": cycle + 1, **asdict(reached)}
            if reached.met or cycle + 1 == len(cycles):
                break
            # The goal's own time is the generator's, not the trainer's.
            start = time.perf_counter() - trained
            cycle, state = cycle + 1, start_training(model, lesson.trainer, tokens=state.tokens)
        done = time.perf_counter()
        leap = self._leap(sampler, digits or self._first) if reached.met else 1
        probing += time.perf_counter() - done
        self._run.write_json(
            digits,
            "training",
            {
                "cycles": cycle + 1,
                "tokens": state.tokens,
                "seconds": trained,
                "agreement": reached.agreement,
                "trained_agreement": reached.trained,
                "leap": leap,
                "tokens_probed": self._tokens_probed,
                "seconds_probe": probing,
            },
        )
        return reached

    def _supervised_goal(self, sampler: Sampler, cycle: int) -> Goal:
        """Short problems right, fast and slow (here the truth is allowed), and agreement one digit further."""
        settings = self._config.supervised
        lowest = min(
            audit.score_length(
                self._solver(sampler, policy), self._task, digits, GOAL_SAMPLES, self._config.seed
            ).accuracy
            for policy in ("fast", "slow")
            for digits in range(1, self._first + 1)
        )
        agreement = self._agreement(sampler, self._first + 1)
        met = lowest >= settings.target_accuracy and agreement >= settings.target_agreement
        return Goal(met, agreement, lowest, self._trained_agreement(sampler, self._first, cycle))

    def _frontier_goal(self, digits: int, sampler: Sampler, cycle: int) -> Goal:
        """Agreement one digit past the round, and at every length up to it: nothing forgotten. Nothing true."""
        settings = self._config.round
        agreement, trained = self._agreement(sampler, digits + 1), self._trained_agreement(sampler, digits, cycle)
        met = agreement >= settings.target_agreement and (trained is None or trained >= settings.target_trained)
        return Goal(met, agreement, trained=trained)

    def _trained_agreement(self, sampler: Sampler, digits: int, cycle: int) -> float | None:
        """Lowest agreement at a length up to `digits`; None if the settings do not ask for it.

        Some lengths stand for all, unless one of them is in doubt: nearer to the target than to certainty.
        """
        settings = self._config.round
        if not settings.probe_trained:
            return None
        count = settings.probe_lengths or digits
        draws = generator(self._config.seed, "probed lengths", digits, cycle)
        order = (torch.randperm(digits, generator=draws) + 1).tolist()
        lowest = min(self._quick_agreement(sampler, length) for length in order[:count])
        if lowest >= (1 + settings.target_trained) / 2:
            return lowest
        return min([lowest, *(self._quick_agreement(sampler, length) for length in order[count:])])

    def _quick_agreement(self, sampler: Sampler, digits: int) -> float:
        """Agreement at a trained length by the cheapest looks that show forgetting: one step, and other problems."""
        use_chain = self._config.filter.use_chain
        wanted = {"direct": True, "complement": "complement" in self._config.filter.checks}
        # Where nothing is answered at once, only another problem tells.
        wanted["commutative"] = self._task.at_once is not None
        quick = Filter(
            vote="off" if use_chain else "unanimous",
            checks=tuple(name for name, is_wanted in wanted.items() if is_wanted),
            k=2,
            use_chain=use_chain,
            think_through=False,
        )
        return self._agreement_of(sampler, digits, self._config.round.probe_trained, quick)

    def _leap(self, sampler: Sampler, digits: int) -> int:
        """How many digits further the next round is: as far as the model agrees with itself. Sees nothing true."""
        settings = self._config.round
        leap, furthest = 1, min(settings.max_leap, self._config.until - digits)
        while leap < furthest:
            further = min(2 * leap, furthest)
            if self._agreement(sampler, digits + further) < settings.leap_agreement:
                break
            leap = further
        return leap

    def _agreement(self, sampler: Sampler, digits: int) -> float:
        """Agreement by the run's own filter, on problems of a length not trained yet."""
        # Agreement is of the looks; what they reject need not be thought through to know it.
        checks = tuple(name for name in self._config.filter.checks if name != "through")
        looks = self._config.filter.model_copy(update={"checks": checks, "think_through": False})
        return self._agreement_of(sampler, digits, self._config.round.probe, looks)

    def _agreement_of(self, sampler: Sampler, digits: int, count: int, settings: Filter) -> float:
        """Share of probe problems that the improved policy accepts."""
        seed = stream_seed(self._config.seed, "probe")
        blocks = generate(sampler, self._assignment(digits, count, settings, seed))
        improved = cat([block for _, block in blocks])
        self._tokens_probed += improved.tokens
        return improved.agreement

    def _report(self, digits: int) -> dict[str, Any]:
        """One line of metrics.jsonl, but for the seconds of the audit itself."""
        model = self._run.load_checkpoint(digits or self._first)
        solver = self._solver(self._engine(model), "fast")
        reached = digits or self._first
        training = self._record(digits, "training")
        generation = {"tried": 0, "accepted": 0, "rejected": {}, "agreement": None, "tokens": 0, "seconds": 0.0}
        errors: dict[str, Any] = {"label_error": None, "fast_label_error": None, "label_mistakes": {}}
        if digits:
            generation = self._record(digits, "generation")
            examples = read_examples(self._run.examples(digits)).get(digits)
            problems, direct = read_candidates(self._run.candidates(digits), digits)
            errors = {
                "label_error": audit.label_error(examples) if examples else None,
                "fast_label_error": 1 - audit.answers_correct(problems, direct).double().mean().item(),
                "label_mistakes": audit.label_mistakes(examples) if examples else {},
            }
        ahead = self._task.draw(
            reached + 1,
            self._config.audit_samples,
            generator(self._config.seed, "frontier", reached + 1),
            self._config.hard_share,
        )
        scores = [
            audit.score_length(solver, self._task, length, self._config.audit_samples, self._config.seed)
            for length in range(1, reached + 2)
        ]
        return {
            "phase": "round" if digits else "sft",
            "digits": reached,
            "tried": generation["tried"],
            "accepted": generation["accepted"],
            "thought_through": generation.get("thought_through", 0),
            "rejected": generation["rejected"],
            **errors,
            "agreement": generation["agreement"],
            "next_agreement": training["agreement"],
            "trained_agreement": training.get("trained_agreement"),
            "leap": training.get("leap", 1),
            "accuracy": {str(score.digits): score.accuracy for score in scores},
            "frontier": audit.frontier_mistakes(solver.sampler, self._layout, ahead),
            "cycles": training["cycles"],
            "taken_back": self._run.num_failed(reached),
            "tokens_generated": generation["tokens"],
            "tokens_trained": training["tokens"],
            "tokens_probed": training.get("tokens_probed", 0),
            "seconds_generate": generation["seconds"],
            "seconds_train": training["seconds"],
            "seconds_probe": training.get("seconds_probe", 0.0),
        }

    def _write_labelled(self) -> None:
        """Keep supervised examples, so that later rounds can replay them without asking for sums."""
        path = self._run.examples(0)
        if path.exists():
            return
        provenance = Provenance(0, self._config.seed, "oracle", "")
        tables = [
            labelled_table(examples, self._layout, provenance) for examples in supervised.kept_examples(self._config)
        ]
        write_examples(path, pa.concat_tables(tables))

    def _assignment(self, digits: int, count: int, settings: Filter, seed: int, pool: int = 1) -> Assignment:
        return Assignment(self._task, self._layout, digits, count, settings, seed, self._config.hard_share, pool)

    def _engine(self, model: Model) -> Sampler:
        """The one engine of the run, with these weights."""
        if self._sampler is None:
            self._sampler = make_sampler(self._config.engine, model, self._config.vllm)
        else:
            self._sampler.load(model)
        return self._sampler

    def _solver(self, sampler: Sampler, policy: str) -> Solver:
        settings = self._config.filter
        return Solver(sampler, self._layout, policy, settings, self._config.seed)

    def _record(self, digits: int, name: str) -> dict[str, Any]:
        record = self._run.read_json(digits, name)
        assert record is not None, f"{name} of {digits} is written before it is read"
        return record
