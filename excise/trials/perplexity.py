"""Whether a model can still write: its perplexity on the base's own answers to harmless prompts, under any hooks."""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from excise.inference.continuations import predictions
from excise.inference.forward import Tokens
from excise.plumbing.machine import give_back

PROMPTS = 32
"""Harmless prompts at most that the base answers; fewer would already show a ruined model."""


class OwnAnswers:
    """The base's answers to harmless prompts, read again by the same model under any hooks."""

    def __init__(self, model: PreTrainedModel, prompts: Tokens, answers: Tokens) -> None:
        self.model, self.prompts, self.answers = model, prompts, answers
        self._base = self._log_probabilities()

    def perplexity(self) -> float | None:
        """The model's perplexity on the base's answers as a multiple of the base's; None if it is not finite."""
        increase = float((self._base - self._log_probabilities()).mean())
        # Also None if the result would overflow: nothing is left of such a model.
        return math.exp(increase) if increase < math.log(torch.finfo(torch.float64).max) else None

    def _log_probabilities(self) -> Tensor:
        """Log-probability of each token of each answer, ``[tokens]`` float64, in nats."""
        give_back()
        read = predictions(self.model, self.prompts, self.answers, "auto", lambda _: None)
        return read.answer_log_probability.double()
