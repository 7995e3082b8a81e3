"""Edits as hooks on a loaded model: what they would do, before any byte is written."""
