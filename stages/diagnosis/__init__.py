"""Explaining a model before it is edited: who writes the direction, who reads it, and what an edit would do."""
