"""The guard against the error avalanche: a round after which the model agrees with itself less on lengths that it knew
is taken back, and tried again with other problems; after `ATTEMPTS` the loop stops.

No true sum is seen. What is compared is `Goal.trained`, the lowest agreement at a trained length, which the loop
measures anyway, with the highest that it was after any earlier phase. How often a round was taken back is read off the
directories that lie below `failed/`, so that a kill at any moment is no matter.
"""

from collections.abc import Sequence

from sector.engine.errors import NoAgreement
from sector.engine.run.phase import Phase
from sector.engine.run.records import TrainingRecord
from sector.engine.seeding import stream_seed

ATTEMPTS = 3


def seed_of_attempt(phase: Phase, seed: int) -> int:
    """Return the seed of a round: the run's own at the first attempt. NoAgreement if there were too many."""
    failed = phase.num_failed
    if failed >= ATTEMPTS:
        raise NoAgreement(
            f"the round at {phase.digits} digits was taken back {failed} times: after each the model agreed with "
            f"itself less at lengths it had learned before (what it learned from is in {phase.failed}*)"
        )
    return stream_seed(seed, "attempt", phase.digits, failed) if failed else seed


def agreement_lost(phases: Sequence[Phase], phase: Phase, trained: float | None, max_fall: float) -> float | None:
    """Return the agreement at trained lengths that a round has lost; None if it fell by `max_fall` or less.

    phases: of the run, of which the earlier ones count.
    """
    records = [earlier.read(TrainingRecord) for earlier in phases if earlier.digits < phase.digits]
    known = [record.trained_agreement for record in records if record]
    highest = max((value for value in known if value is not None), default=None)
    if highest is None or trained is None or trained >= highest - max_fall:
        return None
    return highest
