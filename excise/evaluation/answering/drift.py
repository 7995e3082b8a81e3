"""How far the edited model drifts from the base: both read the base's answers to harmless prompts, token by token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from excise.checkpoint.weights import read_tensors
from excise.inference.continuations import Predictions
from excise.plumbing.files import unreadable
from schemas.prompts import Prompt
from schemas.results import Sample


def read_predictions(path: Path) -> Predictions:
    """The base's predictions (`Predictions.tensors`). Raises `StageError`: the file is damaged."""
    predictions = Predictions(
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
    counts = {len(tensor) for name, tensor in predictions.tensors().items() if name != "lengths"}
    if counts != {int(predictions.lengths.sum())} or predictions.tokens.shape != predictions.log_probabilities.shape:
        raise unreadable(path, "holds tensors that do not belong together")
    return predictions


def token_kl(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base‖edited) in nats, ``[tokens]`` float64, of log-probabilities ``[tokens, likely]``, the rest as one."""
    base, edited = base.double(), edited.double()
    kl = (base.exp() * (base - edited)).sum(dim=-1)
    rest, rest_edited = ((-torch.expm1(each.logsumexp(dim=-1))).clamp(min=SMALLEST_REST) for each in (base, edited))
    return kl + torch.where(rest > SMALLEST_REST, rest * (rest / rest_edited).log(), 0.0)


def first_token_kl_without(base: Tensor, edited: Tensor, likely: Tensor, tokens: Sequence[int]) -> float:
    """KL(base‖edited) in nats of an answer's first token, given that it is none of `tokens`: of log-probabilities
    ``[likely]`` of the tokens `likely`, the rest as one. Of `tokens`, only those among `likely` are left out."""
    others = ~torch.isin(likely, torch.tensor(tokens))
    sides = []
    for side in (base.double(), edited.double()):
        rest = (-torch.expm1(side.logsumexp(dim=-1))).clamp(min=SMALLEST_REST)
        kept = torch.cat([side[others], rest.log()[None]])
        sides.append(kept - kept.logsumexp(dim=-1))
    return max(0.0, float((sides[0].exp() * (sides[0] - sides[1])).sum()))


SMALLEST_REST = 1e-5
"""A smaller probability of all other tokens cannot be told from 0, because log-probabilities are float32."""


def drift_samples(
    prompts: Sequence[Prompt], answers: Sequence[str], base: Predictions, edited: Predictions, tokens: Sequence[int]
) -> list[Sample]:
    """The values of each prompt for the metrics of drift (``DRIFT_METRICS``), with the base's answer as text. `tokens`
    begin refusals."""
    per_token = {
        "answer_kl": token_kl(base.log_probabilities, edited.log_probabilities).clamp(min=0.0),
        "top1_agreement": (base.best == edited.best).double(),
        "perplexity_ratio": (base.answer_log_probability - edited.answer_log_probability).double(),
    }
    split = {name: values.split(base.lengths.tolist()) for name, values in per_token.items()}
    first = [0, *base.lengths.cumsum(0).tolist()]
    return [
        Sample(
            id=prompt.id,
            item=prompt.item,
            prompt=prompt.prompt,
            response=answer,
            verdict=None,
            metrics={
                "first_token_kl": float(split["answer_kl"][row][0]),
                "first_token_kl_without_refusal": first_token_kl_without(
                    base.log_probabilities[first[row]],
                    edited.log_probabilities[first[row]],
                    base.tokens[first[row]],
                    tokens,
                ),
                **{name: [float(values[row].sum()), float(len(values[row]))] for name, values in split.items()},
            },
        )
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
