"""Where prompts come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from schemas.basis.document import Section
from schemas.basis.fields import PATH, matches
from schemas.basis.text import show, suggest
from schemas.wording import WrongValue

SourceKind = Literal["organism", "file", "dataset"]
_MEASURED_LISTS = ("harmful_train", "harmless_train")
_DATA_FILE = rf"data/{PATH}\.(?:txt|jsonl|json|csv|parquet)"
# What is named like a file is taken for one that lies in the wrong place.
_DATASET = r"(?!data/|.*\.(?:txt|jsonl|json|csv|parquet)$)[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ROWS_WORDS = (
    "a .txt, .jsonl, .json, .csv or .parquet file under data/ (such as data/harmful.jsonl, without . or ..) or the id "
    "of a Hub data set (such as organisation/name)"
)
RowSource = Annotated[str, matches(rf"{_DATA_FILE}|{_DATASET}", _ROWS_WORDS)]
MeasuredSource = Annotated[
    str, matches(rf"organism|{_DATA_FILE}|{_DATASET}", f"organism, {_ROWS_WORDS}", ("organism",))
]
ColumnName = Annotated[str, matches(r"[^\x00-\x1f\x7f]+", "the name of a column")]
ConfigName = Annotated[str, matches(r"[^<>:/\\|?*\x00-\x1f\x7f]+", "the name of one of the data set's configurations")]
SplitName = Annotated[str, matches(r"\w+(?:\.\w+)*", "the name of a split, such as train; slice takes a part of it")]
RowSlice = Annotated[
    str,
    matches(r"[0-9]{1,15}:(?:[0-9]{1,15})?|:[0-9]{1,15}", 'a part by row numbers from 0, such as "100:500" or ":400"'),
]
DatasetCommit = Annotated[
    str,
    matches(
        r"[0-9a-f]{40}",
        "a commit of 40 hexadecimal digits (`make pin DATASET=organisation/name` prints the newest); a branch may move",
    ),
]


def row_range(text: str | None) -> slice:
    """What a `slice` of params.yaml takes; all where there is none."""
    if text is None:
        return slice(None)
    return slice(*(int(end) if end else None for end in text.split(":")))


_PLACES: dict[str, tuple[tuple[SourceKind, ...], str]] = {
    "revision": (("dataset",), "Hub data sets"),
    "config": (("dataset",), "Hub data sets"),
    "split": (("organism", "dataset"), "the source organism and Hub data sets"),
    "slice": (("file", "dataset"), "files and Hub data sets"),
}
"""The kinds of source that a key means something for, and what errors call them."""


class RowsSource(Section):
    """Where prompts come from that are not the organism's: a file under `data/`, or a data set of the Hub."""

    source: RowSource
    """A file under `data/` (`.txt`, `.jsonl`, `.json`, `.csv`, `.parquet`), or the id of a Hub data set, such as
    `organisation/name` (docs/prompts.md)."""
    revision: DatasetCommit | None = None
    """For a Hub data set alone, its commit; `make pin DATASET=id` prints the newest."""
    config: ConfigName | None = None
    """For a Hub data set alone, which of its configurations; `null`: its default one."""
    split: SplitName | None = None
    """For a Hub data set alone, which of its splits."""
    slice: RowSlice | None = None
    """Only these rows of a file or data set, in its own order, as in Python: `"100:500"`, `":400"`."""
    column: ColumnName | None = None
    """For other sources than `organism` and `.txt` files, which column or key holds the prompt: a text, or a list of
    messages; `prompt` where none is given."""

    @property
    def kind(self) -> SourceKind:
        """What `source` names."""
        if self.source == "organism":
            return "organism"
        return "file" if self.source.startswith("data/") else "dataset"

    @property
    def has_columns(self) -> bool:
        """Whether its rows are more than a text."""
        return self.kind == "dataset" or (self.kind == "file" and not self.source.endswith(".txt"))

    @model_validator(mode="before")
    @classmethod
    def _name_the_column(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("column") is not None:
            return given
        source = given.get("source")
        plain = not isinstance(source, str) or source == "organism" or source.endswith(".txt")
        return given if plain else {**given, "column": "prompt"}

    @model_validator(mode="after")
    def _fit_the_source(self) -> Self:
        if self.kind == "dataset" and self.revision is None:
            newest = f"`make pin DATASET={self.source}` prints the newest"
            raise WrongValue(f"is missing; a data set of the Hub is pinned by its commit, and {newest}", "revision")
        if self.kind == "dataset" and self.split is None:
            raise WrongValue(f"is missing; say which split of {self.source}, such as train", "split")
        for key, (kinds, place) in _PLACES.items():
            if self.kind not in kinds and getattr(self, key) is not None:
                raise self._misplaced(key, place)
        if self.column is not None and not self.has_columns:
            raise self._misplaced("column", "rows with columns or keys")
        rows = row_range(self.slice)
        if rows.stop is not None and rows.stop <= (rows.start or 0):
            raise WrongValue(f"must take at least one row, got {show(self.slice)}", "slice")
        return self

    def _misplaced(self, key: str, place: str) -> WrongValue:
        return WrongValue(f"is for {place} alone, got {show(getattr(self, key))} for {show(self.source)}", key)


class PromptSource(RowsSource):
    """Where one side's prompts come from."""

    source: MeasuredSource
    """`organism`, a file under `data/` (`.txt`, `.jsonl`, `.json`, `.csv`, `.parquet`), or the id of a Hub data set,
    such as `organisation/name` (docs/prompts.md)."""
    split: SplitName | None = None
    """For `organism`, `harmful_train` or `harmless_train`; its lists of evaluation and drift are not offered, as no
    prompt is both measured and judged. For a Hub data set, which of its splits."""

    @model_validator(mode="after")
    def _name_a_list_of_the_organism(self) -> Self:
        if self.kind == "organism" and self.split is None:
            raise WrongValue(f"is missing; for organism it is {' or '.join(_MEASURED_LISTS)}", "split")
        if self.kind == "organism" and self.split not in _MEASURED_LISTS:
            given = f"{show(self.split)}{suggest(self.split, _MEASURED_LISTS)}"
            raise WrongValue(f"must be one of {', '.join(_MEASURED_LISTS)} for organism, got {given}", "split")
        return self


class CustomPrompts(RowsSource):
    """The user's own prompts of one kind, for the tasks `refusal_custom` and `over_refusal_custom`."""

    item: ColumnName | None = None
    """For rows with columns or keys alone, which one says what several prompts are about: those that share it count as
    one cluster, not as independent samples."""

    @model_validator(mode="after")
    def _name_the_item_where_there_are_columns(self) -> Self:
        if self.item is not None and not self.has_columns:
            raise self._misplaced("item", "rows with columns or keys")
        return self
