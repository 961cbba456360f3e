"""The two pictures of a run, and the one of an evaluation."""

from sector.engine.rundir import RunDir


def plot_run(run: RunDir) -> None:
    pass
