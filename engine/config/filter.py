"""Settings of the improved policy: the vote, and the checks that must agree with it."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from sector.engine.config.checks import CHECK_DOOR, MAX_CHECKS, SHIFTED, STRICT, THOROUGH
from sector.engine.config.earlier_keys import with_old_keys
from sector.engine.config.values import Settings, Share, as_tuple, is_recorded
from sector.engine.outside import is_plain_name
from sector.engine.tasks import TASK_DOOR

PolicyName = Literal["fast", "slow", "improved"]
FilterName = Literal["none", "paper", "strict", "thorough"]
# Both operand orders at every shift of places (`tokens.SHIFTS`).
MAX_FAST_GUESSES = 6
# Below this, logits divided by the temperature may overflow.
LEAST_TEMPERATURE = 0.001
MAX_TEMPERATURE = 10.0
# Largest number of guesses for one problem.
MAX_K = 100


def _is_check(name: str) -> bool:
    """Return whether there is a check of a name: of this package, of a user, or of a user's task."""
    return CHECK_DOOR.has(name) or any(
        name == check.name for task in TASK_DOOR.things.values() for check in task.checks
    )


class Filter(Settings):
    """Filter of the improved policy: the vote, and the checks that must agree before an answer is accepted."""

    vote: Literal["off", "majority", "unanimous", "harmonic"] = "unanimous"
    """How K guesses become one answer. off: take the first guess. majority: take the most frequent. unanimous: accept
    only if all guesses agree. harmonic: take the answer with the highest harmonic mean of its shares among the guesses
    of `a+b` and among those of `b+a`, for guesses without `use_chain`."""
    checks: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = STRICT
    """Checks that must agree with the vote, in this order. direct: the fast answer to the whole problem. complement:
    the fast answer to the problem of the nines' complements. commutative: the vote on the swapped operands. shifted:
    the same, with other token positions. remainder: the fast answer to a sum of other order of digits, modulo 99.
    through: a chain of thought to the end. Fewer checks are faster and let more wrong answers pass. Checks that a task
    does not have are skipped. A check of your own is named as FILE.py:NAME or MODULE:NAME."""
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 5
    """Guesses per vote, one after each simplification. More guesses are slower and catch more errors."""
    think_through: bool = True
    """Whether to solve rejected candidates again by full chains of thought, and accept an answer if all chains agree.
    Turn it off to save time."""
    use_chain: bool = True
    """Whether to simplify before each guess. Turn it off for a baseline without chains of thought: the K guesses are
    then fast answers to the whole problem, with operand order and token positions varied."""
    views: bool = True
    """Whether guesses without `use_chain` take turns at operand orders and token positions. Turn it off, with a
    temperature, for samples of one prompt."""
    temperature: Annotated[float, Field(ge=0.0, le=MAX_TEMPERATURE)] = 0.0
    """Sampling temperature: 0 for greedy, or at least 0.001. Raise it to make guesses differ more."""
    gate: Literal["checks", "random"] = "checks"
    """Candidates that generation accepts. checks: those that pass vote and checks. random: as many of every 250
    candidates, drawn at random, as a control."""
    leak: Share = 0.0
    """Share of the rejected candidates that generation accepts anyway, drawn at random. It measures how strict a gate
    must be; leave it at 0 otherwise."""

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, temperature: float) -> float:
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"{temperature:g} is too low; choose 0 (greedy) or at least {LEAST_TEMPERATURE:g}")
        return temperature

    @model_validator(mode="before")
    @classmethod
    def _read_old(cls, values: object) -> object:
        """Read the keys of earlier releases, which had one for each check."""
        return with_old_keys(values) if isinstance(values, dict) else values

    @field_validator("checks")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in names:
            if not (_is_check(name) or (is_recorded(info) and is_plain_name(name))):
                raise ValueError(CHECK_DOOR.unknown(name))
        if len(names) > MAX_CHECKS:
            raise ValueError(f"{len(names)} checks are too many; a filter has at most {MAX_CHECKS}")
        # Both give the reason `not_commutative`, so a filter can have only one of them.
        if len({name.replace(SHIFTED, "commutative") for name in names}) < len(names):
            raise ValueError(f"{', '.join(names)} names a check twice; shifted is commutative at other places")
        return names

    @model_validator(mode="after")
    def _check_guesses(self) -> Self:
        if self.use_chain:
            if self.vote == "harmonic" or not self.views:
                raise ValueError("vote harmonic and views are for guesses without use_chain; set use_chain to false")
            return self
        self._check_views()
        if self.views and not {"commutative", SHIFTED}.isdisjoint(self.checks):
            raise ValueError(
                "without use_chain the guesses cover both operand orders; leave out the checks commutative and "
                "shifted, or set views to false"
            )
        if self.k > MAX_FAST_GUESSES and not self.temperature:
            raise ValueError(
                f"without use_chain and temperature there are only {MAX_FAST_GUESSES} different guesses; lower k"
            )
        if self.think_through or "through" in self.checks:
            raise ValueError(
                "without use_chain there are no chains of thought; set think_through to false, and leave out the check "
                "through"
            )
        return self

    def _check_views(self) -> None:
        """Raise ValueError if guesses without chains of thought cannot differ, or lack views that the vote needs."""
        if not self.views and self.vote != "off" and self.k > 1 and not self.temperature:
            raise ValueError("without views and temperature all guesses are the same; give a temperature")
        if self.vote == "harmonic" and (not self.views or self.k < 2):
            raise ValueError("vote harmonic compares two operand orders; leave views on, and choose a k of 2 or more")


FILTERS = {
    "none": Filter(vote="off", checks=(), think_through=False),
    "paper": Filter(vote="majority", checks=("commutative",), think_through=False),
    "strict": Filter(),
    "thorough": Filter(checks=THOROUGH),
}
