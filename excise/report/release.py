"""The card of a release, from a template. Names in it come from params.yaml, files and tags: all are code spans."""

from excise.report.words import TEMPLATES, VERDICTS, headline, measured
from schemas.release import Origin, Release
from schemas.text import printable

CAME: dict[Origin, str] = {
    "cache": "It was taken from DVC's cache.",
    "remote": "It was fetched from DVC's remote.",
    "rebuilt": "It was made anew, from what the commit says and what DVC holds.",
}
LOCKS = {
    "same": "`requirements.lock` here is that of the commit.",
    "other": "`requirements.lock` here is another than that of the commit.",
    "none": "The commit has no `requirements.lock`.",
}


def render_release(release: Release) -> str:
    """The whole card, in Markdown with no HTML in it."""
    return TEMPLATES.get_template("release.md.j2").render(
        release=release,
        came=CAME,
        locks=LOCKS,
        cell=cell,
        headline=headline,
        measured=measured,
        verdicts=VERDICTS,
    )


def cell(text: str) -> str:
    """Any text, whole, as a code span that nothing in it can end, nor the cell of a table that it stands in."""
    shown = printable(text).replace("`", r"\x60").replace("|", r"\x7c")
    return f"`{shown or ' '}`"
