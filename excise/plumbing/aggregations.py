"""How the samples of a metric become its value. Pure; imports no torch and no lm-eval."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.results import Aggregation

Values = NDArray[np.float64]
"""``[..., samples, numbers]``: what each sample gives, one number or two."""


def _quotient(values: Values) -> Any:
    with np.errstate(invalid="ignore"):  # 0 of 0, as where all refuse, is no number
        return values[..., 0].sum(axis=-1) / values[..., 1].sum(axis=-1)


AGGREGATIONS: dict[Aggregation, Callable[[Values], Any]] = {
    "mean": lambda values: values[..., 0].mean(axis=-1),
    "median": lambda values: np.median(values[..., 0], axis=-1),
    "perplexity": lambda values: np.exp(-values[..., 0].mean(axis=-1)),
    "ratio": _quotient,
    "exp_ratio": lambda values: np.exp(_quotient(values)),
    "weighted_perplexity": lambda values: np.exp(-_quotient(values)),
    "bits_per_byte": lambda values: -_quotient(values) / np.log(2),
}
"""By name, as lm-eval calls them where it has them: from ``[..., samples, numbers]`` to ``[...]``."""
PAIRS: tuple[Aggregation, ...] = ("ratio", "exp_ratio", "weighted_perplexity", "bits_per_byte")
"""Those that take two numbers of each sample."""


def as_values(metric: list[float | list[float]]) -> Values:
    """``[samples, numbers]`` of what samples hold."""
    return np.array([value if isinstance(value, list) else [value] for value in metric], dtype=np.float64)


def aggregate(aggregation: Aggregation, values: Values) -> float:
    """The value of a metric, from ``[samples, numbers]``."""
    return float(AGGREGATIONS[aggregation](values))
