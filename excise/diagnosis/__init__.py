"""What explains a model: who writes refusal, who reads it, and which rules to try."""
