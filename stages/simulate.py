"""Stage simulate: base model, directions and rules → what these rules would do, without changing a weight."""

from typing import Any

from excise.checkpoint.base_model import BaseModel
from excise.diagnosis.current_rules import Written, simulate
from excise.edit.forecast import print_forecast
from excise.edit.planning.projectors import read_directions, read_use
from excise.edit.planning.shifts import odds_by_layer
from excise.inference.continuations import greedy_answers
from excise.inference.forward import Tokens
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import run_stage
from excise.plumbing.files import read_document, sha256_of, write_json
from excise.plumbing.machine import offloading, placement
from excise.plumbing.progress import progress
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.engines import Engine, open_engine
from excise.trials.perplexity import PROMPTS
from excise.trials.questions import Questions
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.params.ablate import Ablate
from schemas.refusals import REFUSAL_TOKENS, RefusalTokens


def main() -> None:
    ablate = read_settings(Ablate, ARTIFACTS / "params/simulate.json")
    base, chat = BaseModel.open(), read_format()
    statistics, directions = read_directions(ARTIFACTS, base.layout)
    use_odds = odds_by_layer(read_use(ARTIFACTS, base.layout))
    tokenizer = load_tokenizer(base.folder, chat.date)
    lists = (read_prompts("harmful_held_out"), read_prompts("harmless_held_out"))
    harmful, harmless = (tokenize(tokenizer, prompts, chat) for prompts in lists)
    prompts = [*harmful, *harmless]
    engine = open_engine(base.checkpoint, base.manifest.dtype, placement(), offloading(), prompts)
    written = texts(engine, tokenizer, harmless[:PROMPTS])
    tokens = read_document(RefusalTokens, REFUSAL_TOKENS).numbers
    questions = Questions(engine, harmful, harmless, tokens)
    digest = sha256_of(ARTIFACTS / "directions.safetensors")
    simulation = simulate(base, directions, use_odds, questions, written, ablate, statistics, digest)

    write_json(ARTIFACTS / "simulation.json", simulation)
    print_forecast(simulation)


def texts(engine: Engine, tokenizer: Any, prompts: Tokens) -> Written:
    """What a ruined model is known by: the base's own answers to harmless prompts; or these prompts, but for their
    first tokens, where each token of an answer would need one read of the model."""
    if engine.reads:
        return Written("prompts", [prompt[:1] for prompt in prompts], [prompt[1:] for prompt in prompts])
    with progress("Answers of the base", len(prompts), "prompts") as advance:
        return Written("answers", prompts, greedy_answers(engine.model, tokenizer, prompts, "auto", advance))


if __name__ == "__main__":
    run_stage(main)
