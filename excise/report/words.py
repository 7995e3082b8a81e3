"""Numbers and names as people write them."""

from schemas.layers import runs
from schemas.text import show


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as params.yaml writes them: `0-3, 5`."""
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs(numbers))


def number(value: float) -> str:
    """Three digits, whatever the size: `0.00123`, `12.3`, `12,345`."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}"


def signed(value: float) -> str:
    """The same with its sign, as a difference has one."""
    return f"{value:+,.0f}" if abs(value) >= 999.5 else f"{value:+#.3g}"


def code(text: str) -> str:
    """Any text as a Markdown code span on one line that nothing in it can end: it may come from a tokenizer."""
    return f"`{show(text).replace('`', chr(92) + 'x60')}`"
