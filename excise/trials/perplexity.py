"""Whether a model can still write: what it makes of the base's own answers to harmless prompts, under any hooks."""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.continuations import predictions
from excise.inference.forward import Tokens
from excise.plumbing.machine import give_back

PROMPTS = 32
"""How many harmless prompts the base answers at most: a ruined model shows on fewer."""


class OwnAnswers:
    """The base's answers to harmless prompts, read again by the same model under any hooks."""

    def __init__(self, model: PreTrainedModel, prompts: Tokens, answers: Tokens) -> None:
        """`answers` are those of the model as it is now, to each of the prompts."""
        self.model, self.prompts, self.answers = model, prompts, answers
        self._base = self._log_probabilities()

    def perplexity(self) -> float | None:
        """How many times the base's perplexity on its own answers the model's is now; None where that is no number.
        The metric `drift.perplexity_ratio` is the same, of more answers."""
        more = float((self._base - self._log_probabilities()).mean())
        # Beyond this no float holds it, and nothing is left of the model either way.
        return math.exp(more) if more < math.log(torch.finfo(torch.float64).max) else None

    def _log_probabilities(self) -> Tensor:
        """Of each token of each answer, ``[tokens]`` float64, in nats."""
        give_back()
        found = predictions(self.model, self.prompts, self.answers, "auto", lambda _: None)
        return found.answer_log_probability.double()
