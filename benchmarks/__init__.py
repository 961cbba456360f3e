"""What `sector bench` measures: engines side by side, the trainer, the kernels, and the ceilings of the machine."""
