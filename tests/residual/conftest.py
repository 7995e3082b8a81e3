"""What contributions are tried on: a tiny random model of every family."""

from tests.subjects import subject

__all__ = ["subject"]
