"""Stage measure: base model and prompts → activations at one token of each prompt, the use of experts, and the tokens
with which the base begins refusals."""

from safetensors.torch import save

from excise.checkpoint.base_model import BaseModel
from excise.inference.loading.tokenizer import load_tokenizer
from excise.inference.passes import open_model
from excise.inference.refusals import FirstTokens, refusal_tokens
from excise.plumbing.errors import run_stage
from excise.plumbing.files import write_bytes, write_json
from excise.plumbing.machine import offloading, placement
from excise.plumbing.progress import progress
from excise.prompts.chats import read_format, read_prompts, tokenize
from excise.residual.activations import collect_activations
from excise.residual.experts import count_use, routed_experts
from schemas.basis.document import ARTIFACTS, read_settings
from schemas.params.measure import Measure
from schemas.refusals import REFUSAL_TOKENS, RefusalToken, RefusalTokens


def main() -> None:
    settings = read_settings(Measure, ARTIFACTS / "params/measure.json")
    base, chat = BaseModel.open(), read_format()
    tokenizer = load_tokenizer(base.folder, chat.date)

    harmful = tokenize(tokenizer, read_prompts("harmful"), chat)
    harmless = tokenize(tokenizer, read_prompts("harmless"), chat)
    prompts = [*harmful, *harmless]
    passes = open_model(base.checkpoint, base.manifest.dtype, placement(), offloading(), prompts, settings.batch_size)
    experts = routed_experts(passes.model, base.layout.family)
    first = FirstTokens(len(harmful))
    with progress("Measure", passes.steps(len(prompts)), passes.unit) as advance:
        activations = collect_activations(
            passes, experts, prompts, settings.position, settings.batch_size, advance, first.add
        )

    streams = activations.stream.split([len(harmful), len(harmless)])
    tensors = {"harmful": streams[0].contiguous(), "harmless": streams[1].contiguous()}
    write_bytes(ARTIFACTS / "activations.safetensors", save(tensors))
    write_json(ARTIFACTS / "expert_use.json", count_use(activations.used, len(harmful), len(harmless)))
    means = first.means
    tokens = [
        RefusalToken(
            token=token, text=tokenizer.decode(token), harmful=round(on_harmful, 4), harmless=round(on_harmless, 4)
        )
        for token in refusal_tokens(*means)
        for on_harmful, on_harmless in [means[:, token].tolist()]
    ]
    found = RefusalTokens(tokens=tokens, harmful_prompts=len(harmful), harmless_prompts=len(harmless))
    write_json(REFUSAL_TOKENS, found)


if __name__ == "__main__":
    run_stage(main)
