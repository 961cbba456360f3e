"""Rollback of rounds that lower agreement on trained lengths: the guard against the error avalanche.

Such a round is tried again with other problems; after `ATTEMPTS` attempts the loop stops. No true answers are used.
`Goal.trained`, the lowest agreement at a trained length, is compared with its highest value after earlier phases.
Failed attempts are counted by their folders in `failed/`, so the count survives a kill at any moment.
"""

from collections.abc import Sequence

from sector.engine.errors import NoAgreement
from sector.engine.run.phase import Phase
from sector.engine.run.records import TrainingRecord
from sector.engine.seeding import stream_seed

ATTEMPTS = 3


def seed_of_attempt(phase: Phase, seed: int) -> int:
    """Return the seed of the next attempt at a round. Raise NoAgreement after too many attempts.

    seed: seed of the run, which the first attempt uses.
    """
    failed = phase.num_failed
    if failed >= ATTEMPTS:
        raise NoAgreement(
            f"the round at {phase.digits} digits was rolled back {failed} times: after each attempt the model agreed "
            f"with itself less at trained lengths (the examples of the attempts are in {phase.failed}*)"
        )
    return stream_seed(seed, "attempt", phase.digits, failed) if failed else seed


def agreement_lost(phases: Sequence[Phase], phase: Phase, trained: float | None, max_fall: float) -> float | None:
    """Return the highest earlier agreement at trained lengths, if it fell by more than `max_fall`; else None.

    phases: phases of the run; those before `phase` are compared.
    phase: round that was trained.
    trained: lowest agreement at a trained length after it; None if it was not measured.
    """
    records = [earlier.read(TrainingRecord) for earlier in phases if earlier.digits < phase.digits]
    agreements = [record.trained_agreement for record in records if record]
    highest = max((agreement for agreement in agreements if agreement is not None), default=None)
    if highest is None or trained is None or trained >= highest - max_fall:
        return None
    return highest
