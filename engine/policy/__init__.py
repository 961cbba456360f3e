"""Thinking and checking: fast and slow policy, vote, checks, and the generation of many problems with them.

May import: `samplers` and below. Open `improve.py` first, the policy improvement operator; `chain.py` is one chain of
thought, `workers.py` runs generation in several processes.
"""
