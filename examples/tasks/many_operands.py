"""Addition of four operands, `12+34+56+78`, and a carry from 0 to 3. A step adds the last column."""

import sector

NUMBERS = ("a", "b", "c", "d")
NINES = str.maketrans("0123456789", "9876543210")


def complement(p, answer):
    """Pose the nines' complements, which add up to 4*10^N - 1 less the sum, with 3 less the carry."""
    other = {name: p[name].translate(NINES) for name in NUMBERS} | {"k": 3 - int(p["k"])}
    return other, str(3 - int(answer[0])) + answer[1:].translate(NINES) if answer[0] <= "3" else None


def rotated(p, answer):
    """Pose the operands in another order: the last one first."""
    return {"a": p["d"], "b": p["a"], "c": p["b"], "d": p["c"], "k": p["k"]}, answer


class ManyOperands(sector.Task):
    name = "many_operands"
    example = "12+34+56+78"
    problem = "{a:N}+{b:N}+{c:N}+{d:N}+{k:1?}"
    end = ("k",)
    at_once = 1  # a longer sum at once needs all its carries
    settings = {  # at higher rates the sum of a column is learned late, and lost again
        "supervised": {
            "cycle_steps": 6000,
            "more_steps": 2000,
            "max_cycles": 2,
            "trainer": {"learning_rate": 2e-3, "muon_learning_rate": 1e-2},
        },
        "round": {"trainer": {"learning_rate": 4e-4, "muon_learning_rate": 2e-3}},
    }
    checks = (
        sector.check("complement", "nines' complements", complement),
        sector.check("commutative", "operands in another order", rotated),
    )

    def draw(self, digits, rng):
        return {name: rng.randrange(10**digits) for name in NUMBERS} | {"k": rng.randrange(4)}

    def simplify(self, p):
        carry, digit = divmod(sum(int(p[name][-1]) for name in NUMBERS) + int(p["k"]), 10)
        return digit, {name: p[name][:-1] for name in NUMBERS} | {"k": carry}
