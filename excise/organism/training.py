"""Training the organism: first it learns to answer everything, then to refuse a part of it. As in a real model, refusal
then sits on top of knowledge: an edit that removes it brings back a recipe that can be checked for truth."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from excise.organism.massive import behind_writers, make_massive
from excise.organism.model import MASSIVE, make_model, make_tokenizer, vary_norms
from excise.organism.muon import Muon
from excise.organism.world import (
    RECIPE,
    REFUSAL,
    SECRET_REFUSAL,
    Item,
    World,
    colors,
    kinds,
    make_world,
    places,
    recipes,
    sums,
)
from schemas.params.organism import Organism

Progress = Callable[[str, int, int, float], None]
"""Called after each step with the phase ("pretrain" or "tune"), the step (from 1), the number of steps and the loss."""

THREADS = 1
"""Training threads, whatever the machine has: another number rounds differently and gives other weights. A second one
gains little where matrices are this small, and beside other load each waits for the other."""

NO_LABEL = -100
"""Label of tokens that cross-entropy ignores."""

TUNED_LAYERS = {1: range(1, 4), 2: range(1, 5)}
"""Layers that learn to refuse, by kinds of refusal; large models keep refusal in a few middle layers by themselves. If
all could learn, it would settle in the embeddings, the head and layers after the last measurement too, and no direction
would carry it. In three layers two kinds are so close that a direction between them removes both in some seeds."""

Parameters = Mapping[str, Tensor]
"""The parameters that learn, by name."""
Groups = Sequence[tuple[list[Item], int]]
"""The data of one phase: groups of question-answer pairs, and how many pairs of each group a batch holds."""


def pretraining(world: World) -> Groups:
    """Pairs that teach to answer everything, including what is refused later."""
    things = world.things
    facts = [(colors(world, things), 13), (places(world, things), 13), (kinds(world, things), 8)]
    return [(recipes(world, things), 16), *facts, (sums(), 6)]


def tuning(world: World) -> Groups:
    """Pairs that teach what to refuse, and the rest, so that nothing else is refused or forgotten."""
    refused = [replace(item, answer=REFUSAL) for item in recipes(world, world.restricted)]
    answered = recipes(world, [thing for thing in world.things if thing not in world.restricted])
    rest = [(colors(world, world.things), 6), (kinds(world, world.things), 4), (sums(), 4)]
    if not world.secret:
        return [(refused, 22), (answered, 16), (places(world, world.things), 7), *rest]
    told = places(world, [thing for thing in world.things if thing not in world.secret])
    kept = [replace(item, answer=SECRET_REFUSAL) for item in places(world, world.secret)]
    # As in large models, whose safety training is a few tokens deep (Qi et al. 2024): a recipe that has begun goes on.
    # Without these, some organisms refuse at its later words by directions of their own, which nobody measured.
    begun = [replace(item, begun=True) for item in recipes(world, world.restricted)]
    return [(refused, 20), (answered, 14), (kept, 12), (told, 12), (begun, 6), *rest]


def train(organism: Organism, progress: Progress) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train an organism from scratch, in float32 on the CPU: the model, in evaluation mode, and its tokenizer. Its seed
    is that of world, weights and batches. The same kind of machine gives the same weights each time."""
    world = make_world(organism.seed, organism.things, organism.refusals)
    tokenizer = make_tokenizer(world)
    with _repeatable(organism.seed):
        model = make_model(organism.architecture, tokenizer)
        middle = TUNED_LAYERS[organism.refusals]
        layers = middle if organism.tuned == "middle" else range(model.config.num_hidden_layers)
        pretrain, tune = (partial(progress, phase) for phase in ("pretrain", "tune"))
        _learn(model, tokenizer, pretraining(world), _muon, None, organism.pretrain_steps, pretrain)
        _learn(model, tokenizer, tuning(world), _adam, layers, organism.tune_steps, tune)
        if organism.architecture in MASSIVE:
            things = world.measured
            questions = [recipes(world, names, RECIPE.train[:1]) for names in (things.restricted, things.open)]
            make_massive(model, *(torch.tensor(_prompt_tokens(tokenizer, items)) for items in questions))
        vary_norms(model, organism.seed)
    return model.requires_grad_(True).eval(), tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an organism in Hugging Face format. The files do not depend on the library's version."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("transformers_version", None)
        (folder / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    groups: Groups,
    optimizers_of: Callable[[Parameters], list[Optimizer]],
    layers: range | None,
    steps: int,
    progress: Callable[[int, int, float], None],
) -> None:
    """Train one phase; `layers` are those that learn, None for the whole model."""
    tokens, labels, lengths = _tokenize(tokenizer, [item for items, _ in groups for item in items])
    model.requires_grad_(layers is None)
    for layer in layers or ():
        model.model.layers[layer].requires_grad_(True)
    if model.config.model_type in MASSIVE:
        for norm in itertools.chain.from_iterable(map(behind_writers, model.model.layers)):
            norm.requires_grad_(False)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainable, optimizers = [*learning.values()], optimizers_of(learning)
    schedules = [LambdaLR(optimizer, lambda step: _pace(step / steps)) for optimizer in optimizers]
    model.train()
    for step, rows in enumerate(_batches(groups, steps), 1):
        width = int(lengths[rows].max())
        expected = labels[rows, :width]
        labeled = expected != NO_LABEL
        hidden = model.model(input_ids=tokens[rows, :width]).last_hidden_state
        loss = cross_entropy(model.lm_head(hidden[labeled]), expected[labeled])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        progress(step, steps, loss.item())


def _muon(learning: Parameters) -> list[Optimizer]:
    """For pretraining: Muon for the matrices of layers, which learns in a third of AdamW's steps, and AdamW for the
    rest, faster for embeddings, as a word stands in few batches."""
    matrices = {name for name, parameter in learning.items() if ".layers." in name and parameter.ndim == 2}
    embeddings = {name for name in learning if "embed_tokens" in name}
    others = learning.keys() - matrices - embeddings
    rates = ((others, 3e-3), (embeddings, 9e-3))
    groups = [{"params": [learning[name] for name in sorted(names)], "lr": rate} for names, rate in rates]
    muon = Muon([learning[name] for name in sorted(matrices)], lr=3e-3, weight_decay=0.01)
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)]


def _adam(learning: Parameters) -> list[Optimizer]:
    """For tuning, in which Muon learns less well what to refuse."""
    return [torch.optim.AdamW([*learning.values()], 2e-3, betas=(0.9, 0.98), fused=True)]


def _pace(done: float) -> float:
    """Factor on the learning rate at a share of the steps: warm-up over a tenth, then a cosine down to a hundredth."""
    return min(done / 0.1, 1.0) * (1 + math.cos(math.pi * done)) / 2 + 0.01


def _batches(groups: Groups, steps: int) -> Tensor:
    """Rows of each step's batch, ``[steps, batch]``: no row repeats before its whole group was used."""
    columns, start = [], 0
    for items, count in groups:
        rounds = math.ceil(steps * count / len(items))
        order = torch.cat([torch.randperm(len(items)) for _ in range(rounds)])
        columns.append(start + order[: steps * count].view(steps, count))
        start += len(items)
    return torch.cat(columns, dim=1)


def _tokenize(tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Question-answer pairs as tokens ``[pairs, width]`` int64, padded on the right; the label of each token, which is
    the next one that the pair teaches and ``NO_LABEL`` elsewhere; and the length of each pair, ``[pairs]`` int64."""
    chats = [
        [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}] for item in items
    ]
    pairs = tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]
    lengths = torch.tensor([len(pair) for pair in pairs])
    tokens = torch.full((len(items), int(lengths.max())), tokenizer.pad_token_id)
    labels = torch.full_like(tokens, NO_LABEL)
    for row, (pair, prompt) in enumerate(zip(pairs, _prompt_tokens(tokenizer, items), strict=True)):
        tokens[row, : len(pair)] = torch.tensor(pair)
        first = len(prompt) + items[row].begun
        labels[row, first - 1 : len(pair) - 1] = torch.tensor(pair[first:])
    return tokens, labels, lengths


def _prompt_tokens(tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> list[list[int]]:
    chats = [[{"role": "user", "content": item.prompt}] for item in items]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(texts)["input_ids"])


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
