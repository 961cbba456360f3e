"""Weights in the form of Hugging Face: our transformer, its tokenizer, text models, and checkpoints on disk.

May import: `tasks`, `language` and below. Open `sector.py` first: the model that all engines compute; `checkpoint.py`
saves and loads.
"""
