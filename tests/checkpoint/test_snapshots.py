"""A model of the Hub: what is asked for, what is never asked for, and what is noticed."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from excise.checkpoint.base_model import base_checkpoint, base_folder, read_manifest, verify
from excise.checkpoint.snapshots import fetch
from excise.checkpoint.weights import INDEX, describes
from excise.plumbing.errors import StageError
from schemas.model import ModelManifest
from schemas.params.model import Model
from schemas.prompts import ChatFormat
from stages.prepare import pin
from tests.hub import HEADER, TOKEN, Hub

NAME = "some/model"
CHAT = ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01")
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_attention_heads": 2,
    "vocab_size": 1000,
    "dtype": "bfloat16",
}
LAYER: dict[str, tuple[int, ...]] = {
    **{f"self_attn.{name}_proj.weight": (4, 4) for name in ("q", "k", "v", "o")},
    **{f"mlp.{name}_proj.weight": (4, 4) for name in ("gate", "up", "down")},
    "input_layernorm.weight": (4,),
    "post_attention_layernorm.weight": (4,),
}
SHAPES: list[dict[str, tuple[int, ...]]] = [
    {
        "model.embed_tokens.weight": (1000, 4),
        **{f"model.layers.0.{name}": shape for name, shape in LAYER.items()},
    },
    {"model.norm.weight": (4,), "lm_head.weight": (1000, 4)},
]
SHARDS = {
    f"model-0000{number}-of-00002.safetensors": save({name: torch.ones(shape) for name, shape in shapes.items()})
    for number, shapes in enumerate(SHAPES, 1)
}
MODEL: dict[str, bytes] = {
    "config.json": json.dumps(CONFIG).encode(),
    INDEX: json.dumps(
        {"weight_map": {name: shard for shard, shapes in zip(SHARDS, SHAPES, strict=True) for name in shapes}}
    ).encode(),
    "tokenizer.json": b"{}",
    "tokenizer.model": b"pieces",
    "LICENSE": b"terms",
    "additional_chat_templates/tools.jinja": b"{{ messages }}",
    **SHARDS,
}
NEVER = {
    "README.md": b"card",
    ".gitattributes": b"",
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"again",
    "model.safetensors": b"not named by the index",
    "original/consolidated.00.pth": b"pickle",
    "original/params.json": b"{}",
    "metal/model.bin": b"again",
    "onnx/model.onnx": b"again",
    "photo.png": b"picture",
}


@pytest.fixture(autouse=True)
def home(local_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The Hub's cache, and a project in which no stage ran yet."""
    (tmp_path / "project/artifacts/params").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    local_hub.use(monkeypatch, tmp_path / "home", TOKEN)
    monkeypatch.setattr("stages.prepare.check_chat", lambda *_: None)  # its tokenizer is none
    return tmp_path / "home"


def chosen(revision: str) -> Model:
    return Model(source=NAME, revision=revision)


def pinned(revision: str) -> ModelManifest:
    """What prepare leaves: the manifest, beside the resolved parameters."""
    Path("artifacts/params/model.json").write_text(chosen(revision).model_dump_json())
    manifest, _ = pin(chosen(revision), CHAT, [])
    Path("artifacts/model.json").write_text(manifest.model_dump_json())
    return manifest


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StageError) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable() and TOKEN not in line
    return line


def blobs(home: Path) -> list[Path]:
    return [path for path in home.rglob("blobs/*") if path.is_file()]


def test_the_manifest_names_the_commit_and_every_file_with_its_digest(local_hub: Hub) -> None:
    commit = local_hub.add(NAME, MODEL)
    manifest = pinned(commit)
    assert (manifest.source, manifest.id, manifest.revision) == ("hub", NAME, commit)
    assert {file.path: file.sha256 for file in manifest.files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in MODEL.items()
    }
    verify(base_folder(read_manifest()), manifest)


def test_only_what_belongs_to_the_model_is_asked_for_and_the_weights_last(local_hub: Hub) -> None:
    pinned(local_hub.add(NAME, MODEL | NEVER))
    asked = local_hub.downloads()
    assert sorted(asked) == sorted(MODEL)
    assert set(asked[-2:]) == set(SHARDS)


@pytest.mark.parametrize("path", NEVER)
def test_what_is_never_fetched_describes_nothing(path: str) -> None:
    assert not describes(path)


def test_every_byte_lies_in_the_cache_once(local_hub: Hub, home: Path) -> None:
    pinned(local_hub.add(NAME, MODEL))
    assert len(blobs(home)) == len(MODEL)
    here = [path for path in Path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in here) < 5000 < len(SHARDS["model-00001-of-00002.safetensors"])


def test_what_is_there_is_not_asked_for_again(local_hub: Hub) -> None:
    manifest = pinned(local_hub.add(NAME, MODEL))
    local_hub.asked.clear()
    assert pinned(manifest.revision or "") == manifest
    verify(base_folder(read_manifest()), manifest)
    assert not local_hub.asked


def test_how_far_a_fetch_is_is_said(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last byte, also after a connection that was cut."""
    told: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def listening(what: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        told[what] = [total, 0]

        def advance(steps: int) -> None:
            told[what][1] += steps

        yield advance

    monkeypatch.setattr("excise.checkpoint.snapshots.progress", listening)
    commit = local_hub.add(NAME, SHARDS)
    local_hub.cut_after, local_hub.cuts = 3000, 1
    fetch(NAME, commit, list(SHARDS))
    size = sum(map(len, SHARDS.values()))
    assert told == {f"Fetch {NAME}": [size, size]}
    assert not capsys.readouterr().out


def test_offline_the_manifest_is_the_same(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pinned(local_hub.add(NAME, MODEL))
    local_hub.broken = 500
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pinned(manifest.revision or "") == manifest


def test_offline_and_not_in_the_cache_is_one_line(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = local_hub.add(NAME, MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(lambda: pinned(commit))


def test_a_stage_fetches_what_prepare_pinned_on_another_machine(
    local_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pinned(local_hub.add(NAME, MODEL | NEVER))
    local_hub.asked.clear()
    local_hub.use(monkeypatch, Path("another machine").absolute())
    folder = base_folder(read_manifest())
    verify(folder, manifest)
    assert sorted(local_hub.downloads()) == sorted(MODEL)
    assert base_checkpoint(folder, manifest).files == tuple(sorted(MODEL))


def test_a_branch_that_moves_changes_nothing(local_hub: Hub) -> None:
    first = local_hub.add(NAME, MODEL)
    manifest = pinned(first)
    local_hub.add(NAME, MODEL | {"tokenizer.json": b"[]"})
    assert pinned(first) == manifest
    assert (base_folder(read_manifest()) / "tokenizer.json").read_bytes() == b"{}"


def test_what_others_fetched_of_the_repository_is_no_part_of_the_model(local_hub: Hub) -> None:
    commit = local_hub.add(NAME, MODEL | NEVER)
    folder = fetch(NAME, commit, [*MODEL, *NEVER])
    manifest = pinned(commit)
    assert [file.path for file in manifest.files] == sorted(MODEL)
    assert base_checkpoint(folder, manifest).left_out == ()


def test_a_cut_connection_is_taken_up_where_it_was_cut(local_hub: Hub) -> None:
    commit = local_hub.add(NAME, MODEL)
    local_hub.cut_after, local_hub.cuts = 3000, 1
    pinned(commit)
    assert [asked.range for asked in local_hub.asked if asked.range not in (None, HEADER)] == ["bytes=3000-"]


def test_after_an_interruption_only_what_is_missing_is_asked_for(local_hub: Hub) -> None:
    commit = local_hub.add(NAME, MODEL)
    local_hub.cut_after, local_hub.cuts = 900, 1000  # less than a piece, so that no attempt gets on
    assert "broke off" in refused(lambda: pinned(commit))
    local_hub.cuts = 0
    local_hub.asked.clear()
    pinned(commit)
    assert set(local_hub.downloads()) <= set(SHARDS)


@pytest.mark.parametrize("path", ["config.json", "model-00002-of-00002.safetensors"])
def test_wrong_bytes_are_dropped_and_fetched_anew_and_nothing_else(local_hub: Hub, home: Path, path: str) -> None:
    commit = local_hub.add(NAME, MODEL)
    local_hub.spoiled.add(path)
    line = refused(lambda: pinned(commit))
    assert line.startswith("params.yaml: model.source: ") and f"{path} differed from the Hub" in line
    assert all(path.read_bytes().strip(b"\0") for path in blobs(home))
    local_hub.spoiled.clear()
    had = local_hub.downloads()
    pinned(commit)
    assert sorted([*had, *MODEL]) == sorted([*local_hub.downloads(), *(set(had) - {path})])


def test_bytes_that_change_in_the_cache_are_found_by_the_next_stage(local_hub: Hub) -> None:
    manifest = pinned(local_hub.add(NAME, MODEL))
    shard = base_folder(read_manifest()) / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.resolve().write_bytes(data)
    assert "was removed" in refused(lambda: verify(base_folder(read_manifest()), manifest))
    verify(base_folder(read_manifest()), manifest)


@pytest.mark.parametrize("name", ["a" * 64, "b" * 40, "notes of forty characters, none of the Hub"])
def test_a_file_that_a_snapshot_borrows_from_elsewhere_is_never_removed(
    local_hub: Hub, tmp_path: Path, name: str
) -> None:
    manifest = pinned(local_hub.add(NAME, MODEL))
    mine = tmp_path / name
    mine.write_bytes(b"mine")
    shard = base_folder(read_manifest()) / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to(mine)
    refused(lambda: verify(base_folder(read_manifest()), manifest))
    assert mine.read_bytes() == b"mine"


def test_nothing_large_is_fetched_of_what_cannot_be_edited(local_hub: Hub) -> None:
    quantised = json.dumps(CONFIG | {"quantization_config": {"quant_method": "fp8"}}).encode()
    deeper = json.dumps(CONFIG | {"num_hidden_layers": 2}).encode()
    unknown = json.dumps(CONFIG | {"model_type": "made_up"}).encode()
    shard = next(iter(SHARDS))
    packed = {INDEX: json.dumps({"weight_map": {"x_blocks": shard}}).encode(), shard: save({"x_blocks": torch.ones(2)})}
    for files, says in (
        (MODEL | {"config.json": quantised}, "is quantized (fp8)"),
        (MODEL | packed, "is quantized (MXFP4)"),
        (MODEL | {"config.json": unknown}, f"{NAME}: the layout of model type 'made_up' is unknown"),
        (MODEL | {"config.json": deeper}, f"{NAME} does not hold model.layers.1."),
        ({"config.json": MODEL["config.json"], "pytorch_model.bin": b"pickle"}, "holds only pickled weights"),
    ):
        commit = local_hub.add(NAME, files)
        assert says in refused(lambda commit=commit: pinned(commit))  # type: ignore[misc]
    assert not [path for path in local_hub.downloads() if path.endswith((".safetensors", ".bin"))]


def test_what_does_not_fit_on_the_disk_is_not_begun(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = local_hub.add(NAME, MODEL)
    small = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: small)
    line = refused(lambda: pinned(commit))
    assert "needs another" in line and "set HF_HOME to a larger disk" in line
    assert not set(SHARDS) & set(local_hub.downloads())


def test_a_gated_model_says_where_its_licence_is(local_hub: Hub) -> None:
    commit = local_hub.add(NAME, MODEL)
    local_hub.gated = 403
    assert f"{NAME} is gated; accept its licence" in refused(lambda: pinned(commit))


def test_an_index_that_names_a_file_that_is_not_there_is_one_line(local_hub: Hub) -> None:
    missing = {path: data for path, data in MODEL.items() if path != "model-00002-of-00002.safetensors"}
    commit = local_hub.add(NAME, missing)
    assert "lacks model-00002-of-00002.safetensors, which its index names" in refused(lambda: pinned(commit))


def test_files_that_repositories_share_in_the_cache_are_the_models(local_hub: Hub, home: Path) -> None:
    """As the library keeps them with xet: a link to a link."""
    manifest = pinned(local_hub.add(NAME, MODEL))
    for blob in blobs(home):
        shared = home / "hub/blobs" / blob.name[:2] / f"{blob.name}.shared"
        shared.parent.mkdir(parents=True, exist_ok=True)
        blob.rename(shared)
        blob.symlink_to(os.path.relpath(shared, blob.parent))
    verify(base_folder(read_manifest()), manifest)
    assert set(base_checkpoint(base_folder(read_manifest()), manifest).shards) == set(SHARDS)
    shard = (base_folder(read_manifest()) / "model-00001-of-00002.safetensors").resolve()
    assert shard.suffix == ".shared"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert "was removed" in refused(lambda: verify(base_folder(read_manifest()), manifest))
    assert not shard.exists()
    verify(base_folder(read_manifest()), manifest)


def test_a_pinned_path_leads_nowhere_else(local_hub: Hub, tmp_path: Path) -> None:
    manifest = pinned(local_hub.add(NAME, MODEL))
    (tmp_path / "secret.json").write_text("{}")
    folder = base_folder(read_manifest())
    for path in (str(tmp_path / "secret.json"), os.path.relpath(tmp_path / "secret.json", folder)):
        outside = manifest.files[0].model_copy(update={"path": path})
        forged = manifest.model_copy(update={"files": [*manifest.files, outside]})
        assert "leads outside" in refused(lambda forged=forged: base_checkpoint(folder, forged))  # type: ignore[misc]
        Path("artifacts/model.json").write_text(forged.model_dump_json())
        assert "leads outside" in refused(lambda: base_folder(read_manifest()))


def test_the_token_is_in_no_message(local_hub: Hub, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    pinned(local_hub.add(NAME, MODEL))
    assert {asked.token for asked in local_hub.asked} == {f"Bearer {TOKEN}"}
    out = capfd.readouterr()
    assert TOKEN not in caplog.text + out.out + out.err
    assert not [path for path in Path().rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
