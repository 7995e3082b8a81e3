"""Any value as a short text on one line, for errors and reports."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence

Key = Sequence[str | int]

_BARE = re.compile(r"[\w-]{1,60}", re.ASCII)


def printable(text: str) -> str:
    """The text with line ends, control characters and the like escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def one_line(error: Exception, length: int) -> str:
    """The message of another package's error, on one line."""
    return shorten(printable(" ".join(str(error).split())), length)


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shorten(name, 80) for name in names[:3]) + more


def show(value: object) -> str:
    """A value as the file would hold it, shortened."""
    try:
        return shorten(printable(json.dumps(value, ensure_ascii=False, default=str)))
    except ValueError:  # Python writes no integer of more than 4,300 digits, as 0xf… can be
        return "a number of thousands of digits"


def dotted(key: Key) -> str:
    """`ablate.rules.0.scale`; a name that holds anything but letters, digits, _ and - is quoted."""
    return shorten(".".join(str(part) if _BARE.fullmatch(str(part)) else show(part) for part in key), 120)


def suggest(given: object, choices: Iterable[str]) -> str:
    """`; did you mean "scale"?` if one of the choices is close, else nothing."""
    close = difflib.get_close_matches(given, list(choices), n=1) if isinstance(given, str) and len(given) < 200 else []
    return f'; did you mean "{close[0]}"?' if close else ""


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs of neighbors: the first and last of each."""
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
