"""Stage prepare: the base model and the prompts → both at hand, pinned by digest.

`models/base/` outlives a rerun, and training starts only when the organism's own parameters or recipe changed: a
model trained elsewhere stays the same bytes, and a change of prompts costs no training.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from excise.checkpoint.manifest import LAYOUT, MANIFEST, ORGANISM, base_folder, make_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.inspection import inspect, settled
from excise.inference.tokenizer import check_chat
from excise.organism import world
from excise.plumbing.digests import sha256_of
from excise.plumbing.errors import run_stage
from excise.plumbing.files import whole_folder, write_json, write_text
from excise.plumbing.progress import progress
from excise.prompts.chats import FOLDER, FORMAT, PROMPTS_MANIFEST, write_prompts
from excise.prompts.lists import prompt_lists, side
from schemas.artifacts import ChatFormat, ModelManifest, Prompt, PromptList, PromptsManifest
from schemas.layout import ModelLayout
from schemas.params import Model, Organism, Prompts, read_section

PARAMS = Path("artifacts/params")
RECORD = ORGANISM / "organism.json"


def main() -> None:
    """Train or find the model, pin it, and write the prompt lists."""
    model = read_section(Model, PARAMS / "model.json")
    organism = read_section(Organism, PARAMS / "organism.json")
    prompts = read_section(Prompts, PARAMS / "prompts.json")

    # First, as training takes longer than to find a mistake in a file.
    made = organism_lists(organism)
    harmful, harmless = (side(source, made, prompts.seed) for source in (prompts.harmful, prompts.harmless))
    lists = prompt_lists(harmful.prompts, harmless.prompts, prompts, made)

    if model.source == "organism":
        train_unless_made(organism)
    chat = ChatFormat(system=prompts.system, chat_template_kwargs=prompts.chat_template_kwargs, date=prompts.date)
    manifest, layout = pin(model, chat, list(itertools.chain(*lists.values())))
    if model.source != "organism":
        leave_elsewhere(ORGANISM)  # not before: a model that is refused costs nobody the organism
    write_json(MANIFEST, manifest)
    write_json(LAYOUT, layout)

    for name, listed in lists.items():
        write_prompts(FOLDER / f"{name}.jsonl", listed)
    write_json(FORMAT, chat)
    origins = {"harmful": harmful.origin, "harmless": harmless.origin}
    write_json(PROMPTS_MANIFEST, PromptsManifest(**origins, seed=prompts.seed, lists=digests_of(lists)))


def pin(model: Model, chat: ChatFormat, prompts: list[Prompt]) -> tuple[ModelManifest, ModelLayout]:
    """The base model's manifest and layout; a Hub model is fetched for them.

    Args:
        prompts: every prompt that it will be asked, as a chat.

    Raises:
        StageError: it cannot be had, or cannot be measured, edited or judged.
    """
    if model.revision is not None:
        return pin_of_hub(model, model.revision, chat, prompts)
    folder = base_folder()
    base = read_checkpoint(folder)
    layout = settled(inspect(folder, base.tensors, base.files, model.dtype), base)
    check_chat(folder, chat, prompts)
    return make_manifest(folder, "organism" if model.source == "organism" else "folder", model.dtype, layout), layout


def pin_of_hub(
    model: Model, revision: str, chat: ChatFormat, prompts: list[Prompt]
) -> tuple[ModelManifest, ModelLayout]:
    """Fetch what describes the model and the headers of its weights, look at them before anything large is fetched in
    vain, then fetch the weights."""
    # Slow to import, and needed only here.
    from excise.checkpoint.snapshots import fetch_description, fetch_weights, read_headers

    folder = fetch_description(model.source, revision)
    layout = inspect(folder, *read_headers(model.source, revision, folder), model.dtype, model.source)
    check_chat(folder, chat, prompts)
    files = fetch_weights(model.source, revision, folder)
    manifest = make_manifest(folder, "hub", model.dtype, layout, model, files)
    return manifest, settled(layout, read_checkpoint(folder, files))


def train_unless_made(organism: Organism) -> None:
    """Train the organism into `models/base`, if what lies there was not made by this very recipe."""
    # Slow to import, and needed only here.
    from excise.organism.training import RECIPE, save, train

    record = json.dumps({"recipe": RECIPE, **organism.model_dump()}, indent=2) + "\n"
    if RECORD.is_file() and RECORD.read_bytes() == record.encode():
        return

    with progress("Train the organism", organism.pretrain_steps + organism.tune_steps, "steps") as advance:
        trained, tokenizer = train(
            organism.architecture,
            organism.seed,
            organism.pretrain_steps,
            organism.tune_steps,
            lambda _phase, _step, _total, _loss: advance(1),
        )
    with whole_folder(ORGANISM) as folder:
        save(trained, tokenizer, folder)
        write_text(folder / RECORD.name, record)


def leave_elsewhere(folder: Path) -> None:
    """A folder without a model: DVC wants the output to be there, and warns of empty folders. The weights of other
    sources stay where they are."""
    with whole_folder(folder) as partial:
        write_text(partial / "README.md", "The base model lies elsewhere: artifacts/model.json says which it is.\n")


def organism_lists(organism: Organism) -> dict[str, list[Prompt]]:
    """The lists of the organism's world: both sides', that of drift, and those of its tasks."""
    return {
        name: [Prompt(id=item.id, prompt=item.prompt, answer=item.answer, item=item.fact) for item in items]
        for name, items in world.splits(world.make_world(organism.seed)).items()
    }


def digests_of(lists: Mapping[str, list[Prompt]]) -> dict[str, PromptList]:
    """Of each list as it was written, how many prompts it has and its SHA-256."""
    return {
        name: PromptList(prompts=len(listed), sha256=sha256_of(FOLDER / f"{name}.jsonl"))
        for name, listed in lists.items()
    }


if __name__ == "__main__":
    run_stage(main)
