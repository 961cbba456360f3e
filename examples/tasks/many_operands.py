"""Addition of four operands, `12+34+56+78`, and a carry from 0 to 3. A step adds the last column."""

from itertools import pairwise

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


def exchanged(p, answer):
    """Trade one for ten of the next column, from the last one on, and add or take 10^N: all sums change by about 10."""
    columns = [[int(p[name][place]) for name in NUMBERS] for place in range(len(p["a"]))]
    for high, low in reversed(list(pairwise(columns))):
        one, ten = (-1, 10) if sum(low) <= 18 else (1, -10)
        if 0 <= sum(high) + one <= 36:
            spread(high, one)
            spread(low, ten)
    more = 1 if sum(columns[0]) <= 18 else -1
    spread(columns[0], 10 * more)
    numbers = ("".join(map(str, digits)) for digits in zip(*columns, strict=True))
    first = int(answer[0]) + more
    other = dict(zip(NUMBERS, numbers, strict=True)) | {"k": p["k"]}
    return other, f"{first}{answer[1:]}" if 0 <= first <= 9 else None


def spread(column, change):
    """Change the sum of a column, one digit after another."""
    for index, digit in enumerate(column):
        column[index] = min(max(digit + change, 0), 9)
        change -= column[index] - digit


class ManyOperands(sector.Task):
    name = "many_operands"
    example = "12+34+56+78"
    problem = "{a:N}+{b:N}+{c:N}+{d:N}+{k:1?}"
    end = ("k",)
    at_once = 1  # a longer sum at once needs all its carries
    settings = {
        "filter": {"checks": ["direct", "complement", "shifted", "exchanged", "through"]},
        # At higher rates the sum of a column is learned late, and lost again.
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
        sector.check("exchanged", "other sums of columns", exchanged),
    )

    def draw(self, digits, rng):
        return {name: rng.randrange(10**digits) for name in NUMBERS} | {"k": rng.randrange(4)}

    def simplify(self, p):
        carry, digit = divmod(sum(int(p[name][-1]) for name in NUMBERS) + int(p["k"]), 10)
        return digit, {name: p[name][:-1] for name in NUMBERS} | {"k": carry}
