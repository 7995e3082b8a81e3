"""A model larger than memory, from its files to its edited ones: `python -m benchmarks.larger_than_memory`.

Makes a random checkpoint of GLM-4.5-Air's shape, and runs the stages on it that read weights, each under a limit of its
memory (RLIMIT_DATA, which counts what it maps of files as well). The edited model is then loaded layer by layer, which
takes every parameter, and its stream looked at: it must be finite, and without the projected direction. Prints the time
and the peak of each step. Everything is made in a temporary folder, which is removed.
"""

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.air import Shape, total_bytes, write_checkpoint
from excise.plumbing.progress import progress

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30

PARAMS = """
model: {{source: {base}, device: cpu}}
prompts: {{limit: 100}}
ablate:
  targets: [attention, mlp, routed_experts, shared_experts, embedding]
  rules: [{{layers: all, measurement: {measurement}}}]
"""


@dataclass(frozen=True)
class Step:
    """How a step went: seconds, and peaks in bytes."""

    name: str
    seconds: float
    own: int
    """Memory of its own (RssAnon), without files that are mapped."""
    all: int
    """With those (VmHWM)."""
    said: str


def run(name: str, command: list[str], project: Path, limit: int) -> Step:
    """Run one step under the limit, which must succeed, watching its memory.

    Raises:
        SystemExit: it failed.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit)),
        )
        own = all_ = 0
        try:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text()
                own, all_ = max(own, _bytes(status, "RssAnon")), max(all_, _bytes(status, "VmHWM"))
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    if process.returncode:
        sys.exit(f"{name} failed:\n{said}")
    return Step(name, time.monotonic() - began, own, all_, said)


def _bytes(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def look_at(base: Path, edited: Path) -> None:
    """In a process of its own, in the project: print what is left of the direction in the stream of the edited model.

    Raises:
        SystemExit: a parameter is missing, the stream is not finite, or the direction is still there.
    """
    import torch
    from safetensors.torch import load_file

    from excise.checkpoint.weights import read_checkpoint
    from excise.inference.loading.tokenizer import load_tokenizer
    from excise.inference.passes import open_model
    from excise.prompts.chats import read_format, read_prompts, tokenize
    from excise.residual.activations import collect_activations
    from schemas.basis.document import read_settings
    from schemas.params.ablate import Ablate

    chat = read_format()
    prompts = tokenize(load_tokenizer(base, chat.date), read_prompts("harmful_held_out"), chat)
    rule = read_settings(Ablate, Path("artifacts/params/ablate.json")).rules[0]
    direction = load_file("artifacts/directions.safetensors")["directions"][int(rule.measurement)]
    found = {}
    for name, folder in (("base", base), ("edited", edited)):
        passes = open_model(read_checkpoint(folder), "bfloat16", torch.device("cpu"), "on", prompts, "auto")
        stream = collect_activations(passes, {}, prompts, -1, "auto", lambda _: None).stream.double()
        if not stream.isfinite().all():
            sys.exit(f"the stream of the {name} model is not finite")
        found[name] = float((stream[:, 1:] @ direction).abs().div(stream[:, 1:].norm(dim=-1)).max())
    shares = f"{found['base']:.4f}, of the edited model {found['edited']:.4f}"
    print(f"Largest share of the direction in the stream after any layer: {shares}.")
    if found["edited"] > 0.01 or found["base"] < 10 * found["edited"]:
        sys.exit("the direction is still there")


def main() -> None:
    """Make, run, and print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--limit-gib", type=float, default=8)
    arguments.add_argument("--layers", type=int, default=Shape.layers)
    arguments.add_argument("--folder", type=Path, default=None, help="where to put everything; it is removed")
    chosen = arguments.parse_args()
    shape = Shape(layers=chosen.layers)
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        base, project = Path(name) / "base", Path(name) / "project"
        base.mkdir()
        project.mkdir()
        with progress("Make a checkpoint", total_bytes(shape), "B") as advance:
            write_checkpoint(base, shape, advance)
        size = sum(path.stat().st_size for path in base.iterdir())
        (project / "params.yaml").write_text(PARAMS.format(base=base, measurement=shape.layers // 2))
        again = [*python, "benchmarks.larger_than_memory", "--look-at", str(base), str(project / "models/ablated")]
        steps = [
            run(name, command, project, int(chosen.limit_gib * GIB))
            for name, command in (
                ("params", [*python, "stages.params"]),
                ("prepare (digests)", [*python, "stages.prepare"]),
                ("measure", [*python, "stages.measure"]),
                ("directions", [*python, "stages.directions"]),
                ("plan", [*python, "excise", "plan"]),
                ("ablate", [*python, "stages.ablate"]),
                ("load base and edited", again),
            )
        ]
    print(f"{size / GIB:.1f} GiB, {shape.layers} layers, limit {chosen.limit_gib:g} GiB, ", end="")
    print(f"{os.cpu_count()} CPUs, {platform.machine()}\n")
    print("| step | time, s | own memory, GiB | with mapped files, GiB |\n| --- | ---: | ---: | ---: |")
    for step in steps[1:]:
        print(f"| {step.name} | {step.seconds:.0f} | {step.own / GIB:.2f} | {step.all / GIB:.2f} |")
    print()
    print(next(line for line in steps[2].said.splitlines() if line.startswith("Measure: to hold")))
    print(steps[-1].said.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--look-at"]:
        look_at(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
