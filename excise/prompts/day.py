"""The day that a chat template is told which asks for today's, so that a prompt is the same text on every day."""

from datetime import datetime
from string import ascii_letters

ASKS = "strftime_now"
"""What transformers calls the function by which a template asks."""

_SECONDS_SINCE_1970 = "s"
"""The one code of strftime that depends on the machine's time zone."""


def all_dated(templates: str | dict[str, str], date: str) -> str | dict[str, str]:
    """One template, or several by name, each as `dated` gives it."""
    if isinstance(templates, dict):
        return {name: dated(template, date) for name, template in templates.items()}
    return dated(templates, date)


def dated(template: str, date: str) -> str:
    """The template with a macro that stands before the library's function; as it is where it does not ask.

    A variable of that name would not do: transformers hands only plain values on to a template.

    Args:
        date: as ISO 8601 writes it; the time is its midnight.
    """
    if ASKS not in template:
        return template
    day = datetime.fromisoformat(date)
    codes = [f"%{flag}{letter}" for letter in ascii_letters if letter != _SECONDS_SINCE_1970 for flag in ("", "-")]
    texts = [[code, day.strftime(code)] for code in codes]
    return _MACRO.replace("TEXTS", repr(texts)) + template


# A line of its own, whose end jinja2 takes for the block's: what follows is read as it was.
_MACRO = (
    f"{{%- macro {ASKS}(format) -%}}"
    "{%- for part in format.split('%%') -%}"
    "{%- set day = namespace(text=part) -%}"
    "{%- for code, text in TEXTS -%}{%- set day.text = day.text.replace(code, text) -%}{%- endfor -%}"
    "{{- '' if loop.first else '%' -}}{{- day.text -}}"
    "{%- endfor -%}"
    "{%- endmacro %}\n"
)
