"""Deaths of workers: how many are taken for accidents before the work or the setup is taken for the cause."""

from collections import Counter

from sector.engine.errors import WorkersDied, first_line

# Deaths of workers on one piece of work, or in a row, that are not yet taken for a fault of the work or of the setup.
MAX_DEATHS = 5


class Deaths:
    """Count of the deaths of workers during some work; too many end the work.

    in_a_row: deaths since a worker last finished something. A machine may take all its workers along, so that as many
        deaths as there are workers prove nothing.
    """

    def __init__(self, count: int) -> None:
        """Prepare for a count of workers."""
        self.in_a_row = 0
        self._limit = max(MAX_DEATHS, count)
        self._by_start = Counter[int | None]()

    def add(self, start: int | None, error: Exception) -> None:
        """Count the death of a worker. Raise WorkersDied if too many died in a row, or on one piece of work.

        start: number of its piece of work, of most the first candidate; None if it was loading weights.
        """
        self.in_a_row += 1
        if self.in_a_row > self._limit:
            raise WorkersDied(f"{self.in_a_row} workers died in a row; the last: {first_line(error)}") from error
        if start is None:
            return
        self._by_start[start] += 1
        if self._by_start[start] > MAX_DEATHS:
            raise WorkersDied(
                f"{self._by_start[start]} workers died at one piece of work ({start}); the last: {first_line(error)}"
            ) from error
