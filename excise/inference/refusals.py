"""The tokens with which a model begins refusals, from its answers to harmful and harmless prompts."""

import torch
from torch import Tensor

from excise.plumbing.errors import StageError

LEAST_RISE = 0.01
"""A token begins refusals if its mean probability as the base's first token is so much higher on harmful prompts."""


class FirstTokens:
    """Probabilities of first tokens, by prompt, of which only sums are kept: vocabularies are large."""

    def __init__(self, harmful: int) -> None:
        """`harmful`: how many of the prompts are; those come first."""
        self._harmful = harmful
        self._sums: Tensor | None = None
        self._added: tuple[set[int], set[int]] = set(), set()

    def add(self, rows: list[int], log_probabilities: Tensor) -> None:
        """Those of some prompts, ``[rows, vocabulary]``; a prompt that is answered again, after memory ran out, counts
        once."""
        if self._sums is None:
            self._sums = torch.zeros(2, log_probabilities.shape[-1], dtype=torch.float64)
        for row, likely in zip(rows, log_probabilities, strict=True):
            kind = int(row >= self._harmful)
            if row not in self._added[kind]:
                self._sums[kind] += likely.double().exp()
                self._added[kind].add(row)

    @property
    def means(self) -> Tensor:
        """``[2, vocabulary]`` float64: on harmful and on harmless prompts. Raises `StageError`: they are no numbers."""
        assert self._sums is not None
        if not bool(self._sums.isfinite().all()):
            raise StageError("the base model produces NaN or infinite logits; name another copy or dtype")
        return self._sums / torch.tensor([[len(rows)] for rows in self._added])


def refusal_tokens(harmful: Tensor, harmless: Tensor) -> list[int]:
    """Tokens with which the base begins refusals, by mean probabilities ``[vocabulary]``; the surest first."""
    rise = harmful - harmless
    order = rise.argsort(descending=True, stable=True)
    return order[: max(1, int((rise >= LEAST_RISE).sum()))].tolist()
