"""A pull request's comment, from a template: what it would change in parameters, stages, metrics and gates.

Text of a model, a parameter file or a stranger is shown as code, of which GitHub makes no HTML, link or mention. A
comment is public, so it shows answers only on request.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from excise.gitops.difference import difference
from excise.gitops.git import commit_of
from excise.gitops.sides import Commit, WorkingTree, check_ran
from excise.plumbing.errors import StageError
from excise.plumbing.files import read_document, write_json, write_text
from excise.plumbing.templates import environment, inert
from excise.report.conclusions import Change, Conclusion, change, conclude
from excise.report.markdown import say, why
from excise.report.words import headline, measured, number
from schemas.basis.text import printable, shorten
from schemas.evidence import ChangedSample, Comparison, GateVerdict, Interval, Outcome, TaskChanges
from schemas.gitops import Difference, LockChanges, SampleFile, StageChange

MOST_SAMPLES = 10  # of each task
LARGEST = 4 * 2**20  # bytes of a file of samples

TEMPLATES = environment(Path(__file__).parent / "templates")

MARKER = "<!-- excise -->"
"""The first line, by which the comment is found again."""
MOST_BYTES = 60_000  # GitHub takes 65,536 characters
CUT_FIRST = ("samples", "pictures", "unmoved", "stages", "conclusions", "parameters", "moved", "gates")
"""What is left out first where the whole would be too long."""

MOST_ROWS = 100  # of each kind
MOST_PATHS = 6  # of each stage
MOST_IN_LINE = 120  # characters of a text
MOST_IN_SENTENCE = 240
MOST_IN_BLOCK = 600

_ENDS = str.maketrans({"`": r"\x60", "|": r"\x7c"})
"""What would end a code span, or the table cell that it stands in."""

_ADDRESS = re.compile(r"https://[A-Za-z0-9._~%:/+-]+", re.ASCII)
_PLAIN = re.compile(
    r"(?:(?![0-9a-fA-F]{7})[A-Za-z]{1,20}|-?(?:[0-9]{1,6}(?:\.[0-9]{1,8})?|nan|inf)(?:e[+-][0-9]{1,3})?)[,;:.]?",
    re.ASCII,
)
"""A word or a number that means nothing to GitHub; a commit's name would."""


def write_comment(
    base: str,
    head: str | None,
    folder: Path,
    pictures: str | None,
    samples: int,
    samples_from: Path | None,
    write_samples: Path | None,
    out: Path,
) -> None:
    """Write what a head, or a folder where it is None, would change in a base, with so many samples of each task, from
    results/ or from a file that `write_samples` wrote. Raises `StageError`: the stages have not run for it, or
    something that was asked for is missing."""
    if pictures is not None and not _ADDRESS.fullmatch(pictures):
        raise StageError(f"--pictures must be the https address of a folder, got {pictures}")
    commit = commit_of(folder, head) if head else None
    check_ran(Commit(folder, commit) if commit else WorkingTree(folder))
    found = difference(folder, base, commit)
    tasks: list[TaskChanges] = []
    if samples and samples_from:
        tasks = written_samples(samples_from, samples)
    elif samples and commit:
        raise StageError("results/ holds the answers of what lies here, which need not be --head; use --samples-from")
    elif samples:
        tasks = _first(_from_results(folder / "results"), samples)
    if write_samples:
        write_json(write_samples, SampleFile(tasks=tasks))
    write_text(out, render_comment(found, tasks, pictures.rstrip("/") if pictures else None))


def written_samples(path: Path, most: int) -> list[TaskChanges]:
    """At most so many of each task's samples that `--write-samples` wrote. Raises `StageError`: not such a file."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
        raise StageError(f"{path} is not a file of less than {LARGEST // 2**20} MiB, as --write-samples writes it")
    return _first(read_document(SampleFile, path, "write it again with --write-samples").tasks, most)


def _from_results(folder: Path) -> list[TaskChanges]:
    if not folder.is_dir():
        raise StageError(f"{folder} is not there: `dvc pull` or `dvc repro` brings the answers, --samples-from a file")
    # Only here: nothing else needs numpy and scipy.
    from excise.comparison.comparison import changes, read_side

    return changes(read_side(folder / "base"), read_side(folder / "ablated"))


def _first(tasks: list[TaskChanges], most: int) -> list[TaskChanges]:
    def cut(sample: ChangedSample) -> ChangedSample:
        texts = {name: getattr(sample, name)[: MOST_IN_BLOCK + 1] for name in ("prompt", "base", "ablated")}
        return sample.model_copy(update=texts)

    return [task.model_copy(update={"shown": [cut(sample) for sample in task.shown[:most]]}) for task in tasks]


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

Q = TypeVar("Q", Comparison, GateVerdict)


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


def render_comment(found: Difference, samples: Sequence[TaskChanges] = (), pictures: str | None = None) -> str:
    """The comment as Markdown, cut to `MOST_BYTES`; `pictures` is their folder's address, without a final slash."""
    gates = found.now.gates
    kinds: dict[str, Sequence[Any]] = {
        "gates": _gates(found),
        "parameters": found.parameters or [],
        # Put into words where they are shown, and once: there may be thousands.
        "conclusions": [cache(partial(_said, one)) for one in conclude(found.now.rows, gates)],
        "stages": found.lock.stages,
        "pictures": found.pictures if pictures else [],
        "samples": _in_turns(samples),
        **_metrics(found),
    }
    new_base = {path for one in _made_anew(found.lock, "organism", "prepare") for path in one.outputs}
    asked = [path for one in _made_anew(found.lock, "answer@base", "evaluate@base") for path in one.dependencies]
    always = {
        "difference": found,
        "why": why(gates.model_copy(update={"gates": [_quoted(gate) for gate in gates.gates]})),
        "address": pictures,
        "other_base": bool(BASE_MODEL & new_base),
        "other_questions": [path for path in dict.fromkeys(asked) if path not in {*BASE_MODEL, "answers/base"}],
    }
    most = {kind: min(MOST_ROWS, len(rows)) for kind, rows in kinds.items()}
    text = _render(kinds, most, always)
    for kind in CUT_FIRST:
        while len(text.encode()) > MOST_BYTES and most[kind]:
            most[kind] //= 2
            text = _render(kinds, most, always)
    return text


def _render(kinds: Mapping[str, Sequence[Any]], most: Mapping[str, int], always: Mapping[str, Any]) -> str:
    parts = {kind: {"shown": rows[: most[kind]], "left_out": len(rows) - most[kind]} for kind, rows in kinds.items()}
    return TEMPLATES.get_template("comment.md.j2").render(**WORDS, **parts, **always)


def _metrics(found: Difference) -> dict[str, list[ShownMetric]]:
    now = {row.metric: row for row in found.now.rows}
    if found.before is None:
        # Drift has no value of the base's to be compared with.
        rows = [ShownMetric(row, None, row, "new" if row.base is None else change(row)) for row in now.values()]
    else:
        before = {row.metric: row for row in found.before.rows}
        sides = {name: (before.get(name), now.get(name)) for name in dict.fromkeys([*now, *before])}
        rows = [ShownMetric(new or before[name], old, new, since(old, new)) for name, (old, new) in sides.items()]
    moved = sorted((row for row in rows if row.became not in STILL), key=lambda row: URGENT.index(row.became))
    return {"moved": moved, "unmoved": [row for row in rows if row.became in STILL]}


def _gates(found: Difference) -> list[tuple[GateVerdict, str]]:
    """Those that do not pass first; beside each the base commit's verdict on the same limit of the same metric."""
    earlier = found.before.gates.gates if found.before else []
    before = {(gate.metric, gate.bound, gate.limit): gate.verdict for gate in earlier}
    unknown = "new" if found.before else "-"
    gates = sorted(found.now.gates.gates, key=lambda gate: get_args(Outcome).index(gate.verdict), reverse=True)
    return [(gate, before.get((gate.metric, gate.bound, gate.limit), unknown)) for gate in gates]


def _in_turns(tasks: Sequence[TaskChanges]) -> list[tuple[TaskChanges, ChangedSample]]:
    """The sample of each task that changed most, then the second of each, so that no task crowds out the others."""
    turns = zip_longest(*([(task, sample) for sample in task.shown] for task in tasks))
    return [one for turn in turns for one in turn if one is not None]


def _made_anew(lock: LockChanges, *stages: str) -> list[StageChange]:
    """Those of these stages that another run of left other bytes."""
    return [one for one in lock.stages if one.stage in stages and one.kind == "changed" and one.outputs]


def _said(one: Conclusion) -> str:
    return say(replace(one, rows=tuple(map(_quoted, one.rows)), gate=one.gate and _quoted(one.gate)))


def _quoted(found: Q) -> Q:
    """The same, with names and reasons that may stand among our own words."""
    told = {name: prose(text) for name in ("words", "reason") if (text := getattr(found, name, None)) is not None}
    return found.model_copy(update={"metric": metric(found.metric), **told})


def figure(value: float | None) -> str:
    """Four decimals, as in the report; fewer digits of large numbers."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else number(value) if abs(value) < 1e9 else f"{value:.3g}"


def ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{figure(interval.low)} to {figure(interval.high)}"


def paths(names: Sequence[str]) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(names) - MOST_PATHS} more" if len(names) > MOST_PATHS else ""
    return ", ".join(map(span, names[:MOST_PATHS])) + more


def inputs(change: StageChange) -> str:
    """Why a stage has another entry."""
    if change.kind != "changed":
        return {"new": "it is new", "gone": "it is no more"}[change.kind]
    told = ["its command" if change.command else "", paths(change.dependencies)]
    return "; ".join(filter(None, told)) or "none: from the same inputs came other bytes"


WORDS: dict[str, Any] = {
    **{word.__name__: word for word in (block, ends, figure, headline, inputs, measured, metric, paths, prose, span)},
    **{"MARKER": MARKER, "STILL": STILL, "most_in_block": MOST_IN_BLOCK},
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
    """The interval of the change by Zou and Donner's MOVER (2008): too wide where both were asked the same samples."""
    old, new = before.ablated_interval, now.ablated_interval
    if old is None or new is None:
        return None
    moved = now.ablated - before.ablated
    return Interval(
        low=moved - math.hypot(now.ablated - new.low, old.high - before.ablated),
        high=moved + math.hypot(new.high - now.ablated, before.ablated - old.low),
    )
