"""Tasks in plain Python: addition again, division from the front, the parity of a sum of digits, and the examples."""

import random
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sector.engine.tasks.declared import Declaration, check


def nines(digits: str) -> str:
    return "".join(str(9 - int(digit)) for digit in digits)


class Sums(Declaration):
    """Least significant digit first."""

    name = "sums"
    example = "123+456"
    problem = "{a:N}+{b:N}+{c:1?}"
    end = ("c",)
    settings = {"digit_order": "lsd"}
    checks = (check("commutative", "swapped operands", lambda p, answer: ({**p, "a": p["b"], "b": p["a"]}, answer)),)

    def draw(self, digits: int, rng: random.Random) -> dict[str, int]:
        return {"a": rng.randrange(10**digits), "b": rng.randrange(10**digits), "c": rng.randrange(2)}

    def draw_hard(self, digits: int, rng: random.Random) -> dict[str, int]:
        a = rng.randrange(10**digits)
        return {"a": a, "b": 10**digits - 1 - a, "c": rng.randrange(2)}

    def simplify(self, p: dict[str, str]) -> tuple[int, dict[str, Any]]:
        total = int(p["a"][-1]) + int(p["b"][-1]) + int(p["c"])
        return total % 10, {"a": p["a"][:-1], "b": p["b"][:-1], "c": total // 10}


class Quotients(Declaration):
    """Most significant digit first: quotient, then remainder; `r` is the remainder so far."""

    name = "quotients"
    example = "8432/7"
    problem = "{a:N}/{d:1}+{r:1?}"
    end = ("r",)

    def draw(self, digits: int, rng: random.Random) -> dict[str, int]:
        d = rng.randrange(1, 10)
        return {"a": rng.randrange(10**digits), "d": d, "r": rng.randrange(d)}

    def simplify(self, p: dict[str, str]) -> tuple[int, dict[str, Any]]:
        q, r = divmod(int(p["r"] + p["a"][0]), int(p["d"]))
        return q, {"a": p["a"][1:], "d": p["d"], "r": r}

    def join(self, piece: str, rest: str) -> str:
        return piece + rest

    @staticmethod
    def _complement(p: dict[str, str], answer: str) -> tuple[dict[str, Any], str | None]:
        d, r = int(p["d"]), int(answer[-1])
        other = {"a": nines(p["a"]), "d": d, "r": d - 1 - int(p["r"])}
        return other, nines(answer[:-1]) + str(d - 1 - r) if r < d else None

    checks = (check("complement", "complement of the dividend", _complement),)


class Parity(Declaration):
    """The answer is that of the rest; whole chains are distilled."""

    name = "parity"
    example = "1234"
    problem = "{a:N};{p:1?}"
    end = ("p",)
    at_once = 1
    checks = (
        check(
            "complement", "other parity", lambda p, answer: ({**p, "p": 1 - int(p["p"])}, str((1 - int(answer)) % 10))
        ),
    )

    def draw(self, digits: int, rng: random.Random) -> dict[str, int]:
        return {"a": rng.randrange(10**digits), "p": rng.randrange(2)}

    def simplify(self, p: dict[str, str]) -> tuple[int, dict[str, Any]]:
        parity = (int(p["p"]) + int(p["a"][-1])) % 2
        return parity, {"a": p["a"][:-1], "p": parity}

    def join(self, piece: str, rest: str) -> str:
        return rest


def _quotient(text: str) -> int:
    a, _, rest = text.partition("/")
    d, _, r = rest.partition("+")
    quotient, remainder = divmod(int(r + a), int(d))
    return 10 * quotient + remainder


def _parity(text: str) -> int:
    return sum(map(int, text.replace(";", ""))) % 2


def _sorted(text: str) -> int:
    return int("".join(sorted(text)))


def _divided(text: str) -> int:
    a, d, r, is_inverse = re.split("[/+:]", text)
    if int(is_inverse):
        # Written backwards: the digits of the product, then its carry.
        product = int(a[::-1]) * int(d) + int(r)
        return int(str(product).zfill(len(a) + 1)[::-1]) if product else 0
    return _quotient(f"{a}/{d}+{r}")


def _reduced(text: str) -> int:
    a, d, r = re.split("[mod+]+", text)
    return int(r + a) % int(d)


FILES = sorted((Path(__file__).parents[1] / "examples" / "tasks").glob("*.py"))


def declared_in(path: Path) -> type[Declaration]:
    """Return the task that a file declares."""
    members = runpy.run_path(str(path), run_name=path.stem).values()
    (declaration,) = (member for member in members if isinstance(member, type) and issubclass(member, Declaration))
    return declaration


DECLARATIONS = (Sums, Quotients, Parity, *map(declared_in, FILES))
# Values of problems as text, in another way than by the steps of their tasks.
VALUES: dict[str, Callable[[str], int]] = {
    "quotients": _quotient,
    "parity": _parity,
    "sorting": _sorted,
    "division": _divided,
    "modulo": _reduced,
}
