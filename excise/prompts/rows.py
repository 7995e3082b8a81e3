"""The rows of a file under `data/`, whatever kind of file it is, or of a data set of the Hub. What a row says is read
in `gathering.py`."""

import contextlib
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from excise.plumbing.errors import StageError
from excise.plumbing.files import DATA, lies_in_data
from excise.plumbing.hub import hub_errors
from excise.plumbing.machine import at_most
from schemas.basis.text import printable, shorten
from schemas.params.sources import RowsSource

MOST_MEMORY = 384 * 2**20
"""Bytes for the rows of a source, and as many again for what is made of them: some hundred thousand prompts."""


@contextlib.contextmanager
def unpacked(name: str) -> Iterator[None]:
    """A block that reads a source, or makes prompts of it. Raises `StageError`: that takes more than `MOST_MEMORY`."""
    try:
        with at_most(MOST_MEMORY):
            yield
    except MemoryError:
        what = f"takes more than {MOST_MEMORY // 2**20} MiB of memory once it is unpacked"
        raise StageError(f"{name} {what}; keep fewer rows or columns in it") from None


CARD = "README.md"
"""Of a data set."""
MOST_ROWS = 1_000_000
"""Of a file: millions of empty ones take little room, but their time."""


@dataclass(frozen=True)
class Row:
    """One row, and where it stands, for errors."""

    where: str
    content: Any
    """A text, or a mapping from columns; None for a row that is blank."""


def file_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Every row of a file below `data/`, blank ones too, in its own order. Raises `StageError`: the file is missing,
    leads outside `data/`, is not what its name says, or is a table without these columns."""
    if not path.is_file():
        raise StageError(f"params.yaml names {path}, which is missing or is not a file; put the file there")
    if not lies_in_data(path):
        raise StageError(f"params.yaml names {path}, which leads outside {DATA}/; copy the file there")
    with unpacked(str(path)):
        return _READERS[path.suffix](path, columns)


def require_columns(name: str, columns: Iterable[str], there: Sequence[str]) -> None:
    """Raises `StageError` where a table lacks one of the columns, or has several of the same name."""
    for column in columns:
        if there.count(column) > 1:
            raise StageError(f"{name} has {there.count(column)} columns {column!r}; rename the others")
        if column not in there:
            names = shorten(", ".join(map(repr, there)), 200)
            raise StageError(f"{name} has no column {column!r}; it has {names or 'none'}")


def _check_count(path: Path, rows: int) -> None:
    if rows > MOST_ROWS:
        raise StageError(f"{path} has more than {MOST_ROWS:,} rows; keep fewer in it")


def _text(path: Path, newline: str | None = None) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError:
        raise StageError(f"{path} is not UTF-8 text; convert it") from None


def _lines(path: Path) -> list[tuple[str, str]]:
    """Each line and where it stands. Not splitlines(): a prompt may hold U+2028 and the like."""
    text = _text(path)
    _check_count(path, text.count("\n"))
    lines = text.removesuffix("\n").split("\n") if text else []
    return [(f"{path}: line {number}", line) for number, line in enumerate(lines, 1)]


def _text_rows(path: Path, _columns: Sequence[str]) -> list[Row]:
    return [Row(where, line.strip() or None) for where, line in _lines(path)]


def _json_lines(path: Path, columns: Sequence[str]) -> list[Row]:
    return [Row(where, _object(where, line, columns) if line.strip() else None) for where, line in _lines(path)]


def _object(where: str, line: str, columns: Sequence[str]) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StageError(f"{where} holds no text under {columns[0]!r}; it is no JSON object")
    return found


def _json_rows(path: Path, _columns: Sequence[str]) -> list[Row]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise StageError(f"{path} is not JSON; mend it, or name it .jsonl where each line is an object") from None
    if not isinstance(found, list):
        raise StageError(f"{path} holds no list; write a list of texts, or of objects")
    _check_count(path, len(found))
    rows = [Row(f"{path}: row {number}", item) for number, item in enumerate(found)]
    for row in rows:
        if not isinstance(row.content, str | dict | None):
            raise StageError(f"{row.where} is neither a text nor an object; mend it")
    return rows


def _csv_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    reader = csv.reader(io.StringIO(_text(path, newline=""), newline=""), strict=True)
    usual = csv.field_size_limit(sys.maxsize)  # of the whole process: a cell may be as long as a prompt
    try:
        table = list(itertools.islice(reader, MOST_ROWS + 2))
    except csv.Error as error:
        raise StageError(f"{path}: line {reader.line_num} is not CSV: {error}; mend it") from None
    finally:
        csv.field_size_limit(usual)
    header = table.pop(0) if table else []
    _check_count(path, len(table))
    require_columns(str(path), columns, header)
    rows = []
    for number, cells in enumerate(table):
        where = f"{path}: row {number}"
        if cells and len(cells) != len(header):
            what = f"has {len(cells)} cells and the header {len(header)}"
            raise StageError(f"{where} {what}; put cells with commas into quotes")
        rows.append(Row(where, dict(zip(header, cells, strict=True)) if cells else None))
    return rows


def _parquet_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    # Slow to import, and needed only here.
    import pyarrow
    import pyarrow.parquet

    # Its own pool reserves a gigabyte ahead, which no limit then sees.
    usual = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        file = pyarrow.parquet.ParquetFile(path)
        require_columns(str(path), columns, file.schema_arrow.names)
        table = file.read(columns=list(columns), use_threads=False)  # other threads cannot say that memory ran out
    except pyarrow.ArrowMemoryError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())}") from None
    finally:
        pyarrow.set_memory_pool(usual)
    _check_count(path, table.num_rows)
    cells = zip(*([_plain(value) for value in table[column]] for column in columns), strict=True)
    return [Row(f"{path}: row {number}", dict(zip(columns, row, strict=True))) for number, row in enumerate(cells)]


def _plain(value: Any) -> Any:
    """What a cell of a table holds; bytes, which are no text, where Python has no word for it: text that is not UTF-8,
    a date beyond Python's, an unknown time zone."""
    try:
        return value.as_py()
    except MemoryError:
        raise
    except Exception:  # each type of a cell raises another
        return b""


_READERS: dict[str, Callable[[Path, Sequence[str]], list[Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def dataset_rows(source: RowsSource, columns: Sequence[str]) -> list[Row]:
    """Every row of a split, in its own order; without the network where it was read before. Raises `StageError`: the
    Hub does not give it, or it has no such configuration, split or column."""
    found = _split(source)
    require_columns(f"{source.source} ({source.split})", columns, found.column_names)
    try:
        with unpacked(source.source):
            rows = list(found.select_columns(list(columns)))
    except (ValueError, OSError) as error:  # a text that is not UTF-8, a cache that was spoiled
        raise _told(error, source) from None
    return [Row(f"{source.source} ({source.split}): row {number}", cells) for number, cells in enumerate(rows)]


def _split(source: RowsSource) -> Any:
    # Slow to import, and needed only here.
    import datasets

    assert source.revision is not None and source.split is not None  # params.yaml was refused otherwise
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    # Without the network `datasets` takes the newest that it finds, of whatever commit and configuration: what is
    # pinned lies apart. The prefix keeps it from taking a folder of the same name here for the data set.
    pinned = "-".join([source.revision, *([source.config] if source.config else [])])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "pinned" / pinned
    try:
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{source.source}", name=source.config, revision=source.revision, cache_dir=str(cache)
        )
        builder.download_and_prepare()
    except Exception as error:  # builders fetch and read what others wrote: what they raise is theirs
        raise _told(error, source) from None
    splits = list(builder.info.splits or {})
    if source.split not in splits:
        raise StageError(f"{source.source} has no split {source.split!r}; it has {', '.join(splits) or 'none'}")
    return builder.as_dataset(split=source.split)


def _told(error: Exception, source: RowsSource) -> StageError:
    try:
        with hub_errors("params.yaml", source.source, "dataset"):
            if isinstance(error, OSError):
                # `datasets` forgets why the Hub refused; what it asks for first is refused again, with the reason.
                with contextlib.suppress(RemoteEntryNotFoundError):  # a data set need not have a card
                    hf_hub_download(source.source, CARD, repo_type="dataset", revision=source.revision)
            raise error
    except StageError as told:
        return told
    except Exception:  # what was raised here: an error that the Hub has no words for
        what = shorten(printable(" ".join(str(error).split())), 200)
        return StageError(f"params.yaml: {source.source} could not be loaded: {what or type(error).__name__}")
