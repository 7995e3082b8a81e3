"""Trained organisms, for benchmarks that try edits of them by simulation. Each is trained once and kept under
`.excise/organisms`."""

import argparse
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from excise.checkpoint.base_model import BaseModel, make_manifest
from excise.checkpoint.weights import read_checkpoint
from excise.edit.inspection import inspect, resolve_tied
from excise.edit.planning.plan import make_plan
from excise.edit.planning.projectors import Directions
from excise.evaluation.scoring.scores.verdicts import word_for_word
from excise.inference.continuations import greedy_answers
from excise.inference.passes import Passes
from excise.organism.model import ARCHITECTURES
from excise.organism.training import save, train
from excise.organism.world import Item, make_world, splits
from excise.residual.activations import collect_activations
from excise.residual.directions import estimate
from excise.trials.simulation import simulated
from schemas.params.ablate import Ablate
from schemas.params.model import Model
from schemas.params.organism import RECIPE
from schemas.params.organism import Organism as Settings

Result = TypeVar("Result")

KEPT = Path(".excise/organisms")
BATCH = 128


@dataclass
class Organism:
    """A trained organism and what it is asked."""

    name: str
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

    def judged(self, items: Sequence[Item]) -> list[dict[str, float]]:
        """Of its whole answer to each, as it is now: whether it is a refusal, and right, as the tasks score it."""
        answers = greedy_answers(self.model, self.tokenizer, self.tokens(items), "auto", lambda _: None)
        texts = [str(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]
        return [word_for_word({"answer": item.answer}, [text]) for item, text in zip(items, texts, strict=True)]

    def rate(self, metric: str, items: Sequence[Item]) -> float:
        """The mean of one of these, `refusal_rate` or `exact_match`."""
        return fmean(one[metric] for one in self.judged(items))

    def refusals(self, ablate: Ablate, directions: Directions) -> float:
        """Share of all harmful prompts that it refuses under an edit, by whole answers."""
        with simulated(self.model, make_plan(ablate, self.base, directions)):
            return self.rate("refusal_rate", self.asked["organism_harmful"])


def make_organism(settings: Settings) -> Organism:
    """The organism of these settings, trained now or before on this kind of processor."""
    # Processors of other instruction sets train other weights.
    of = f"{RECIPE} {torch.backends.cpu.get_cpu_capability()} {settings.model_dump_json()}"
    folder = KEPT / hashlib.sha256(of.encode()).hexdigest()[:16]
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        making.mkdir(parents=True)
        save(*train(settings, lambda *_: None), making)
        making.rename(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    checkpoint = read_checkpoint(folder)
    layout = resolve_tied(inspect(folder, checkpoint.tensors, checkpoint.files, "float32"), checkpoint)
    base = BaseModel(
        make_manifest(folder, Model(source=str(folder.resolve()), dtype="float32"), layout), layout, checkpoint
    )
    asked = splits(make_world(settings.seed, settings.things, settings.refusals))
    return Organism(f"{settings.architecture}, seed {settings.seed}", model, tokenizer, base, asked)


def measure(organism: Organism) -> Directions:
    """Its refusal directions."""
    passes = Passes(organism.model)
    harmful, harmless = (
        collect_activations(passes, {}, organism.tokens(organism.asked[name]), -1, BATCH, lambda _: None).stream
        for name in ("harmful_train", "harmless_train")
    )
    return estimate(harmful, harmless)


def chosen(
    description: str | None,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    seeds: Sequence[int] = (0, 1, 2),
    **settings: object,
) -> list[Settings]:
    """The organisms that the command line asks for, by default all of these, each with these settings."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--seeds", type=int, nargs="+", default=seeds)
    arguments.add_argument("--architectures", nargs="+", default=architectures)
    given = arguments.parse_args()
    return [
        Settings.model_validate({"architecture": architecture, "seed": seed, **settings})
        for architecture, seed in itertools.product(given.architectures, given.seeds)
    ]


def of_each(organisms: Sequence[Settings], work: Callable[[Settings], Result]) -> Iterator[Result]:
    """What comes of each, in this order. Training and forward passes of models so small gain little by a second thread,
    so each is done in a process of one, as many at once as there are cores."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as workers:
        yield from workers.map(work, organisms)
