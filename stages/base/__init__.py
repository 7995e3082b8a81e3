"""What every stage stands on: its entry point, atomic files, digests, loading a model, prompts, progress."""
