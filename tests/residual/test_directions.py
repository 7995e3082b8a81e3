"""Directions and their statistics against numpy, and what is said where there is none."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.residual.directions import SMALLEST_RELATIVE_NORM, Directions, difference_of_means
from stages.residual.statistics import describe


def some_activations(prompts: int = 50, seed: int = 0) -> Tensor:
    """``[prompts, 4, 16]`` float32, far from zero, as a stream is."""
    return torch.from_numpy(np.random.default_rng(seed).normal(3, 1, size=(prompts, 4, 16)).astype(np.float32))


def both() -> tuple[Tensor, Tensor]:
    return some_activations(50, 0), some_activations(30, 1)


def test_a_direction_is_the_unit_difference_of_the_means() -> None:
    harmful, harmless = both()
    found = difference_of_means(harmful, harmless)
    means = [side.numpy().astype(np.float64).mean(axis=0) for side in (harmful, harmless)]
    difference = means[0] - means[1]
    np.testing.assert_allclose(found.harmful_mean.numpy(), means[0], rtol=1e-14)
    np.testing.assert_allclose(found.harmless_mean.numpy(), means[1], rtol=1e-14)
    np.testing.assert_allclose(
        found.unit.numpy(), difference / np.linalg.norm(difference, axis=-1, keepdims=True), rtol=0, atol=1e-13
    )
    assert found.unit.dtype == torch.float64 and found.reasons == (None,) * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_means_of_small_types_are_taken_in_float64(dtype: torch.dtype) -> None:
    harmful, harmless = (side.to(dtype) for side in both())
    expected = difference_of_means(harmful.double(), harmless.double())
    assert torch.equal(difference_of_means(harmful, harmless).unit, expected.unit)


def test_the_direction_points_from_harmless_to_harmful() -> None:
    harmful, harmless = both()
    assert torch.equal(difference_of_means(harmful, harmless).unit, -difference_of_means(harmless, harmful).unit)


def spoiled(measurement: int, harmful_value: float | None, harmless_value: float | None) -> Directions:
    """Directions where one measurement of either side holds a value throughout, or in one prompt if it is None."""
    harmful, harmless = both()
    for side, value in ((harmful, harmful_value), (harmless, harmless_value)):
        if value is not None:
            side[:, measurement] = value
    return difference_of_means(harmful, harmless)


@pytest.mark.parametrize(
    ("harmful_value", "harmless_value", "reason"),
    [
        (0.0, 0.0, "harmful and harmless prompts have the same activations here"),
        (0.7, 0.7, "harmful and harmless prompts have the same activations here"),
        (math.nan, None, "the activations are not finite"),
        (None, math.inf, "the activations are not finite"),
        (math.inf, math.inf, "the activations are not finite"),
    ],
)
def test_a_measurement_without_direction_has_a_reason_and_the_others_stay(
    harmful_value: float | None, harmless_value: float | None, reason: str
) -> None:
    expected, found = difference_of_means(*both()), spoiled(1, harmful_value, harmless_value)
    assert found.reasons == (None, reason, None, None)
    assert found.unit[1].tolist() == [0.0] * 16
    for other in (0, 2, 3):
        assert torch.equal(found.unit[other], expected.unit[other])


def test_a_number_that_is_not_finite_in_one_prompt_is_enough_for_a_reason() -> None:
    harmful, harmless = both()
    harmful[17, 2, 5] = math.nan
    assert difference_of_means(harmful, harmless).reasons == (None, None, "the activations are not finite", None)


@pytest.mark.parametrize(("share", "there"), [(0.5, False), (2.0, True)])
def test_a_difference_counts_from_a_millionth_of_the_stream(share: float, there: bool) -> None:
    mean = torch.full((1, 1, 4), 10.0, dtype=torch.float64)  # of length 20
    moved = mean.clone()
    moved[0, 0, 0] += share * SMALLEST_RELATIVE_NORM * 20
    assert (difference_of_means(moved, mean).reasons[0] is None) == there


def test_statistics_are_norms_and_cosines_of_the_means() -> None:
    directions = difference_of_means(*both())
    found = describe(directions, 50, 30)
    assert (found.harmful_prompts, found.harmless_prompts) == (50, 30)
    for row, a, b in zip(
        found.measurements, directions.harmful_mean.numpy(), directions.harmless_mean.numpy(), strict=True
    ):
        norm, lengths = np.linalg.norm(a - b), (np.linalg.norm(a), np.linalg.norm(b))
        assert row.reason is None
        assert row.norm == pytest.approx(norm) and row.relative_norm == pytest.approx(norm / np.mean(lengths))
        assert (row.harmful_mean_norm, row.harmless_mean_norm) == pytest.approx(lengths)
        assert row.cosine_of_means == pytest.approx(a @ b / (lengths[0] * lengths[1]))
    assert [row.measurement for row in found.measurements] == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_statistics_without_a_direction_are_null_with_the_reason(value: float) -> None:
    directions = spoiled(1, value, value)
    rows = describe(directions, 50, 30).measurements
    assert rows[1].reason == directions.reasons[1] is not None
    assert rows[1].norm is rows[1].relative_norm is rows[1].cosine_of_means is None
    assert rows[1].harmful_mean_norm == rows[1].harmless_mean_norm == (0.0 if value == 0 else None)
    assert all(row.norm is not None for row in rows if row.measurement != 1)


def test_statistics_are_json_that_other_tools_read() -> None:
    text = describe(spoiled(1, math.nan, math.inf), 50, 30).model_dump_json()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["measurements"][1]["norm"] is None
