"""How much memory there is and how much is needed: what decides whether a model is measured layer by layer."""

import ctypes
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.air import Shape, write_checkpoint
from benchmarks.stream import make_prompts
from excise.checkpoint.weights import read_checkpoint
from excise.inference.forward import FIRST_BATCH, all_batches
from excise.inference.loading import models
from excise.inference.loading.models import load_model, weights_need, without_weights
from excise.inference.passes import Offloaded, open_model
from excise.plumbing import machine
from excise.plumbing.errors import StageError
from excise.plumbing.machine import (
    GIB,
    Limit,
    Need,
    Sizes,
    Work,
    impossible,
    kept_bytes,
    limits,
    resident_bytes,
    streamed_bytes,
    too_small,
)
from tests.families import make

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [[7, 8, 9]] * 5
SIZES = Sizes(hidden=1000, layers=9, widest=4000, bytes=2)


def test_what_fits_has_room_to_spare() -> None:
    assert too_small(Need(100, mapped=0), [Limit("it", free=111, total=200)]) is None
    assert too_small(Need(100, mapped=0), [Limit("it", free=109, total=200)]) == Limit("it", free=109, total=200)


def test_the_least_of_the_limits_that_are_too_small_is_named() -> None:
    bounds = [Limit("large", 999, 999), Limit("small", 50, 999), Limit("smaller", 40, 999), Limit("full", 101, 999)]
    found = too_small(Need(100, mapped=0), bounds)
    assert found is not None and found.name == "smaller"


def test_mapped_files_count_where_a_limit_counts_them() -> None:
    assert too_small(Need(100, mapped=900), [Limit("machine", 500, 500)]) is None
    assert too_small(Need(100, mapped=900), [Limit("own", 500, 500, counts_files=True)]) is not None


def test_what_is_impossible_would_not_fit_alone() -> None:
    need = Need(100, mapped=0)
    assert impossible(need, [Limit("busy", free=1, total=100)]) is None
    assert impossible(need, [Limit("busy", free=1, total=100), Limit("small", free=1, total=99)]) is not None


works = st.builds(
    Work.of, st.lists(st.tuples(st.integers(1, 64), st.integers(1, 300)), min_size=1, max_size=5).map(tuple)
)


@given(work=works, weights=st.integers(0, 10**12), part=st.integers(0, 10**10))
def test_a_measurement_takes_at_least_its_weights_and_what_it_keeps(work: Work, weights: int, part: int) -> None:
    assert resident_bytes(weights, SIZES, work) >= weights + kept_bytes(SIZES, work)
    assert streamed_bytes(part, SIZES, work) >= part + kept_bytes(SIZES, work)


@given(work=works, layers=st.integers(1, 90))
def test_layer_by_layer_the_number_of_layers_matters_for_what_is_kept_alone(work: Work, layers: int) -> None:
    deeper = Sizes(SIZES.hidden, layers, SIZES.widest, SIZES.bytes)
    more = streamed_bytes(10**9, deeper, work) - streamed_bytes(10**9, SIZES, work)
    assert abs(more) <= 5 * abs(kept_bytes(deeper, work) - kept_bytes(SIZES, work))


def test_work_is_that_of_the_batches() -> None:
    assert Work.of([(2, 10), (3, 20)]) == Work(
        prompts=5, tokens=80, pairs=2 * 100 + 3 * 400, batch_tokens=60, batch_pairs=1200
    )


# Limits of control groups.


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A made-up /sys/fs/cgroup, and a /proc/self/cgroup beside it."""
    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "sys")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    yield tmp_path


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def of_groups() -> list[tuple[int, int]]:
    return [(limit.free, limit.total) for limit in limits(CPU) if limit.name == "this control group"]


def test_version_2_gives_its_own_limit_and_those_around_it(groups: Path) -> None:
    (groups / "own").write_text("0::/outer/inner\n")
    write(groups / "sys/outer", memory_max="1000\n", memory_current="700\n", memory_stat="anon 5\ninactive_file 100\n")
    write(groups / "sys/outer/inner", memory_max="max\n", memory_current="600\n", memory_stat="active_file 1\n")
    assert of_groups() == [(400, 1000)]


def test_version_1_gives_its_limit(groups: Path) -> None:
    (groups / "own").write_text("5:cpu:/\n4:memory:/job\n0::/\n")
    write(groups / "sys/memory/job")
    (groups / "sys/memory/job/memory.limit_in_bytes").write_text("800\n")
    (groups / "sys/memory/job/memory.usage_in_bytes").write_text("300\n")
    (groups / "sys/memory/job/memory.stat").write_text("cache 9\ntotal_inactive_file 50\ntotal_active_file 20\n")
    (groups / "sys/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (groups / "sys/memory/memory.usage_in_bytes").write_text("300\n")
    assert of_groups() == [(570, 800)]


def test_in_a_container_the_group_is_what_is_mounted(groups: Path) -> None:
    (groups / "own").write_text("0::/host/path/of/the/container\n")
    write(groups / "sys", memory_max="1000\n", memory_current="400\n")
    assert of_groups() == [(600, 1000)]


@pytest.mark.parametrize("text", [None, "", "0::/\n"])
def test_without_a_limit_there_is_none(groups: Path, text: str | None) -> None:
    if text is not None:
        (groups / "own").write_text(text)
    assert of_groups() == []


def test_limits_of_the_process_count() -> None:
    code = (
        "import torch\nfrom excise.plumbing.machine import limits\n"
        "print([(each.name, each.total, 0 < each.free < each.total) for each in limits(torch.device('cpu')) "
        "if each.counts_files])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_this_process
    )
    bounds = [("its limit RLIMIT_AS", 9 * GIB, True), ("its limit RLIMIT_DATA", 8 * GIB, True)]
    assert done.stdout == f"{bounds}\n", done.stderr


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library cannot be asked to")
def test_memory_between_what_is_kept_is_given_back() -> None:
    """64 KiB freed between bytes that are kept, 3000 times; in a process of its own, whose heap has no holes yet."""
    code = """
import psutil, torch
from excise.plumbing.machine import give_back
process, size = psutil.Process(), 1 << 16
large, small = [], []
for _ in range(3000):
    large.append(torch.zeros(size, dtype=torch.uint8))
    small.append(torch.zeros(1))
full = process.memory_info().rss
large.clear()
freed = process.memory_info().rss
give_back()
print((full - freed) // size, (freed - process.memory_info().rss) // size, len(small))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    unasked, asked, kept = map(int, done.stdout.split())
    assert unasked < 1000, "it was given back unasked: this shows nothing"
    assert asked > 2000
    assert kept == 3000


def limit_this_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (9 * GIB, 9 * GIB))
    resource.setrlimit(resource.RLIMIT_DATA, (8 * GIB, 8 * GIB))


# What is decided by them.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("glm")
    make("glm4_moe", folder)
    return folder


def bounded(monkeypatch: pytest.MonkeyPatch, free: int, total: int) -> None:
    for module in (models, machine):
        monkeypatch.setattr(module, "limits", lambda _place: [Limit("this machine", free, total)])


def test_weights_are_counted_once_and_as_they_are_loaded(model: Path, tmp_path: Path) -> None:
    make("gemma2", tmp_path)
    for folder in (model, tmp_path):
        for dtype in ("float32", "bfloat16"):
            tensors = {
                id(tensor): tensor.nbytes
                for whole in [load_model(read_checkpoint(folder), dtype, CPU)]
                for tensor in (*whole.parameters(), *whole.buffers())
            }
            need = weights_need(read_checkpoint(folder), without_weights(folder, dtype))
            # The bias that routers choose by stays in float32: some bytes.
            assert abs(need.memory - sum(tensors.values())) <= 100
            assert need.mapped == (folder / "model.safetensors").stat().st_size


def test_auto_takes_the_whole_model_where_it_fits_and_says_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounded(monkeypatch, GIB, GIB)
    assert not isinstance(open_model(read_checkpoint(model), "float32", CPU, "auto", PROMPTS, "auto"), Offloaded)
    assert capsys.readouterr().err == ""


def test_auto_reads_layer_by_layer_where_it_does_not_fit_and_says_why(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounded(monkeypatch, 1, GIB)
    assert isinstance(open_model(read_checkpoint(model), "float32", CPU, "auto", PROMPTS, "auto"), Offloaded)
    assert capsys.readouterr().err == (
        "The whole model takes 0.0 GiB, and this machine has 0.0 GiB free: reading one layer at a time\n"
    )


def test_on_and_off_do_as_they_say(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounded(monkeypatch, 1, GIB)
    assert not isinstance(open_model(read_checkpoint(model), "float32", CPU, "off", PROMPTS, "auto"), Offloaded)
    bounded(monkeypatch, GIB, GIB)
    assert isinstance(open_model(read_checkpoint(model), "float32", CPU, "on", PROMPTS, "auto"), Offloaded)
    assert capsys.readouterr().err == ""


def test_a_model_that_can_never_fit_is_refused_in_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 1, 1000)
    with pytest.raises(StageError) as caught:
        load_model(read_checkpoint(model), "float32", CPU)
    assert str(caught.value) == (
        f"{model} takes 0.0 GiB of memory, and this machine has 0.0 GiB; use a larger machine, or GPUs that hold it "
        "(model.device: balanced). Measuring, diagnosing and simulating layer by layer (measure.offload), and "
        "ablating, need less"
    )


def test_a_layer_that_can_never_fit_is_refused_in_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 1, 1000)
    with pytest.raises(StageError, match=r"even layer by layer, and this machine has 0\.0 GiB; use a larger machine"):
        open_model(read_checkpoint(model), "float32", CPU, "auto", PROMPTS, "auto")


@pytest.mark.nightly
@pytest.mark.parametrize("stream", ["on", "off"])
def test_what_is_reckoned_is_what_is_taken(tmp_path: Path, stream: str) -> None:
    """Within 40 % above and 10 % below, beside a quarter of a GiB that libraries keep; more is better than less."""
    write_checkpoint(tmp_path, Shape(layers=4, shard_bytes=1 << 26))
    command = [sys.executable, "-m", "benchmarks.stream", "--run", str(tmp_path), stream, "64"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    taken = float(done.stdout.split()[2]) * GIB
    passes = open_model(read_checkpoint(tmp_path), "bfloat16", CPU, "on", make_prompts(64), "auto")
    assert isinstance(passes, Offloaded)
    sizes = Sizes.of(passes.model.config.to_dict(), 2)
    work = Work.of((len(batch.rows), batch.ids.shape[1]) for batch in all_batches(make_prompts(64), FIRST_BATCH))
    if stream == "on":
        reckoned = streamed_bytes(passes.layered.largest_part, sizes, work)
    else:
        reckoned = resident_bytes(weights_need(read_checkpoint(tmp_path), passes.model).memory, sizes, work)
    assert 0.9 * taken - GIB / 4 <= reckoned <= 1.4 * taken, (taken / GIB, reckoned / GIB)
