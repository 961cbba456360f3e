"""The loop: a supervised start, then rounds of generate, filter, distill, advance (SECToR algorithm 1).

Each phase leaves files that say it is done (`directory.py`), draws from random streams named after itself, and starts
from files alone; so a run killed anywhere and started again ends with the same weights as one never killed.

Rule 1 (label-free) holds by construction: a round runs with the oracle sealed; the audit comes after it and feeds
nothing back.
"""

from collections.abc import Iterator

from sector.engine.config import RunConfig
from sector.engine.policy.workers import Workers
from sector.engine.run.directory import RunDir
from sector.engine.run.events import Event
from sector.engine.run.phases import Phases
from sector.engine.run.stopping import Stopping
from sector.engine.tasks import oracle
from sector.engine.training.data_parallel import Ranks


def self_play(
    run: RunDir,
    config: RunConfig,
    workers: Workers | None = None,
    stopping: Stopping | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Event]:
    """Run to `config.until` digits, yielding events as they come.

    workers: who generates, and ranks: who trains, if not this process alone. stopping: when it asks, the step at hand
    is saved.
    Raises NoAgreement when the model no longer agrees with itself; the best checkpoint is the last one that did.
    """
    phases = Phases(run, config, workers, stopping, ranks)
    yield from phases.supervise()
    for phase in phases.rounds():
        with oracle.sealed():
            yield from phases.generate(phase)
            yield from phases.distill(phase)
        yield from phases.audit(phase)
        with oracle.sealed():
            yield from phases.advance(phase)
