"""What is asked of a model, and in which form its answers are kept."""
