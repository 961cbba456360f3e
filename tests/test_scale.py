"""The simulation of many workers: real parts of the driver's side, the same bytes, and workers that die."""

import pytest

from sector.benchmarks.scale import Costs, Weather, scaled, undisturbed, work_of

COSTS = Costs(table=0.001, encode=0.001)


def test_a_part_takes_as_long_as_on_a_gpu_and_a_host() -> None:
    weather = Weather(rate=1000.0, host=0.01, spread=0.0, deaths=0.0)
    assert weather.seconds(500, start=0) == pytest.approx(0.5 + 0.02)
    uneven = Weather(rate=1000.0, host=0.01, spread=0.5, deaths=0.0)
    assert uneven.seconds(500, 0) == uneven.seconds(500, 0) != uneven.seconds(500, 500)


def test_workers_that_are_slow_and_die_write_the_same_bytes() -> None:
    """Two processes stand for six workers. One dies at its third part, with three workers."""
    setup = work_of(candidates=6000, part_rows=250)
    weather = Weather(rate=5000.0, host=0.0, spread=0.7, deaths=0.08)
    figures = scaled(setup, 6, 2, weather, COSTS)
    assert figures["sha256"] == undisturbed(setup)
    assert figures["deaths_of_processes"] > 0 and figures["parts"] == 24
    assert 0 < figures["efficiency"] <= 1 and figures["driver_us_per_candidate_of_a_file"] > 4
