"""What docs/hardware.md says a stage needs is about what it takes, and the comparison with a GPU runs to its end."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.hardware import Counted, count
from benchmarks.larger_than_memory import run
from excise.inference.forward import all_batches
from excise.plumbing.machine import Work
from excise.prompts.chats import tokenize
from schemas.prompts import ChatFormat, Prompt
from tests.projects import ROOT, Project, environment

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 16_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
"""About 0.25 GiB in float32, in which most CPUs compute faster."""

PARAMS = """
model: {{source: {folder}, device: cpu}}
prompts: {{limit: 60}}
measure: {{stream: "{stream}"}}
ablate: {{rules: [{{layers: all, measurement: 2}}]}}
evaluate: {{limit: {asked}, over_refusal: [], capability: [organism_facts]}}
"""
ASKED = 70
"""Prompts of a task, and of those that are followed: a batch, and the beginning of the next."""
NO_LIMIT = 1 << 40
TOKENS = 64
"""Of a question and its answer in the organism's tasks, at most."""


class Bench:
    """A project whose base is a random model, and what the formula counts of that."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.model, self.project = folder / "model", Project(folder / "project")
        self.project.folder.mkdir()
        shutil.copy(ROOT / "dvc.yaml", self.project.folder)
        special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos", "bos")}
        config = AutoConfig.for_model(**MODEL, **special)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        self.counted: Counted = count(config, torch.float32)
        self.place("off")
        self.peak("prepare")
        followed = self.project.folder / "artifacts/prompts/drift.jsonl"
        followed.write_text("".join(followed.read_text().splitlines(keepends=True)[:ASKED]))
        prompts = [prompt for side in ("harmful", "harmless") for prompt in self.prompts(side)]
        tokens = tokenize(tokenizer, prompts, ChatFormat(system=None, chat_template_kwargs={}, date="2025-01-01"))
        self.work = Work.of((len(batch.rows), batch.ids.shape[1]) for batch in all_batches(tokens, 64))

    def prompts(self, side: str) -> list[Prompt]:
        """Those that are measured of one side."""
        lines = (self.project.folder / f"artifacts/prompts/{side}.jsonl").read_text().splitlines()
        return [Prompt.model_validate_json(line) for line in lines]

    def place(self, stream: str) -> None:
        """Whether the model is measured layer by layer from now on."""
        (self.project.folder / "params.yaml").write_text(PARAMS.format(folder=self.model, stream=stream, asked=ASKED))
        self.peak("params")

    def peak(self, stage: str, *arguments: str) -> int:
        """Bytes of memory that a stage took at most, files that it mapped among them."""
        command = [sys.executable, "-m", f"stages.{stage}", *arguments]
        return run(stage, command, self.project.folder, NO_LIMIT).all


@pytest.fixture(scope="module")
def bench(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / "models/base", local_files_only=True)
    return Bench(tmp_path_factory.mktemp("hardware"), tokenizer)


@pytest.mark.slow
def test_measuring_and_editing_take_at_most_what_is_said_and_at_least_half(bench: Bench) -> None:
    said = {
        "off": bench.counted.measure(bench.work),
        "on": bench.counted.streamed(bench.work),
    }
    for stream, most in said.items():
        bench.place(stream)
        assert most / 2 <= bench.peak("measure") <= most, stream
    bench.peak("directions")
    assert bench.counted.ablate() / 2 <= bench.peak("ablate") <= bench.counted.ablate()


@pytest.mark.nightly
def test_diagnosis_and_answering_take_what_is_said_within_a_factor_of_two(bench: Bench) -> None:
    bench.place("off")
    for stage in ("measure", "directions", "ablate"):
        bench.peak(stage)
    diagnose = bench.counted.diagnose(bench.work)
    assert diagnose / 2 <= bench.peak("diagnose") <= 2 * diagnose
    answer = bench.counted.answer(bench.work, TOKENS)
    assert answer / 2 <= bench.peak("answer", "base") <= 2 * answer


@pytest.mark.nightly
def test_a_device_is_compared_with_the_cpu_by_one_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--layers", "2", "--hidden", "256"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "edited on cpu and on the CPU: the same digests." in done.stdout
