"""`report.html`: the whole evidence on one page that needs nothing but itself, from a template.

Whatever a model wrote is on it as text alone: the template escapes it, `inert.py` takes out what would act on the text
around it, and the page's own policy allows no script and no address.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererProtocol
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

from excise.report.conclusions import Change, Movement, change, conclude, movement
from excise.report.drawing import Drawing, axes, draw_difference, draw_drift, draw_gate
from excise.report.findings import as_yaml
from excise.report.markdown import drift_note, left_out_note, render_explanation, say, why
from excise.report.words import MOST_CHARACTERS, PAGES, VERDICTS, excerpt, headline, inert, measured
from schemas.diagnosis import Diagnosis
from schemas.evidence import Comparison, GateVerdict, GateVerdicts, Provenance, TaskChanges
from schemas.model import ModelManifest
from schemas.params.ablate import Ablate
from schemas.simulation import Simulation


@dataclass(frozen=True)
class ShownGate:
    """A gate, and its interval beside its limit."""

    gate: GateVerdict
    drawing: Drawing | None


@dataclass(frozen=True)
class ShownRow:
    """A metric, what became of it, and its interval."""

    row: Comparison
    name: str
    movement: Movement
    change: Change
    drawing: Drawing | None


@dataclass(frozen=True)
class ShownTask:
    """The metrics of one task."""

    name: str
    rows: list[ShownRow]


@dataclass(frozen=True)
class ShownGroup:
    """The tasks of one group."""

    name: str
    tasks: list[ShownTask]


def render_page(
    *,
    rows: list[Comparison],
    gates: GateVerdicts,
    changes: list[TaskChanges],
    left_out: Mapping[str, int],
    diagnosis: Diagnosis,
    simulation: Simulation,
    ablate: Ablate,
    manifest: ModelManifest,
    directions_sha256: str,
    pictures: Mapping[str, str],
    provenance: Provenance | None,
) -> str:
    """The report as one file of HTML, without a script and without an address.

    Args:
        changes: the samples that both models answer differently, task by task.
        left_out: judged task → samples that were not asked, as their prompts were measured.
        ablate: the section of params.yaml that was run.
        manifest: the base model.
        pictures: the SVG of each picture of the diagnosis.
        provenance: where the report comes from; None where it is a stage's output, which may not say.
    """
    return PAGES.get_template("report.html.j2").render(
        gates=gates,
        shown_gates=[ShownGate(gate, draw_gate(gate)) for gate in gates.gates],
        why=_inline(why(gates)),
        conclusions=[(said.tone, _inline(say(said))) for said in conclude(rows, gates)],
        groups=_groups([row for row in rows if row.base is not None], gates),
        drift=[_shown(row, draw_drift(row)) for row in rows if row.base is None],
        drift_note=_inline(drift_note()),
        left_out_note=_inline(left_out_note(left_out)),
        explanation=_explanation(diagnosis, simulation, ablate, pictures),
        changes=changes,
        ablate=as_yaml({"ablate": ablate.model_dump(mode="json")}),
        manifest=manifest,
        manifest_sha256=_digest(manifest),
        directions_sha256=directions_sha256,
        provenance=provenance,
        breakable=breakable,
        excerpt=excerpt,
        headline=headline,
        inert=inert,
        measured=measured,
        most_characters=MOST_CHARACTERS,
        verdicts=VERDICTS,
    )


def _groups(rows: Sequence[Comparison], gates: GateVerdicts) -> list[ShownGroup]:
    groups = []
    for group, of_group in groupby(rows, key=lambda row: row.metric.partition(".")[0]):
        members = list(of_group)
        scales = axes(members)
        tasks = []
        for task, of_task in groupby(members, key=lambda row: row.metric.rpartition(".")[0]):
            shown = []
            for row in of_task:
                limits = [gate for gate in gates.gates if gate.metric == row.metric]
                axis = scales.get(row.metric)
                shown.append(_shown(row, draw_difference(row, limits, axis) if axis else None))
            tasks.append(ShownTask(task.partition(".")[2], shown))
        groups.append(ShownGroup(group, tasks))
    return groups


def _shown(row: Comparison, drawing: Drawing | None) -> ShownRow:
    return ShownRow(row, row.metric.rpartition(".")[2], movement(row), change(row), drawing)


def _digest(manifest: ModelManifest) -> str:
    """What `sha256sum FILES | sha256sum` says in the model's folder."""
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in manifest.files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _explanation(diagnosis: Diagnosis, simulation: Simulation, ablate: Ablate, pictures: Mapping[str, str]) -> Markup:
    text = render_explanation(diagnosis, simulation, ablate, pictures.keys())
    return Markup(_markdown().render(text, {"pictures": pictures}))


def _inline(text: str) -> Markup:
    return Markup(_markdown().renderInline(text))


def _markdown() -> MarkdownIt:
    """Markdown to HTML; HTML within Markdown stays text, and of pictures there are only ours."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    reader.core.ruler.push("figures", _lift_figures)
    reader.add_render_rule("image", _figure)
    reader.add_render_rule("code_inline", _code)
    return reader


def breakable(name: str) -> Markup:
    """A name that may be broken over lines behind its dots and underscores alone."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])(?=\w)", name))


def _code(renderer: RendererProtocol, tokens: Sequence[Token], number: int, options: OptionsDict, env: EnvType) -> str:
    return Markup("<code>{}</code>").format(breakable(tokens[number].content))


def _lift_figures(state: StateCore) -> None:
    """A picture alone in its paragraph stands without that paragraph: HTML has no figures within one."""
    for number, token in enumerate(state.tokens):
        if token.type == "inline" and [child.type for child in token.children or ()] == ["image"]:
            state.tokens[number - 1].hidden = state.tokens[number + 1].hidden = True


def _figure(
    renderer: RendererProtocol, tokens: Sequence[Token], number: int, options: OptionsDict, env: EnvType
) -> str:
    """A picture as data within the page: as an image it keeps its ids and its style to itself, and runs nothing."""
    image = tokens[number]
    svg = env["pictures"][PurePosixPath(str(image.attrs["src"])).stem]
    given: dict[str, Any] = {
        "alt": image.content,
        "caption": image.attrs["title"],
        "data": b64encode(svg.encode()).decode(),
    }
    return PAGES.get_template("figure.html.j2").render(given)
