"""Training, from examples to weights: the parquet files, the batches, and the trainer.

May import: `policy` and below. Open `distill.py` first: a training cycle, its steps and learning rates.
`dataset.py` is the format on disk, `fused_model.py` the model with its backward pass by hand, `data_parallel.py` a step
shared by several processes.
"""
