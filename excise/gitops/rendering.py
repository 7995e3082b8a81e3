"""A pull request's comment, from a template: what it would change in parameters, stages, metrics and gates.

Whatever a model, a parameter file or a stranger wrote stands in it as code, cut, and without what could end it: of code
GitHub makes no HTML, link, picture, mention of a person or reference to an issue. Where the whole would be longer than
GitHub takes, whole rows are left out, those of least importance first.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from excise.plumbing.templates import environment
from excise.report.conclusions import Change, Conclusion, change, conclude
from excise.report.markdown import say, why
from excise.report.words import VERDICTS, headline, inert, measured, number
from schemas.basis.text import printable, shorten
from schemas.evidence import ChangedSample, Comparison, GateVerdict, GateVerdicts, Interval, TaskChanges
from schemas.gitops import Difference, LockChanges, StageChange

TEMPLATES = environment(Path(__file__).parent / "templates")

MARKER = "<!-- excise -->"
"""The first line, by which the comment is found again."""

MOST_BYTES = 60_000
"""Of the whole, in UTF-8; GitHub takes 65,536 characters."""

CUT_FIRST = ("samples", "pictures", "unmoved", "stages", "conclusions", "parameters", "moved", "gates")
"""What is left out first where the whole would be too long."""

MOST_ROWS = 100
"""Of one kind."""

MOST_PATHS = 6
"""Named of one stage."""

MOST_IN_LINE = 120
MOST_IN_SENTENCE = 240
MOST_IN_BLOCK = 600
"""So many characters of a text are shown."""

_ENDS = str.maketrans({"`": r"\x60", "|": r"\x7c"})
"""What would end a code span, or the table cell that it stands in."""

_PLAIN = re.compile(
    r"(?:(?![0-9a-fA-F]{7})[A-Za-z]{1,20}|-?(?:[0-9]{1,6}(?:\.[0-9]{1,8})?|nan|inf)(?:e[+-][0-9]{1,3})?)[,;:.]?",
    re.ASCII,
)
"""A word or a number that means nothing to GitHub; a commit's name would."""


def held(text: str, most: int = MOST_IN_LINE) -> str:
    """The text on one line, with nothing in it that ends a code span or a table cell; never empty."""
    return shorten(printable(text[: most + 1]).translate(_ENDS), most) or " "


def span(text: str, most: int = MOST_IN_LINE) -> str:
    """The text as a code span on one line, also for a cell of a table."""
    return f"`{held(text, most)}`"


def metric(name: str) -> str:
    """A metric's name as `held` gives it, its task and its own name each cut by itself, so that both can be told."""
    task, _, own = name.rpartition(".")
    return f"{held(task, 2 * MOST_IN_LINE // 3)}.{held(own, MOST_IN_LINE // 3)}"


def prose(text: str) -> str:
    """A sentence of plain words and numbers as it is; anything else as a code span."""
    plain = len(text) <= MOST_IN_SENTENCE and all(_PLAIN.fullmatch(word) for word in text.split(" "))
    return text if plain else span(text, MOST_IN_SENTENCE)


def block(text: str, most: int = MOST_IN_BLOCK) -> str:
    """The beginning of a text as a fenced block, whose fence is longer than any within."""
    shown = shorten(inert(text[: most + 1]), most)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


Since = Change | Literal["new", "gone"]
"""Unchanged: the same value with the same interval."""

STILL: tuple[Since, ...] = ("within noise", "unchanged")
URGENT: tuple[Since, ...] = ("worse", "better", "higher", "lower", "gone", "new", "no interval")

BASE_MODEL = {"artifacts/model.json", "models/base"}


@dataclass(frozen=True)
class ShownMetric:
    """A metric, and what became of it."""

    row: Comparison
    """The head's; the base commit's where the head has none."""
    before: Comparison | None
    now: Comparison | None
    became: Since
    """Since the base commit; against the base model where the base commit has no results."""

    @property
    def arrow(self) -> str:
        """Where the value went."""
        old = self.before.ablated if self.before else self.row.base
        if old is None or self.now is None or self.became == "unchanged" or old == self.now.ablated:
            return ""
        return "↑ " if self.now.ablated > old else "↓ "


@dataclass(frozen=True)
class ShownGate:
    """A gate, and what its verdict was at the base commit."""

    gate: GateVerdict
    before: str


@dataclass(frozen=True)
class ShownConclusion:
    """One statement on what the edit does."""

    conclusion: Conclusion

    @cached_property
    def words(self) -> str:
        """As Markdown on one line."""
        return say(_quoted(self.conclusion))


@dataclass(frozen=True)
class ShownSample:
    """One changed sample, and how many of its task there are."""

    task: TaskChanges
    sample: ChangedSample


@dataclass(frozen=True)
class Part:
    """What is shown of one kind."""

    shown: list[Any]
    left_out: int


def render_comment(difference: Difference, samples: Sequence[TaskChanges] = (), pictures: str | None = None) -> str:
    """The comment as GitHub's Markdown, at most `MOST_BYTES` long.

    Args:
        samples: what answers are to be shown of; none by default, as they need not be for the public.
        pictures: the address of the folder of pictures, without a final slash; None to name the folder alone.
    """
    kinds: dict[str, Sequence[Any]] = {
        "gates": _gates(difference),
        "parameters": difference.parameters or [],
        "conclusions": [ShownConclusion(one) for one in conclude(difference.now.rows, difference.now.gates)],
        "stages": difference.lock.stages,
        "pictures": difference.pictures if pictures else [],
        "samples": _in_turns(samples),
        **_metrics(difference),
    }
    always = {
        "difference": difference,
        "why": why(_quoted_gates(difference.now.gates)),
        "address": pictures,
        "other_base": _other_base(difference.lock),
        "other_questions": _other_questions(difference.lock),
    }
    most = {kind: min(MOST_ROWS, len(rows)) for kind, rows in kinds.items()}
    text = _render(kinds, most, always)
    for kind in CUT_FIRST:
        while len(text.encode()) > MOST_BYTES and most[kind]:
            most[kind] //= 2
            text = _render(kinds, most, always)
    return text


def _render(kinds: Mapping[str, Sequence[Any]], most: Mapping[str, int], always: Mapping[str, Any]) -> str:
    parts = {kind: Part(list(rows[: most[kind]]), len(rows) - most[kind]) for kind, rows in kinds.items()}
    return TEMPLATES.get_template("comment.md.j2").render(**WORDS, **parts, **always)


def _metrics(difference: Difference) -> dict[str, list[ShownMetric]]:
    """Those that moved, the worst first, and those that did not."""
    now = {row.metric: row for row in difference.now.rows}
    if difference.before is None:
        rows = [ShownMetric(row, None, row, _against_base(row)) for row in now.values()]
    else:
        before = {row.metric: row for row in difference.before.rows}
        sides = {name: (before.get(name), now.get(name)) for name in dict.fromkeys([*now, *before])}
        rows = [ShownMetric(new or before[name], old, new, since(old, new)) for name, (old, new) in sides.items()]
    moved = sorted((row for row in rows if row.became not in STILL), key=lambda row: URGENT.index(row.became))
    return {"moved": moved, "unmoved": [row for row in rows if row.became in STILL]}


def _against_base(row: Comparison) -> Since:
    """What the edit did to a metric; drift has no value of the base's to be compared with."""
    return "new" if row.base is None else change(row)


def _gates(difference: Difference) -> list[ShownGate]:
    """Those that do not pass first; beside each the base commit's verdict on the same limit of the same metric."""
    earlier = difference.before.gates.gates if difference.before else []
    before = {(gate.metric, gate.bound, gate.limit): VERDICTS[gate.verdict] for gate in earlier}
    shown = [
        ShownGate(gate, before.get((gate.metric, gate.bound, gate.limit), "new" if difference.before else "-"))
        for gate in difference.now.gates.gates
    ]
    return sorted(shown, key=lambda one: ("fail", "warn", "pass").index(one.gate.verdict))


def _in_turns(tasks: Sequence[TaskChanges]) -> list[ShownSample]:
    """The sample of each task that changed most, then the second of each, so that no task crowds out the others."""
    turns = zip_longest(*([ShownSample(task, sample) for sample in task.shown] for task in tasks))
    return [one for turn in turns for one in turn if one is not None]


def _other_base(lock: LockChanges) -> bool:
    """Whether the two commits edit different base models."""
    makers = [change for change in lock.stages if change.stage in ("organism", "prepare")]
    made = [path for change in makers for path in _made_anew(change)]
    return bool(BASE_MODEL & {*made})


def _other_questions(lock: LockChanges) -> list[str]:
    """What else made answering with the base, or judging its answers, give another result."""
    changes = [one for one in lock.stages if one.stage in ("answer@base", "evaluate@base") and _made_anew(one)]
    known = {*BASE_MODEL, "answers/base"}
    return [*dict.fromkeys(path for one in changes for path in one.dependencies if path not in known)]


def _made_anew(change: StageChange) -> list[str]:
    return change.outputs if change.kind == "changed" else []


def _quoted(said: Conclusion) -> Conclusion:
    """The same, with names and reasons that may stand among our own words."""
    rows = tuple(_quoted_row(row) for row in said.rows)
    return replace(said, rows=rows, gate=None if said.gate is None else _quoted_gate(said.gate))


def _quoted_row(row: Comparison) -> Comparison:
    return row.model_copy(
        update={"metric": metric(row.metric), "reason": None if row.reason is None else prose(row.reason)}
    )


def _quoted_gates(gates: GateVerdicts) -> GateVerdicts:
    return gates.model_copy(update={"gates": [_quoted_gate(gate) for gate in gates.gates]})


def _quoted_gate(gate: GateVerdict) -> GateVerdict:
    return gate.model_copy(
        update={"metric": metric(gate.metric), "words": prose(gate.words), "reason": prose(gate.reason)}
    )


def figure(value: float | None) -> str:
    """Four decimals, as in the report; fewer digits of large numbers."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else number(value) if abs(value) < 1e9 else f"{value:.3g}"


def ends(interval: Interval | None) -> str:
    """An interval."""
    return "" if interval is None else f"{figure(interval.low)} to {figure(interval.high)}"


def paths(names: Sequence[str]) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(names) - MOST_PATHS} more" if len(names) > MOST_PATHS else ""
    return ", ".join(map(span, names[:MOST_PATHS])) + more


def inputs(change: StageChange) -> str:
    """Why a stage has another entry."""
    if change.kind != "changed":
        return {"new": "it is new", "gone": "it is no more"}[change.kind]
    told = ["its command"] if change.command else []
    if change.dependencies:
        told.append(paths(change.dependencies))
    return "; ".join(told) or "none: from the same inputs came other bytes"


WORDS: dict[str, Any] = {
    "MARKER": MARKER,
    "STILL": STILL,
    "block": block,
    "ends": ends,
    "figure": figure,
    "headline": headline,
    "inputs": inputs,
    "measured": measured,
    "metric": metric,
    "most_in_block": MOST_IN_BLOCK,
    "paths": paths,
    "prose": prose,
    "span": span,
    "verdicts": VERDICTS,
}
"""What the template may call."""


def since(before: Comparison | None, now: Comparison | None) -> Since:
    """What became of a metric; None where a side does not have it."""
    if before is None:
        return "new"
    if now is None:
        return "gone"
    if (before.ablated, before.ablated_interval) == (now.ablated, now.ablated_interval):
        return "unchanged"
    between = {"difference": now.ablated - before.ablated, "difference_interval": mover(before, now)}
    # How many samples rose or fell is known of the difference from the base alone.
    return change(now.model_copy(update={**between, "rose": None, "fell": None}))


def mover(before: Comparison, now: Comparison) -> Interval | None:
    """Of the edited value now less the one before, by Zou and Donner's MOVER (2008); None without both intervals.

    It takes both for independent, and so is too wide where the same samples were asked, as they mostly were.
    """
    old, new = before.ablated_interval, now.ablated_interval
    if old is None or new is None:
        return None
    difference = now.ablated - before.ablated
    return Interval(
        low=difference - math.hypot(now.ablated - new.low, old.high - before.ablated),
        high=difference + math.hypot(new.high - now.ablated, before.ablated - old.low),
    )
