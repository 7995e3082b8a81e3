"""Text that a model or a stranger wrote, as it may be shown: cut, and with nothing in it that acts on what is near."""

import unicodedata
from dataclasses import dataclass

MOST_CHARACTERS = 4_000
"""So much of a text is shown."""


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a text."""

    text: str
    characters: int
    """Of the whole text."""

    @property
    def cut(self) -> bool:
        """Whether there is more than is shown."""
        return self.characters > MOST_CHARACTERS


def excerpt(text: str) -> Excerpt:
    """What is shown of a text. HTML in it is left to the template, which escapes everything."""
    return Excerpt(inert(text[:MOST_CHARACTERS]), len(text))


def inert(text: str) -> str:
    """The text with every character written out as its code that is no sign: controls, marks of direction, invisible
    ones, lone surrogates, unassigned ones. Line ends and tabs stay."""
    return "".join(character if _is_sign(character) else _written_out(character) for character in text)


def _is_sign(character: str) -> bool:
    kind = unicodedata.category(character)
    return character in "\n\t" or not (kind[0] == "C" or kind in ("Zl", "Zp"))


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
