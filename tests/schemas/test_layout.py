"""The document of layouts names every key that a layout may have, and no other."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from schemas.model import Embedding, Layout, Norm, Reader, RouterBias, Variant, Writer

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/architectures.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "part", [Layout, Variant, Writer, Reader, Norm, Embedding, RouterBias], ids=lambda part: part.__name__
)
def test_the_document_has_every_key_of_a_layout(part: type[BaseModel]) -> None:
    section = DOCUMENT.split(f"### {part.__name__}\n")[1].split("\n### ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE)) == sorted(part.model_fields)
