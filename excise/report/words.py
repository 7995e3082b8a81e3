"""Numbers and names as people write them, and the templates that they are put into."""

from pathlib import Path

from excise.plumbing.templates import environment
from schemas.text import show

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = environment(_FOLDER)
"""Of Markdown."""
PAGES = environment(_FOLDER, autoescape=True)
"""Of HTML: whatever goes in is text, unless it was made by such a template itself."""


def number(value: float) -> str:
    """Three digits, whatever the size: `0.00123`, `12.3`, `12,345`."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}"


def signed(value: float) -> str:
    """The same with its sign, as a difference has one."""
    return f"{value:+,.0f}" if abs(value) >= 999.5 else f"{value:+#.3g}"


def code(text: str) -> str:
    """Any text as a Markdown code span on one line that nothing in it can end: it may come from a tokenizer."""
    return f"`{show(text).replace('`', chr(92) + 'x60')}`"
