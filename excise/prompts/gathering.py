"""From the rows of a source to its prompts, without duplicates, and counts of what was left out."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, get_args

from excise.plumbing.errors import StageError
from excise.plumbing.files import sha256_of
from excise.prompts.chats import identity
from excise.prompts.rows import Row, dataset_rows, file_rows, unpacked
from schemas.basis.text import show
from schemas.params.prompts import Prompts
from schemas.params.sources import PromptSource, RowsSource, row_range
from schemas.prompts import Prompt, PromptOrigin, Role, Turn

_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "human": "user", "gpt": "assistant"}
"""The roles of chats, also under ShareGPT's names."""


@dataclass(frozen=True)
class Gathered:
    """The prompts of a source, and where they come from."""

    prompts: list[Prompt]
    origin: PromptOrigin


def gather(source: RowsSource) -> Gathered:
    """The prompts of a file or Hub dataset, in its order. Rows without a prompt and duplicates (`identity`) are skipped
    and counted. Raises `StageError`: the source cannot be read, a row is not a prompt, or there are no prompts."""
    column = source.column or "prompt"
    item = source.item
    where = source.where or {}
    columns = list(dict.fromkeys([column, *([] if item is None else [item]), *where]))
    rows = dataset_rows(source, columns) if source.kind == "dataset" else file_rows(Path(source.source), columns)
    taken = rows[row_range(source.slice)]
    selected = _filtered(source, taken, where)
    with unpacked(source.source):
        prompts = [prompt for row in selected if (prompt := _prompt(row, column, item)) is not None]
    if not prompts:
        part = "; add some" if source.slice is None else f" in rows {source.slice} of its {len(rows)}"
        raise StageError(f"{source.source} has no prompts{part}")
    unique: dict[object, Prompt] = {}
    for prompt in prompts:
        unique.setdefault(identity(prompt), prompt)
    counts = {
        "rows": len(taken),
        "filtered": len(taken) - len(selected) if where else None,
        "empty": len(selected) - len(prompts),
        "duplicates": len(prompts) - len(unique),
    }
    return Gathered([*unique.values()], _origin(source, counts))


def _origin(source: RowsSource, counts: Mapping[str, Any]) -> PromptOrigin:
    settings = source.model_dump(include={"source", "revision", "config", "split", "slice", "where", "column"})
    sha256 = sha256_of(Path(source.source)) if source.kind == "file" else None
    return PromptOrigin(kind=source.kind, **settings, sha256=sha256, **counts)


def _filtered(source: RowsSource, rows: list[Row], where: Mapping[str, str | float]) -> list[Row]:
    """The rows that have the values of `where`. Raises `StageError`: no row has a column, or none has the values."""
    for column in where if rows else ():
        if not any(isinstance(row.content, dict) and column in row.content for row in rows):
            raise StageError(f"{source.source} has no column {column!r}, which `where` names; fix params.yaml")
    selected = [row for row in rows if all(_equals(_cell(row, column), wanted) for column, wanted in where.items())]
    if rows and not selected:
        values = ", ".join(f"{column}: {show(wanted)}" for column, wanted in where.items())
        part = "" if source.slice is None else f" among rows {source.slice}"
        raise StageError(f"{source.source} has no row{part} where {values}; name values that the file or dataset holds")
    return selected


def _equals(cell: object, wanted: str | float) -> bool:
    """Whether a cell holds a value. Files of text hold numbers as text; 1 and true are two values."""
    if isinstance(cell, str) and not isinstance(wanted, str):
        return cell.strip() == json.dumps(wanted)
    return cell == wanted and isinstance(cell, bool) == isinstance(wanted, bool)


def in_order(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """The prompts in an order by seed and id, so that another prompt does not change the order of the rest."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed} {prompt.id}".encode()).digest())


def _prompt(row: Row, column: str, item: str | None) -> Prompt | None:
    value = _cell(row, column)
    turns: list[Turn] = []
    if isinstance(value, list):
        turns = _turns(row, column, value)
        value = turns.pop().content if turns else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    prompt = _text(row, column, value)
    identified = json.dumps([*([turn.role, turn.content] for turn in turns), prompt]) if turns else prompt
    return Prompt(
        id=hashlib.sha256(identified.encode()).hexdigest()[:16],
        prompt=prompt,
        item=None if item is None else _text(row, item, _cell(row, item)),
        turns=turns,
    )


def _cell(row: Row, column: str) -> Any:
    """The cell; bytes, which are not text, if the row has none."""
    if row.content is None or isinstance(row.content, str):
        return row.content
    return row.content.get(column, b"") if isinstance(row.content, dict) else b""


def _text(row: Row, column: str, value: object) -> str:
    if not _is_text(value) or not value.strip():
        raise StageError(f"{row.where} has no text in {column!r}; fix it or name another column")
    return value.strip()


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)  # half of a surrogate pair


def _turns(row: Row, column: str, messages: Sequence[Any]) -> list[Turn]:
    """The messages up to the user's last one, without the answer to it."""
    turns = [_turn(row, column, number, message) for number, message in enumerate(messages)]
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    if turns and last is None:
        raise StageError(f"{row.where} has no user message in {column!r}; fix it or leave it out")
    return [] if last is None else turns[: last + 1]


def _turn(row: Row, column: str, number: int, message: Any) -> Turn:
    where = f"{row.where}: message {number} in {column!r}"
    if not isinstance(message, dict):
        raise StageError(f"{where} is not an object with role and content; fix it or name another column")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise StageError(f"{where} has the role {show(role)}; allowed are {', '.join(_ROLES)}")
    if not _is_text(content):
        raise StageError(f"{where} has no text as its content; fix it or leave it out")
    return Turn(role=_ROLES[role], content=content)


MOST_HELD_OUT = 100
"""Held-out prompts of each kind at most, because each is asked hundreds of times."""


def gather_kind(source: PromptSource, organism_lists: Mapping[str, list[Prompt]], seed: int) -> Gathered:
    """The harmful or the harmless prompts, the organism's in their own order, others by seed. Raises as `gather`."""
    if source.kind != "organism":
        gathered = gather(source)
        return Gathered(in_order(gathered.prompts, seed), gathered.origin)
    assert source.split is not None  # validated in params.yaml
    prompts = organism_lists[source.split]
    return Gathered(prompts, _origin(source, {"rows": len(prompts), "empty": 0, "duplicates": 0}))


def prompt_lists(
    harmful: list[Prompt], harmless: list[Prompt], prompts: Prompts, organism_lists: Mapping[str, list[Prompt]]
) -> dict[str, list[Prompt]]:
    """Prompts of both kinds to measure and to try edits on, harmless ones for drift, and the organism's tasks. Raises
    `StageError`: a prompt is in two lists, or a list is empty. Overlap with judged prompts is checked when judging."""
    if prompts.harmless.kind == "organism":
        drift = organism_lists["harmless_test"]
    else:
        # Drift is measured on the user's own kind of prompts.
        drift, harmless = hold_out(harmless)
    harmful_held_out, harmful = hold_out(harmful)
    harmless_held_out, harmless = hold_out(harmless)
    if prompts.harmless.kind == "organism":
        harmless_held_out = [*harmless_held_out, *organism_lists["harmless_various"]]
    lists = {
        "harmful": harmful[: prompts.limit],
        "harmless": harmless[: prompts.limit],
        "harmful_held_out": harmful_held_out[: prompts.limit][:MOST_HELD_OUT],
        "harmless_held_out": harmless_held_out[: prompts.limit][:MOST_HELD_OUT],
        "drift": drift,
    }
    list_of: dict[tuple[str, ...], str] = {}
    for name, listed in lists.items():
        if not listed:
            why = "as every fifth is held out; name a source with more"
            raise StageError(f"params.yaml: prompts: no {name} prompts are left, {why}")
        for prompt in listed:
            if (first := list_of.setdefault(identity(prompt), name)) != name:
                raise StageError(
                    f"params.yaml: prompts: prompt {prompt.id} is both {first} and {name}; remove it from one source"
                )
    return lists | {name: listed for name, listed in organism_lists.items() if name.startswith("organism_")}


def hold_out(prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Every fifth prompt, which is not measured, and the others. Prompts about one item count as one."""
    numbers: dict[str, int] = {}
    held_out: list[Prompt] = []
    others: list[Prompt] = []
    for prompt in prompts:
        # A prompt without an item is one by itself.
        number = numbers.setdefault(f"id {prompt.id}" if prompt.item is None else f"item {prompt.item}", len(numbers))
        (others if number % 5 else held_out).append(prompt)
    return held_out, others
