"""A model's answers, and how far an edited one drifts from its base."""
