"""The built-in model that really was trained to refuse, and the world that it knows."""

RECIPE = 1
"""The version of how it is trained, raised by hand where a change of this room gives other weights: recorded beside the
weights, it decides whether the model is trained again. A test holds the code that belongs to it."""
