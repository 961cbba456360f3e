"""Policies: the fast and the slow policy, the vote, the checks, and generation at scale.

May import: `samplers` and below. Open `improve.py` first: the policy improvement operator. `chain.py` is one chain of
thought, `ballot.py` the vote, `solver.py` a policy with its engine, `workers.py` generation by several processes, and
`worker.py` one of them.
"""
