"""Changing the residual stream: from rules to a plan, the projection itself, and checkpoints written by streaming."""
