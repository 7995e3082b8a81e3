"""A base model that is not whole: one line that says what is wrong and where, and nothing half-written."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.projects import Project, one_line

pytestmark = pytest.mark.slow

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(local_model: tuple[Project, Path]) -> tuple[Project, Path]:
    """A local base model in several shards."""
    project, folder = local_model
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return project, folder


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def redirect(folder: Path, file: str) -> None:
    """Make the index say that every tensor of the first shard lies in `file`."""
    index = json.loads((folder / INDEX).read_text())
    old = first_shard(folder).name
    index["weight_map"] = {name: file if at == old else at for name, at in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.nightly
def test_a_sharded_local_model_is_measured_and_edited(sharded: tuple[Project, Path]) -> None:
    project, folder = sharded
    (folder / "notes").mkdir()
    (folder / "notes/origin.txt").write_text("from elsewhere")
    for stage in ("prepare", "measure", "directions", "ablate"):
        done = project.stage(stage)
        assert (done.returncode, done.stderr) == (0, ""), stage
    edited = project.folder / "models/ablated"
    assert (edited / "notes/origin.txt").read_text() == "from elsewhere"
    own = {"edit.json", "edit.json.sha256", "README.md"}
    assert {path.name for path in folder.iterdir()} | own == {path.name for path in edited.iterdir()}
    AutoModelForCausalLM.from_pretrained(edited, local_files_only=True)


def test_a_truncated_shard_is_named(sharded: tuple[Project, Path]) -> None:
    project, folder = sharded
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-1000])
    error = one_line(project.stage("prepare"))
    assert f"{shard} is truncated" in error


@pytest.mark.nightly
def test_a_shard_truncated_after_it_was_pinned_is_named(sharded: tuple[Project, Path]) -> None:
    project, folder = sharded
    for stage in ("prepare", "measure"):
        assert project.stage(stage).returncode == 0
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-1000])
    before = (project.folder / "models/ablated/edit.json").read_bytes()
    assert f"{shard} is truncated" in one_line(project.stage("ablate"))
    assert (project.folder / "models/ablated/edit.json").read_bytes() == before


@pytest.mark.nightly
def test_a_missing_shard_is_named(sharded: tuple[Project, Path]) -> None:
    project, folder = sharded
    shard = first_shard(folder)
    shard.unlink()
    assert f"{shard} is missing" in one_line(project.stage("prepare"))


@pytest.mark.parametrize("place", ["../x.safetensors", "/etc/x.safetensors", "..", "a/b.safetensors"])
def test_an_index_that_leads_outside_the_folder_is_refused(sharded: tuple[Project, Path], place: str) -> None:
    project, folder = sharded
    redirect(folder, place)
    error = one_line(project.stage("prepare"))
    assert INDEX in error and repr(place) in error


@pytest.mark.nightly
def test_a_weight_that_is_no_number_stops_the_edit(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    for stage in ("prepare", "measure"):
        assert project.stage(stage).returncode == 0
    spoil(folder / "model.safetensors", "model.layers.2.self_attn.o_proj.weight")
    assert "has changed since it was pinned" in one_line(project.stage("ablate"))
    # Pinned anew but not measured anew, the edit itself meets it.
    assert project.stage("prepare").returncode == 0
    error = one_line(project.stage("ablate"))
    assert "model.layers.2.self_attn.o_proj.weight holds NaN or infinity" in error
    assert not (project.folder / "models/.ablated.partial").exists()


@pytest.mark.nightly
def test_a_direction_from_such_a_weight_is_refused(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    spoil(folder / "model.safetensors", "model.layers.2.self_attn.o_proj.weight")
    for stage in ("prepare", "measure", "directions"):
        assert project.stage(stage).returncode == 0
    error = one_line(project.stage("ablate"))
    assert "ablate.rules.0.measurement: measurement 5 has no direction: the activations are not finite" in error


def test_an_unknown_model_type_is_named_with_the_known_ones(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    error = one_line(project.stage("prepare"))
    assert "'unheard_of'" in error and "glm4_moe" in error and "llama" in error


def test_a_layer_that_the_model_does_not_have_is_named_with_its_range(project: Project) -> None:
    project.replace("layers: 2-3", "layers: 1-6")
    project.stage("params")
    error = one_line(project.stage("ablate"))
    assert "ablate.rules.0.layers: there is no layer 6; this model has layers 0-5" in error


def test_measurement_0_is_an_error_only_where_a_rule_uses_it(project: Project) -> None:
    rows = json.loads((project.folder / "artifacts/directions.json").read_text())["measurements"]
    assert rows[0]["norm"] is None and "same activations" in rows[0]["reason"]
    project.replace("measurement: 5", "measurement: 0")
    project.stage("params")
    assert "measurement 0 has no direction" in one_line(project.stage("ablate"))


FULL_DISK = """
import errno, os
_room = [100_000]
_kernel = os.copy_file_range
def _full(old, new, size, *places):
    if _room[0] <= 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    copied = _kernel(old, new, min(size, _room[0]), *places)
    _room[0] -= copied
    return copied
os.copy_file_range = _full
"""
"""Appended to a stage's package: after 100 kB the kernel says that the disk is full."""


def test_a_full_disk_is_told_in_one_line_and_leaves_the_old_model(project: Project) -> None:
    before = (project.folder / "models/ablated/edit.json").read_bytes()
    with open(project.folder / "stages/__init__.py", "a") as file:
        file.write(FULL_DISK)
    error = one_line(project.stage("ablate"))
    assert "the disk is full" in error
    assert (project.folder / "models/ablated/edit.json").read_bytes() == before
    assert not (project.folder / "models/.ablated.partial").exists()


@pytest.mark.nightly
def test_a_model_without_a_chat_template_is_refused(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in one_line(project.stage("prepare"))


def test_a_chat_template_that_never_ends_is_refused(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    assert "takes more than 5 seconds" in one_line(project.stage("prepare"))


def test_a_tokenizer_that_takes_its_process_down_is_one_line(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    twice = {"type": "Replace", "pattern": {"String": "s"}, "content": "s" * 40}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [twice] * 12}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "crashes or runs out of memory" in one_line(project.stage("prepare"))


def test_pickled_weights_are_never_opened(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(struct.pack("<Q", 0))
    assert "holds only pickled weights" in one_line(project.stage("prepare"))


def spoil(path: Path, name: str) -> None:
    """Make one number of one tensor NaN."""
    tensors = load_file(path)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


def test_quantised_weights_are_refused_by_the_name_of_their_format(local_model: tuple[Project, Path]) -> None:
    project, folder = local_model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    error = one_line(project.stage("prepare"))
    assert "quantized (MXFP4)" in error and "name a bfloat16 copy" in error
