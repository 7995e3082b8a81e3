"""Directions and their statistics against numpy, and what is said where there is none."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.residual.directions import (
    MEAN,
    SMALLEST_RELATIVE_NORM,
    Estimate,
    describe,
    estimate,
    winsorize,
)
from excise.residual.estimators import Estimator
from excise.residual.estimators.median import Median, geometric_median
from excise.residual.estimators.pca import Pca
from schemas.directions import MeasurementStatistics

ESTIMATORS: tuple[Estimator, ...] = (MEAN, Median(), Pca())


def some_activations(prompts: int = 50, seed: int = 0) -> Tensor:
    """``[prompts, 4, 16]`` float32, far from zero, as a stream is."""
    return torch.from_numpy(np.random.default_rng(seed).normal(3, 1, size=(prompts, 4, 16)).astype(np.float32))


def both() -> tuple[Tensor, Tensor]:
    return some_activations(50, 0), some_activations(30, 1)


def test_a_direction_is_the_unit_difference_of_the_means() -> None:
    harmful, harmless = both()
    found = estimate(harmful, harmless)
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
    expected = estimate(harmful.double(), harmless.double())
    assert torch.equal(estimate(harmful, harmless).unit, expected.unit)


def test_the_direction_points_from_harmless_to_harmful() -> None:
    harmful, harmless = both()
    assert torch.equal(estimate(harmful, harmless).unit, -estimate(harmless, harmful).unit)


def spoiled_sides(measurement: int, harmful_value: float | None, harmless_value: float | None) -> tuple[Tensor, Tensor]:
    """Both sides, where one measurement holds a value throughout; a side whose value is None stays as it is."""
    harmful, harmless = both()
    for side, value in ((harmful, harmful_value), (harmless, harmless_value)):
        if value is not None:
            side[:, measurement] = value
    return harmful, harmless


def spoiled(measurement: int, harmful_value: float | None, harmless_value: float | None) -> Estimate:
    return estimate(*spoiled_sides(measurement, harmful_value, harmless_value))


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
    expected, found = estimate(*both()), spoiled(1, harmful_value, harmless_value)
    assert found.reasons == (None, reason, None, None)
    assert found.unit[1].tolist() == [0.0] * 16
    for other in (0, 2, 3):
        assert torch.equal(found.unit[other], expected.unit[other])


def test_a_number_that_is_not_finite_in_one_prompt_is_enough_for_a_reason() -> None:
    harmful, harmless = both()
    harmful[17, 2, 5] = math.nan
    assert estimate(harmful, harmless).reasons == (None, None, "the activations are not finite", None)


@pytest.mark.parametrize(("share", "there"), [(0.5, False), (2.0, True)])
def test_a_difference_counts_from_a_millionth_of_the_stream(share: float, there: bool) -> None:
    mean = torch.full((1, 1, 4), 10.0, dtype=torch.float64)  # of length 20
    moved = mean.clone()
    moved[0, 0, 0] += share * SMALLEST_RELATIVE_NORM * 20
    assert (estimate(moved, mean).reasons[0] is None) == there


def test_statistics_are_norms_and_cosines_of_the_means() -> None:
    directions = estimate(*both())
    found = describe(directions, *both(), MEAN)
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
    rows = describe(directions, *spoiled_sides(1, value, value), MEAN).measurements
    assert rows[1].reason == directions.reasons[1] is not None
    assert rows[1].norm is rows[1].relative_norm is rows[1].cosine_of_means is None
    assert rows[1].harmful_mean_norm == rows[1].harmless_mean_norm == (0.0 if value == 0 else None)
    assert all(row.norm is not None for row in rows if row.measurement != 1)


def test_statistics_are_json_that_other_tools_read() -> None:
    text = describe(spoiled(1, math.nan, math.inf), *spoiled_sides(1, math.nan, math.inf), MEAN).model_dump_json()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["measurements"][1]["norm"] is None


def test_a_geometric_median_is_the_point_of_the_smallest_sum_of_distances() -> None:
    points = torch.randn(31, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    median = geometric_median(points)

    def total(place: Tensor) -> float:
        return float((points - place).norm(dim=-1).sum())

    for step in torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e-3:
        assert total(median) < total(median + step)


def test_a_geometric_median_of_a_line_is_its_middle_and_may_be_one_of_the_points() -> None:
    points = torch.tensor([[0.0, 1], [1, 1], [2, 1], [50, 1], [90, 1]], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(points), points[2], rtol=0, atol=1e-6)


def test_one_prompt_far_off_moves_the_median_less_than_the_mean() -> None:
    harmful, harmless = both()
    clean = [estimate(harmful, harmless, how).unit[1] for how in (MEAN, Median())]
    harmful[0, 1] += 500 * torch.randn(16, generator=torch.Generator().manual_seed(2))
    moved = [estimate(harmful, harmless, how).unit[1] for how in (MEAN, Median())]
    assert float(moved[0] @ clean[0]) < 0.9 < 0.99 < float(moved[1] @ clean[1])


def test_the_principal_component_agrees_with_numpy_and_with_the_means_sign() -> None:
    harmful, harmless = both()
    found = estimate(harmful, harmless, Pca()).unit[2].numpy()
    a, b = harmful[:, 2].double().numpy(), harmless[:, 2].double().numpy()
    expected = np.linalg.svd(a - b.mean(axis=0))[2][0]
    assert abs(found @ expected) == pytest.approx(1, abs=1e-12)
    assert found @ (a.mean(axis=0) - b.mean(axis=0)) > 0


@pytest.mark.parametrize("quantile", [0.51, 0.75, 0.9, 1.0])
def test_winsorized_vectors_keep_all_but_their_largest_numbers(quantile: float) -> None:
    taken = some_activations()
    limited = winsorize(taken, quantile)
    limit = np.quantile(taken.abs().numpy(), quantile, axis=-1, method="inverted_cdf", keepdims=True)
    np.testing.assert_array_equal(limited.numpy(), np.clip(taken.numpy(), -limit, limit))
    assert torch.equal(limited, taken) == (quantile == 1)


def apart(distance: float, prompts: int = 40) -> tuple[Tensor, Tensor]:
    """Two sides of standard normal noise, one of them moved along the first channels."""
    numbers = torch.Generator().manual_seed(3)
    harmful, harmless = torch.randn(2, prompts, 2, 16, generator=numbers)
    harmful[:, :, :4] += distance
    return harmful, harmless


def rows(sides: tuple[Tensor, Tensor], how: Estimator = MEAN) -> list[MeasurementStatistics]:
    return describe(estimate(*sides, how), *sides, how).measurements


@pytest.mark.parametrize("how", ESTIMATORS)
def test_sides_that_are_apart_give_a_stable_direction_that_tells_held_out_prompts_apart(how: Estimator) -> None:
    for row in rows(apart(8.0), how):
        assert row.auroc == 1.0
        assert row.stability is not None and row.stability > 0.95
        assert row.stability_low is not None and row.stability_high is not None
        assert row.stability_low <= row.stability <= row.stability_high
        assert row.warnings == []


def test_sides_that_are_not_apart_are_warned_of() -> None:
    for row in rows(apart(0.0)):
        assert row.auroc is not None and row.auroc < 0.7
        assert row.stability is not None and row.stability < 0.5
        assert len(row.warnings) == 2 and "use more prompts" in row.warnings[0] and "AUROC" in row.warnings[1]


def test_a_massive_channel_is_warned_of_and_winsorizing_helps() -> None:
    harmful, harmless = apart(8.0)
    harmful[:, :, 7] += 300
    (first, _) = rows((harmful, harmless))
    assert first.largest_channel_share is not None and first.largest_channel_share > 0.9
    assert ["winsorize" in warning for warning in first.warnings] == [True]
    (tamed, _) = rows((winsorize(harmful, 0.9), winsorize(harmless, 0.9)))
    assert tamed.largest_channel_share is not None and tamed.largest_channel_share < first.largest_channel_share / 2


def test_neighbours_are_compared() -> None:
    harmful, harmless = apart(8.0)
    first, last = rows((harmful, harmless))
    unit = estimate(harmful, harmless).unit
    assert first.cosine_with_next == pytest.approx(float(unit[0] @ unit[1]))
    assert last.cosine_with_next is None


def test_too_few_prompts_give_no_halves_and_no_error() -> None:
    harmful, harmless = apart(8.0, prompts=2)
    assert rows((harmful[:1], harmless[:1]))[0].auroc is None
    assert rows((harmful, harmless))[0].stability is None
