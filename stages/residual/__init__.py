"""Reading the residual stream: activations, the directions between two sets of them, and how good those are."""
