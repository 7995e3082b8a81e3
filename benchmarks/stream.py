"""What it costs to read a model layer by layer where it would fit: `python -m benchmarks.stream`.

Makes a checkpoint of GLM-4.5-Air's shape, and takes activations of the same prompts from it in memory as a whole and
layer by layer, by turns, in processes of their own. Prints the seconds from opening the model to the last activation,
imports apart, and the peak of memory. The files are in the system's cache. On a machine with other work, look at the
processors' time.
"""

import argparse
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import transformers.models.glm4_moe.modeling_glm4_moe as imported_before_the_clock_starts

from benchmarks.air import Shape, total_bytes, write_checkpoint
from excise.checkpoint.weights import read_checkpoint
from excise.inference.passes import open_model
from excise.plumbing.progress import progress
from excise.residual.activations import collect_activations
from excise.residual.experts import routed_experts
from schemas.families import layouts

WAYS = {"whole": "off", "layer by layer": "on"}


def make_prompts(count: int) -> list[list[int]]:
    """Prompts of 10 to 60 tokens."""
    numbers = random.Random(0)
    return [[numbers.randrange(6, 90) for _ in range(numbers.randint(10, 60))] for _ in range(count)]


def own_memory() -> int:
    """Of this process now, in bytes, without files that are mapped."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def run(folder: Path, stream: str, count: int) -> None:
    """One way in this process: prints seconds, those of processors, and the GiB at its most beyond those at first."""
    assert imported_before_the_clock_starts and stream in ("on", "off")
    prompts = make_prompts(count)
    before, most, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, worked = time.monotonic(), time.process_time()
    passes = open_model(
        read_checkpoint(folder), "bfloat16", torch.device("cpu"), "on" if stream == "on" else "off", prompts, "auto"
    )
    collect_activations(
        passes, routed_experts(passes.model, layouts()["glm4_moe"]), prompts, -1, "auto", lambda _: None
    )
    seconds, processors = time.monotonic() - began, time.process_time() - worked
    done.set()
    watcher.join()
    print(seconds, processors, (most - before) / 2**30)


def main() -> None:
    """Make, run by turns, and print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--layers", type=int, default=9)
    arguments.add_argument("--prompts", type=int, default=64)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--folder", type=Path, default=None, help="where to put the checkpoint; it is removed")
    chosen = arguments.parse_args()
    shape = Shape(layers=chosen.layers)
    rows: list[list[tuple[float, float]]] = []
    peaks: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        with progress("Make a checkpoint", total_bytes(shape), "B") as advance:
            write_checkpoint(Path(name), shape, advance)
        size = sum(path.stat().st_size for path in Path(name).iterdir())
        for pair in range(chosen.pairs):
            taken = {}
            # Each way goes first as often as the other.
            for way in list(WAYS)[:: 1 if pair % 2 else -1]:
                command = [sys.executable, "-m", "benchmarks.stream", "--run", name, WAYS[way], str(chosen.prompts)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, processors, peak = map(float, done.stdout.split())
                taken[way] = seconds, processors
                peaks[way].append(peak)
            rows.append([taken[way] for way in WAYS])
    print(f"{size / 1e9:.1f} GB, {shape.layers} layers, {chosen.prompts} prompts, ", end="")
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}\n")
    print("| whole, s | layer by layer, s | ratio | ratio of processors' time |\n| ---: | ---: | ---: | ---: |")
    ratios = [[by_layer / whole for whole, by_layer in zip(*row, strict=True)] for row in rows]
    for (whole, by_layer), (ratio, of_processors) in zip(rows, ratios, strict=True):
        print(f"| {whole[0]:.1f} | {by_layer[0]:.1f} | {ratio:.2f} | {of_processors:.2f} |")
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    most = " and ".join(f"{max(peaks[way]):.2f} GiB {way}" for way in WAYS)
    print(f"\nMedians of the ratios: {medians[0]:.2f}, of processors' time {medians[1]:.2f}. Peak memory: {most}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
