"""Sorting of digits: `3142` becomes `1234`.

A step is one pass of bubble sort, which moves the largest digit to the end. No carries, and no sums.
"""

import sector


def complement(p, answer):
    """Pose the nines' complements of all digits, whose order is the opposite one."""
    nines = str.maketrans("0123456789", "9876543210")
    return {"a": p["a"].translate(nines)}, answer.translate(nines)[::-1]


class Sorting(sector.Task):
    name = "sorting"
    example = "3142"
    problem = "{a:N}"
    checks = (
        sector.check("complement", "complements of the digits", complement),
        sector.check("commutative", "digits in reverse order", lambda p, answer: ({"a": p["a"][::-1]}, answer)),
    )

    def draw(self, digits, rng):
        return {"a": rng.randrange(10**digits)}

    def draw_hard(self, digits, rng):
        few = rng.sample("0123456789", rng.randrange(1, 5))
        return {"a": "".join(rng.choices(few, k=digits))}

    def simplify(self, p):
        largest, rest = p["a"][0], ""
        for digit in p["a"][1:]:
            rest, largest = rest + min(largest, digit), max(largest, digit)
        return largest, {"a": rest}
