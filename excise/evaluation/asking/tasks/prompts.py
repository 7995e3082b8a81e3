"""Functions by which task files find their prompts; lm-eval imports this file by path, from the project folder."""

import csv
import hashlib
import urllib.request
from pathlib import Path
from typing import Any

from datasets import Dataset, config

from excise.evaluation.asking.conversations import Conversations, transcript
from excise.plumbing.errors import StageError
from excise.plumbing.files import sha256_of, write_bytes
from excise.prompts.chats import read_prompts
from excise.prompts.gathering import gather
from schemas.basis.text import one_line
from schemas.params.sources import CustomPrompts

__all__ = ["Conversations", "base", "custom", "organism", "published", "safe", "transcript"]


def organism(name: str, **_metadata: Any) -> dict[str, Dataset]:
    """One of the organism's prompt lists."""
    prompts = read_prompts(name)
    return {"test": Dataset.from_list([prompt.model_dump(exclude={"turns"}) for prompt in prompts])}


LARGEST_TABLE = 2**26
"""Bytes of a published table; the largest here has a thousandth of it."""


def published(url: str, sha256: str, where: dict[str, str] | None = None, **_metadata: Any) -> dict[str, Dataset]:
    """The rows of a CSV file on the web that have the values of `where`, by column. The file is read once, and kept
    next to pinned datasets by its SHA-256. Raises `StageError`: it cannot be read, or has other bytes."""
    path = Path(config.HF_DATASETS_CACHE) / "pinned" / f"{sha256}.csv"
    if not path.is_file() or sha256_of(path) != sha256:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                content = answer.read(LARGEST_TABLE)
        except OSError as error:
            raise StageError(
                f"{url} cannot be read: {one_line(error, 120)}; run again, or leave its task out"
            ) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise StageError(f"{url} has changed since its SHA-256 was pinned; leave its task out")
        write_bytes(path, content)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = (where or {}).items()
    return {"test": Dataset.from_list([row for row in rows if all(row[column] == value for column, value in wanted)])}


def safe(documents: Dataset) -> Dataset:
    """XSTest's safe prompts, without the unsafe ones that it has for contrast."""
    return documents.filter(lambda document: document["label"] == "safe")


def base(documents: Dataset) -> Dataset:
    """SORRY-Bench's prompts as they were written, without their 20 paraphrases, encodings and translations each."""
    return documents.filter(lambda document: document["prompt_style"] == "base")


def custom(**kwargs: Any) -> dict[str, Dataset]:
    """The user's own prompts, with the earlier messages of each. Raises `StageError`: they cannot be read."""
    source = CustomPrompts(**{name: kwargs[name] for name in CustomPrompts.model_fields if name in kwargs})
    return {"test": Dataset.from_list([prompt.model_dump() for prompt in gather(source).prompts])}
