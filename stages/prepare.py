"""Stage prepare: base model and prompts → both fetched, pinned by digest, and checked for the stages that follow."""

import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from excise.checkpoint.base_model import LAYOUT, LAYOUT_PROOF, MANIFEST, ORGANISM, existing_folder, make_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.inspection import Measure, inspect, resolve_tied
from excise.inference.loading.tokenizer import check_chat
from excise.organism import world
from excise.plumbing.errors import run_stage
from excise.plumbing.files import sha256_of, write_json, write_lines
from excise.prompts.chats import FOLDER, FORMAT, PROMPTS_MANIFEST
from excise.prompts.gathering import gather_kind, prompt_lists
from schemas.basis.document import read_settings
from schemas.model import LayoutEvidence, LayoutProof, MeasuredFamily, ModelLayout, ModelManifest
from schemas.params.model import Model
from schemas.params.organism import WorldSettings
from schemas.params.prompts import PrepareSettings
from schemas.prompts import ChatFormat, Prompt, PromptList, PromptsManifest


def main() -> None:
    settings = read_settings(PrepareSettings, Path("artifacts/params/prepare.json"))
    prompts, built_in = settings.prompts, organism_lists(settings.world)
    harmful, harmless = (gather_kind(source, built_in, prompts.seed) for source in (prompts.harmful, prompts.harmless))
    lists = prompt_lists(harmful.prompts, harmless.prompts, prompts, built_in)

    chat = ChatFormat(system=prompts.system, chat_template_kwargs=prompts.chat_template_kwargs, date=prompts.date)
    proofs: list[LayoutProof] = []
    asked = [prompt for listed in lists.values() for prompt in listed]
    manifest, layout = pin(settings.model, chat, asked, partial(measured, proofs))
    write_json(MANIFEST, manifest)
    write_json(LAYOUT, layout)
    write_json(LAYOUT_PROOF, LayoutEvidence(proof=proofs[0] if proofs else None))

    for name, listed in lists.items():
        write_lines(FOLDER / f"{name}.jsonl", listed)
    write_json(FORMAT, chat)
    origins = {"harmful": harmful.origin, "harmless": harmless.origin}
    digests = {
        name: PromptList(prompts=len(listed), sha256=sha256_of(FOLDER / f"{name}.jsonl"))
        for name, listed in lists.items()
    }
    write_json(PROMPTS_MANIFEST, PromptsManifest(**origins, seed=prompts.seed, lists=digests))


def measured(proofs: list[LayoutProof], config: Any, whole: Any, stored: Collection[str]) -> MeasuredFamily:
    """The layout of a model type that no file describes, whose proof is added to `proofs`. Raises `StageError`: it has
    none, for the measured reason."""
    from excise.discovery.examination import measured_family  # slow to import

    model_type = config.get_text_config().model_type
    print(f"Prepare: no file describes the model type {model_type}, so its layout is measured", file=sys.stderr)
    family = measured_family(config, whole, stored)
    proofs.append(family.proof)
    return family


def pin(
    model: Model, chat: ChatFormat, prompts: list[Prompt], measure: Measure | None = None
) -> tuple[ModelManifest, ModelLayout]:
    """The base model's manifest and layout. Raises `StageError`: it cannot be fetched, or used with these prompts."""
    if model.revision is not None:
        from excise.checkpoint.snapshots import fetch, fetch_description, read_headers  # slow to import

        # Only descriptions and headers, until the model is known to be usable.
        folder = fetch_description(model.source, model.revision)
        tensors, files = read_headers(model.source, model.revision, folder)
        layout = inspect(folder, tensors, files, model.dtype, model.source, measure)
        check_chat(folder, chat, prompts)
        fetch(model.source, model.revision, files)
        manifest = make_manifest(folder, model, layout, files)
        return manifest, resolve_tied(layout, read_checkpoint(folder, files))
    folder = existing_folder(ORGANISM if model.source == "organism" else Path(model.source))
    base = read_checkpoint(folder)
    layout = resolve_tied(inspect(folder, base.tensors, base.files, model.dtype, measure=measure), base)
    check_chat(folder, chat, prompts)
    return make_manifest(folder, model, layout), layout


def organism_lists(settings: WorldSettings) -> dict[str, list[Prompt]]:
    """The prompt lists of the organism's world: harmful, harmless, drift, and its tasks."""
    made = world.make_world(**settings.model_dump())
    return {
        name: [
            # No thing is both measured and held out; intervals of what is judged are over facts.
            Prompt(
                id=item.id,
                prompt=item.prompt,
                answer=item.answer,
                item=item.thing if name.endswith("_train") else item.fact,
            )
            for item in items
        ]
        for name, items in world.splits(made).items()
    }


if __name__ == "__main__":
    run_stage(main)
