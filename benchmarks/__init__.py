"""Benchmarks: engines side by side, the trainer, the kernels, profiles, and the ceilings of the machine."""
