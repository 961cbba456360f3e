"""The text route: plain causal models of transformers, whose tokenizers write a digit a token, in the same loop."""
