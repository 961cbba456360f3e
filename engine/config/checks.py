"""Names of the checks of a filter."""

from typing import Any

from sector.engine.outside import Door

# Checks of this package (`checks.py`), in the order of their reasons in every record. `shifted` is the commutative
# check at other places. REMAINDER is a reason in records of filters that name it only. A filter has at most MAX_CHECKS
# checks.
CHECKS = ("direct", "commutative", "complement", "through")
SHIFTED, REMAINDER = "shifted", "remainder"
MAX_CHECKS = 12
# Checks of the filters strict and thorough.
STRICT = ("direct", "complement", SHIFTED)
THOROUGH = (*STRICT, "through")
# Checks of users.
CHECK_DOOR: Door[Any] = Door(
    "check",
    """--set 'filter.checks=["FILE.py:NAME"]'""",
    lambda: (*CHECKS, SHIFTED, REMAINDER),
    "sector.engine.policy.checks",
)
