"""Edits as hooks on a loaded model, before any byte is written."""
