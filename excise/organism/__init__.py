"""The built-in model, which was trained to refuse, and the world that it knows."""
