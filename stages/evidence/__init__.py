"""Judging an edit: what lm-eval finds in the base and in the edited model, how far they drift, and the gates."""
