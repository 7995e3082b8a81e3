"""Damaged headers of safetensors files. What our reader accepts, the library must accept too, and read the same."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize, safe_open

from excise.checkpoint.weights import read_header

BITS_PER_ELEMENT = {
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

WORDS = [
    "null", "true", "NaN", "-Infinity", "-0", "0", "1", "2", "8", "2.0", "1e3", "1e999", "-1", "18446744073709551616",
    "18446744073709551615", "9223372036854775808", "9" * 5000, '""', '"F32"', '"F4"', '"C64"', '"\\ud800"', '"\\u0000"',
    "[]", "{}", "[0]", "[0,8]", "[2,4,0]", '{"a":"b"}', '{"a":1}', "[" * 200 + "]" * 200, "[" * 100_000,
]  # fmt: skip


@contextmanager
def trial(number: int, folder: Path) -> Iterator[Callable[[], None]]:
    """One header."""
    path = folder / "x.safetensors"
    path.write_bytes(damaged(random.Random(number)))
    yield partial(read, path)


def read(path: Path) -> None:
    """Read by both, the same or not at all."""
    found, data = read_header(path), path.read_bytes()
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            theirs = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
        whole = dict(deserialize(data))
    except SafetensorError as error:
        raise AssertionError(f"accepted, which safetensors refuses: {error}: {data[:200]!r}") from None
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == theirs
    for name, tensor in found.items():
        assert data[tensor.start : tensor.stop] == bytes(whole[name]["data"])


def damaged(dice: random.Random) -> bytes:
    """A file whose header is not quite one: its values, its text or its bytes are others."""
    header, size = whole(dice)
    if dice.random() < 0.5:
        header = mended(dice, header)
    text = json.dumps(header, separators=dice.choice([(",", ":"), (", ", ": ")]))
    # A mark in the place of a value, for what no dump writes.
    text = text.replace('"@"', dice.choice(WORDS)).replace('"@@"', dice.choice(WORDS))
    for _ in range(dice.choice([0, 0, 0, 1, 1, 2])):
        text = retyped(dice, text)
    data = text.encode("utf-8", "surrogatepass")
    if dice.random() < 0.15 and data:
        place = dice.randrange(len(data))
        data = data[:place] + bytes([dice.randrange(256)]) + data[place + 1 :]
    if dice.random() < 0.2:
        data = dice.choice([b" ", b"\n", b"\t", b"\0", b"\xef\xbb\xbf", b"x"]) + data
    if dice.random() < 0.3:
        data += dice.choice([b" ", b"   ", b"\n", b"\0", b"\0\0\0", b"x", b"{}", b","])
    length = len(data) + (dice.choice([-1, 1, 8, 2**40, 2**63]) if dice.random() < 0.05 else 0)
    body = bytes(max(0, size + (dice.choice([-1, 1, 8]) if dice.random() < 0.1 else 0)))
    return max(0, length).to_bytes(8, "little") + data + body


def whole(dice: random.Random) -> tuple[dict[str, Any], int]:
    """A header that is one, and the bytes that follow it."""
    header: dict[str, Any] = {}
    end = 0
    if dice.random() < 0.4:
        header["__metadata__"] = dice.choice([{"format": "pt"}, {}, {"a": "", "b": "é"}, None])
    for number in range(dice.randrange(4)):
        dtype = dice.choice([*BITS_PER_ELEMENT])
        shape = [dice.choice([0, 1, 2, 3, 4, 8]) for _ in range(dice.randrange(4))]
        bits = BITS_PER_ELEMENT[dtype]
        for length in shape:
            bits *= length
        size = -(-bits // 8)
        name = dice.choice(["a", "model.b", "é", "", "c\n"]) + str(number)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def mended(dice: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """One or two of its values changed."""
    for _ in range(dice.choice([1, 1, 2])):
        mark, name = dice.choice(["@", "@@"]), dice.choice([*header, "__metadata__", "new"])
        entry = header.get(name)
        what = dice.randrange(8)
        if what == 0 or not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            header[name] = dice.choice([mark, {"a": mark}, {mark: "a"}, [mark]])
        elif what == 1:
            entry[dice.choice([*entry, "more"])] = mark
        elif what == 2:
            entry["shape"] = [*entry["shape"], mark]
        elif what == 3:
            entry["data_offsets"][dice.randrange(2)] = dice.choice([mark, 0, 4, 7, 2**63, 2**64])
        elif what == 4:
            entry["dtype"] = dice.choice([*BITS_PER_ELEMENT, "F31", "f32", "F8", "", mark])
        elif what == 5:
            entry["shape"] = dice.choice(
                [[2**63, 4, 0], [0, 2**63, 4], [2**32, 2**32], [True], [-1, -8], [2.0], "2", mark]
            )
            entry["data_offsets"] = [entry["data_offsets"][0]] * 2
        elif what == 6:
            entry.pop(dice.choice([*entry]))
        else:
            header[name] = [entry["dtype"], entry["shape"], entry["data_offsets"]]
        header = dict(dice.sample([*header.items()], len(header)))
    return header


def retyped(dice: random.Random, text: str) -> str:
    """A place of its text changed."""
    place = dice.randrange(len(text) + 1)
    what = dice.randrange(5)
    if what == 0:
        return text[:place] + text[place + 1 :]
    if what == 1:
        return (
            text[:place]
            + dice.choice(['"', ",", ":", "{", "}", "[", "]", "0", "-", ".", "e", "\\", " ", "\ud800"])
            + text[place:]
        )
    if what == 2:
        return text[:place] + dice.choice(WORDS) + text[place + 1 :]
    if what == 3:
        stop = dice.randrange(place, len(text) + 1)
        return text[:stop] + text[place:stop] + text[stop:]
    return text[:place]
