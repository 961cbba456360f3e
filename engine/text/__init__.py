"""The text route: plain causal models of transformers, whose tokenizer writes a digit as one token, in the same loop."""
