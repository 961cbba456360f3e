"""From examples to weights: parquet files of examples, batches, and the distillation that learns them.

May import: `policy` and below. Open `distill.py` first, the training step; `dataset.py` is the format on disk,
`data_parallel.py` shares a step between processes.
"""
