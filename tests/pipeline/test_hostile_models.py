"""A model folder that is broken or hostile is one line, in bounded time and memory: whatever lies in it."""

import json
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.plumbing.errors import StageError
from tests.damaged import EXPERTS, SINGLE, build, save
from tests.pipeline.test_damaged_models import one_line, project, run

__all__ = ["project"]

SECONDS = 20
MEMORY = 1 << 30

Draw = random.Random
NUMBERS: list[Any] = [0, -1, 1, 7, 10**6, 10**12, 10**30, -(10**30), 1e308, -0.5, float("nan"), float("inf")]
PLACES = ["../../../etc/passwd", "/dev/zero", "kernels-community/x", "a/b--c"]
TEXTS: list[Any] = ["", "x" * 10**6, "\0", "\ud800", *PLACES]
TEMPLATES = [
    3 * "{% for i in range(99999) %}" + 3 * "{% endfor %}",
    "{{ 'a' * 10000000000 }}",
    "{{ ('a' * 100000000) ~ ('a' * 100000000) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[99].content }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include '/etc/passwd' %}",
    "{% if %}",
    "{{ messages | tojson | length ** 99999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "always the same",
    "",
]


def value(draw: Draw) -> Any:
    deep: Any = 1
    for _ in range(draw.choice([3, 900])):
        deep = [deep]
    others = [None, True, [], {}, [0] * 10**5, deep, {"a": {"b": 1}}, [None, "x"]]
    return draw.choice([draw.choice(NUMBERS), draw.choice(TEXTS), draw.choice(others)])


def change_json(draw: Draw, path: Path) -> None:
    """One value somewhere in a JSON file."""
    part = document = json.loads(path.read_text())
    while True:
        keys: list[Any] = list(part) if isinstance(part, dict) else list(range(min(len(part), 50)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(part[key], dict | list) and part[key] and draw.random() < 0.7:
            part = part[key]
            continue
        part[key] = value(draw)
        break
    path.write_text(json.dumps(document))


def change_config(draw: Draw, folder: Path) -> None:
    change_json(draw, folder / "config.json")


def change_tokenizer(draw: Draw, folder: Path) -> None:
    change_json(draw, folder / draw.choice(["tokenizer.json", "tokenizer_config.json", "generation_config.json"]))


def change_bytes(draw: Draw, folder: Path) -> None:
    path = a_file(draw, folder)
    data = bytearray(path.read_bytes())
    how = draw.randrange(4)
    if how == 0:
        data = data[: draw.randrange(len(data) + 1)]
    elif how == 1:
        for _ in range(draw.choice([1, 20])):
            data[draw.randrange(min(len(data), 5000))] = draw.randrange(256)
    elif how == 2:
        data = bytearray(b"<<<<<<< HEAD\n") + data + b"=======\n>>>>>>> other\n"
    else:
        data = bytearray(draw.choice([b"", b"[" * 100_000, b"\xff\xfe", b"\0" * 10**6, b"null", b'"x"', b"[]", b"{}"]))
    path.write_bytes(data)


def change_template(draw: Draw, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(draw.choice(TEMPLATES))


def change_kind(draw: Draw, folder: Path) -> None:
    """A file becomes something else, or is not there any more."""
    path = a_file(draw, folder)
    path.unlink()
    how = draw.randrange(6)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to(path.name)
    elif how == 2:
        path.symlink_to("/dev/zero")
    elif how == 3:
        path.mkdir()
    elif how == 4:
        path.symlink_to("/etc/hostname")


def add_something(draw: Draw, folder: Path) -> None:
    how = draw.randrange(5)
    if how == 0:
        (folder / "sub").symlink_to(".")
    elif how == 1:
        os.mkfifo(folder / draw.choice(["notes.txt", "model.safetensors.index.json", "added_tokens.json", "vocab.txt"]))
    elif how == 2:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": draw.choice(PLACES)}}))
    elif how == 3:
        (folder / draw.choice(["adapter_config.json", "chat_template.json", "processor_config.json"])).write_text("[")
    else:
        (folder / "x" / "y").mkdir(parents=True)
        (folder / "x" / "y" / "z").symlink_to("../..")


def change_header(draw: Draw, folder: Path) -> None:
    path = folder / SINGLE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = draw.choice(sorted(header.keys() - {"__metadata__"}))
    part = draw.choice(["dtype", "shape", "data_offsets"])
    numbers = [0, -1, 1 << 62, 10**30, 3, True, 0.5, None]
    header[name][part] = draw.choice([value(draw), [draw.choice(numbers), draw.choice(numbers)]])
    text = json.dumps(header).encode()
    path.write_bytes(
        draw.choice([len(text), 1 << 62, 0, len(text) - 1]).to_bytes(8, "little") + text + data[8 + length :]
    )


CHANGES: list[Callable[[Draw, Path], None]] = [
    change_config,
    change_config,
    change_config,
    change_tokenizer,
    change_bytes,
    change_template,
    change_kind,
    add_something,
    change_header,
]


def a_file(draw: Draw, folder: Path) -> Path:
    return draw.choice(sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink()))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sound")
    save(build("llama"), folder / "llama")
    save(build("qwen3_moe", **EXPERTS), folder / "mixture")
    return folder


def peak() -> int:
    """Bytes that this process and those it waited for took at most, up to now."""
    return 1024 * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def try_folders(project: Path, sound: Path, seeds: range) -> Counter[str]:
    """Each seed's folder through prepare, measure and ablate; what came of them."""
    outcomes: Counter[str] = Counter()
    failures = []
    shutil.copytree(sound / "llama", project / "warm")
    run(project / "warm")
    before = peak()
    for seed in seeds:
        draw = random.Random(seed)
        folder = project / f"model-{seed}"
        shutil.copytree(sound / draw.choice(["llama", "mixture"]), folder)
        for change in draw.choices(CHANGES, k=draw.choice([1, 1, 2])):
            try:
                change(draw, folder)
            except (OSError, ValueError, IndexError, TypeError, KeyError, RecursionError):
                continue  # what another change left is no JSON any more, or no file
        for made in ("artifacts", "models/ablated"):
            shutil.rmtree(made, ignore_errors=True)
        began = time.monotonic()
        try:
            run(folder)
            outcomes["edited"] += 1
        except StageError as error:
            one_line(error)
            outcomes["refused"] += 1
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {error}")
        assert time.monotonic() - began < SECONDS, seed
        assert peak() - before < MEMORY, seed
    assert not failures, failures
    return outcomes


@pytest.mark.slow
def test_a_hostile_folder_is_one_line(project: Path, sound: Path) -> None:
    assert try_folders(project, sound, range(40))["refused"] >= 10


@pytest.mark.nightly
def test_four_hundred_hostile_folders_are_one_line_each(project: Path, sound: Path) -> None:
    outcomes = try_folders(project, sound, range(400))
    print(outcomes)
    assert outcomes["refused"] >= 200
