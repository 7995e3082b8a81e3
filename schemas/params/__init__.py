"""params.yaml, one file a section: every key, its default, what it may be and what it does."""
