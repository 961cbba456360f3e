"""Filter settings of earlier releases, which had one key for each check."""

from sector.engine.config.checks import REMAINDER, SHIFTED, STRICT
from sector.engine.config.values import Values

_CHECK_ORDER = ("direct", "complement", "commutative", SHIFTED, REMAINDER, "through")
_OLD_KEYS = {"second_look", "direct", "complement", "through", "think"}


def with_old_keys(values: Values) -> Values:
    """Translate filter keys of earlier releases to `checks`, `think_through` and `use_chain`, where there are any.

    Those keys are `second_look`, `direct`, `complement`, `through` and `think`. Invalid values are kept, so that
    validation reports them.
    """
    if _OLD_KEYS.isdisjoint(values):
        return values
    values = dict(values)
    checks = values.get("checks", STRICT)
    if not isinstance(checks, list | tuple) or not all(name in _CHECK_ORDER for name in checks):
        return values
    checks = list(checks)
    for name in ("direct", "complement"):
        if isinstance(wanted := values.get(name), bool):
            checks = _with(checks, name, wanted)
            del values[name]
    if (second := values.get("second_look")) in ("off", "swapped", "shifted"):
        checks = _with(checks, "commutative", second == "swapped")
        checks = _with(checks, SHIFTED, second == "shifted")
        del values["second_look"]
    through = values.get("through")
    if isinstance(through, bool) or through in ("off", "rejected", "all"):
        checks = _with(checks, "through", through == "all")
        values["think_through"] = through not in (False, "off")
        del values["through"]
    if "think" in values:
        values["use_chain"] = values.pop("think")
    return {**values, "checks": checks}


def _with(checks: list[str], name: str, wanted: bool) -> list[str]:
    """Return the checks with or without `name`, in the usual order."""
    return sorted({*checks, name} if wanted else {*checks} - {name}, key=_CHECK_ORDER.index)
