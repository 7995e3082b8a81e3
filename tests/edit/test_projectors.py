"""Which projector an edit applies: the vector of a rule, and what norms make of it by the formulas of docs/edit.md."""

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.edit.planning.projectors import (
    Directions,
    NoProjector,
    Projector,
    reader_projector,
    span,
    unit_vector,
    writer_projector,
)
from schemas.params.ablate import ThroughNorm

SIZE = 40


def vector(seed: int, spread: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=spread, size=SIZE))


DIRECTION = unit_vector(vector(1))
R = DIRECTION[:, None]
TWO = span(torch.stack([vector(1), vector(8)], dim=1))
"""Of rank 1, and of rank 2."""
GAINS = vector(2, 0.5).exp()
Y = vector(3)


def applied(projector: Projector, output: Tensor) -> Tensor:
    """A writer's output after its weight was projected."""
    return output - projector.left @ (projector.right.T @ output)


def test_a_writer_without_norm_loses_the_direction_itself() -> None:
    projector = writer_projector(R, None, "orthogonal")
    assert torch.equal(projector.left, R) and torch.equal(projector.right, R)


@pytest.mark.parametrize("how", ["orthogonal", "oblique"])
def test_nothing_of_the_direction_passes_the_norm(how: ThroughNorm) -> None:
    added = GAINS * applied(writer_projector(R, GAINS, how), Y)
    assert abs(float(DIRECTION @ added)) < 1e-14


def test_ignoring_the_norm_leaves_a_part() -> None:
    added = GAINS * applied(writer_projector(R, GAINS, "ignore"), Y)
    assert abs(float(DIRECTION @ added)) > 1e-3


def test_the_oblique_edit_takes_out_the_direction_and_nothing_else() -> None:
    added = GAINS * Y
    expected = added - DIRECTION * float(DIRECTION @ added)
    torch.testing.assert_close(GAINS * applied(writer_projector(R, GAINS, "oblique"), Y), expected, rtol=0, atol=1e-14)


def test_the_orthogonal_edit_changes_the_weights_least() -> None:
    changes = {
        how: float((applied(writer_projector(R, GAINS, how), Y) - Y).norm()) for how in ("orthogonal", "oblique")
    }
    assert changes["orthogonal"] < changes["oblique"]


def test_channels_that_a_norm_shuts_are_left_out() -> None:
    gains = GAINS.clone()
    gains[:5] = 0
    for how in ("orthogonal", "oblique"):
        added = gains * applied(writer_projector(R, gains, how), Y)
        assert abs(float(DIRECTION @ added)) < 1e-14
    projector = reader_projector(R, gains, None, centered=False)
    assert not projector.left[:5].any() and not projector.right[:5].any()
    assert abs(float(projector.left.T @ projector.right) - 1) < 1e-14


def test_a_norm_that_shuts_the_direction_or_is_nearly_zero_is_refused() -> None:
    shut = torch.where(DIRECTION.abs() > 0, torch.zeros(SIZE, dtype=torch.float64), 1.0)
    for how in ("orthogonal", "oblique"):
        with pytest.raises(NoProjector):
            writer_projector(R, shut, how)
    tiny = GAINS.clone()
    tiny[0] = 1e-9
    with pytest.raises(NoProjector, match="so small"):
        writer_projector(R, tiny, "oblique")
    writer_projector(R, tiny, "orthogonal")


def rms_norm(h: Tensor, gains: Tensor) -> Tensor:
    return gains * h / h.square().mean().sqrt()


def layer_norm(h: Tensor, gains: Tensor, bias: Tensor) -> Tensor:
    centered = h - h.mean()
    return gains * centered / centered.square().mean().sqrt() + bias


def seen(projector: Projector, normed: Tensor) -> Tensor:
    """What a reader whose weight was projected makes of its input, before its own weights."""
    return normed - projector.right @ (projector.left.T @ normed)


def test_a_blinded_reader_sees_a_stream_without_the_direction_as_before() -> None:
    stream = Y - DIRECTION * float(DIRECTION @ Y)
    normed = rms_norm(stream, GAINS)
    torch.testing.assert_close(seen(reader_projector(R, GAINS, None, False), normed), normed, rtol=0, atol=1e-14)


def test_a_blinded_reader_sees_nothing_of_the_direction() -> None:
    projector = reader_projector(R, GAINS, None, False)
    scale = float((Y + 3 * DIRECTION).square().mean().sqrt() / Y.square().mean().sqrt())
    with_more, without = (seen(projector, rms_norm(h, GAINS)) for h in (Y + 3 * DIRECTION, Y))
    torch.testing.assert_close(with_more * scale, without, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bias", [None, vector(7)], ids=["no bias", "a bias"])
def test_a_reader_behind_a_layer_norm_is_blind_to_what_it_could_see_and_to_nothing_else(bias: Tensor | None) -> None:
    projector = reader_projector(R, GAINS, bias, centered=True)
    beta = bias if bias is not None else torch.zeros(SIZE, dtype=torch.float64)
    visible = DIRECTION - DIRECTION.mean()
    stream = Y - visible * float(visible @ Y) / float(visible @ visible)
    normed = layer_norm(stream, GAINS, beta)
    torch.testing.assert_close(seen(projector, normed), normed, rtol=0, atol=1e-12)
    assert float(seen(projector, GAINS * visible).abs().max()) < 1e-12
    assert abs(float(projector.left.T @ beta)) < 1e-12


@pytest.mark.parametrize("basis", [R, TWO], ids=["rank 1", "rank 2"])
@pytest.mark.parametrize("kind", ["orthogonal", "oblique", "ignore", "reader", "centered", "centered with bias"])
def test_what_is_read_is_what_is_removed_whatever_the_rank(basis: Tensor, kind: str) -> None:
    """rightᵀ left = I: so a projector of scale 1 is applied twice as once."""
    if kind in ("orthogonal", "oblique", "ignore"):
        projector = writer_projector(basis, GAINS, kind)  # type: ignore[arg-type]
    else:
        bias = vector(7) if kind == "centered with bias" else None
        projector = reader_projector(basis, GAINS, bias, centered=kind != "reader")
    torch.testing.assert_close(
        projector.right.T @ projector.left, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-12
    )
    once = projector.remove(Y)
    torch.testing.assert_close(projector.remove(once), once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["orthogonal", "oblique"])
def test_nothing_of_a_span_passes_the_norm(how: ThroughNorm) -> None:
    added = GAINS * applied(writer_projector(TWO, GAINS, how), Y)
    assert float((TWO.T @ added).abs().max()) < 1e-13


def test_a_reader_is_blind_to_a_span_and_to_nothing_else() -> None:
    projector = reader_projector(TWO, GAINS, None, centered=False)
    stream = Y - TWO @ (TWO.T @ Y)
    normed = rms_norm(stream, GAINS)
    torch.testing.assert_close(seen(projector, normed), normed, rtol=0, atol=1e-13)
    assert float(seen(projector, GAINS * TWO[:, 1]).abs().max()) < 1e-13


def test_the_first_of_several_is_what_it_is_alone() -> None:
    for projector, alone in (
        (writer_projector(TWO, GAINS, "oblique"), writer_projector(TWO[:, :1], GAINS, "oblique")),
        (reader_projector(TWO, GAINS, vector(7), True), reader_projector(TWO[:, :1], GAINS, vector(7), True)),
    ):
        assert torch.equal(projector.left[:, :1], alone.left) and torch.equal(projector.right[:, :1], alone.right)


def test_a_span_has_an_orthonormal_basis_in_the_order_given() -> None:
    vectors = torch.stack([vector(seed) for seed in range(4)], dim=1)
    basis = span(vectors)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4).double(), rtol=0, atol=1e-14)
    for rank in range(1, 5):
        part = basis[:, :rank]
        torch.testing.assert_close(part @ (part.T @ vectors[:, :rank]), vectors[:, :rank], rtol=0, atol=1e-13)
    assert torch.equal(basis[:, 0], unit_vector(vectors[:, 0]))


@pytest.mark.parametrize("last", [2 * vector(1) - vector(2), torch.zeros(SIZE).double()], ids=["dependent", "zero"])
def test_a_vector_that_lies_in_the_span_of_the_others_is_named(last: Tensor) -> None:
    with pytest.raises(NoProjector, match="vector 2 "):
        span(torch.stack([vector(1), vector(2), last], dim=1))
    nearly = last + 1e-4 * vector(3)
    assert span(torch.stack([vector(1), vector(2), nearly], dim=1)).shape == (SIZE, 3)


ROWS = torch.stack([unit_vector(vector(seed)) for seed in range(20, 25)])
MEANS = torch.stack([vector(seed) for seed in range(30, 35)])
DIRECTIONS = Directions(ROWS, MEANS, (None,) * 5)


def test_a_whole_number_is_that_measurement_s_own() -> None:
    torch.testing.assert_close(DIRECTIONS.at(3, 1, "none"), ROWS[3], rtol=0, atol=1e-15)


def test_a_fraction_lies_between_the_unit_vectors_by_its_share() -> None:
    found = DIRECTIONS.at(2.25, 1, "none")
    torch.testing.assert_close(found, unit_vector(0.75 * ROWS[2] + 0.25 * ROWS[3]), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("how", "mean"), [("source", 3), ("target", 1)])
def test_orthogonalised_it_holds_nothing_of_that_mean_and_stays_a_unit_vector(how: str, mean: int) -> None:
    found = DIRECTIONS.at(3, 1, how)  # type: ignore[arg-type]
    assert abs(float(found @ MEANS[mean])) < 1e-14
    assert abs(float(found.norm()) - 1) < 1e-15
    assert abs(float(found @ MEANS[4 - mean])) > 1e-3


def test_a_direction_along_the_mean_is_refused() -> None:
    with pytest.raises(NoProjector, match="parallel to the harmless mean"):
        Directions(ROWS, ROWS * 3, (None,) * 5).at(2, 0, "source")
