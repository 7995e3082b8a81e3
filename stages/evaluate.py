"""Stage evaluate: a model's answers → a verdict on each, and metrics. The model itself is not needed."""

import sys
from pathlib import Path

from excise.checkpoint.base_model import read_config, read_manifest
from excise.evaluation.asking.answers import ANSWERS, DRIFT, chosen_side
from excise.evaluation.asking.catalogue import draw, load_tasks
from excise.evaluation.asking.overlap import leave_out, read_measured_prompts
from excise.evaluation.scoring.harness import DRIFT_METRICS, SCORES_FOLDER, Replay, Scored, drift_values, score
from excise.evaluation.scoring.judging import judged
from excise.inference.loading.tokenizer import description_folder, load_tokenizer
from excise.plumbing.errors import run_stage
from excise.plumbing.files import read_document, read_lines, write_json, write_lines
from excise.prompts.chats import read_format
from excise.prompts.reasoning import opens_reasoning, reasons
from schemas.basis.document import read_settings
from schemas.params.judge import EvaluateSettings
from schemas.results import Answers, Results, Sample

RESULTS = Path("results")


def main() -> None:
    side = chosen_side("evaluate", sys.argv[1:])
    settings = read_settings(EvaluateSettings, Path("artifacts/params/evaluate.json"))
    judge, scoring = settings.judge.load(), settings.judge.load_scoring()
    answers = read_document(Answers, ANSWERS / side / "answers.json")
    chat, folder = read_format(), description_folder(read_manifest())
    tokenizer = load_tokenizer(folder, chat.date)
    may_reason, begun = reasons(tokenizer, chat), opens_reasoning(tokenizer, chat)
    tasks = load_tasks(settings, SCORES_FOLDER, read_config(folder).get("max_position_embeddings"), may_reason)
    left_out = leave_out(tasks, read_measured_prompts(), settings)
    drawn = draw(tasks, settings)

    scored: dict[str, Scored] = {}
    for task in tasks:
        model = Replay(side, task.name, answers.responses.get(task.name), tokenizer, chat)
        result = score(model, task, chat)
        if task.judged:
            result = judged(result, judge, tokenizer, task.group, begun, may_reason, scoring)
        scored[task.name] = result
    drift = read_lines(Sample, DRIFT) if side == "ablated" else []

    samples = {name: result.samples for name, result in scored.items()}
    for name, rows in {**samples, **({"drift": drift} if drift else {})}.items():
        write_lines(RESULTS / side / f"samples/{name}.jsonl", rows)
    results = Results(
        metrics={group: {name: scored[name].values for name in names} for group, names in settings.tasks().items()},
        described={**{name: result.described for name, result in scored.items()}, "drift": DRIFT_METRICS},
        samples={name: len(rows) for name, rows in samples.items()},
        left_out=left_out,
        drawn=drawn,
        batch_size=answers.batch_size,
        drift=drift_values(drift),
    )
    write_json(RESULTS / side / "results.json", results)


if __name__ == "__main__":
    run_stage(main)
