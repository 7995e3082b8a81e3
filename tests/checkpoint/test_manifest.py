"""A model folder is pinned by every file of it, and whatever changes there is found."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from excise.checkpoint.base_model import make_manifest, read_config, verify
from excise.plumbing.errors import StageError
from excise.plumbing.files import digests
from schemas.families import layouts
from schemas.model import ModelLayout, ModelManifest
from schemas.params.model import Model

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 4, "dtype": "bfloat16"}
LAYOUT = ModelLayout(
    model_type="llama",
    layers=2,
    hidden_size=4,
    experts=None,
    residual_multiplier=1.0,
    tied=False,
    family=layouts()["llama"],
)


def configure(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as its files go."""
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    configure(made, CONFIG)
    save_file({"a": torch.ones(3)}, made / "model.safetensors")
    (made / "tokenizer.json").write_text("{}")
    (made / "sub/notes.txt").write_text("notes")
    (made / "pytorch_model.bin").write_bytes(b"left out")
    return made


def pin(folder: Path, dtype: str = "auto") -> ModelManifest:
    return make_manifest(folder, Model.model_validate({"source": str(folder), "dtype": dtype}), LAYOUT)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StageError) as caught:
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_every_file_of_the_model_is_pinned_by_size_and_digest(folder: Path) -> None:
    paths = ["config.json", "model.safetensors", "sub/notes.txt", "tokenizer.json"]
    assert [(file.path, file.size, file.sha256) for file in pin(folder).files] == [
        (path, (folder / path).stat().st_size, hashlib.sha256((folder / path).read_bytes()).hexdigest())
        for path in paths
    ]


def test_a_digest_is_of_the_whole_file_however_large(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000 + b"end"  # several chunks and a rest
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    found = digests(tmp_path, ["large", "empty"])
    assert [file.path for file in found] == ["empty", "large"]
    assert [file.sha256 for file in found] == [hashlib.sha256(each).hexdigest() for each in (b"", data)]


def test_a_manifest_describes_the_model_and_not_where_it_lies(folder: Path, tmp_path: Path) -> None:
    manifest = pin(folder)
    assert (manifest.source, manifest.model_type, manifest.layers, manifest.hidden_size) == ("folder", "llama", 2, 4)
    folder.rename(tmp_path / "elsewhere")
    assert pin(tmp_path / "elsewhere") == manifest
    assert str(tmp_path) not in manifest.model_dump_json()


@pytest.mark.parametrize(
    ("declared", "asked", "resolved"),
    [
        ({"dtype": "bfloat16"}, "auto", "bfloat16"),
        ({"torch_dtype": "float16"}, "auto", "float16"),
        ({}, "auto", "float32"),
        ({"dtype": None}, "auto", "float32"),
        ({"dtype": "bfloat16"}, "float32", "float32"),
        ({"dtype": "float64"}, "float32", "float32"),
    ],
)
def test_auto_is_the_dtype_of_the_config(folder: Path, declared: dict[str, Any], asked: str, resolved: str) -> None:
    configure(folder, {name: value for name, value in CONFIG.items() if name != "dtype"} | declared)
    assert pin(folder, asked).dtype == resolved


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn", 7, ["float32"]])
def test_a_dtype_that_is_not_loaded_is_refused(folder: Path, dtype: Any) -> None:
    configure(folder, CONFIG | {"dtype": dtype})
    line = refused(lambda: pin(folder))
    assert "config.json" in line and repr(dtype) in line and "bfloat16" in line


def test_the_text_part_of_a_config_is_read(folder: Path) -> None:
    configure(folder, {"model_type": "both", "vision_config": {"hidden_size": 9}, "text_config": CONFIG})
    manifest = pin(folder)
    assert (manifest.model_type, manifest.hidden_size, manifest.dtype) == ("llama", 4, "bfloat16")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "7", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(lambda: read_config(folder))


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(lambda: pin(folder))


def test_what_did_not_change_is_verified(folder: Path) -> None:
    manifest = pin(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a part of the model")
    verify(folder, manifest)


def change_one_bit_and_nothing_else(folder: Path) -> str:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return "model.safetensors"


def lose_a_file(folder: Path) -> str:
    (folder / "sub/notes.txt").unlink()
    return "sub/notes.txt"


def add_a_file(folder: Path) -> str:
    (folder / "sub/new.json").write_text("{}")
    return "sub/new.json"


@pytest.mark.parametrize("spoil", [change_one_bit_and_nothing_else, lose_a_file, add_a_file])
def test_whatever_changes_is_named(folder: Path, spoil: Callable[[Path], str]) -> None:
    manifest = pin(folder)
    path = spoil(folder)
    line = refused(lambda: verify(folder, manifest))
    assert line.startswith(f"{folder / path} has changed since it was pinned") and "dvc repro" in line


@pytest.mark.parametrize("spoil", [change_one_bit_and_nothing_else, lose_a_file, add_a_file])
def test_the_organism_is_verified_byte_for_byte_too(folder: Path, spoil: Callable[[Path], str]) -> None:
    """DVC itself looks at sizes and times, which a job can put back."""
    manifest = make_manifest(folder, Model(), LAYOUT)
    verify(folder, manifest)
    path = spoil(folder)
    line = refused(lambda: verify(folder, manifest))
    assert (
        line.startswith(f"{folder / path} has changed since it was pinned; delete {folder}") and "dvc checkout" in line
    )
