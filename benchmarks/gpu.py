"""Measure and edit on a GPU and on the CPU, and compare: `python -m benchmarks.gpu`, or `bash benchmarks/gpu.sh`.

Makes a random checkpoint of GLM-4.5-Air's shape and runs the stages on it, each in a process of its own: on the device
the whole model and layer by layer, then on the CPU. The directions of both are compared, and the edits with the same
directions, which must be the same bytes. Prints a table in Markdown.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.air import Shape, total_bytes, write_checkpoint
from excise.plumbing.progress import progress

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ("directions.safetensors", "directions.json", "expert_use.json")
PARAMS = """
model: {{source: {base}, device: "{device}"}}
measure: {{offload: "{offload}"}}
ablate: {{rules: [{{layers: all, measurement: {measurement}}}]}}
"""


class Bench:
    """A project in a temporary folder, with the base model beside it."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.base, self.project, self.shape = folder / "base", folder / "project", shape
        for made in (self.base, self.project):
            made.mkdir()
        with progress("Make a checkpoint", total_bytes(shape), "B") as advance:
            write_checkpoint(self.base, shape, advance)
        self.bytes = sum(path.stat().st_size for path in self.base.glob("*.safetensors"))

    def place(self, device: str, offload: str = "off") -> None:
        """Where the stages run from now on."""
        text = PARAMS.format(base=self.base, device=device, offload=offload, measurement=self.shape.layers // 2)
        (self.project / "params.yaml").write_text(text)
        self.seconds("params")

    def seconds(self, stage: str) -> float:
        """Run a stage, and say what it took, its start included.

        Raises:
            SystemExit: it failed.
        """
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=self.project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{stage} failed:\n{done.stderr}")
        return time.monotonic() - began

    def artifacts(self) -> dict[str, bytes]:
        """What ablate reads of a measurement."""
        return {name: (self.project / "artifacts" / name).read_bytes() for name in ARTIFACTS}

    def put(self, artifacts: dict[str, bytes]) -> None:
        """Have ablate read that."""
        for name, data in artifacts.items():
            (self.project / "artifacts" / name).write_bytes(data)

    def directions(self) -> torch.Tensor:
        """``[measurements, hidden]`` float64."""
        return load_file(self.project / "artifacts/directions.safetensors")["directions"]

    def edit(self) -> bytes:
        """The record of the edited model, with the digest of each of its files."""
        return (self.project / "models/ablated/edit.json").read_bytes()


def main() -> None:
    """Make, run, compare, and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--layers", type=int, default=16)
    arguments.add_argument("--hidden", type=int, default=Shape.hidden)
    arguments.add_argument("--folder", type=Path, default=None, help="where to put everything; it is removed")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        bench = Bench(Path(name), Shape(layers=chosen.layers, hidden=chosen.hidden))
        bench.place("cpu")
        bench.seconds("prepare")
        lines, found = [], {}
        for device, offload in ((chosen.device, "off"), (chosen.device, "on"), ("cpu", "off")):
            bench.place(device, offload)
            lines.append((f"measure, {device}, offload {offload}", bench.seconds("measure")))
            bench.seconds("directions")
            found[device, offload] = bench.directions()
        measured, edited = bench.artifacts(), {}
        for number, device in enumerate((chosen.device, "cpu")):
            bench.place(device)
            bench.put(measured)
            lines.append((f"ablate, {device}", bench.seconds("ablate")))
            edited[number] = bench.edit()
    of_gpu, of_cpu = found[chosen.device, "off"], found["cpu", "off"]
    kept = of_cpu.norm(dim=-1) > 0
    cosine = float((of_gpu * of_cpu).sum(-1)[kept].min())
    machine = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{platform.machine()}, no GPU"
    print(f"{bench.bytes / 1e9:.1f} GB, {chosen.layers} layers, {machine}, {os.cpu_count()} CPUs, ", end="")
    print(f"torch {torch.__version__}\n")
    print("| stage, in a process of its own | time, s | GB/s |\n| --- | ---: | ---: |")
    for what, seconds in lines:
        print(f"| {what} | {seconds:.1f} | {bench.bytes / 1e9 / seconds:.2f} |")
    print(f"\nSmallest cosine between a direction measured on {chosen.device} and on the CPU: {cosine:.6f}.")
    streamed = float((found[chosen.device, "on"] - of_gpu).abs().max())
    print(f"Largest difference between directions measured whole and layer by layer: {streamed:.1e}.")
    same = edited[0] == edited[1]
    print(f"The same directions edited on {chosen.device} and on the CPU: {'the same' if same else 'OTHER'} digests.")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
