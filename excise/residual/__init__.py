"""The residual stream: activations, directions and their statistics, the use of experts."""
