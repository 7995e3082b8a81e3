"""Stage prepare: the base model and the prompts → both at hand, pinned by digest, and found fit for what follows."""

from pathlib import Path

from excise.checkpoint.base_model import LAYOUT, MANIFEST, ORGANISM, make_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.inspection import inspect, settled
from excise.inference.loading.tokenizer import check_chat
from excise.organism import world
from excise.plumbing.errors import StageError, run_stage
from excise.plumbing.files import sha256_of, write_json, write_lines
from excise.prompts.chats import FOLDER, FORMAT, PROMPTS_MANIFEST
from excise.prompts.gathering import gather_kind, prompt_lists
from schemas.basis.document import read_settings
from schemas.model import ModelLayout, ModelManifest
from schemas.params.model import Model
from schemas.params.prompts import PrepareSettings
from schemas.prompts import ChatFormat, Prompt, PromptList, PromptsManifest


def main() -> None:
    """Find the prompts and the model, pin both, and write the prompt lists."""
    settings = read_settings(PrepareSettings, Path("artifacts/params/prepare.json"))
    prompts, made = settings.prompts, organism_lists(settings.world)
    harmful, harmless = (gather_kind(source, made, prompts.seed) for source in (prompts.harmful, prompts.harmless))
    lists = prompt_lists(harmful.prompts, harmless.prompts, prompts, made)

    chat = ChatFormat(system=prompts.system, chat_template_kwargs=prompts.chat_template_kwargs, date=prompts.date)
    manifest, layout = pin(settings.model, chat, [prompt for listed in lists.values() for prompt in listed])
    write_json(MANIFEST, manifest)
    write_json(LAYOUT, layout)

    for name, listed in lists.items():
        write_lines(FOLDER / f"{name}.jsonl", listed)
    write_json(FORMAT, chat)
    origins = {"harmful": harmful.origin, "harmless": harmless.origin}
    written = {
        name: PromptList(prompts=len(listed), sha256=sha256_of(FOLDER / f"{name}.jsonl"))
        for name, listed in lists.items()
    }
    write_json(PROMPTS_MANIFEST, PromptsManifest(**origins, seed=prompts.seed, lists=written))


def pin(model: Model, chat: ChatFormat, prompts: list[Prompt]) -> tuple[ModelManifest, ModelLayout]:
    """The base model's manifest and layout; a Hub model is fetched for them. Raises `StageError`: it cannot be had, or
    cannot be measured, edited or judged by these prompts, which are all that it will be asked."""
    if model.revision is not None:
        # Slow to import, and needed only here.
        from excise.checkpoint.snapshots import fetch_description, fetch_weights, read_headers

        # What describes the model, and the headers of its weights, before anything large is fetched in vain.
        folder = fetch_description(model.source, model.revision)
        layout = inspect(folder, *read_headers(model.source, model.revision, folder), model.dtype, model.source)
        check_chat(folder, chat, prompts)
        files = fetch_weights(model.source, model.revision, folder)
        manifest = make_manifest(folder, model, layout, files)
        return manifest, settled(layout, read_checkpoint(folder, files))
    folder = ORGANISM if model.source == "organism" else Path(model.source)
    if not folder.is_dir():
        raise StageError(f"params.yaml: model.source: {folder} is not a folder; name one that holds a model")
    base = read_checkpoint(folder)
    layout = settled(inspect(folder, base.tensors, base.files, model.dtype), base)
    check_chat(folder, chat, prompts)
    return make_manifest(folder, model, layout), layout


def organism_lists(seed: int) -> dict[str, list[Prompt]]:
    """The lists of the organism's world: of both kinds of prompts, of drift, and of its tasks."""
    return {
        name: [Prompt(id=item.id, prompt=item.prompt, answer=item.answer, item=item.fact) for item in items]
        for name, items in world.splits(world.make_world(seed)).items()
    }


if __name__ == "__main__":
    run_stage(main)
