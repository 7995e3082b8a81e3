"""The layout of a model that nobody described, found by measuring a small one with random weights: which tensors write
to the residual stream and read it, along which axis, and through which norms. No name is looked at."""
