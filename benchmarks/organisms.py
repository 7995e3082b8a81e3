"""Trained organisms, for benchmarks that try edits of them by simulation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from excise.checkpoint.base_model import BaseModel, make_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.inspection import inspect, resolve_tied
from excise.edit.planning.projectors import Directions
from excise.inference.passes import Passes
from excise.organism.training import save, train
from excise.organism.world import Item, make_world, splits
from excise.residual.activations import collect_activations
from excise.residual.directions import estimate
from schemas.params.model import Model
from schemas.params.organism import Organism as Settings

BATCH = 128


@dataclass
class Organism:
    """A trained organism and what it is asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    base: BaseModel
    """The same on disk."""
    asked: dict[str, list[Item]]

    def tokens(self, items: Sequence[Item]) -> list[list[int]]:
        """Each prompt as a chat that is the model's turn to answer."""
        chats = [[{"role": "user", "content": item.prompt}] for item in items]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(texts)["input_ids"])


def make_organism(architecture: str, seed: int, folder: Path) -> Organism:
    """Train the organism of a seed with the defaults' steps, and save it in an empty folder."""
    defaults = Settings()
    model, tokenizer = train(architecture, seed, defaults.pretrain_steps, defaults.tune_steps, lambda *_: None)
    save(model, tokenizer, folder)
    checkpoint = read_checkpoint(folder)
    layout = resolve_tied(inspect(folder, checkpoint.tensors, checkpoint.files, "float32"), checkpoint)
    base = BaseModel(
        make_manifest(folder, Model(source=str(folder.resolve()), dtype="float32"), layout), layout, checkpoint
    )
    return Organism(model, tokenizer, base, splits(make_world(seed)))


def measure(organism: Organism) -> Directions:
    """Its refusal directions."""
    passes = Passes(organism.model)
    harmful, harmless = (
        collect_activations(passes, {}, organism.tokens(organism.asked[name]), -1, BATCH, lambda _: None).stream
        for name in ("harmful_train", "harmless_train")
    )
    return estimate(harmful, harmless)
