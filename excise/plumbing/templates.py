"""Texts from templates, which lie beside their reader, and how any text is shown in them."""

import unicodedata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from schemas.basis.text import show


def environment(folder: Path, autoescape: bool = False) -> Environment:
    """The templates of a folder. HTML, into which any text may go, is escaped; Markdown is made of our own names."""
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )


def code(text: str) -> str:
    """Any text, such as a token, as a Markdown code span on one line that nothing in it can end."""
    return f"`{show(text).replace('`', chr(92) + 'x60')}`"


def inert(text: str) -> str:
    """The text with invisible characters (controls, direction marks, lone surrogates) replaced by their codes."""
    return "".join(c if _is_visible(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return character in "\n\t" or not (category[0] == "C" or category in ("Zl", "Zp"))
