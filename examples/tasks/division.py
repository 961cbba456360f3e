"""Division with remainder and its inverse, multiplication: one model learns both, and each checks the other.

`8432/7` is 1204 and 4 are left. `4021/7+4:1` is the inverse: 7*1204 + 4, backwards. A step takes the first digit.
"""

import sector


def inverse(p, answer):
    """Pose q*d + r for a division and a/d for a multiplication: the answer is the problem, in reverse order."""
    if answer[-1] >= p["d"]:
        return p, None
    return {"a": answer[-2::-1], "d": p["d"], "r": answer[-1], "m": 1 - int(p["m"])}, p["a"][::-1] + p["r"]


def complement(p, answer):
    """Pose the nines' complement of a, with d - 1 - r: each digit becomes 9 - digit, and the last one d - 1 - r."""
    nines, d, r = str.maketrans("0123456789", "9876543210"), int(p["d"]), int(answer[-1])
    other = {"a": p["a"].translate(nines), "d": d, "r": d - 1 - int(p["r"]), "m": p["m"]}
    return other, answer[:-1].translate(nines) + str(d - 1 - r) if r < d else None


class Division(sector.Task):
    name = "division"
    example = "8432/7"
    problem = "{a:N}/{d:1}+{r:1?}:{m:1?}"  # r: remainder or carry so far; m: 0 for division and 1 for its inverse
    end = ("r",)
    at_once = 1  # a longer quotient at once needs the remainders of all its beginnings
    settings = {"supervised": {"cycle_steps": 4000, "trainer": {"shard_rows": 32}}}
    checks = (
        sector.check("complement", "nines' complement", complement),
        sector.check("commutative", "inverse operation", inverse, needs_answers=True),
    )

    def draw(self, digits, rng):
        d = rng.randrange(1, 10)
        return {"a": rng.randrange(10**digits), "d": d, "r": rng.randrange(d), "m": rng.randrange(2)}

    def simplify(self, p):
        a, d, r = int(p["a"][0]), int(p["d"]), int(p["r"])
        piece, r = divmod(10 * r + a, d) if p["m"] == "0" else divmod(a * d + r, 10)[::-1]
        return piece, {"a": p["a"][1:], "d": d, "r": r, "m": p["m"]}

    def join(self, piece, rest):
        return piece + rest
