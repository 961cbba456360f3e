"""The supervised phase's data: short problems with true answers and true simplifications (SECToR section 4.1)."""

import torch

from sector.engine import oracle
from sector.engine.examples import Examples
from sector.engine.problem import Problems


def label(problems: Problems) -> Examples:
    """True answers and true first simplifications of any problems."""
    answers = oracle.true_answers(problems)
    carries = oracle.true_carries(problems)
    # The remaining problem receives the carry into its last column.
    carry = carries[:, -2] if problems.digits > 1 else torch.zeros_like(problems.carry)
    rest = Problems(problems.a[:, :-1], problems.b[:, :-1], carry)
    return Examples(problems, answers, rest, answers[:, -1])
