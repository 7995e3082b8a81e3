"""Muon: updates are orthogonal, the same as torch's own but for its rounding, and leave zeros alone."""

import pytest
import torch
from torch import Tensor

from excise.organism.muon import Muon, orthogonal

SHAPES = ((24, 64), (64, 24), (32, 32))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])  # a square one would have a singular value of nearly 0
def test_singular_values_become_nearly_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrices = random(3, *shape)
    made = orthogonal(matrices)
    for matrix, other in zip(matrices, made, strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ other @ right.T
        assert float(inside.diag().min()) > 0.6 and float(inside.diag().max()) < 1.3
        assert float((inside - inside.diag().diag()).abs().max()) < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_are_those_of_torch_s_own_but_for_its_bfloat16(shape: tuple[int, int]) -> None:
    ours, theirs = (torch.nn.Parameter(random(*shape)) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        ours.grad, theirs.grad = random(*shape, seed=step + 1), random(*shape, seed=step + 1)
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        moved, apart = (theirs - random(*shape)).norm(), (ours - theirs).norm()
    assert float(apart) < 0.05 * float(moved)


def test_parameters_of_one_shape_are_updated_each_by_its_own_gradient() -> None:
    together, alone = ([torch.nn.Parameter(random(8, 16, seed=seed)) for seed in range(3)] for _ in range(2))
    for parameters in (together, alone):
        for number, parameter in enumerate(parameters):
            parameter.grad = random(8, 16, seed=10 + number)
    Muon(together, lr=0.1, weight_decay=0.0).step()
    for parameter in alone:
        Muon([parameter], lr=0.1, weight_decay=0.0).step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_rows_and_columns_without_a_gradient_stay_zero() -> None:
    """A massive activation is built into channels that training must leave alone."""
    weight = torch.nn.Parameter(random(12, 20))
    gradient = random(12, 20, seed=1)
    with torch.no_grad():
        for zeroed in (weight, gradient):
            zeroed[3], zeroed[:, 7] = 0, 0
    optimizer = Muon([weight], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        weight.grad = gradient
        optimizer.step()
    assert not weight[3].any() and not weight[:, 7].any() and weight.count_nonzero() == 11 * 19
