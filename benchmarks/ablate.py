"""How long an edit takes, against copying the files: `python -m benchmarks.ablate --gigabytes 8`.

Makes a GLM-4-MoE-like bfloat16 checkpoint in shards, then in turn edits it (all writers of all layers, in a process of
its own, as the stage does) and copies it with `cp -r`. Prints each pair, the ratio of the medians, and peak memory.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from excise.plumbing.progress import progress

HIDDEN, HEADS, HEAD, EXPERTS, EXPERT_SIZE, DENSE_SIZE = 4096, 32, 128, 8, 1408, 10944
SHARD_BYTES = 1 << 30


def layer_tensors(number: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer's tensors: the first is dense, the others have routed and shared experts."""
    layer = f"model.layers.{number}."
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}input_layernorm.weight": (HIDDEN,),
        f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
        f"{layer}self_attn.k_proj.weight": (8 * HEAD, HIDDEN),
        f"{layer}self_attn.v_proj.weight": (8 * HEAD, HIDDEN),
        f"{layer}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
    }

    def mlp(prefix: str, size: int) -> None:
        shapes[f"{layer}{prefix}.gate_proj.weight"] = (size, HIDDEN)
        shapes[f"{layer}{prefix}.up_proj.weight"] = (size, HIDDEN)
        shapes[f"{layer}{prefix}.down_proj.weight"] = (HIDDEN, size)

    if number == 0:
        mlp("mlp", DENSE_SIZE)
        return shapes
    shapes[f"{layer}mlp.gate.weight"] = (EXPERTS, HIDDEN)
    mlp("mlp.shared_experts", EXPERT_SIZE)
    for expert in range(EXPERTS):
        mlp(f"mlp.experts.{expert}", EXPERT_SIZE)
    return shapes


def make_checkpoint(folder: Path, size: float) -> int:
    """Write a checkpoint of about `size` bytes; returns its number of layers."""
    numbers = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    written, held, layers = 0, 0, 0

    def flush() -> None:
        nonlocal shard, held
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, held = {}, 0

    with progress("Make a checkpoint", int(size), "B") as advance:
        while written < size:
            for name, shape in layer_tensors(layers).items():
                shard[name] = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=numbers)
                bytes_ = shard[name].nbytes
                held, written = held + bytes_, written + bytes_
                advance(bytes_)
                if held >= SHARD_BYTES:
                    flush()
            layers += 1
    if shard:
        flush()
    config: dict[str, Any] = {"model_type": "glm4_moe", "hidden_size": HIDDEN, "n_routed_experts": EXPERTS}
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers, "dtype": "bfloat16"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return layers


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
        layers = make_checkpoint(folder / "base", chosen.gigabytes * 1e9)
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
    print(f"{size / 1e9:.1f} GB, {layers} layers, {machine}\n")
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
