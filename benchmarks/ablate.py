"""How long an edit takes, against copying the files: `python -m benchmarks.ablate --gigabytes 8`.

Makes a GLM-4-MoE-like bfloat16 checkpoint in shards, then in turn edits it (all writers of all layers, in a process of
its own, as the stage does) and copies it with `cp -r`. Prints each pair, the ratio of the medians, and peak memory.
"""

import argparse
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.air import Shape, total_bytes, write_checkpoint
from excise.plumbing.progress import progress

HIDDEN = 4096


def shape_of(size: float) -> Shape:
    """A checkpoint of at least so many bytes: layers of eight experts, until there are enough."""
    shapes = (Shape(layers, HIDDEN, 32, experts=8, expert_size=1408, dense_size=10944) for layers in itertools.count(1))
    return next(shape for shape in shapes if total_bytes(shape) >= size)


def edit(source: Path, target: Path) -> None:
    """Edit as the stage does, from plan to written folder, in a process of its own, which prints its peak in GiB."""
    from excise.checkpoint.base_model import BaseModel
    from excise.checkpoint.weights import read_checkpoint
    from excise.edit.checkpoint import write_edited
    from excise.edit.inspection import inspect
    from excise.edit.planning.plan import make_plan
    from excise.edit.planning.projectors import Directions
    from excise.plumbing.files import sha256_of
    from schemas.model import ModelManifest
    from schemas.params.ablate import Ablate

    checkpoint = read_checkpoint(source)
    layout = inspect(source, checkpoint.tensors, checkpoint.files, "bfloat16")
    ablate = Ablate.model_validate({"rules": [{"layers": "all", "measurement": 1}]})
    rows = torch.randn(layout.layers + 1, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    directions = Directions(rows, rows, (None,) * len(rows))
    # Without digests, which the stage finds there.
    manifest = ModelManifest(
        source="folder",
        model_type=layout.model_type,
        dtype="bfloat16",
        layers=layout.layers,
        hidden_size=HIDDEN,
        files=[],
    )
    base = BaseModel(manifest, layout, checkpoint)
    target.mkdir()
    digest = sha256_of if "--digests" in sys.argv else str
    write_edited(base, target, make_plan(ablate, base, directions), [], torch.device("cpu"), lambda _: None, digest)
    # Not getrusage: its peak is at first that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 2**20)


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds that a command takes, its start included, and what it prints."""
    began = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.monotonic() - began, done.stdout


def main() -> None:
    """Make, time in pairs, and print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--gigabytes", type=float, default=8)
    arguments.add_argument("--pairs", type=int, default=3)
    arguments.add_argument("--folder", type=Path, default=None, help="where to put the checkpoint; it is removed")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        (folder / "base").mkdir()
        shape = shape_of(chosen.gigabytes * 1e9)
        with progress("Make a checkpoint", total_bytes(shape), "B") as advance:
            write_checkpoint(folder / "base", shape, advance)
        size = sum(path.stat().st_size for path in (folder / "base").iterdir())
        again = [sys.executable, "-m", "benchmarks.ablate", "--edit", str(folder / "base"), str(folder / "edited")]
        rows = []
        peak = 0.0
        # The first to write meets what the system still has to write to the disk.
        copy = ["cp", "-r", str(folder / "base"), str(folder / "copy")]
        os.sync()
        timed(copy)
        shutil.rmtree(folder / "copy")
        for _ in range(chosen.pairs):
            taken = []
            for command, made in ((again, "edited"), ([*again, "--digests"], "edited"), (copy, "copy")):
                # Nothing is left to be written for another, and nothing of another is to be removed meanwhile.
                os.sync()
                seconds, printed = timed(command)
                shutil.rmtree(folder / made)
                peak = max(peak, float(printed or 0))
                taken.append(seconds)
            rows.append(tuple(taken))
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}"
    print(f"{size / 1e9:.1f} GB, {shape.layers} layers, {machine}\n")
    print("| edit, s | edit with digests, s | cp -r, s | edit / cp |\n| ---: | ---: | ---: | ---: |")
    for seconds, with_digests, copied in rows:
        print(f"| {seconds:.1f} | {with_digests:.1f} | {copied:.1f} | {seconds / copied:.2f} |")
    edits, digests, copies = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"\nMedians: {edits / copies:.2f} times cp ({digests / copies:.2f} with digests), "
        f"{size / 1e9 / edits:.2f} GB/s, peak memory {peak:.2f} GiB."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--edit"]:
        edit(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
