"""Numbers as people write them."""

from schemas.layers import runs


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as params.yaml writes them: `0-3, 5`."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs(numbers))
