"""The same question asked of mixtures of experts and of dense models: organisms of both over several seeds."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import ttest_ind

from benchmarks.organisms import chosen
from schemas.params.organism import Organism as Settings

ARCHITECTURES = ("glm4_moe", "llama")
SEEDS = range(5)


def organisms(description: str | None, **settings: object) -> list[Settings]:
    """Those that the command line asks for, each with these settings."""
    return chosen(description, ARCHITECTURES, SEEDS, **settings)


def compared(organisms: Sequence[Settings], numbers: Sequence[float]) -> str:
    """The means of a number of each organism, and their difference with its 95 % interval (Welch)."""
    mixture, dense = (
        np.array([number for one, number in zip(organisms, numbers, strict=True) if one.architecture == architecture])
        for architecture in ARCHITECTURES
    )
    interval = ttest_ind(mixture, dense, equal_var=False).confidence_interval(0.95)
    return (
        f"{mixture.mean():.2f} in mixtures, {dense.mean():.2f} in dense models; difference "
        f"{mixture.mean() - dense.mean():+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    )
