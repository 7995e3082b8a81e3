"""Aggregations: what lm-eval makes of the same samples."""

import math

import lm_eval.api.metrics  # noqa: F401  registers them
import numpy as np
import pytest
from lm_eval.api.registry import AGGREGATION_REGISTRY

from excise.plumbing.aggregations import AGGREGATIONS, aggregate, as_values
from schemas.results import Aggregation

SINGLES = [0.25, -1.5, 3.0, 0.0, -0.75]
PAIRS = [(-12.5, 4.0), (-3.25, 1.0), (-40.0, 11.0)]


@pytest.mark.parametrize("name", ["mean", "median", "perplexity", "weighted_perplexity", "bits_per_byte"])
def test_a_metric_is_aggregated_as_lm_eval_does(name: Aggregation) -> None:
    samples = PAIRS if name in ("weighted_perplexity", "bits_per_byte") else SINGLES
    values = as_values([list(one) if isinstance(one, tuple) else one for one in samples])
    assert aggregate(name, values) == pytest.approx(AGGREGATION_REGISTRY[name](samples), rel=1e-12)


def test_a_ratio_is_that_of_the_sums_and_not_the_mean_of_ratios() -> None:
    values = as_values([[1.0, 1.0], [0.0, 3.0]])
    assert aggregate("ratio", values) == 0.25
    assert aggregate("exp_ratio", values) == math.exp(0.25)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_many_resamples_are_aggregated_at_once(name: Aggregation) -> None:
    values = np.random.default_rng(0).uniform(0.5, 2.0, (4, 3, 25, 2))
    together = AGGREGATIONS[name](values)
    assert together.shape == (4, 3)
    assert together[2, 1] == pytest.approx(aggregate(name, values[2, 1]), rel=1e-12)
