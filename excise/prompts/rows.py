"""The rows of a file in `data/`, of any supported format, or of a Hub dataset."""

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
from schemas.basis.text import one_line, shorten
from schemas.params.sources import RowsSource

MOST_MEMORY = 384 * 2**20
"""Bytes for the rows of a source, and as many again for its prompts: some hundred thousand of them."""


@contextlib.contextmanager
def unpacked(name: str) -> Iterator[None]:
    """Limits the memory of reading a source or making its prompts. Raises `StageError`: it exceeds `MOST_MEMORY`."""
    try:
        with at_most(MOST_MEMORY):
            yield
    except MemoryError:
        limit = f"{MOST_MEMORY // 2**20} MiB of memory when unpacked"
        raise StageError(f"{name} takes more than {limit}; keep fewer rows or columns in it") from None


MOST_ROWS = 1_000_000
"""Rows of a file; millions of empty ones take little memory, but time."""


@dataclass(frozen=True)
class Row:
    """One row, and its position for errors."""

    where: str
    content: Any
    """A text, or a mapping from columns; None for a blank row; something else for a row without text."""


def file_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Every row of a file in `data/`, in its order, including blank ones. Raises `StageError`: the file is missing,
    leads outside `data/`, is not in the format of its name, or is a table without these columns."""
    if not path.is_file():
        raise StageError(f"params.yaml names {path}, which is missing or is not a file; put the file there")
    if not lies_in_data(path):
        raise StageError(f"params.yaml names {path}, which leads outside {DATA}/; copy the file there")
    with unpacked(str(path)):
        return _READERS[path.suffix](path, columns)


def require_columns(name: str, columns: Iterable[str], header: Sequence[str]) -> None:
    """Raises `StageError`: a table does not have each of the columns exactly once."""
    for column in columns:
        if header.count(column) > 1:
            raise StageError(f"{name} has {header.count(column)} columns {column!r}; rename the others")
        if column not in header:
            names = shorten(", ".join(map(repr, header)), 200)
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
    """Each line and its position. Not splitlines(): a prompt may contain U+2028 and the like."""
    text = _text(path)
    _check_count(path, text.count("\n"))
    lines = text.removesuffix("\n").split("\n") if text else []
    return [(f"{path}: line {number}", line) for number, line in enumerate(lines, 1)]


def _text_rows(path: Path, _columns: Sequence[str]) -> list[Row]:
    return [Row(where, line.strip() or None) for where, line in _lines(path)]


def _json_lines(path: Path, columns: Sequence[str]) -> list[Row]:
    rows = []
    for where, line in _lines(path):
        content = None
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(line)
        if line.strip() and not isinstance(content, dict):
            raise StageError(f"{where} has no text in {columns[0]!r}; make it a JSON object")
        rows.append(Row(where, content))
    return rows


def _json_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    try:
        contents = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise StageError(f"{path} is not JSON; fix it, or name it .jsonl if each line is an object") from None
    if not isinstance(contents, list):
        raise StageError(f"{path} is not a list; write a list of texts or of objects")
    _check_count(path, len(contents))
    rows = [Row(f"{path}: row {number}", content) for number, content in enumerate(contents)]
    for row in rows:
        if not isinstance(row.content, str | dict | None):
            raise StageError(f"{row.where} has no text in {columns[0]!r}; fix it or name another column")
    return rows


def _csv_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    reader = csv.reader(io.StringIO(_text(path, newline=""), newline=""), strict=True)
    usual = csv.field_size_limit(sys.maxsize)  # a cell may be as long as a prompt
    try:
        table = list(itertools.islice(reader, MOST_ROWS + 2))
    except csv.Error as error:
        raise StageError(f"{path}: line {reader.line_num} is not CSV: {error}; fix it") from None
    finally:
        csv.field_size_limit(usual)
    header = table.pop(0) if table else []
    _check_count(path, len(table))
    require_columns(str(path), columns, header)
    rows = []
    for number, cells in enumerate(table):
        where = f"{path}: row {number}"
        if cells and len(cells) != len(header):
            raise StageError(
                f"{where} has {len(cells)} cells but the header has {len(header)}; put cells with commas in quotes"
            )
        rows.append(Row(where, dict(zip(header, cells, strict=True)) if cells else None))
    return rows


def _parquet_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    # Slow to import.
    import pyarrow
    import pyarrow.parquet

    # pyarrow's own pool reserves a gigabyte in advance, which escapes our limit.
    usual = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        file = pyarrow.parquet.ParquetFile(path)
        require_columns(str(path), columns, file.schema_arrow.names)
        table = file.read(columns=list(columns), use_threads=False)  # other threads cannot report out-of-memory
    except pyarrow.ArrowMemoryError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not a complete Parquet file: {' '.join(str(error).split())}") from None
    finally:
        pyarrow.set_memory_pool(usual)
    _check_count(path, table.num_rows)
    cells = zip(*([_plain(value) for value in table[column]] for column in columns), strict=True)
    return [Row(f"{path}: row {number}", dict(zip(columns, row, strict=True))) for number, row in enumerate(cells)]


def _plain(value: Any) -> Any:
    """A cell as a Python value; bytes, which are not text, if Python has no such value: text that is not UTF-8."""
    try:
        return value.as_py()
    except MemoryError:
        raise
    except Exception:  # which one depends on the cell's type
        return b""


_READERS: dict[str, Callable[[Path, Sequence[str]], list[Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def dataset_rows(source: RowsSource, columns: Sequence[str]) -> list[Row]:
    """Every row of a split, in its order; without the network if it was read before. Raises `StageError`: the Hub does
    not provide it, or it has no such configuration, split or column."""
    split = _split(source)
    where = f"{source.source} ({source.split})"
    require_columns(where, columns, split.column_names)
    try:
        with unpacked(source.source):
            rows = list(split.select_columns(list(columns)))
    except (ValueError, OSError) as error:  # text that is not UTF-8, a damaged cache
        raise _load_error(error, source) from None
    return [Row(f"{where}: row {number}", cells) for number, cells in enumerate(rows)]


def _split(source: RowsSource) -> Any:
    # Slow to import.
    import datasets

    assert source.revision is not None and source.split is not None  # validated in params.yaml
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    # Offline, `datasets` takes the newest version in its cache, of any commit and configuration, so each pinned one has
    # a cache of its own. The prefix keeps `datasets` from reading a local folder of the same name.
    pinned = "-".join([source.revision, *([source.config] if source.config else [])])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "pinned" / pinned
    try:
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{source.source}", name=source.config, revision=source.revision, cache_dir=str(cache)
        )
        builder.download_and_prepare()
    except Exception as error:  # builders fetch and read files of others, and may raise anything
        raise _load_error(error, source) from None
    splits = list(builder.info.splits or {})
    if source.split not in splits:
        raise StageError(f"{source.source} has no split {source.split!r}; it has {', '.join(splits) or 'none'}")
    return builder.as_dataset(split=source.split)


def _load_error(error: Exception, source: RowsSource) -> StageError:
    try:
        with hub_errors("params.yaml", source.source, "dataset"):
            if isinstance(error, OSError):
                # `datasets` loses the Hub's reason; requesting the dataset card again gives it.
                with contextlib.suppress(RemoteEntryNotFoundError):  # a dataset need not have a card
                    hf_hub_download(source.source, "README.md", repo_type="dataset", revision=source.revision)
            raise error
    except StageError as hub_error:
        return hub_error
    except Exception:  # not an error of the Hub
        reason = one_line(error, 200) or type(error).__name__
        return StageError(f"params.yaml: {source.source} could not be loaded: {reason}")
