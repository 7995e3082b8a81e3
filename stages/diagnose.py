"""Stage diagnose: base model and directions → what writes and reads refusal, and which edit to try; edits nothing."""

from excise.checkpoint.base_model import BaseModel
from excise.diagnosis.explanation import STEPS, explain, unexplained
from excise.edit.planning.projectors import read_directions
from excise.inference.loading.models import load_model
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_json
from excise.plumbing.machine import placement
from excise.plumbing.progress import progress
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.bench import Bench
from excise.trials.refusal import Questions
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.params.ablate import EditMethod


def main() -> None:
    settings = read_settings(EditMethod, ARTIFACTS / "params/diagnose.json")
    base, chat = BaseModel.open(), read_format()
    statistics, directions = read_directions(ARTIFACTS, base.layout)
    tokenizer = load_tokenizer(base.folder, chat.date)
    model = load_model(base.checkpoint, base.manifest.dtype, placement())
    lists = (read_prompts("harmful_held_out"), read_prompts("harmless_held_out"))
    harmful, harmless = (tokenize(tokenizer, prompts, chat) for prompts in lists)
    questions = Questions(model, harmful, harmless)
    bench = Bench(base, directions, questions)
    if (reason := questions.unexplained) is not None:
        diagnosis = unexplained(questions, reason)
    else:
        with progress("Diagnose", STEPS, "steps") as advance:
            diagnosis = explain(bench, settings, statistics, tokenizer.decode, advance)

    write_json(ARTIFACTS / "diagnosis.json", diagnosis)


if __name__ == "__main__":
    run_stage(main)
