"""Models in the form of Hugging Face: our transformer and its tokenizer, text models, and checkpoints.

May import: `tasks` and below. Open `sector.py` first: the model that every engine computes. `checkpoint.py` saves,
loads, and looks up the task that weights have learned.
"""
