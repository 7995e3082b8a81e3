"""An edited checkpoint: the planned tensors are projected, every other byte is the base's, and the model obeys."""

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import Checkpoint
from excise.edit.checkpoint import write_edited
from excise.edit.planning.layout import Place
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projection import project
from excise.edit.planning.projectors import Directions, Projector, unit_vector
from excise.organism.model import ARCHITECTURES, SHAPE, make_model, make_tokenizer, vary_norms
from excise.organism.world import make_world
from excise.plumbing.errors import StageError
from schemas.basis.document import FileDigest
from schemas.model import Axes, Writer
from schemas.params.ablate import Ablate
from tests.edit.test_plan import layout
from tests.families import base_of

EDITED_LAYERS = (1, 2, 3)
UNIT = torch.stack(
    [
        unit_vector(torch.randn(SHAPE["hidden_size"], generator=torch.Generator().manual_seed(number)))
        for number in range(SHAPE["num_hidden_layers"] + 1)
    ]
)
DIRECTIONS = Directions(UNIT, UNIT, (None,) * len(UNIT))
CPU = torch.device("cpu")
COMPANIONS = {"chat_template.jinja": "{{ messages }}", "notes/deep/README.md": "# of the model\n", "empty.txt": ""}
OTHER_WEIGHTS = ("pytorch_model.bin", "original/consolidated.00.pth", "adapter/adapter_model.safetensors")


@dataclass(frozen=True)
class Base:
    """A model with random weights on disk, and a plan for it."""

    model: BaseModel
    plan: list[Edit]

    @property
    def checkpoint(self) -> Checkpoint:
        return self.model.checkpoint


def random_model(architecture: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model(architecture, make_tokenizer(make_world(0)))
    vary_norms(model, 0)
    return model


def planned(folder: Path) -> Base:
    rules = [{"layers": "1-3", "measurement": 4}]
    ablate = Ablate.model_validate({"orthogonalize": "none", "rules": rules})
    model = base_of(folder)
    return Base(model, make_plan(ablate, model, DIRECTIONS))


@pytest.fixture(scope="module", params=[(name, size) for name in ARCHITECTURES for size in ("1GB", "700KB")], ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Both architectures, in one file and in shards. Not to be changed."""
    architecture, shard_size = request.param
    folder = tmp_path_factory.mktemp("base")
    random_model(architecture).save_pretrained(folder, max_shard_size=shard_size)
    for name, text in COMPANIONS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in OTHER_WEIGHTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights that were not edited")
    base = planned(folder)
    assert (len(base.checkpoint.shards) > 2) == (shard_size != "1GB")
    return base


@pytest.fixture(scope="module")
def edited(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base after its plan. Not to be changed."""
    return write(base, tmp_path_factory.mktemp("edited"))


def write(base: Base, target: Path) -> Path:
    write_plan(base, target)
    return target


def write_plan(base: Base, target: Path, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    return write_edited(base.model, target, base.plan, [], CPU, advance)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_files(base: Base) -> dict[str, bytes]:
    """The files of the base with the planned tensors' bytes replaced, and nothing else."""
    folder, tensors = base.checkpoint.folder, base.checkpoint.tensors
    files = {name: bytearray((folder / name).read_bytes()) for name in base.checkpoint.files}
    weights = {name: weight for shard in base.checkpoint.shards for name, weight in load_file(folder / shard).items()}
    for edit in base.plan:
        place = tensors[edit.tensor]
        basis = unit_vector(UNIT[4])[:, None]
        projected = project(weights[edit.tensor], Projector(basis, basis), edit.scale)
        files[place.file][place.start : place.stop] = projected.numpy().tobytes()
    return {name: bytes(data) for name, data in files.items()}


def test_planned_tensors_are_projected_and_every_other_byte_is_the_base_s(base: Base, edited: Path) -> None:
    expected = expected_files(base)
    assert files_of(edited) == expected
    assert any(expected[shard] != (base.checkpoint.folder / shard).read_bytes() for shard in base.checkpoint.shards)


def test_companions_are_copied_and_other_weights_are_not(base: Base, edited: Path) -> None:
    assert base.checkpoint.left_out == tuple(sorted(OTHER_WEIGHTS))
    copied = files_of(edited)
    assert {name: copied[name].decode() for name in COMPANIONS} == COMPANIONS
    assert copied["config.json"] == (base.checkpoint.folder / "config.json").read_bytes()
    assert not set(OTHER_WEIGHTS) & set(copied)


def test_edited_layers_write_nothing_along_the_direction_and_others_do(edited: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(edited, local_files_only=True).eval()
    direction = UNIT[4].float()
    shares: dict[tuple[int, str], float] = {}

    def listen(key: tuple[int, str]) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            shares[key] = float((output @ direction).abs().max() / output.norm(dim=-1).max())

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_hook(listen((number, "attention")))
        layer.mlp.register_forward_hook(listen((number, "mlp")))
    with torch.inference_mode():
        model(input_ids=torch.arange(6, 70).view(4, 16))

    assert len(shares) == 2 * SHAPE["num_hidden_layers"]
    for (number, _), share in shares.items():
        assert share <= 1e-6 if number in EDITED_LAYERS else share > 1e-2


def test_progress_counts_every_byte_once(base: Base, tmp_path: Path) -> None:
    counts: list[int] = []
    write_plan(base, tmp_path, counts.append)
    assert sum(counts) == sum((base.checkpoint.folder / name).stat().st_size for name in base.checkpoint.files)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_the_bytes_are_the_same_where_the_kernel_cannot_copy(
    base: Base, edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert files_of(write(base, tmp_path)) == files_of(edited)


def test_the_bytes_are_the_same_where_the_kernel_copies_a_little_at_a_time(
    base: Base, edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda old, new, size, *at: whole(old, new, min(size, 100_003), *at))
    assert files_of(write(base, tmp_path)) == files_of(edited)


# What follows asks nothing of the architecture: one small base, made by hand, that a test may spoil.


def by_hand(folder: Path, **replaced: torch.Tensor) -> Base:
    folder.mkdir()
    weights = {"a": torch.ones(4, 4), "b": torch.full((4, 2), 0.5), "bias": torch.arange(4.0)} | replaced
    save_file(weights, folder / "model.safetensors")
    return Base(base_of(folder, layout("llama")), [edit_of(name) for name in weights])


FIRST = torch.tensor([[1.0], [0.0], [0.0], [0.0]], dtype=torch.float64)


def edit_of(name: str, axes: Axes = "out in", **given: Any) -> Edit:
    """An edit that takes the first of four channels out of a tensor."""
    place = Place(Writer(weight=name, role="mlp", axes=axes), name, layer=0, norms=())
    return Edit(name, "model.safetensors", place, 0, 1.0, Projector(FIRST, FIRST), **given)


def refused(base: Base, target: Path) -> str:
    target.mkdir()
    with pytest.raises(StageError) as caught:
        write_plan(base, target)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_tensor_keeps_its_type_and_loses_its_component(tmp_path: Path, dtype: torch.dtype) -> None:
    base = by_hand(tmp_path / "base", a=torch.arange(1, 17).view(4, 4).to(dtype), bias=torch.arange(1, 5).to(dtype))
    (tmp_path / "edited").mkdir()
    write_plan(base, tmp_path / "edited")
    found = load_file(tmp_path / "edited/model.safetensors")
    assert found["a"].dtype == found["bias"].dtype == dtype
    assert found["a"].tolist() == [[0, 0, 0, 0], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]
    assert found["bias"].tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    spoiled = torch.ones(4, 2)
    spoiled[3, 1] = value
    line = refused(by_hand(tmp_path / "base", b=spoiled), tmp_path / "edited")
    assert line.startswith("model.safetensors: b ") and "fetch" in line


def test_an_edit_that_overflows_the_stored_type_does_not_blame_the_checkpoint(tmp_path: Path) -> None:
    base = by_hand(tmp_path / "base", a=torch.full((4, 4), 60_000.0).half())
    too_much = Base(base.model, [replace(edit, scale=-3.0) for edit in base.plan])
    line = refused(too_much, tmp_path / "edited")
    assert " a " in line and "scale" in line and "fetch" not in line


def test_a_tensor_of_another_type_is_refused_by_name(tmp_path: Path) -> None:
    base = by_hand(tmp_path / "base", a=torch.ones(4, 4).to(torch.float8_e4m3fn))
    assert refused(base, tmp_path / "edited").startswith("a is stored as F8_E4M3, ")


def test_a_tensor_of_another_type_that_no_rule_names_is_copied(tmp_path: Path) -> None:
    base = by_hand(tmp_path / "base", other=torch.ones(4, 4).to(torch.float8_e4m3fn))
    (tmp_path / "edited").mkdir()
    plan = [edit for edit in base.plan if edit.tensor != "other"]
    write_plan(Base(base.model, plan), tmp_path / "edited")
    edited = load_file(tmp_path / "edited/model.safetensors")
    assert torch.equal(edited["other"].view(torch.uint8), torch.ones(4, 4).to(torch.float8_e4m3fn).view(torch.uint8))
    assert float(edited["a"][0].abs().max()) == 0


def test_a_base_that_becomes_shorter_meanwhile_is_refused(tmp_path: Path) -> None:
    base = by_hand(tmp_path / "base")
    path = tmp_path / "base/model.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    assert "shorter" in refused(base, tmp_path / "edited")


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    base = by_hand(tmp_path / "base")
    (tmp_path / "edited").mkdir()
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        write_plan(base, tmp_path / "edited")


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_workers_gives_the_same_bytes(
    base: Base, edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("excise.edit.checkpoint._usable_cpus", lambda: workers)
    assert files_of(write(base, tmp_path)) == files_of(edited)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_file_or_many_give_the_same_tensors(architecture: str, tmp_path: Path) -> None:
    found = []
    for size in ("1GB", "300KB"):
        (tmp_path / size).mkdir()
        random_model(architecture).save_pretrained(tmp_path / size, max_shard_size=size)
        written = tmp_path / f"{size} edited"
        written.mkdir()
        write(planned(tmp_path / size), written)
        tensors = {name: tensor for path in written.glob("*.safetensors") for name, tensor in load_file(path).items()}
        found.append({name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()})
    assert found[0] == found[1]
    assert len(list((tmp_path / "300KB").glob("*.safetensors"))) > 4


def test_the_digests_returned_are_those_of_the_files(base: Base, tmp_path: Path) -> None:
    digests = write_plan(base, tmp_path)
    assert digests == {name: hashlib.sha256(data).hexdigest() for name, data in files_of(tmp_path).items()}


def test_known_digests_of_unchanged_files_are_not_computed_again(base: Base, tmp_path: Path) -> None:
    known = [FileDigest(path=path, size=0, sha256="0" * 64) for path in base.checkpoint.files]
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.name)
        return "computed"

    model = replace(base.model, manifest=base.model.manifest.model_copy(update={"files": known}))
    found = write_edited(model, tmp_path, base.plan, [], CPU, lambda _: None, digest)
    changed = {edit.file for edit in base.plan}
    assert sorted(read) == sorted(changed)
    assert found == {name: "computed" if name in changed else "0" * 64 for name in base.checkpoint.files}


def test_files_are_never_links_to_the_base(base: Base, edited: Path) -> None:
    for name in base.checkpoint.files:
        assert not os.path.samefile(base.checkpoint.folder / name, edited / name)
        assert (edited / name).stat().st_nlink == 1 and not (edited / name).is_symlink()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_gives_the_same_bytes(base: Base, edited: Path, tmp_path: Path) -> None:
    write_edited(base.model, tmp_path, base.plan, [], torch.device("cuda"), lambda _: None)
    assert files_of(tmp_path) == files_of(edited)


def test_fused_experts_are_edited_one_by_one_and_rows_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts, rows = torch.randn(4, 4, 6), torch.randn(50, 4)
    base = by_hand(tmp_path / "base", a=experts, b=rows)
    plan = [edit_of("a", "expert out in", experts=(1, 3)), edit_of("b", "in out")]
    monkeypatch.setattr("excise.edit.checkpoint._ROWS_AT_ONCE", 7 * 4 * 4)
    (tmp_path / "edited").mkdir()
    write_plan(Base(base.model, plan), tmp_path / "edited")
    found = load_file(tmp_path / "edited/model.safetensors")
    assert torch.equal(found["a"][[0, 2]], experts[[0, 2]])
    assert float(found["a"][[1, 3], 0].abs().max()) == 0
    assert torch.equal(found["a"][:, 1:], experts[:, 1:])
    assert float(found["b"][:, 0].abs().max()) == 0 and torch.equal(found["b"][:, 1:], rows[:, 1:])
