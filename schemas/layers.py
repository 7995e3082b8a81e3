"""Layers as people and params.yaml write them."""

from collections.abc import Sequence


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs of neighbours: the first and last of each."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def layers_as_written(layers: Sequence[int]) -> int | str | list[int | str]:
    """Sorted layers as params.yaml writes them: `2`, `0-3`, or a list of these."""
    written = [f"{first}-{last}" if last > first else first for first, last in runs(layers)]
    return written[0] if len(written) == 1 else written


def ranges(numbers: Sequence[int]) -> str:
    """The same as text: `0-3, 5`."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs(numbers))
