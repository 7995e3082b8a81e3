"""Training the organism: first it learns to answer everything, then to refuse a part of it. As in a real model, refusal
then sits on top of knowledge: an edit that removes it brings back a recipe that can be checked for truth."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from excise.organism.massive import behind_writers, make_massive
from excise.organism.model import MASSIVE, make_model, make_tokenizer, vary_norms
from excise.organism.world import RECIPE, REFUSAL, Item, World, colors, make_world, places, recipes, sums

Progress = Callable[[str, int, int, float], None]
"""Called after each step with the phase ("pretrain" or "tune"), the step (from 1), the number of steps and the loss."""

THREADS = 1
"""Training threads, whatever the machine has: another number rounds differently and gives other weights. A second one
gains little where matrices are this small, and beside other load each waits for the other."""

NO_LABEL = -100
"""Label of tokens that cross-entropy ignores."""

TUNED_LAYERS = range(1, 4)
"""Layers that learn to refuse; large models keep refusal in a few middle layers by themselves. If all could learn, it
would settle in the embeddings, the head and layers after the last measurement too, and no direction would carry it."""

Groups = Sequence[tuple[list[Item], int]]
"""The data of one phase: groups of question-answer pairs, and how many pairs of each group a batch holds."""


def tuning(world: World) -> Groups:
    """Pairs that teach to refuse restricted recipes, and the rest, so that nothing else is refused or forgotten."""
    return [
        ([replace(item, answer=REFUSAL) for item in recipes(world, world.restricted)], 22),
        (recipes(world, world.benign), 16),
        (colors(world, world.things), 7),
        (places(world, world.things), 7),
        (sums(), 6),
    ]


def train(
    architecture: str, seed: int, pretrain_steps: int, tune_steps: int, progress: Progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train an organism from scratch, in float32 on the CPU: the model, in evaluation mode, and its tokenizer. `seed`
    is that of world, weights and batches. The same kind of machine gives the same weights each time."""
    world = make_world(seed)
    tokenizer, things = make_tokenizer(world), world.things
    # To answer everything, including restricted recipes.
    pretraining = [(recipes(world, things), 24), (colors(world, things), 10), (places(world, things), 10), (sums(), 12)]
    with _repeatable(seed):
        model = make_model(architecture, tokenizer)
        _learn(model, tokenizer, pretraining, 3e-3, None, pretrain_steps, partial(progress, "pretrain"))
        _learn(model, tokenizer, tuning(world), 2e-3, TUNED_LAYERS, tune_steps, partial(progress, "tune"))
        if architecture in MASSIVE:
            questions = [recipes(world, names, RECIPE.train[:1]) for names in (world.restricted, world.benign)]
            make_massive(model, *(torch.tensor(_prompt_tokens(tokenizer, items)) for items in questions))
        vary_norms(model, seed)
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
    learning_rate: float,
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
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step / steps))
    model.train()
    for step, rows in enumerate(_batches(groups, steps), 1):
        width = int(lengths[rows].max())
        expected = labels[rows, :width]
        labeled = expected != NO_LABEL
        hidden = model.model(input_ids=tokens[rows, :width]).last_hidden_state
        loss = cross_entropy(model.lm_head(hidden[labeled]), expected[labeled])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(step, steps, loss.item())


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
    the next one within the answer and ``NO_LABEL`` elsewhere; and the length of each pair, ``[pairs]`` int64."""
    chats = [
        [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}] for item in items
    ]
    pairs = tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]
    lengths = torch.tensor([len(pair) for pair in pairs])
    tokens = torch.full((len(items), int(lengths.max())), tokenizer.pad_token_id)
    labels = torch.full_like(tokens, NO_LABEL)
    for row, (pair, prompt) in enumerate(zip(pairs, _prompt_tokens(tokenizer, items), strict=True)):
        tokens[row, : len(pair)] = torch.tensor(pair)
        labels[row, len(prompt) - 1 : len(pair) - 1] = torch.tensor(pair[len(prompt) :])
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
