"""The guard against the error avalanche: a round after which the model agrees with itself less on lengths that it knew
is taken back, and tried again with other problems; after `ATTEMPTS` the loop stops.

No true sum is seen. What is compared is `Goal.trained`, the lowest agreement at a trained length, which the loop
measures anyway, with the highest that it was after any earlier phase. How often a round was taken back is read off the
directories that lie below `failed/`, so that a kill at any moment is no matter.
"""

from sector.engine.errors import NoAgreement
from sector.engine.run.directory import RunDir
from sector.engine.run.records import TrainingRecord
from sector.engine.seeding import stream_seed

ATTEMPTS = 3


def seed_of_attempt(run: RunDir, seed: int, digits: int) -> int:
    """The seed that a round draws from: the run's own at the first attempt. NoAgreement if there were too many."""
    failed = run.num_failed(digits)
    if failed >= ATTEMPTS:
        raise NoAgreement(
            f"the round at {digits} digits was taken back {failed} times: after each the model agreed with itself less "
            f"at lengths it had learned before (what it learned from is in {run.failed(digits)}*)"
        )
    return stream_seed(seed, "attempt", digits, failed) if failed else seed


def agreement_lost(run: RunDir, digits: int, trained: float | None, max_fall: float) -> float | None:
    """The agreement at trained lengths that the round at `digits` digits has lost; None if all is well."""
    earlier = [run.read_record(each, TrainingRecord) for each in range(digits)]
    known = [record.trained_agreement for record in earlier if record]
    highest = max((value for value in known if value is not None), default=None)
    if highest is None or trained is None or trained >= highest - max_fall:
        return None
    return highest
