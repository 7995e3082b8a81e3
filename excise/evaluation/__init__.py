"""Tasks of lm-eval: what a model answers, how answers are scored, and how far an edited model drifts from its base."""
