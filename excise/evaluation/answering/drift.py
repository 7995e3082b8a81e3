"""How far the edited model has moved from the base on harmless prompts: it is made to read the base's own answers, and
what both find likely at each token is compared."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.checkpoint.weights import read_tensors
from excise.inference.forward import Batch, BatchSize, Tokens, in_batches, logits_at
from excise.inference.loading.tokenizer import end_ids, padding_id
from excise.plumbing.files import unreadable
from excise.plumbing.progress import Advance
from schemas.prompts import Prompt
from schemas.results import Sample

ANSWER_TOKENS = 32
"""So much of each of the base's answers is compared: what an edit does to a text shows early."""
MOST_LIKELY = 512
"""The base's most likely tokens at each place, which are kept; the others are taken together. The KL over these is a
lower bound of that over all, by what the others differ among themselves."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts at each token of the base's answers, one answer after another."""

    lengths: Tensor
    """``[prompts]``, int64: tokens of each answer."""
    answer: Tensor
    """``[tokens]``, int64: the base's answers."""
    answer_log_probability: Tensor
    """``[tokens]``, float32, in nats: what the model gives the token that the base chose."""
    tokens: Tensor
    """``[tokens, likely]``, int64: those that the base finds most likely, the most likely first."""
    log_probabilities: Tensor
    """``[tokens, likely]``, float32, in nats: what the model gives these."""
    best: Tensor
    """``[tokens]``, int64: what the model finds most likely."""

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    def answers(self) -> list[list[int]]:
        """The base's answers, each as tokens."""
        return [answer.tolist() for answer in self.answer.split(self.lengths.tolist())]

    def likely(self) -> list[Tensor]:
        """For each prompt ``[tokens, likely]``: what the base finds most likely."""
        return list(self.tokens.split(self.lengths.tolist()))


def read_predictions(path: Path) -> Predictions:
    """What the base predicted, as `Predictions.tensors` was written. Raises `StageError`: it is not whole."""
    found = Predictions(
        **read_tensors(
            path,
            {
                "lengths": ("int64", (None,)),
                "answer": ("int64", (None,)),
                "answer_log_probability": ("float32", (None,)),
                "tokens": ("int64", (None, None)),
                "log_probabilities": ("float32", (None, None)),
                "best": ("int64", (None,)),
            },
        )
    )
    counts = {len(tensor) for name, tensor in found.tensors().items() if name != "lengths"}
    if counts != {int(found.lengths.sum())} or found.tokens.shape != found.log_probabilities.shape:
        raise unreadable(path, "holds tensors that do not belong together")
    return found


@torch.inference_mode()
def greedy_answers(
    model: Any, tokenizer: Any, prompts: Tokens, batch_size: BatchSize, advance: Advance
) -> list[list[int]]:
    """What the model answers greedily, ``ANSWER_TOKENS`` tokens at most, its end-of-text token included."""
    found: dict[int, list[int]] = {}
    padding = padding_id(tokenizer, ends := end_ids(tokenizer, model.generation_config))

    def compute(batch: Batch) -> None:
        # Generation wants its padding on the left.
        shift = batch.ids.shape[1] - batch.mask.sum(dim=1)
        order = (torch.arange(batch.ids.shape[1]) - shift[:, None]) % batch.ids.shape[1]
        ids, mask = batch.ids.gather(1, order), batch.mask.gather(1, order)
        generated = model.generate(
            input_ids=ids.masked_fill(mask == 0, padding).to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=padding,
        )
        for row, answer in zip(batch.rows, generated[:, ids.shape[1] :].tolist(), strict=True):
            stop = next((place for place, token in enumerate(answer, 1) if token in ends), len(answer))
            found[row] = answer[:stop]

    in_batches(prompts, batch_size, advance, compute)
    return [found[row] for row in range(len(prompts))]


@torch.inference_mode()
def predictions(
    model: PreTrainedModel,
    prompts: Tokens,
    answers: Tokens,
    batch_size: BatchSize,
    advance: Advance,
    likely: Sequence[Tensor] | None = None,
) -> Predictions:
    """What the model predicts while it reads each prompt and the base's answer to it, in one forward pass a batch.
    `likely` holds, for each prompt, the tokens that the base finds most likely, ``[tokens, likely]``; None for the base
    itself, whose own are taken."""
    found: dict[int, tuple[Tensor, ...]] = {}

    def compute(batch: Batch) -> None:
        wanted = [torch.arange(len(prompts[row]) - 1, len(prompts[row]) + len(answers[row]) - 1) for row in batch.rows]
        places = torch.cat(wanted).unique()
        logits = logits_at(model, batch, places)
        for place, row in enumerate(batch.rows):
            at_answer = logits[place, torch.searchsorted(places, wanted[place])].float()
            told, chosen = torch.log_softmax(at_answer, dim=-1), torch.tensor(answers[row])
            most = min(MOST_LIKELY, told.shape[-1])
            kept = told.topk(most, dim=-1).indices if likely is None else likely[row].to(told.device)
            found[row] = (
                chosen,
                told.gather(1, chosen[:, None].to(told.device))[:, 0].cpu(),
                kept.cpu(),
                told.gather(1, kept).cpu(),
                told.argmax(dim=-1).cpu(),
            )

    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    in_batches(texts, batch_size, advance, compute)
    columns = [torch.cat(column) for column in zip(*(found[row] for row in range(len(prompts))), strict=True)]
    return Predictions(torch.tensor([len(answer) for answer in answers]), *columns)


def token_kl(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base‖edited) in nats at each token, ``[tokens]`` float64, of log-probabilities ``[tokens, likely]``. What the
    likely tokens leave of both distributions is compared as one more token."""
    base, edited = base.double(), edited.double()
    kl = (base.exp() * (base - edited)).sum(dim=-1)
    rest, rest_edited = ((-torch.expm1(each.logsumexp(dim=-1))).clamp(min=SMALLEST_REST) for each in (base, edited))
    return kl + torch.where(rest > SMALLEST_REST, rest * (rest / rest_edited).log(), 0.0)


SMALLEST_REST = 1e-5
"""Less than this, and log-probabilities in float32 cannot tell what the likely tokens leave from nothing."""


def drift_samples(
    prompts: Sequence[Prompt], answers: Sequence[str], base: Predictions, edited: Predictions
) -> list[Sample]:
    """What each prompt, with the base's answer as text, adds to the metrics of drift (``DRIFT_METRICS``)."""
    per_token = {
        "answer_kl": token_kl(base.log_probabilities, edited.log_probabilities).clamp(min=0.0),
        "top1_agreement": (base.best == edited.best).double(),
        "perplexity_ratio": (base.answer_log_probability - edited.answer_log_probability).double(),
    }
    split = {name: values.split(base.lengths.tolist()) for name, values in per_token.items()}
    return [
        Sample(
            id=prompt.id,
            item=prompt.item,
            prompt=prompt.prompt,
            response=answer,
            verdict=None,
            metrics={
                "first_token_kl": float(split["answer_kl"][row][0]),
                **{name: [float(values[row].sum()), float(len(values[row]))] for name, values in split.items()},
            },
        )
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
