"""Two wrong ways to blind a reader behind a norm, and what they do to the organism: `python -m tests.wrong_readers`.

A reader sees γ ⊙ h / rms(h). This project projects it obliquely, so that it loses r of h and nothing else
(docs/edit.md). Others project its weights orthogonally, along γ ⊙ r or along r itself: both hit other features, and
neither is offered in params.yaml.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from excise.checkpoint.base_model import BaseModel
from excise.edit.planning.plan import Edit, make_plan
from excise.edit.planning.projectors import Directions, Projector, read_directions, span
from excise.evaluation.answering.backends import Transformers
from excise.evaluation.asking.catalogue import load_tasks
from excise.evaluation.scoring.harness import SCORES_FOLDER, score
from excise.evaluation.scoring.judging import judged
from excise.inference.forward import FIRST_BATCH, first_token_log_probabilities
from excise.inference.loading.models import load_model
from excise.inference.loading.tokenizer import load_tokenizer
from excise.judges.keywords import judge_by_keywords
from excise.plumbing.machine import placement
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.simulation import simulated
from schemas.basis.document import read_settings
from schemas.model import Reader
from schemas.params.ablate import Ablate
from schemas.params.answer import Answer
from tests.subjects import mean_kl

ARTIFACTS = Path("artifacts")
TARGETS = ["attention", "mlp", "routed_experts", "shared_experts", "router"]


def orthogonal_readers(edits: Sequence[Edit]) -> list[Edit]:
    """The plan, with readers behind norms projected orthogonally: along γ ⊙ r."""
    return [_along(span(edit.projector.right), edit) if _reads_a_norm(edit) else edit for edit in edits]


def raw_readers(edits: Sequence[Edit], ablate: Ablate, directions: Directions) -> list[Edit]:
    """The plan, with readers behind norms projected as if there were no norm: along r itself."""

    def raw(edit: Edit) -> Edit:
        return _along(directions.at(edit.measurement, edit.layer or 0, ablate.orthogonalize)[:, None], edit)

    return [raw(edit) if _reads_a_norm(edit) else edit for edit in edits]


def _along(basis: Tensor, edit: Edit) -> Edit:
    return replace(edit, projector=Projector(basis, basis))


def _reads_a_norm(edit: Edit) -> bool:
    return edit.place is not None and isinstance(edit.place.part, Reader) and bool(edit.place.norms)


def ways(base: BaseModel) -> Iterator[tuple[str, list[Edit]]]:
    """Each way with its plan: no edit, all writers alone, and with the router projected as its name says.

    The rules are those of the project's last run; their targets are taken from here.
    """
    params = read_settings(Ablate, ARTIFACTS / "params/ablate.json")
    _, directions = read_directions(ARTIFACTS, base.layout)
    writers, ablate = (
        Ablate.model_validate({**params.model_dump(), "targets": targets}) for targets in (TARGETS[:-1], TARGETS)
    )
    edits = make_plan(ablate, base, directions)
    yield "no edit", []
    yield "all writers, router untouched", make_plan(writers, base, directions)
    yield "all writers, router projected obliquely", edits
    yield "all writers, router projected along γ ⊙ r", orthogonal_readers(edits)
    yield "all writers, router projected along r", raw_readers(edits, ablate, directions)


def main() -> None:
    """Print one row a way, with the columns of docs/moe.md."""
    settings = read_settings(Answer, ARTIFACTS / "params/answer.json")
    base, chat = BaseModel.open(), read_format()
    tokenizer = load_tokenizer(base.folder, chat.date)
    model = load_model(base.checkpoint, base.manifest.dtype, placement())
    tasks = load_tasks(settings, SCORES_FOLDER)
    prompts = tokenize(tokenizer, read_prompts("drift"), chat)

    def first_tokens() -> Tensor:
        return first_token_log_probabilities(model, prompts, settings.batch_size, lambda _: None)

    unedited = first_tokens()
    print("| experiment | refusal | right answers | borderline refusals | facts | sums | first-token KL |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, edits in ways(base):
        with simulated(model, edits):
            lm = Transformers(model, tokenizer, chat, FIRST_BATCH)
            scored = {task.name: score(lm, task, chat) for task in tasks}
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
