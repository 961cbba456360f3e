"""The loop: a supervised phase, then rounds of generate, filter, distill, advance (SECToR algorithm 1).

Each phase starts from files alone, draws from random streams of its own, and writes files that mark it as done
(`directory.py`). A run that is killed and resumed therefore ends with the same weights as one that is not.

Rounds are label-free by construction: the oracle is sealed while a round runs. The audit comes after the round, and
nothing of it reaches the loop.
"""

from collections.abc import Iterator

from sector.engine.config import RunConfig
from sector.engine.policy.workers import Workers
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event
from sector.engine.run.phases import Phases
from sector.engine.run.stop_signals import Stopping
from sector.engine.tasks import oracle
from sector.engine.training.data_parallel import Ranks


def self_play(
    run: RunDir,
    config: RunConfig,
    workers: Workers | None = None,
    stopping: Stopping | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Event]:
    """Run to `config.until` digits; yield events as they happen.

    run: directory of the run, locked by this process.
    workers: processes that generate; None for this one.
    stopping: request to save the current training step and stop; by default never made.
    ranks: processes that share the training; None for this one.
    Raise NoAgreement if the model no longer agrees with itself; the best checkpoint is the last one that did.
    """
    yield from run_phases(Phases(run, config, workers, stopping, ranks))


def run_phases(phases: Phases) -> Iterator[Event]:
    """Run phases as `self_play` does."""
    yield from phases.supervise()
    for phase in phases.rounds():
        yield from _sealed(phases.generate(phase))
        yield from _sealed(phases.distill(phase))
        yield from phases.audit(phase)
        yield from _sealed(phases.advance(phase))


def _sealed(events: Iterator[Event]) -> Iterator[Event]:
    """Yield events, and seal the oracle while each is made.

    The oracle is open between events, since a caller may stop there or read the truth.
    """
    while True:
        with oracle.sealed():
            event = next(events, None)
        if event is None:
            return
        yield event
