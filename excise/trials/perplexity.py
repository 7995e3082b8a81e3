"""Whether a model can still write: its perplexity on texts that the base finds likely, in trials."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from excise.inference.forward import Tokens
from excise.trials.changes import Trial
from excise.trials.engines import Engine
from excise.trials.tree import Job

PROMPTS = 10
"""Texts at most; fewer would already show a ruined model."""


class Reading:
    """Texts of which each model is asked how likely it finds every token."""

    def __init__(self, engine: Engine, before: Tokens, texts: Tokens, trials: Sequence[Trial]) -> None:
        """What stands before each text is read too, such as the prompt before an answer. The base is read with the
        trials."""
        self._engine, self._before, self._texts = engine, before, texts
        self._trials = [Trial(), *trials]
        self._tokens = torch.tensor([token for text in texts for token in text])
        self._found = torch.full((len(self._trials), len(self._tokens)), torch.nan, dtype=torch.float64)

    def jobs(self) -> list[Job]:
        """What has to be run before `perplexities` are known."""
        whole = [[*before, *text] for before, text in zip(self._before, self._texts, strict=True)]
        sharing = self._engine.sharing(whole)
        starts = torch.tensor([0, *map(len, self._texts)]).cumsum(0).tolist()
        places = [
            [(start + place, len(before) - 1 + place) for place in range(len(text))]
            for start, before, text in zip(starts, self._before, self._texts, strict=False)
        ]
        # All that is asked of these tokens is before the first answer to them.
        shortest = min(map(len, self._before)) - 1
        sharing = replace(sharing, beginning=min(sharing.beginning, shortest), holds=False)
        return [Job(whole, self._trials, self._take, sharing, places)]

    def run(self) -> None:
        """Run these by themselves."""
        self._engine.run(self.jobs(), lambda _: None)

    def _take(self, trial: int, places: list[int], log_probabilities: Tensor) -> None:
        chosen = log_probabilities.gather(1, self._tokens[places][:, None])[:, 0]
        self._found[trial, places] = chosen.double()

    def perplexities(self) -> list[float | None]:
        """Of each trial, its perplexity as a multiple of the base's; None if it is not finite."""
        found: list[float | None] = []
        for increase in (self._found[:1] - self._found[1:]).mean(dim=1).tolist():
            # Also None if the result would overflow: nothing is left of such a model.
            found.append(math.exp(increase) if increase < math.log(torch.finfo(torch.float64).max) else None)
        return found
