"""From the rows of a source to its prompts, each once, with what was read and what was left out."""

import hashlib
import json
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
from schemas.params.sources import CustomPrompts, PromptSource, RowsSource, row_range
from schemas.prompts import Prompt, PromptOrigin, Role, Turn

_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "human": "user", "gpt": "assistant"}
"""Those of chats, and ShareGPT's names for them."""


@dataclass(frozen=True)
class Gathered:
    """The prompts of a source, in its own order, and where they come from."""

    prompts: list[Prompt]
    origin: PromptOrigin


def gather(source: RowsSource) -> Gathered:
    """The prompts of a file below `data/` or of a data set of the Hub. Rows without a prompt are passed over; of those
    that hold the same one (`excise.prompts.chats.identity`) the first stands for all. Both are counted. Raises
    `StageError`: it cannot be read, a row holds something else than a prompt, or none holds one."""
    column = source.column or "prompt"
    item = source.item if isinstance(source, CustomPrompts) else None
    columns = [column] if item is None else [column, item]
    rows = dataset_rows(source, columns) if source.kind == "dataset" else file_rows(Path(source.source), columns)
    taken = rows[row_range(source.slice)]
    with unpacked(source.source):
        found = [prompt for row in taken if (prompt := _prompt(row, column, item)) is not None]
    if not found:
        part = "; write some" if source.slice is None else f" in rows {source.slice} of its {len(rows)}"
        raise StageError(f"{source.source} holds no prompt{part}")
    first: dict[object, Prompt] = {}
    for prompt in found:
        first.setdefault(identity(prompt), prompt)
    return Gathered([*first.values()], _origin(source, len(taken), len(taken) - len(found), len(found) - len(first)))


def _origin(source: PromptSource | RowsSource, rows: int, empty: int, duplicates: int) -> PromptOrigin:
    given = source.model_dump(include={"source", "revision", "config", "split", "slice", "column"})
    sha256 = sha256_of(Path(source.source)) if source.kind == "file" else None
    return PromptOrigin(kind=source.kind, **given, sha256=sha256, rows=rows, empty=empty, duplicates=duplicates)


def in_order(prompts: Iterable[Prompt], seed: int) -> list[Prompt]:
    """The prompts in an order that depends on the seed and on each prompt alone: one more moves no other."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed} {prompt.id}".encode()).digest())


def _prompt(row: Row, column: str, item: str | None) -> Prompt | None:
    """What a row asks; None where it asks nothing."""
    value = _cell(row, column)
    turns = _turns(row, column, value) if isinstance(value, list) else []
    if isinstance(value, list):
        value = turns.pop().content if turns else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    prompt = _a_text(row, column, value)
    said = json.dumps([*([turn.role, turn.content] for turn in turns), prompt]) if turns else prompt
    return Prompt(
        id=hashlib.sha256(said.encode()).hexdigest()[:16],
        prompt=prompt,
        item=None if item is None else _a_text(row, item, _cell(row, item)),
        turns=turns,
    )


def _cell(row: Row, column: str) -> Any:
    if row.content is None or isinstance(row.content, str):
        return row.content
    if column not in row.content:
        raise _no_text(row, column)
    return row.content[column]


def _a_text(row: Row, column: str, value: object) -> str:
    if not _is_text(value) or not value.strip():
        raise _no_text(row, column)
    return value.strip()


def _is_text(value: object) -> TypeGuard[str]:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _no_text(row: Row, column: str) -> StageError:
    return StageError(f"{row.where} holds no text under {column!r}; mend it or name another column")


def _turns(row: Row, column: str, messages: Sequence[Any]) -> list[Turn]:
    """The messages up to the user's last one; what was answered to that is what a model is asked for here."""
    turns = [_turn(row, column, number, message) for number, message in enumerate(messages)]
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    if turns and last is None:
        raise StageError(f"{row.where} holds no message of the user's under {column!r}; mend it or leave it out")
    return [] if last is None else turns[: last + 1]


def _turn(row: Row, column: str, number: int, message: Any) -> Turn:
    where = f"{row.where}: message {number} under {column!r}"
    if not isinstance(message, dict):
        raise StageError(f"{where} is no object with role and content; mend it or name another column")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise StageError(f"{where} has the role {show(role)}; there are {', '.join(_ROLES)}")
    if not _is_text(content):
        raise StageError(f"{where} has no text for its content; mend it or leave it out")
    return Turn(role=_ROLES[role], content=content)


MOST_HELD_OUT = 100
"""Of either side: each is asked hundreds of times."""


def side(source: PromptSource, made: Mapping[str, list[Prompt]], seed: int) -> Gathered:
    """One side's prompts, in the order of which every fifth is held out; the organism's are in its own. Raises
    `StageError`: the source cannot be read, or holds no prompt."""
    if source.kind != "organism":
        gathered = gather(source)
        return Gathered(in_order(gathered.prompts, seed), gathered.origin)
    assert source.split is not None  # params.yaml was refused otherwise
    prompts = made[source.split]
    return Gathered(prompts, _origin(source, len(prompts), empty=0, duplicates=0))


def prompt_lists(
    harmful: list[Prompt], harmless: list[Prompt], prompts: Prompts, made: Mapping[str, list[Prompt]]
) -> dict[str, list[Prompt]]:
    """Both sides to measure, prompts of both to try edits on, harmless ones for drift, and the organism's tasks, which
    are `made`. Raises `StageError`: a prompt stands in two lists, or a list is too short. Whether judged prompts are
    measured ones is seen where they are judged."""
    if prompts.harmless.kind == "organism":
        drift = made["harmless_test"]
    else:
        # So that drift is judged on prompts of the user's kind.
        drift, harmless = hold_out(harmless)
    harmful_held_out, harmful = hold_out(harmful)
    harmless_held_out, harmless = hold_out(harmless)
    lists = {
        "harmful": harmful[: prompts.limit],
        "harmless": harmless[: prompts.limit],
        "harmful_held_out": harmful_held_out[: prompts.limit][:MOST_HELD_OUT],
        "harmless_held_out": harmless_held_out[: prompts.limit][:MOST_HELD_OUT],
        "drift": drift,
    }
    seen: dict[tuple[str, ...], str] = {}
    for name, listed in lists.items():
        if not listed:
            raise StageError(f"params.yaml: prompts: there is no {name} prompt; name a source with more")
        for prompt in listed:
            if (first := seen.setdefault(identity(prompt), name)) != name:
                raise StageError(f"params.yaml: prompts: prompt {prompt.id} is both {first} and {name}")
    return lists | {name: listed for name, listed in made.items() if name.startswith("organism_")}


def hold_out(listed: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Every fifth prompt, which is kept from measuring, and the others."""
    return listed[::5], [prompt for place, prompt in enumerate(listed) if place % 5]
