"""The built-in model that really was trained to refuse, and the world that it knows."""
