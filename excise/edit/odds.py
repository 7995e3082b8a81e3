"""How much more often an expert is used on one side than on the other. Pure maths, the same bits on every machine."""

from decimal import Context, Decimal

import torch
from torch import Tensor

from schemas.directions import ExpertUse

# A float64 has 17 digits. Neither the mathematics library, whose last bit differs between machines, nor the order of
# two roundings decides the result.
_DIGITS = Context(prec=50)


def odds_by_layer(use: ExpertUse) -> dict[int, Tensor]:
    """The log-odds of each routed expert's use as it was measured, ``[experts]`` float64."""
    return {
        row.layer: log_odds(
            torch.tensor(row.harmful), use.harmful_prompts, torch.tensor(row.harmless), use.harmless_prompts
        )
        for row in use.layers
    }


def log_odds(harmful_counts: Tensor, harmful_prompts: int, harmless_counts: Tensor, harmless_prompts: int) -> Tensor:
    """The log-odds of use on harmful against harmless prompts, in nats, with half a prompt added to each count.

    log((h + ½) / (H − h + ½)) − log((b + ½) / (B − b + ½)), where h of H harmful and b of B harmless prompts use the
    expert (Haldane's and Anscombe's correction: finite for an expert that a side always or never uses).

    Args:
        harmful_counts: any shape, integers from 0 to `harmful_prompts`; the other side's likewise.

    Returns:
        Float64 of the same shape: the exact number's nearest. Equal shares of equal numbers give exactly 0.
    """
    pairs = zip(harmful_counts.flatten().tolist(), harmless_counts.flatten().tolist(), strict=True)
    found = [_of_one(harmful, harmful_prompts, harmless, harmless_prompts) for harmful, harmless in pairs]
    return torch.tensor(found, dtype=torch.float64).view(harmful_counts.shape)


def _of_one(harmful: int, harmful_prompts: int, harmless: int, harmless_prompts: int) -> float:
    """The logarithm of one ratio of integers: the halves doubled, and the two logarithms made one."""
    above = (2 * harmful + 1) * (2 * (harmless_prompts - harmless) + 1)
    below = (2 * (harmful_prompts - harmful) + 1) * (2 * harmless + 1)
    return float(_DIGITS.ln(_DIGITS.divide(Decimal(above), Decimal(below))))
