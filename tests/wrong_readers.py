"""Two wrong ways to blind a reader behind a norm, and what they do to the organism: `python -m tests.wrong_readers`.

A reader sees γ ⊙ h / rms(h). This project projects it obliquely, so that it loses r of h and nothing else
(docs/edit.md). Others project its weights orthogonally, along γ ⊙ r or along r itself: both hit other features, and
neither is offered in params.yaml.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from excise.checkpoint.manifest import base_folder, read_layout, read_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.checkpoint import read_vector
from excise.edit.directions import Measured, edit_direction
from excise.edit.pairing import make_pairs
from excise.edit.plan import Edit, make_plan
from excise.edit.projection import Pair, unit_vector
from excise.evaluation.backends import Transformers
from excise.evaluation.catalogue import load_tasks
from excise.evaluation.harness import SCORES_FOLDER, score
from excise.evaluation.judging import judged
from excise.inference.forward import FIRST_BATCH, first_token_log_probabilities, mean_kl
from excise.inference.models import load_model
from excise.inference.tokenizer import load_tokenizer
from excise.judges.keywords import judge_by_keywords
from excise.plumbing.device import placement
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.simulation import simulated
from schemas.directions import DirectionStatistics
from schemas.layout import Reader
from schemas.params.ablate import Ablate
from schemas.params.answer import Answer
from schemas.params.section import read_settings

ARTIFACTS = Path("artifacts")
TARGETS = ["attention", "mlp", "routed_experts", "shared_experts", "router"]


def orthogonal_readers(plan: Sequence[Edit], pairs: Sequence[Pair]) -> list[Pair]:
    """The plan's pairs, those of readers behind norms made orthogonal: along γ ⊙ r."""
    return [
        _along(unit_vector(pair.right)) if _reads_a_norm(edit) else pair for edit, pair in zip(plan, pairs, strict=True)
    ]


def raw_readers(plan: Sequence[Edit], pairs: Sequence[Pair], ablate: Ablate, measured: Measured) -> list[Pair]:
    """The plan's pairs, those of readers behind norms made as if there were no norm: along r itself."""

    def raw(edit: Edit) -> Pair:
        return _along(edit_direction(measured, edit.measurement, edit.layer or 0, ablate.orthogonalize))

    return [raw(edit) if _reads_a_norm(edit) else pair for edit, pair in zip(plan, pairs, strict=True)]


def _along(direction: Tensor) -> Pair:
    return Pair(direction, direction)


def _reads_a_norm(edit: Edit) -> bool:
    return edit.place is not None and isinstance(edit.place.part, Reader) and bool(edit.place.norms)


def ways() -> Iterator[tuple[str, list[Edit], list[Pair]]]:
    """Each way with its plan and pairs: no edit, all writers alone, and with the router projected as its name says.

    The rules are those of the project's last run; their targets are taken from here.
    """
    params = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    base, stored = read_checkpoint(base_folder()), load_file(ARTIFACTS / "directions.safetensors")
    measured = Measured(stored["directions"], stored["harmless_mean"])
    statistics = DirectionStatistics.model_validate_json((ARTIFACTS / "directions.json").read_text())
    reasons = [row.reason for row in statistics.measurements]

    def planned(targets: Sequence[str]) -> tuple[Ablate, list[Edit], list[Pair]]:
        ablate = Ablate.model_validate({**params.model_dump(), "targets": targets})
        plan = make_plan(ablate, read_layout(), base.tensors, reasons)
        return ablate, plan, make_pairs(plan, ablate, measured, lambda name: read_vector(base, name))

    yield "no edit", [], []
    yield "all writers, router untouched", *planned(TARGETS[:-1])[1:]
    ablate, plan, pairs = planned(TARGETS)
    yield "all writers, router projected obliquely", plan, pairs
    yield "all writers, router projected along γ ⊙ r", plan, orthogonal_readers(plan, pairs)
    yield "all writers, router projected along r", plan, raw_readers(plan, pairs, ablate, measured)


def main() -> None:
    """Print one row a way, with the columns of docs/moe.md."""
    settings = read_settings(Answer, ARTIFACTS / "params/answer.json")
    manifest, chat, folder = read_manifest(), read_format(), base_folder()
    tokenizer, model = (
        load_tokenizer(folder, chat.date),
        load_model(read_checkpoint(folder), manifest.dtype, placement()),
    )
    tasks = load_tasks(settings, SCORES_FOLDER)
    prompts = tokenize(tokenizer, read_prompts("drift"), chat)

    def first_tokens() -> Tensor:
        return first_token_log_probabilities(model, prompts, settings.batch_size, lambda _: None)

    unedited = first_tokens()
    print("| experiment | refusal | right answers | borderline refusals | facts | sums | first-token KL |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, plan, pairs in ways():
        with simulated(model, plan, pairs):
            lm = Transformers(model, tokenizer, chat, FIRST_BATCH)
            scored = {task.name: score(lm, task, chat, None) for task in tasks}
            kl = mean_kl(unedited, first_tokens())
        metrics = {
            task.name: judged(found, judge_by_keywords, tokenizer, task.group, False).values
            if task.judged
            else found.values
            for task in tasks
            for found in [scored[task.name]]
        }
        values = [
            metrics["organism_harmful"]["refusal_rate"],
            metrics["organism_harmful"]["exact_match"],
            metrics["organism_borderline"]["refusal_rate"],
            metrics["organism_facts"]["exact_match"],
            metrics["organism_arithmetic"]["exact_match"],
            kl,
        ]
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
