"""What is taken out behind norms, from the formulas of docs/edit.md written down again in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from excise.edit.pairs import NoPair, reader_pair, writer_pair
from excise.edit.projection import Pair, unit_vector
from schemas.params.ablate import ThroughNorm

SIZE = 40


def vector(seed: int, spread: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=spread, size=SIZE))


DIRECTION = unit_vector(vector(1))
GAINS = vector(2, 0.5).exp()
Y = vector(3)


def applied(pair: Pair, output: Tensor) -> Tensor:
    """A writer's output after its weight lost the pair."""
    return output - pair.left * (pair.right @ output)


def test_a_writer_without_norm_loses_the_direction_itself() -> None:
    pair = writer_pair(DIRECTION, None, "orthogonal")
    assert torch.equal(pair.left, DIRECTION) and torch.equal(pair.right, DIRECTION)


@pytest.mark.parametrize("how", ["orthogonal", "oblique"])
def test_nothing_of_the_direction_passes_the_norm(how: ThroughNorm) -> None:
    added = GAINS * applied(writer_pair(DIRECTION, GAINS, how), Y)
    assert abs(float(DIRECTION @ added)) < 1e-14


def test_ignoring_the_norm_leaves_a_part() -> None:
    added = GAINS * applied(writer_pair(DIRECTION, GAINS, "ignore"), Y)
    assert abs(float(DIRECTION @ added)) > 1e-3


def test_the_oblique_edit_takes_out_the_direction_and_nothing_else() -> None:
    added = GAINS * Y
    expected = added - DIRECTION * float(DIRECTION @ added)
    torch.testing.assert_close(
        GAINS * applied(writer_pair(DIRECTION, GAINS, "oblique"), Y), expected, rtol=0, atol=1e-14
    )


def test_the_orthogonal_edit_changes_the_weights_least() -> None:
    changes = {
        how: float((applied(writer_pair(DIRECTION, GAINS, how), Y) - Y).norm()) for how in ("orthogonal", "oblique")
    }
    assert changes["orthogonal"] < changes["oblique"]


def test_channels_that_a_norm_shuts_are_left_out() -> None:
    gains = GAINS.clone()
    gains[:5] = 0
    for how in ("orthogonal", "oblique"):
        added = gains * applied(writer_pair(DIRECTION, gains, how), Y)
        assert abs(float(DIRECTION @ added)) < 1e-14
    pair = reader_pair(DIRECTION, gains, None, centred=False)
    assert not pair.left[:5].any() and not pair.right[:5].any()
    assert abs(float(pair.left @ pair.right) - 1) < 1e-14


def test_a_norm_that_shuts_the_direction_or_is_nearly_zero_is_refused() -> None:
    shut = torch.where(DIRECTION.abs() > 0, torch.zeros(SIZE, dtype=torch.float64), 1.0)
    for how in ("orthogonal", "oblique"):
        with pytest.raises(NoPair):
            writer_pair(DIRECTION, shut, how)
    tiny = GAINS.clone()
    tiny[0] = 1e-9
    with pytest.raises(NoPair, match="so small"):
        writer_pair(DIRECTION, tiny, "oblique")
    writer_pair(DIRECTION, tiny, "orthogonal")


def rms_norm(h: Tensor, gains: Tensor) -> Tensor:
    return gains * h / h.square().mean().sqrt()


def layer_norm(h: Tensor, gains: Tensor, bias: Tensor) -> Tensor:
    centred = h - h.mean()
    return gains * centred / centred.square().mean().sqrt() + bias


def seen(pair: Pair, normed: Tensor) -> Tensor:
    """What a reader that lost the pair makes of its input, before its own weights."""
    return normed - pair.right * (pair.left @ normed)


def test_a_blinded_reader_sees_a_stream_without_the_direction_as_before() -> None:
    stream = Y - DIRECTION * float(DIRECTION @ Y)
    normed = rms_norm(stream, GAINS)
    torch.testing.assert_close(seen(reader_pair(DIRECTION, GAINS, None, False), normed), normed, rtol=0, atol=1e-14)


def test_a_blinded_reader_sees_nothing_of_the_direction() -> None:
    pair = reader_pair(DIRECTION, GAINS, None, False)
    scale = float((Y + 3 * DIRECTION).square().mean().sqrt() / Y.square().mean().sqrt())
    with_more, without = (seen(pair, rms_norm(h, GAINS)) for h in (Y + 3 * DIRECTION, Y))
    torch.testing.assert_close(with_more * scale, without, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bias", [None, vector(7)], ids=["no bias", "a bias"])
def test_a_reader_behind_a_layer_norm_is_blind_to_what_it_could_see_and_to_nothing_else(bias: Tensor | None) -> None:
    pair = reader_pair(DIRECTION, GAINS, bias, centred=True)
    beta = bias if bias is not None else torch.zeros(SIZE, dtype=torch.float64)
    visible = DIRECTION - DIRECTION.mean()
    stream = Y - visible * float(visible @ Y) / float(visible @ visible)
    normed = layer_norm(stream, GAINS, beta)
    torch.testing.assert_close(seen(pair, normed), normed, rtol=0, atol=1e-12)
    assert float(seen(pair, GAINS * visible).abs().max()) < 1e-12
    assert abs(float(pair.left @ beta)) < 1e-12
