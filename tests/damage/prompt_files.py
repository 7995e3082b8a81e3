"""Damaged, hostile and merely odd prompt files. The first numbers are files that stand for gigabytes."""

import csv
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from excise.prompts.gathering import gather
from schemas.params.sources import PromptSource

KINDS = ("txt", "jsonl", "json", "csv", "parquet")
MEGABYTE = "x" * 1_000_000


@contextmanager
def trial(number: int, folder: Path) -> Iterator[Callable[[], object]]:
    """One file below `data/`, gathered as `prepare` does."""
    os.chdir(folder)
    dice = random.Random(number)
    bomb = BOMBS[number] if number < len(BOMBS) else None
    path = Path("data") / f"prompts.{bomb[0] if bomb else dice.choice(KINDS)}"
    path.parent.mkdir(exist_ok=True)
    try:
        if bomb is not None:
            bomb[1](path)
        else:
            path.write_bytes(damaged(dice, file_of(path.suffix[1:], rows(dice))))
        column = None if path.suffix == ".txt" else dice.choice([None, None, "prompt", "text", "é"])
        yield partial(gather, PromptSource(source=path.as_posix(), column=column))
    finally:
        path.unlink(missing_ok=True)


def repeated(cells: list[Any], times: int) -> Callable[[Path], None]:
    """A Parquet file that holds the same cells again and again; a group of rows at a time, so that few are made."""

    def write(path: Path) -> None:
        table = pyarrow.table({"prompt": pyarrow.array(cells)})
        with pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for _ in range(times):
                writer.write_table(table)

    return write


def text(content: bytes, times: int) -> Callable[[Path], None]:
    """A file of the same bytes again and again."""

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            for _ in range(100):
                file.write(content * (times // 100))

    return write


def hole(path: Path) -> None:
    """Twenty gigabytes of nothing, which take no room."""
    with open(path, "wb") as file:
        file.truncate(20 * 2**30)


BOMBS: list[tuple[str, Callable[[Path], Any]]] = [
    ("parquet", repeated([MEGABYTE] * 10, 200)),
    ("parquet", repeated([[{"role": "user", "content": MEGABYTE}]] * 10, 100)),
    ("parquet", repeated([""] * 1_000_000, 20)),
    *((kind, hole) for kind in KINDS),
    *((kind, os.mkfifo) for kind in KINDS),
    ("txt", lambda path: path.symlink_to(path.name)),
    ("txt", text(b"a\n", 20_000_000)),
    ("jsonl", text(b"\n", 20_000_000)),
    ("jsonl", text(b"{}\n", 10_000_000)),
    ("jsonl", text(b'{"prompt":', 5_000_000)),
    ("json", text(b"[],", 20_000_000)),
    ("json", text(b"[", 5_000_000)),
    ("csv", text(b"ab,", 20_000_000)),
    ("csv", text(b"prompt\n", 10_000_000)),
]


def rows(dice: random.Random) -> list[dict[str, Any]]:
    """A few rows, most of which hold a prompt."""
    words = [
        "Name a river.",
        "é\u2028z",
        "a\r\nb\rc\nd",
        "nul\0in",
        " ",
        "",
        '"',
        ",",
        "\t",
        "x" * 140_000,
        "\ud83d\ude00",
    ]
    said = [
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "?"},
        ],
        [{"from": "human", "value": "Hello"}],
        [{"role": "nobody", "content": "Hello"}],
        [{"role": "user"}],
        [],
    ]
    cells = words if dice.random() < 0.7 else said
    return [{"prompt": dice.choice(cells), "text": dice.choice(words)} for _ in range(dice.randrange(1, 6))]


def file_of(kind: str, listed: list[dict[str, Any]]) -> bytes:
    """The rows as a file of that kind."""
    if kind == "parquet":
        kept = [row for row in listed if isinstance(row["prompt"], type(listed[0]["prompt"]))]
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(json.loads(json.dumps(kept))), sink)
        return sink.getvalue()
    if kind == "csv":
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["prompt", "text"])
        writer.writeheader()
        writer.writerows(listed)
        return table.getvalue().encode("utf-8", "surrogatepass")
    if kind == "txt":
        return "\n".join(row["text"] for row in listed).encode("utf-8", "surrogatepass")
    lines = [json.dumps(row, ensure_ascii=False) for row in listed]
    joined = "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]"
    return joined.encode("utf-8", "surrogatepass")


def damaged(dice: random.Random, data: bytes) -> bytes:
    """The bytes with some changed, cut, put in or doubled; a fifth as they are."""
    for _ in range(dice.choice([0, 1, 1, 2, 8])):
        place = dice.randrange(len(data) + 1)
        what = dice.randrange(5)
        if what == 0:
            data = data[:place] + dice.randbytes(dice.randrange(1, 5)) + data[place + 1 :]
        elif what == 1:
            data = data[:place]
        elif what == 2:
            words = [
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b'"',
                b"\r",
                b"[" * 5000,
                b"NaN",
                b"9" * 5000,
                b"\\ud800",
                b"null",
            ]
            data = data[:place] + dice.choice(words) + data[place:]
        elif what == 3:
            data = data[:place] + data[dice.randrange(place + 1) : place] + data[place:]
        else:
            data = data[place:]
    return data
