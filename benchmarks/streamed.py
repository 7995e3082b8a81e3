"""A diagnosis of a model that is read a layer at a time: `python -m benchmarks.streamed [--folder FOLDER]`.

Makes a random checkpoint of GLM-4.5-Air's shape, unless the folder has one, and explains it under a limit of memory
(RLIMIT_DATA). Random models refuse nothing, so some tokens are said to begin refusals. Prints the reads of the
checkpoint, the passes, the peak of memory, and the time beside that of as many passes of measuring and of the reads:
one pass is measured, and one read, before.
"""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.air import Shape, write_checkpoint
from excise.checkpoint.base_model import BaseModel
from excise.checkpoint.weights import read_checkpoint
from excise.diagnosis.explanation import explain
from excise.discovery.proof import manifest_of
from excise.edit.inspection import inspect
from excise.inference.layers import LayeredModel
from excise.inference.passes import Offloaded
from excise.residual.activations import collect_activations
from excise.residual.directions import MEAN, describe, estimate
from excise.trials.bench import Bench
from excise.trials.engines import LayerByLayer
from excise.trials.questions import Questions
from schemas.params.ablate import EditMethod

CPU = torch.device("cpu")
TOKENS, COMMON = 24, 12
REFUSES = range(0, 200, 5)


def prompts(count: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random ones that begin alike."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randint(6, vocabulary, (count, TOKENS - COMMON), generator=generator)
    return [[*range(6, 6 + COMMON), *row] for row in rest.tolist()]


@contextmanager
def counted(layered: LayeredModel) -> Iterator[list[float]]:
    """How often each layer was read, and the seconds that all reads took."""
    found, load = [0.0, 0.0], layered._load

    def counting(part: int) -> None:
        began = time.monotonic()
        load(part)
        found[0] += part == 0
        found[1] += time.monotonic() - began

    layered._load = counting  # type: ignore[method-assign]
    yield found
    layered._load = load  # type: ignore[method-assign]


@contextmanager
def watched() -> Iterator[list[float]]:
    """GiB of this process's own memory at most within the block, without mapped files."""
    most, is_over = [0.0], threading.Event()

    def look() -> None:
        while not is_over.wait(0.02):
            status = Path("/proc/self/status").read_text()
            own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
            most[0] = max(most[0], own / 2**20)

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    yield most
    is_over.set()
    watching.join()


def measured(passes: Offloaded, asked: Sequence[Sequence[int]]) -> tuple[torch.Tensor, float, float]:
    """The stream of one pass, with its seconds of computing and of reading."""
    with counted(passes.layered) as reads:
        began = time.monotonic()
        stream = collect_activations(passes, {}, asked, -1, "auto", lambda _: None).stream
        return stream, time.monotonic() - began - reads[1], reads[1]


def main() -> None:
    """Make, measure, explain, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=46)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--gib", type=float, default=8.0)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "config.json").exists():
            write_checkpoint(folder, Shape(layers=arguments.layers))
        limit = int(arguments.gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        checkpoint = read_checkpoint(folder)
        layout = inspect(folder, checkpoint.tensors, checkpoint.files, "auto", str(folder))
        base = BaseModel(manifest_of(layout), layout, checkpoint)
        passes = Offloaded(LayeredModel(checkpoint, "bfloat16", CPU), CPU)
        vocabulary = passes.model.config.get_text_config().vocab_size
        kinds = [prompts(arguments.prompts, vocabulary, seed) for seed in (1, 2)]
        stream, compute, read = measured(passes, [*kinds[0], *kinds[1]])
        sides = stream.split(arguments.prompts)
        directions = estimate(sides[0], sides[1])
        statistics = describe(directions, sides[0], sides[1], MEAN).measurements
        questions = Questions(LayerByLayer(passes), kinds[0], kinds[1], REFUSES)
        with counted(passes.layered) as reads, watched() as peak:
            began = time.monotonic()
            found = explain(Bench(base, directions, questions), EditMethod(), statistics, str)
            seconds = time.monotonic() - began
        assert found.reason is None, found.reason
        expected = found.passes * compute + reads[1]
        size = sum((folder / shard).stat().st_size for shard in checkpoint.shards) / 2**30
        print("| GiB | limit | peak | reads | passes | a pass | a read | diagnosis | passes and reads | ratio |")
        print("| ---: " * 10 + "|")
        cells = [f"{size:.1f}", f"{arguments.gib:g}", f"{peak[0]:.1f}", f"{reads[0]:.0f}", f"{found.passes:.1f}"]
        cells += [f"{compute:.1f} s", f"{read:.1f} s", f"{seconds:.0f} s", f"{expected:.0f} s"]
        print(f"| {' | '.join([*cells, f'{seconds / expected:.2f}'])} |")


if __name__ == "__main__":
    main()
