"""Modular reduction: `8432mod7` is 4.

A step takes the first digit. The answer is that of the rest, so whole chains of thought are learned.
"""

import sector


def complement(p, answer):
    """Pose the nines' complement of a, with d - 1 - r for the remainder so far: the remainder becomes d - 1 - r."""
    d, r = int(p["d"]), int(answer)
    other = {"a": p["a"].translate(str.maketrans("0123456789", "9876543210")), "d": d, "r": d - 1 - int(p["r"])}
    return other, str(d - 1 - r) if r < d else None


class Modulo(sector.Task):
    name = "modulo"
    example = "8432mod7"
    problem = "{a:N}mod{d:1}+{r:1?}"
    end = ("r",)
    at_once = 1
    checks = (sector.check("complement", "nines' complement", complement),)

    def draw(self, digits, rng):
        d = rng.randrange(1, 10)
        return {"a": rng.randrange(10**digits), "d": d, "r": rng.randrange(d)}

    def simplify(self, p):
        r = int(p["r"] + p["a"][0]) % int(p["d"])
        return r, {"a": p["a"][1:], "d": p["d"], "r": r}

    def join(self, piece, rest):
        return rest
