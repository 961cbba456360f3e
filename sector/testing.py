"""Tests of the protocols that code of users meets, for use in any test framework, or in none."""

from sector.engine.samplers.conformance import check_engine

__all__ = ["check_engine"]
