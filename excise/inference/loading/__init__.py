"""Models and tokenizers, loaded from exactly the files that are pinned."""
