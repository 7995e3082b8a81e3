"""`python -m excise upgrade`: continue a project of an earlier version, which estimated in `measure` and generated in
`evaluate`. What takes long to make is copied to where this version keeps it and accepted by `dvc commit`; `dvc repro`
makes the rest, and stages whose settings changed since."""

import filecmp
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from pydantic import ValidationError

from excise.checkpoint.base_model import read_config, read_manifest
from excise.evaluation.asking.answers import ANSWERS, ask, responses_file
from excise.evaluation.asking.catalogue import load_tasks
from excise.evaluation.asking.overlap import leave_out, read_measured_prompts
from excise.evaluation.scoring.harness import Recording
from excise.gitops.git import file_of, git
from excise.gitops.programs import run_or_fail
from excise.inference.loading.tokenizer import description_folder, load_tokenizer
from excise.plumbing.errors import StageError
from excise.plumbing.files import (
    MAPPING,
    read_document,
    read_lines,
    write_bytes,
    write_json,
    write_lines,
)
from excise.prompts.chats import FOLDER, FORMAT, read_format
from excise.prompts.reasoning import reasons
from schemas.basis.document import read_settings
from schemas.basis.plain_yaml import parse_mapping
from schemas.params.answer import Answer
from schemas.params.organism import OrganismSettings
from schemas.prompts import ChatFormat
from schemas.results import Answers, Sample

PROJECT = Path()
SETTINGS = Path("artifacts/params")
RECORDED = (
    *("artifacts/params/evaluate.json", "artifacts/prompts"),
    "results/base",
)


def upgrade() -> None:
    """Take over the newest recorded run. Raises `StageError`: none is recorded here, DVC lacks its outputs, or it asks
    the built-in world, which was another one."""
    commit = recorded_commit()
    run_or_fail("dvc", "repro", "params")
    if read_settings(OrganismSettings, SETTINGS / "organism.json").organism is not None:
        raise StageError(
            "params.yaml: the built-in model and its tasks know other things since: nothing to upgrade; "
            "run `make repro`"
        )
    with tempfile.TemporaryDirectory(prefix="excise-") as temporary:
        old = Path(temporary)
        for path in RECORDED:
            (old / path).parent.mkdir(parents=True, exist_ok=True)
            run_or_fail("dvc", "get", ".", path, "--rev", commit, "--out", str(old / path))
        run_or_fail("dvc", "repro", "prepare")
        taken = "answer@base" if take_answers(old) else "nothing"
    print(f"taken over from {commit[:12]}: {taken}; `make repro` makes the rest")


def recorded_commit() -> str:
    """The newest commit of dvc.lock, if an earlier version wrote it."""
    listed = git(PROJECT, "rev-list", "--first-parent", "HEAD", "--", "dvc.lock").split()
    if listed and (text := file_of(PROJECT, listed[0], "dvc.lock")):
        stages = parse_mapping(text, "dvc.lock")["stages"]
        if any(out["path"] == "models/base" for out in stages.get("prepare", {}).get("outs", ())):
            return listed[0]
    raise StageError("dvc.lock was not written by an earlier version: nothing to upgrade; run `make repro`")


def take_answers(old: Path) -> bool:
    """The base's answers in tasks that generate, if it was asked the same."""
    before = read_document(MAPPING, old / SETTINGS / "evaluate.json")
    settings = read_settings(Answer, SETTINGS / "answer.json")
    # That version asked the first samples where this one draws them.
    alike = settings.limit is None and settings == _as_now(before)
    tasks_asked = (*settings.refusal, *settings.over_refusal, *settings.capability)
    if not alike or not _same_prompts(old / FOLDER, tasks_asked):
        return _runs_again()
    chat, folder = read_format(), description_folder(read_manifest())
    tokenizer = load_tokenizer(folder, chat.date)
    if reasons(tokenizer, chat):
        return _runs_again(": answers with reasoning have more room now")
    tasks = load_tasks(settings, longest_text=read_config(folder).get("max_position_embeddings"))
    leave_out(tasks, read_measured_prompts(), settings)
    if any(part.OUTPUT_TYPE != "generate_until" for task in tasks for part in task.parts.values()):
        return _runs_again(": log-probabilities were not kept")
    counts: dict[str, int] = {}
    results = read_document(MAPPING, old / "results/base/results.json")
    for task in tasks:
        samples = read_lines(Sample, old / f"results/base/samples/{task.name}.jsonl")
        responses = ask(Remembered(samples, tokenizer, chat), task, chat).responses
        write_lines(responses_file("base", task.name), responses)
        counts[task.name] = len(responses)
    asked = Answers(responses=counts, dtype=read_manifest().dtype, batch_size=results["batch_size"])
    write_json(ANSWERS / "base/answers.json", asked)
    name = "predictions.safetensors"
    write_bytes(ANSWERS / "base" / name, (old / "results/base" / name).read_bytes())
    # Its answers depend on what measure writes, which no earlier version did.
    run_or_fail("dvc", "repro", "measure")
    run_or_fail("dvc", "commit", "--force", "answer@base")
    return True


def _as_now(before: dict[str, Any]) -> Answer | None:
    """The settings of an earlier version, with defaults for those that it did not have; None if they are none now."""
    try:
        return Answer.model_validate({name: before[name] for name in Answer.model_fields if name in before})
    except ValidationError:
        return None


class Remembered(Recording):
    """The recorded answers, in the order of the samples."""

    def __init__(self, samples: Sequence[Sample], tokenizer: Any, chat: ChatFormat) -> None:
        super().__init__(tokenizer, chat)
        self._samples = samples

    def responses(self, requests: list[Instance]) -> list[str]:
        if len(requests) != len(self._samples):
            raise StageError(f"{len(self._samples)} samples were recorded of a task with {len(requests)} requests")
        return [sample.response for sample in self._samples]


def _same_prompts(old: Path, asked: Sequence[str] = ()) -> bool:
    """Whether all lists of prompts are the same but those of the built-in world's tasks that nobody `asked`."""
    lists = {path.name for folder in (old, FOLDER) for path in folder.glob("*.jsonl")}
    names = [name for name in lists if not name.startswith("organism_") or name.removesuffix(".jsonl") in asked]
    return not any(filecmp.cmpfiles(old, FOLDER, [*names, FORMAT.name], shallow=False)[1:])


def _runs_again(why: str = ": its settings or prompts changed") -> bool:
    print(f"answer@base runs again{why}")
    return False
