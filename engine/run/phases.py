"""Phases of a run: supervise, generate, distill, audit, advance.

How a run resumes: it passes through all phases again, and a phase whose files exist does nothing. A training that
was interrupted continues at the step of its snapshot (`RunDir.load_training`). Each phase loads its weights from disk,
so a resumed run does the same as an uninterrupted one.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from functools import cached_property
from shutil import rmtree

import pyarrow as pa

from sector.engine.config import RunConfig
from sector.engine.errors import NoAgreement
from sector.engine.language.layout import Layout
from sector.engine.models.adapter import check_peft, targets_of
from sector.engine.models.checkpoint import Model, load_checkpoint, save_checkpoint, task_and_layout
from sector.engine.policy.generate import Assignment, blocks_with_room
from sector.engine.policy.workers import Measure, Workers, make_parts, measure_on
from sector.engine.run import rollback
from sector.engine.run.directory import RunDir
from sector.engine.run.disk import bound_disk
from sector.engine.run.events import (
    Event,
    FileMended,
    FrontierMoved,
    Generated,
    GoalMeasured,
    PhaseAudited,
    RolledBack,
    TrainingStep,
)
from sector.engine.run.followers import announce
from sector.engine.run.goals import Goal, Goals
from sector.engine.run.metrics import audit_phase
from sector.engine.run.phase import Phase
from sector.engine.run.plan import TrainingPlan, initial_model, plan_of, start_of_text, trained_model
from sector.engine.run.plots import has_plots, plot_run
from sector.engine.run.records import TrainingRecord
from sector.engine.run.round_parts import RoundParts
from sector.engine.run.stop_signals import Stopping
from sector.engine.run.teacher import load_teacher
from sector.engine.samplers import check_engine, make_sampler
from sector.engine.samplers.protocol import Sampler
from sector.engine.shares import percent
from sector.engine.tasks import find_task
from sector.engine.training import supervised
from sector.engine.training.data_parallel import Ranks, check_useful
from sector.engine.training.dataset import (
    Provenance,
    labelled_table,
    write_examples,
    write_table,
)
from sector.engine.training.distill import start_training, train_cycle, tune_allocator
from sector.engine.training.recompute import layers_of

SNAPSHOT_STEPS = 200


class Phases:
    """Work of a run, in the order of its methods: supervise; then, each round, generate, distill, audit and advance."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        workers: Workers | None = None,
        stopping: Stopping | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Prepare a run.

        workers: processes that generate; None for this one.
        stopping: request to save the current training step and stop; by default never made.
        ranks: processes that share the training; None for this one.

        Raise InputError if there are more ranks than shards, or if the engine or peft is not installed.
        """
        check_engine(config.engine)
        if config.has_adapter:
            check_peft()
        check_useful(max(config.supervised.trainer.num_shards, config.round.trainer.num_shards))
        tune_allocator()
        self._run, self._config = run, config
        self._workers, self._ranks, self._stopping = workers, ranks, stopping or Stopping()
        self._task = find_task(config.task)
        self._sampler: Sampler | None = None
        self._supervised = run.supervised(config.supervised.max_digits)
        self._started = time.perf_counter() - sum(line.seconds_total for line in run.metrics()[-1:])

    def supervise(self) -> Iterator[Event]:
        """Train on short problems until their answers are right and the model agrees with itself one digit further."""
        phase = self._supervised
        for name in self._run.mended:
            yield FileMended(name)
        self._fetch()
        # Made first, since sizes that no model can have are refused before a file is written.
        model = None if phase.is_trained else initial_model(self._run, self._config)
        self._write_labelled()
        if model is not None:
            yield from self._train(model, plan_of(self._run, self._config, phase, self._config.seed))
            self._run.save_checkpoint(model, phase)
        self._run.mark_latest(phase)
        yield from self.audit(phase)
        self._run.mark_best(phase)

    def rounds(self) -> Iterator[Phase]:
        """Yield the rounds up to `until`, each after the one before is done: started rounds first, then new leaps."""
        phase = self._supervised
        while phase.digits < self._config.until:
            phase = self._run.following(phase.digits, phase.training.leap)
            if phase.digits <= self._config.until:
                yield phase

    def generate(self, phase: Phase) -> Iterator[Event]:
        """Try candidates with the improved policy, and write the examples that the filter accepts."""
        if phase.examples.exists():
            # A kill may have come before their removal.
            rmtree(phase.parts, ignore_errors=True)
            return
        config, seed = self._config, rollback.seed_of_attempt(phase, self._config.seed)
        model = load_teacher(config.round, self._all_before(phase))
        sampler = self._engine(model)
        assignment = Assignment(
            self._task,
            self._layout,
            phase.digits,
            config.round.candidates,
            config.filter,
            seed,
            config.hard_share,
            config.round.pool,
            config.blocks,
        )
        parts = RoundParts(phase.parts, Provenance(phase.digits, seed, config.engine, sampler.weights_sha256))
        parts.open()
        # One block for each worker, so that all have work, unless the settings say more.
        room = 1 if self._workers else blocks_with_room(sampler, assignment)
        maker = parts.maker(config.blocks or room)
        starts = maker.starts(parts.ends, assignment.count)
        # Several workers took that time together.
        start = time.perf_counter() - parts.seconds / (self._workers.count if self._workers else 1)
        for _, part in make_parts(self._workers, model, sampler, starts, assignment, maker):
            parts.add(part)
            fates = parts.fates
            yield Generated(
                digits=phase.digits,
                tried=fates.tried,
                of=assignment.count,
                accepted=fates.accepted,
                tokens_per_s=fates.tokens / (time.perf_counter() - start),
            )
        seconds = time.perf_counter() - start
        write_table(phase.candidates, parts.candidates())
        phase.write(parts.generation(seconds))
        self.write_accepted(phase, parts.examples())
        parts.remove()

    def write_accepted(self, phase: Phase, examples: pa.Table) -> None:
        """Write the accepted examples of a round. A subclass may change them, to try the guards of the loop."""
        write_examples(phase.examples, examples)

    def distill(self, phase: Phase) -> Iterator[Event]:
        """Train on the round's examples and a replay until the goal is met; roll back if the model forgets."""
        if phase.is_trained:
            self._run.mark_latest(phase)
            return
        while True:
            seed = rollback.seed_of_attempt(phase, self._config.seed)
            plan = plan_of(self._run, self._config, phase, seed)
            model = trained_model(self._run, self._config, self._all_before(phase)[-1].checkpoint)
            reached = yield from self._train(model, plan)
            earlier = [self._supervised, *self._run.rounds()]
            before = rollback.agreement_lost(earlier, phase, reached.trained, self._config.round.max_fall)
            if before is None:
                break
            phase.roll_back()
            yield RolledBack(phase.digits, failed=phase.num_failed, before=before, trained=reached.trained)
            yield from self.generate(phase)
        self._run.save_checkpoint(model, phase)

    def audit(self, phase: Phase) -> Iterator[Event]:
        """Compare with true answers; append a line to metrics.jsonl and draw the plots."""
        if any(line.digits == phase.digits for line in self._run.metrics()):
            if not has_plots(self._run):
                plot_run(self._run)
            return
        measure = self._measure(phase.load_checkpoint())
        metrics = audit_phase(phase, self._config, self._task, self._layout, measure, self._started)
        self._run.add_metrics(metrics)
        plot_run(self._run)
        yield PhaseAudited(metrics)

    def advance(self, phase: Phase) -> Iterator[Event]:
        """Move the frontier, without true answers. Raise NoAgreement if agreement one digit further is too low."""
        agreement, least = phase.training.agreement, self._config.round.min_agreement
        if agreement < least:
            raise NoAgreement(
                f"at {phase.digits + 1} digits the model agrees with itself on {percent(agreement, unlike=[least])} of "
                f"the problems only, less than round.min_agreement ({percent(least)})"
            )
        self._run.mark_best(phase)
        bound_disk(self._run, self._config, phase)
        yield FrontierMoved(phase.digits)

    def _train(self, model: Model, plan: TrainingPlan) -> Generator[Event, None, Goal]:
        """Train cycle after cycle, with snapshots, until the goal is met or no cycle is left; return the last goal."""
        phase, cycles = plan.phase, plan.cycles
        resumed = self._run.load_training(model, plan.trainer, phase)
        state, cycle, seconds = resumed or (start_training(model, plan.trainer), 0, 0.0)
        start = time.perf_counter() - seconds
        probing, probed = 0.0, self._goals.tokens
        while True:
            if self._ranks:
                announce(self._ranks, self._run, self._config, plan, cycle, state)
            batches, draws = plan.batches(cycle), plan.draws(cycle)
            for step, loss in train_cycle(state, batches, plan.trainer, cycles[cycle], draws, self._ranks):
                if step % SNAPSHOT_STEPS == 0 or step == cycles[cycle] or self._stopping.asked:
                    self._run.save_training(state, phase, cycle, time.perf_counter() - start)
                yield TrainingStep(
                    digits=phase.number,
                    cycle=cycle + 1,
                    step=step,
                    of=cycles[cycle],
                    loss=loss,
                    tokens_per_s=state.tokens / (time.perf_counter() - start),
                )
            trained = time.perf_counter() - start
            measure = self._measure(model)
            reached = self._goals.reached(phase, measure, cycle)
            probing += time.perf_counter() - start - trained
            yield GoalMeasured(phase.number, cycle + 1, **asdict(reached))
            if reached.met or cycle + 1 == len(cycles):
                break
            # The time of measuring the goal does not count as training.
            start = time.perf_counter() - trained
            cycle, state = cycle + 1, start_training(model, plan.trainer, tokens=state.tokens)
        done = time.perf_counter()
        leap = self._goals.leap(measure, phase.digits) if reached.met else 1
        probing += time.perf_counter() - done
        record = TrainingRecord(
            cycles=cycle + 1,
            tokens=state.tokens,
            seconds=trained,
            agreement=reached.agreement,
            trained_agreement=reached.trained,
            leap=leap,
            tokens_probed=self._goals.tokens - probed,
            seconds_probe=probing,
        )
        phase.write(record)
        return reached

    @cached_property
    def _layout(self) -> Layout:
        """Layout of the weights; that of a model of text depends on its tokenizer."""
        if self._config.is_text:
            return task_and_layout(load_checkpoint(self._run.pretrained))[1]
        return self._task.layout(self._config.digit_order)

    @cached_property
    def _goals(self) -> Goals:
        return Goals(self._config, self._task, self._layout)

    def _all_before(self, phase: Phase) -> list[Phase]:
        """Return the phases before a round in order: the supervised phase, and the shorter rounds that have started."""
        return self._run.before(phase, self._supervised.digits)

    def _fetch(self) -> None:
        """Write the model of text that the run starts from to checkpoint 0, once.

        A pretrained one is copied, so that the run needs no file outside its directory.
        """
        config = self._config
        if not config.is_text or self._run.pretrained.is_dir():
            return
        model = start_of_text(config)
        if config.supervised.trainer.recompute or config.round.trainer.recompute:
            layers_of(model)
        if config.has_adapter:
            targets_of(model.network, config.supervised.trainer.lora_targets)
        task_and_layout(model)
        save_checkpoint(model, self._run.pretrained)

    def _write_labelled(self) -> None:
        """Write supervised examples, so that later rounds can replay them while the oracle is sealed."""
        if self._supervised.examples.exists():
            return
        provenance = Provenance(0, self._config.seed, "oracle", "")
        tables = [
            labelled_table(examples, self._layout, provenance) for examples in supervised.kept_examples(self._config)
        ]
        write_examples(self._supervised.examples, pa.concat_tables(tables))

    def _measure(self, model: Model) -> Measure:
        """Return the function that measures a model, on the workers if there are any."""
        return measure_on(self._workers, model.plain(), self._engine(model))

    def _engine(self, model: Model) -> Sampler:
        """Return the only engine of the run, with these weights."""
        model = model.plain()
        if self._sampler is None:
            self._sampler = make_sampler(self._config.engine, model, self._config.vllm)
        else:
            self._sampler.load(model)
        return self._sampler
