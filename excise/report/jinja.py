"""Where templates come from and how they are read."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def _environment(autoescape: bool) -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )


TEMPLATES = _environment(autoescape=False)
"""Of Markdown: what goes in are our own names and numbers."""

PAGES = _environment(autoescape=True)
"""Of HTML: whatever goes in is text, unless it was made by such a template itself."""
