"""Headers of safetensors files: a whole file is read, and whatever is not one is refused in one line."""

import json
import os
import re
import shutil
import unittest.mock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from excise.checkpoint.weights import INDEX, SINGLE, Tensor, read_checkpoint, read_header
from excise.plumbing.errors import StageError

WHOLE = save(
    {"b.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.arange(4.0).half(), "none": torch.empty(0, 3)},
    {"format": "pt"},
)
HEADER_LENGTH = 8 + int.from_bytes(WHOLE[:8], "little")

often = settings(max_examples=400, deadline=None, derandomize=True)


def file_of(header: Any, data: bytes) -> bytes:
    """A safetensors file with a header of one's own; a string is taken as it is."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: Any, stop: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StageError) as caught:
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


def refused_file(folder: Path, data: bytes) -> str:
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    line = refused(lambda: read_header(path))
    assert str(path) in line and "fetch" in line
    return line


def test_a_whole_file_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(WHOLE)
    found = read_header(path)
    assert {name: (tensor.file, tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "a.bias": ("x.safetensors", "F16", (4,)),
        "b.weight": ("x.safetensors", "F32", (2, 3)),
        "none": ("x.safetensors", "F32", (0, 3)),
    }
    place = found["b.weight"]
    assert torch.frombuffer(bytearray(WHOLE[place.start : place.stop]), dtype=torch.float32).tolist() == [*range(6)]


def test_a_scalar_and_an_empty_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of({"s": entry(0, 4, [])}, bytes(4)))
    assert read_header(path)["s"].shape == ()
    path.write_bytes(file_of({}, b""))
    assert read_header(path) == {}


@pytest.mark.parametrize("kept", [0, 1, 7, 8, HEADER_LENGTH - 1, HEADER_LENGTH, len(WHOLE) - 1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    assert "truncated" in refused_file(tmp_path, WHOLE[:kept])


def test_a_file_with_more_than_its_header_tells_of_is_refused(tmp_path: Path) -> None:
    assert "not fully covered" in refused_file(tmp_path, WHOLE + b"\0")


def test_a_missing_file_is_told_as_missing(tmp_path: Path) -> None:
    assert "is missing" in refused(lambda: read_header(tmp_path / "x.safetensors"))


GOOD = entry(0, 8)
MALFORMED = {
    "no JSON": "{",
    "not UTF-8": file_of("{}", b"")[:8] + b"\xff\xfe",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "an entry that is none": {"a": 7},
    "an entry that is null": {"a": None},
    "no type": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "an unknown type": {"a": entry(0, 8, dtype="F31")},
    "a type that is a list": {"a": entry(0, 8, dtype=["F32"])},
    "the size of another type": {"a": entry(0, 8, dtype="F16")},
    "the size of another shape": {"a": entry(0, 8, [3])},
    "a negative length": {"a": entry(0, 8, [-1, -2])},
    "a fraction": {"a": entry(0, 8, [2.0])},
    "a truth value": {"a": entry(0, 4, [True])},
    "a shape of text": {"a": entry(0, 8, "2")},
    "offsets of text": {"a": entry("0", "8")},
    "one offset": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
    "offsets the wrong way round": {"a": entry(8, 0)},
    "a name twice": '{"a": ' + json.dumps(GOOD) + ', "a": ' + json.dumps(GOOD) + "}",
    "a key twice": '{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "brackets without end": "[" * 100_000,
    "a deep value that the library skips": f'{{"a": {json.dumps(GOOD)[:-1]}, "x": {"[" * 9_999 + "]" * 9_999}}}}}',
    "a number without end": '{"a": {"dtype": "F32", "shape": [' + "9" * 10_000 + '], "data_offsets": [0, 8]}}',
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_refused(tmp_path: Path, header: Any) -> None:
    data = header if isinstance(header, bytes) else file_of(header, bytes(8))
    assert "not a safetensors file" in refused_file(tmp_path, data)


@pytest.mark.parametrize(
    ("header", "size", "named"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "[ab]"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "b"),
        ({"a": entry(4, 12)}, 12, "a"),
    ],
    ids=["overlap", "twice the same bytes", "gap", "gap at the start"],
)
def test_tensors_that_overlap_or_leave_a_gap_are_refused_by_name(
    tmp_path: Path, header: dict[str, Any], size: int, named: str
) -> None:
    assert re.search(f"invalid offset for tensor `{named}`", refused_file(tmp_path, file_of(header, bytes(size))))


def test_a_header_longer_than_any_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # a hole: it takes no room
    assert "longer than any model's" in refused(lambda: read_header(path))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "x.safetensors"


def read_or_refuse(path: Path, data: bytes) -> dict[str, Tensor] | None:
    """What is read; None where it is refused in one line. Anything else fails the test."""
    path.write_bytes(data)
    try:
        return read_header(path)
    except StageError as error:
        assert "\n" not in str(error)
        return None


@often
@given(place=st.integers(0, HEADER_LENGTH - 1), mask=st.integers(1, 255))
def test_a_flipped_byte_in_a_header_is_read_or_refused(scratch: Path, place: int, mask: int) -> None:
    found = read_or_refuse(scratch, WHOLE[:place] + bytes([WHOLE[place] ^ mask]) + WHOLE[place + 1 :])
    for tensor in (found or {}).values():
        assert HEADER_LENGTH <= tensor.start <= tensor.stop <= len(WHOLE)


def test_no_truncated_file_is_read(scratch: Path) -> None:
    assert all(read_or_refuse(scratch, WHOLE[:kept]) is None for kept in range(len(WHOLE)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats() | st.sampled_from(["F32", "BF16", "a", "\n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a\nb", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
        )
    ),
)
entries = st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values})


@often
@given(header=json_values | st.dictionaries(st.sampled_from(["a", "b\nc", "d\udc00"]), json_values | entries))
def test_whatever_json_a_header_is_it_is_read_or_refused(scratch: Path, header: Any) -> None:
    read_or_refuse(scratch, file_of(json.dumps(header), bytes(8)))


# A folder of shards, as an index tells of it.


def sharded(folder: Path) -> dict[str, str]:
    """Two shards with an index and a config; the map of the index."""
    save_file({"a": torch.zeros(2)}, folder / "one.safetensors")
    save_file({"b": torch.ones(2), "c": torch.ones(3)}, folder / "two.safetensors")
    (folder / "config.json").write_text("{}")
    named = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    write_index(folder, named)
    return named


def write_index(folder: Path, named: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": named}))


def refused_folder(folder: Path) -> str:
    return refused(lambda: read_checkpoint(folder))


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path) -> None:
    named = sharded(tmp_path)
    found = read_checkpoint(tmp_path)
    assert {name: tensor.file for name, tensor in found.tensors.items()} == named
    assert found.shards == ("one.safetensors", "two.safetensors")
    assert found.companions == ("config.json", INDEX)
    assert found.files == ("config.json", INDEX, "one.safetensors", "two.safetensors")


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(WHOLE)
    found = read_checkpoint(tmp_path)
    assert found.shards == (SINGLE,) and set(found.tensors) == {"a.bias", "b.weight", "none"}


def test_every_other_file_belongs_to_the_model_but_other_weights_and_history(tmp_path: Path) -> None:
    sharded(tmp_path)
    left_out = ["consolidated.safetensors", "gguf/q4.gguf", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    companions = ["tokenizer.json", "sub/deep/notes.txt", "sub/.hidden"]
    for name in [*left_out, *companions, ".git/config", ".cache/huggingface/x.json", "sub/.git/HEAD"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = read_checkpoint(tmp_path)
    assert found.left_out == tuple(left_out)
    assert found.companions == tuple(sorted([*companions, "config.json", INDEX]))


BAD_NAMES: Sequence[Any] = (
    "../one.safetensors",
    "/etc/one.safetensors",
    "sub/one.safetensors",
    "..\\one.safetensors",
    "C:\\one.safetensors",
    "one.safetensors/",
    "./one.safetensors",
    "one\0.safetensors",
    "one.bin",
    "..",
    "",
    None,
    7,
    ["one.safetensors"],
)


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_an_index_names_nothing_but_safetensors_files_beside_it(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    named = sharded(folder)
    # What the bad name leads to is there, so that it is the name that is refused.
    shutil.copy(folder / "one.safetensors", tmp_path / "one.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(folder / "one.safetensors", folder / "sub/one.safetensors")
    write_index(folder, named | {"a": name})
    line = refused_folder(folder)
    assert INDEX in line and repr(name) in line


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    assert "two.safetensors is missing" in refused_folder(tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_named(tmp_path: Path) -> None:
    named = sharded(tmp_path)
    del named["c"]
    write_index(tmp_path, named)
    assert "does not list tensor c of two.safetensors" in refused_folder(tmp_path)


def test_a_tensor_that_lies_in_another_shard_than_the_index_says_is_named(tmp_path: Path) -> None:
    named = sharded(tmp_path)
    write_index(tmp_path, named | {"c": "one.safetensors"})
    assert "tensor c of two.safetensors" in refused_folder(tmp_path)


def test_a_tensor_that_no_shard_holds_is_named(tmp_path: Path) -> None:
    named = sharded(tmp_path)
    write_index(tmp_path, named | {"d": "one.safetensors"})
    assert "one.safetensors does not hold d" in refused_folder(tmp_path)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "one.safetensors")
    line = refused_folder(tmp_path)
    assert "tensor b" in line and "one.safetensors" in line


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"weight_map": null}', b'{"weight_map": {}}', b"\xff"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_bytes(data)
    assert INDEX in refused_folder(tmp_path)


def test_an_index_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    assert INDEX in refused_folder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_alone_are_refused_for_what_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "pickled" in refused_folder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    line = refused_folder(tmp_path)
    assert SINGLE in line and INDEX in line and "pickled" not in line


PARTS = ["..", ".", "/", "\\", "\0", "decoy", "model", "inside", ".safetensors"]


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(st.lists(st.sampled_from(PARTS), max_size=6).map("".join), min_size=1, max_size=3))
@example(names=["../decoy.safetensors"])
@example(names=["../inside/decoy.safetensors"])
@example(names=["../model/../decoy.safetensors"])
@example(names=["/decoy.safetensors"])
def test_whatever_an_index_says_nothing_outside_the_folder_is_opened(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "model"
    for place in (folder, tmp_path, tmp_path / "inside", folder / "inside"):
        place.mkdir(exist_ok=True)
        (place / "decoy.safetensors").write_bytes(WHOLE)
    absolute = [name.replace("/decoy", f"{tmp_path}/decoy") if name.startswith("/") else name for name in names]
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"{n}": name for n, name in enumerate(absolute)}}))
    opened: list[Path] = []
    real = open

    def watched(path: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(Path(path).resolve())
        return real(path, *arguments, **options)

    with unittest.mock.patch("builtins.open", watched), pytest.raises(StageError):
        read_checkpoint(folder)
    assert all(path.parent == folder.resolve() for path in opened)


def test_links_that_lead_outside_are_refused_and_the_hub_s_own_are_not(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("not the model's")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / SINGLE).write_bytes(WHOLE)
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert "leads outside" in refused(lambda: read_checkpoint(folder))
    (folder / "notes.txt").unlink()
    (folder / "notes").symlink_to(tmp_path)
    assert "leads outside" in refused(lambda: read_checkpoint(folder))
    (folder / "notes").unlink()
    os.mkfifo(folder / "pipe")
    assert "neither a file nor a folder" in refused(lambda: read_checkpoint(folder))
    (folder / "pipe").unlink()
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").write_bytes(WHOLE)
    assert "leads outside" in refused(lambda: read_checkpoint(folder))

    snapshot = tmp_path / "hub/snapshots/abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/blobs").mkdir()
    (tmp_path / "hub/blobs/1").write_bytes(WHOLE)
    (snapshot / SINGLE).symlink_to("../../blobs/1")
    assert len(read_checkpoint(snapshot).tensors) == 3
