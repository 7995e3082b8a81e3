"""Stage simulate: base model, directions and rules → what these rules would do, without changing a weight."""

from excise.checkpoint.base_model import BaseModel
from excise.diagnosis.current_rules import SCALES, simulate
from excise.edit.forecast import print_forecast
from excise.edit.planning.projectors import read_directions, read_use
from excise.edit.planning.shifts import odds_by_layer
from excise.inference.continuations import greedy_answers
from excise.inference.loading.models import load_model
from excise.inference.loading.tokenizer import load_tokenizer
from excise.plumbing.errors import run_stage
from excise.plumbing.files import sha256_of, write_json
from excise.plumbing.machine import placement
from excise.plumbing.progress import progress
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.trials.perplexity import PROMPTS, OwnAnswers
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.params.ablate import Ablate


def main() -> None:
    ablate = read_settings(Ablate, ARTIFACTS / "params/simulate.json")
    base, chat = BaseModel.open(), read_format()
    statistics, directions = read_directions(ARTIFACTS, base.layout)
    use_odds = odds_by_layer(read_use(ARTIFACTS, base.layout))
    tokenizer = load_tokenizer(base.folder, chat.date)
    model = load_model(base.checkpoint, base.manifest.dtype, placement())
    harmful, harmless = read_prompts("harmful_held_out"), read_prompts("harmless_held_out")
    sides = tokenize(tokenizer, harmful, chat), tokenize(tokenizer, harmless, chat)
    answered = sides[1][:PROMPTS]
    with progress("Answers of the base", len(answered), "prompts") as advance:
        own = OwnAnswers(model, answered, greedy_answers(model, tokenizer, answered, "auto", advance))
    digest = sha256_of(ARTIFACTS / "directions.safetensors")
    with progress("Simulate", 1 + len(SCALES), "passes") as advance:
        simulation = simulate(base, directions, use_odds, own, sides, ablate, statistics, digest, advance)

    write_json(ARTIFACTS / "simulation.json", simulation)
    print_forecast(simulation)


if __name__ == "__main__":
    run_stage(main)
