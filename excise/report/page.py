"""`report.html`: all evidence. What a model wrote is only text on it: templates escape it, `inert` spells out
characters that act on the text around them, and the page allows no script and no address."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePosixPath

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from excise.plumbing.templates import inert
from excise.report.conclusions import change, movement
from excise.report.drawing import Drawing, axes, draw_difference, draw_drift, draw_gate
from excise.report.findings import Report, as_yaml
from excise.report.markdown import render_part, sentence, statements, why
from excise.report.words import MOST_CHARACTERS, PAGES, headline, measured
from schemas.evidence import Comparison, GateVerdicts, Provenance


def breakable(name: str) -> Markup:
    """A name that may break over lines only after its dots and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])(?=\w)", name))


def render_page(report: Report, provenance: Provenance | None) -> str:
    """The report as one HTML file. Its provenance is None in a stage's output, which must not hold any."""
    reader = _markdown()
    checksums = "".join(f"{file.sha256}  {file.path}\n" for file in report.manifest.files)  # as sha256sum prints them

    def inline(text: str) -> Markup:
        return Markup(reader.renderInline(text))

    def part(name: str) -> Markup:
        return Markup(reader.render(render_part(name, report), {"pictures": report.pictures}))

    return PAGES.get_template("report.html.j2").render(
        **vars(report),
        why=inline(why(report.gates)),
        statements={name: [(tone, inline(text)) for tone, text in lines] for name, lines in statements(report).items()},
        parts={name: part(name) for name in ("changed", "failures", "diagnosis")},
        groups=_groups([row for row in report.rows if row.base is not None], report.gates),
        drift=[row for row in report.rows if row.base is None],
        drift_note=inline(sentence("drift_note")),
        edit=as_yaml({"ablate": report.ablate.model_dump(mode="json")}),
        manifest_sha256=hashlib.sha256(checksums.encode()).hexdigest(),
        provenance=provenance,
        most_characters=MOST_CHARACTERS,
        **{function.__name__: function for function in FUNCTIONS},
    )


FUNCTIONS = (breakable, change, draw_drift, draw_gate, headline, inert, measured, movement)
"""Available to the template."""

Drawn = tuple[Comparison, Drawing | None]


def _groups(rows: Sequence[Comparison], gates: GateVerdicts) -> list[tuple[str, list[tuple[str, list[Drawn]]]]]:
    """Each metric with its drawing, by group and task."""
    groups = []
    for group, iterator in groupby(rows, key=lambda row: row.metric.partition(".")[0]):
        members = list(iterator)
        axis_of = axes(members)
        drawn = [(row, draw_difference(row, gates.gates, axis_of.get(row.metric))) for row in members]
        tasks = groupby(drawn, key=lambda pair: pair[0].metric.rpartition(".")[0])
        groups.append((group, [(task.partition(".")[2], list(pairs)) for task, pairs in tasks]))
    return groups


def _markdown() -> MarkdownIt:
    """Markdown to HTML: HTML within Markdown stays text, and all pictures are ours."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    reader.core.ruler.push("figures", _lift_figures)
    reader.add_render_rule("image", _figure)
    reader.add_render_rule("code_inline", _code)
    reader.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0">\n<table>\n')
    reader.add_render_rule("table_close", lambda *_: "</table>\n</div>\n")
    return reader


def _code(renderer: RendererProtocol, tokens: Sequence[Token], number: int, options: OptionsDict, env: EnvType) -> str:
    return Markup("<code>{}</code>").format(breakable(tokens[number].content))


def _lift_figures(state: StateCore) -> None:
    """Remove the paragraph around each picture, because HTML has no figures within paragraphs."""
    for number, token in enumerate(state.tokens):
        if token.type == "inline" and [child.type for child in token.children or ()] == ["image"]:
            state.tokens[number - 1].hidden = state.tokens[number + 1].hidden = True


def _figure(
    renderer: RendererProtocol, tokens: Sequence[Token], number: int, options: OptionsDict, env: EnvType
) -> str:
    """A picture as data within the page: an image keeps its ids and style to itself, and runs nothing."""
    image = tokens[number]
    svg = env["pictures"][PurePosixPath(str(image.attrs["src"])).stem]
    return PAGES.get_template("figure.html.j2").render(
        alt=image.content, caption=image.attrs["title"], data=b64encode(svg.encode()).decode()
    )
