"""A model in memory: loading it and its tokenizer, forward passes, hooks, one layer at a time."""
