"""What lm-eval finds in a model, and how far an edited one drifts from its base."""
