"""The rows of a data set of the Hub, pinned by its commit."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from excise.plumbing.errors import StageError
from excise.plumbing.hub import hub_errors
from excise.prompts.rows import Row, require_columns, unpacked
from schemas.params.sources import RowsSource
from schemas.text import printable, shorten

CARD = "README.md"


def dataset_rows(source: RowsSource, columns: Sequence[str]) -> list[Row]:
    """Every row of a split, in its own order; without the network where it was read before.

    Args:
        columns: those that are read. All of them must be there.

    Raises:
        StageError: the Hub does not give it, or it has no such configuration, split or column.
    """
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
                _ask_again(source)
            raise error
    except StageError as told:
        return told
    except Exception:
        what = shorten(printable(" ".join(str(error).split())), 200)
        return StageError(f"params.yaml: {source.source} could not be loaded: {what or type(error).__name__}")


def _ask_again(source: RowsSource) -> None:
    """`datasets` forgets why the Hub refused; what it asks for first is refused again, with the reason."""
    with contextlib.suppress(RemoteEntryNotFoundError):  # a data set need not have a card
        hf_hub_download(source.source, CARD, repo_type="dataset", revision=source.revision)
