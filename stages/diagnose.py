"""Stage diagnose: base model and directions → what writes and reads refusal, and which edit to try; edits nothing."""

import shutil

from excise.checkpoint.base_model import BaseModel
from excise.diagnosis.explanation import explain
from excise.edit.planning.projectors import read_directions
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import run_stage
from excise.plumbing.files import read_document, write_json
from excise.plumbing.machine import offloading, placement
from excise.plumbing.unfinished import unfinished_work
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.bench import Bench
from excise.trials.engines import open_engine
from excise.trials.journal import Journal
from excise.trials.questions import Questions
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.params.ablate import EditMethod
from schemas.refusals import REFUSAL_TOKENS, RefusalTokens


def main() -> None:
    settings = read_settings(EditMethod, ARTIFACTS / "params/diagnose.json")
    base, chat = BaseModel.open(), read_format()
    statistics, directions = read_directions(ARTIFACTS, base.layout)
    tokens = read_document(RefusalTokens, REFUSAL_TOKENS).numbers
    tokenizer = load_tokenizer(base.folder, chat.date)
    lists = (read_prompts("harmful_held_out"), read_prompts("harmless_held_out"))
    harmful, harmless = (tokenize(tokenizer, prompts, chat) for prompts in lists)
    prompts = [*harmful, *harmless]
    engine = open_engine(base.checkpoint, base.manifest.dtype, placement(), offloading(), prompts)
    work = unfinished_work("diagnose", {"device": str(placement())})
    questions = Questions(engine, harmful, harmless, tokens, Journal(work / "answers.jsonl"))
    diagnosis = explain(Bench(base, directions, questions), settings, statistics, tokenizer.decode)

    write_json(ARTIFACTS / "diagnosis.json", diagnosis)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    run_stage(main)
