"""The machine's memory, how much of it a measurement takes, bounds of time and memory, and the device of models."""

import contextlib
import ctypes
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil
import torch

from excise.plumbing.errors import StageError
from schemas.basis.document import read_settings
from schemas.params.model import PLACE, Place

Placement = torch.device | Literal["balanced"]
"""One device, or all GPUs, over which a model is spread."""

GIB = 2**30
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60  # version 1 of cgroups writes about this where there is no limit
MARGIN = 1.1  # estimates are not exact, and others use memory too


@dataclass(frozen=True)
class Limit:
    """One of the bounds on this process's memory, in bytes."""

    name: str
    free: int
    total: int
    counts_files: bool = False
    """Whether mapped files count as well, which the system can drop from memory when it needs room."""


@dataclass(frozen=True)
class Need:
    """What something takes, in bytes."""

    memory: int
    mapped: int
    """Files mapped at the same time, as weights are while they are read."""

    def of(self, limit: Limit) -> int:
        """What of it counts for a limit."""
        return self.memory + (self.mapped if limit.counts_files else 0)


def too_small(need: Need, limits: Iterable[Limit]) -> Limit | None:
    """The limit with the least room of those whose free memory is too little; None where it fits."""
    exceeded = (each for each in limits if MARGIN * need.of(each) > each.free)
    return min(exceeded, key=lambda each: each.free, default=None)


def impossible(need: Need, limits: Iterable[Limit]) -> Limit | None:
    """The least of the limits that is too little even were nothing else in memory; None where there is none."""
    return min((each for each in limits if need.of(each) > each.total), key=lambda each: each.total, default=None)


@dataclass(frozen=True)
class Work:
    """What a measurement passes through a model. A token counts where it is padding, too."""

    prompts: int
    tokens: int
    pairs: int
    """Tokens times the width of their batch: what an attention mask has."""
    batch_tokens: int
    """Of the largest batch."""
    batch_pairs: int

    @classmethod
    def of(cls, batches: Iterable[tuple[int, int]]) -> "Work":
        """From each batch's number of prompts and its width in tokens."""
        sizes = list(batches)
        tokens = [prompts * width for prompts, width in sizes]
        pairs = [prompts * width**2 for prompts, width in sizes]
        return cls(sum(prompts for prompts, _ in sizes), sum(tokens), sum(pairs), max(tokens), max(pairs))


@dataclass(frozen=True)
class Sizes:
    """Of a model, in numbers a token."""

    hidden: int
    layers: int
    widest: int
    """What the widest of a layer's parts computes: attention, or an MLP with all experts that a token is given to."""
    bytes: int
    """Of one number, as the model computes."""

    @classmethod
    def of(cls, config: Mapping[str, Any], bytes_: int) -> "Sizes":
        """From a text model's config."""
        hidden = int(config["hidden_size"])
        heads = int(config.get("num_attention_heads") or 1)
        attention = heads * int(config.get("v_head_dim") or config.get("head_dim") or hidden // heads)
        chosen = int(config.get("num_experts_per_tok") or config.get("top_k_experts") or 0)
        expert = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0)
        dense = int(config.get("intermediate_size") or 4 * hidden)
        widest = max(6 * attention, 4 * dense, chosen * (8 * hidden + 4 * expert))
        return cls(hidden, int(config["num_hidden_layers"]), widest, bytes_)


def kept_bytes(sizes: Sizes, work: Work) -> int:
    """The activations that are kept, in float32."""
    return 4 * work.prompts * (sizes.layers + 1) * sizes.hidden


def batch_bytes(sizes: Sizes, work: Work) -> int:
    """One layer's of the largest batch: stream, norms and attention mask in float32, and the layer's widest part."""
    return work.batch_tokens * (32 * sizes.hidden + sizes.widest * sizes.bytes) + 4 * work.batch_pairs


def eighth(place: Placement, beside: int = 0) -> int:
    """Bytes of an eighth of the memory that is free, beside so many further bytes."""
    return max(0, min(each.free for each in limits(place)) - beside) // 8


def tokens_that_fit(sizes: Sizes, room: int) -> int:
    """How many tokens so many bytes have room for in one layer; one at least."""
    return max(1, room // (32 * sizes.hidden + sizes.widest * sizes.bytes))


def held_bytes(sizes: Sizes, work: Work) -> int:
    """What all batches keep between two layers: the stream, and masks of one byte a pair, of two kinds at most."""
    return work.tokens * sizes.hidden * sizes.bytes + 2 * work.pairs


def resident_bytes(weights: int, sizes: Sizes, work: Work) -> int:
    """A measurement's peak with the whole model in memory, beside 0.5 GiB of libraries: the weights, and then either a
    batch in a layer or the statistics, which take the activations five times."""
    kept = kept_bytes(sizes, work)
    return weights + max(kept + batch_bytes(sizes, work), 5 * kept)


def streamed_bytes(largest_part: int, sizes: Sizes, work: Work) -> int:
    """The same with one part of the model in memory, a layer or the embeddings, which is freed before the statistics.
    Of a converted dtype or on a GPU, experts take 5/3 of the part while they are made one tensor."""
    kept = kept_bytes(sizes, work)
    return max(largest_part + kept + held_bytes(sizes, work) + batch_bytes(sizes, work), 5 * kept)


def limits(place: Placement) -> list[Limit]:
    """The bounds of all GPUs together, of one, or of this process: of the machine, control groups and resources."""
    if place == "balanced":
        each = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
        return [Limit("the GPUs", sum(free for free, _ in each), sum(total for _, total in each))]
    if place.type == "cuda":
        return [Limit("the GPU", *torch.cuda.mem_get_info(place))]
    machine = psutil.virtual_memory()
    found = [Limit("this machine", machine.available, machine.total + psutil.swap_memory().total), *_cgroup_limits()]
    own = psutil.Process().memory_info()
    for name, used in (("RLIMIT_AS", own.vms), ("RLIMIT_DATA", own.data)):
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY:
            found.append(Limit(f"its limit {name}", max(0, soft - used), soft, counts_files=True))
    return found


def give_back() -> None:
    """Give freed memory back to the system: GNU's C library keeps tensors of some megabytes, and where small results
    lie between them, the heap grows with each layer or trial. Other libraries have no such call."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _cgroup_limits() -> list[Limit]:
    """Of this process's control groups, of both versions, and of the groups around them."""
    found = []
    for line in _text(_OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _limits_above(_CGROUPS, path, "memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            files = ("total_inactive_file", "total_active_file")
            found += _limits_above(_CGROUPS / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", files)
    return found


def _limits_above(mount: Path, path: str, limit: str, usage: str, files: tuple[str, ...]) -> list[Limit]:
    # In a container the path may be the host's, and what is mounted is the container's own group.
    inside = mount / path.strip("/")
    groups = [inside, *inside.parents] if inside.is_dir() else [mount]
    found = []
    for group in groups:
        if not group.is_relative_to(mount):
            break
        total, used = _number(group / limit), _number(group / usage)
        if total is not None and used is not None and total < _NO_LIMIT:
            # What the system keeps of files it gives up when it needs room.
            statistics = dict(re.findall(r"^(\S+) +(\d+)$", _text(group / "memory.stat"), re.MULTILINE))
            cached = sum(int(statistics.get(name, 0)) for name in files)
            found.append(Limit("this control group", max(0, total - used + cached), total))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class UsedUp(Exception):
    """More time or memory was wanted than is given. Its text is the rest of a sentence."""


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that no library's own handler takes it for an error of its own."""


@contextlib.contextmanager
def bounded(seconds: int, memory: int) -> Iterator[None]:
    """Limit the main thread's processor seconds and this process's further bytes of memory. Raises `UsedUp`."""
    timed = threading.current_thread() is threading.main_thread()  # signals reach no other
    handler = signal.signal(signal.SIGVTALRM, _stop) if timed else None
    try:
        with at_most(memory):
            if timed:
                signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            yield
    except _TimeIsUp:
        raise UsedUp(f"takes more than {seconds} seconds") from None
    except MemoryError:
        raise UsedUp(f"takes more than {memory >> 20:,} MiB of memory") from None
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, handler)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _TimeIsUp


@contextlib.contextmanager
def at_most(more: int) -> Iterator[None]:
    """Within the block, on Linux, more than so many further bytes of memory are a `MemoryError`."""
    if sys.platform != "linux":
        yield
        return
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in before if limit != resource.RLIM_INFINITY]
    limit = min([1024 * int(found[1]) + more, *limits]) if found else before[0]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def chosen_device() -> torch.device:
    """The device of params.yaml, of several GPUs the first. Raises `StageError`: it names a GPU that is missing."""
    name = read_settings(Place, PLACE).device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda" if name == "balanced" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StageError(f"params.yaml: model.device: {name} is not there ({torch.cuda.device_count()} GPUs are)")
    return device


def placement() -> Placement:
    """Where a model is loaded. Raises `StageError`: params.yaml names a GPU that is not there."""
    device = chosen_device()
    return "balanced" if read_settings(Place, PLACE).device == "balanced" else device


def offloading() -> Literal["auto", "on", "off"]:
    """Whether params.yaml has a model measured layer by layer."""
    return read_settings(Place, PLACE).offload
