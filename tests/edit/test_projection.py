"""The projection against an oracle in plain numpy float64 that shares no code with it."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from excise.edit.planning.projection import project as apply
from excise.edit.planning.projectors import Projector, span, unit_vector

Array = NDArray[np.float64]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = {2: np.int16, 4: np.int32}

dtypes = st.sampled_from(DTYPES)
scales = st.floats(-3, 3).map(lambda scale: round(scale, 3))
quickly = settings(max_examples=60, deadline=None, derandomize=True)


def project(weight: Tensor, direction: Tensor, scale: float) -> Tensor:
    """The edit of a tensor that writes to the stream as it is: what is read is what is removed."""
    return apply(weight, onto(direction), scale)


def onto(direction: Tensor) -> Projector:
    """The orthogonal projector of rank 1."""
    return Projector(direction[:, None], direction[:, None])


@st.composite
def weights(draw: st.DrawFn, dtype: torch.dtype | None = None) -> Tensor:
    """A matrix or a bias, of numbers as large as weights are."""
    out = draw(st.integers(1, 40))
    shape = draw(st.sampled_from([(out,), (out, out), (out, draw(st.integers(1, 40)))]))
    return random_weight(draw(st.integers(0, 2**32 - 1)), shape, dtype or draw(dtypes))


def random_weight(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=0.05, size=shape)).to(dtype)


def random_direction(length: int, seed: int = 1) -> Tensor:
    direction = np.random.default_rng(seed).normal(size=length)
    return torch.from_numpy(direction / math.sqrt(float(direction @ direction)))


def oracle(weight: Tensor, direction: Tensor, scale: float) -> Array:
    """W - s r (r' W) in float64."""
    w, r = weight.double().numpy(), direction.numpy()
    return np.asarray(w - scale * np.tensordot(r, np.tensordot(r, w, axes=(0, 0)), axes=0))


def rounded(exact: Array, dtype: torch.dtype) -> Tensor:
    """Float64 to float32 to the stored type, each to nearest even."""
    if dtype == torch.float64:
        return torch.from_numpy(exact)
    single = exact.astype(np.float32)
    if dtype == torch.bfloat16:
        bits = single.view(np.uint32)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return torch.from_numpy(upper.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(single.astype(np.float16) if dtype == torch.float16 else single)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def tolerance(dtype: torch.dtype, numbers: Array) -> Array:
    """A unit in the last place of the stored type, the smallest number that it has, and what float64 sums leave."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return np.abs(numbers) * torch.finfo(dtype).eps + smallest + 1e-15


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@quickly
@given(weights(), scales)
def test_every_type_shape_and_scale_agrees_with_the_oracle(weight: Tensor, scale: float) -> None:
    direction = random_direction(weight.shape[0])
    projected, exact = project(weight, direction, scale), oracle(weight, direction, scale)
    assert projected.dtype == weight.dtype and projected.shape == weight.shape
    assert (np.abs(projected.double().numpy() - exact) <= tolerance(weight.dtype, exact)).all()


@quickly
@given(weights(torch.float64), scales)
def test_one_minus_the_scale_is_left_along_the_direction(weight: Tensor, scale: float) -> None:
    direction = random_direction(weight.shape[0])
    left = direction @ project(weight, direction, scale)
    torch.testing.assert_close(left, (1 - scale) * (direction @ weight), rtol=0, atol=1e-14)


@quickly
@given(weights(torch.float64), scales)
def test_what_is_orthogonal_to_the_direction_stays(weight: Tensor, scale: float) -> None:
    direction = random_direction(weight.shape[0])
    change = (weight - project(weight, direction, scale)).reshape(weight.shape[0], -1)
    elsewhere = change - torch.outer(direction, direction @ change)
    assert float(elsewhere.abs().max()) <= 1e-15


@quickly
@given(weights())
def test_projecting_twice_is_projecting_once(weight: Tensor) -> None:
    direction = random_direction(weight.shape[0])
    once = project(weight, direction, 1)
    # Rounding leaves a little along r, which the second time takes: it may move a number to its neighbour.
    atol = 4 * float(weight.abs().max()) * torch.finfo(weight.dtype).eps
    torch.testing.assert_close(project(once, direction, 1), once, rtol=0, atol=atol)


@quickly
@given(weights())
def test_scale_two_twice_gives_the_weight_back(weight: Tensor) -> None:
    direction = random_direction(weight.shape[0])
    back = project(project(weight, direction, 2), direction, 2)
    atol = 4 * float(weight.abs().max()) * torch.finfo(weight.dtype).eps
    torch.testing.assert_close(back, weight, rtol=0, atol=atol * math.sqrt(weight.shape[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_zero_keeps_every_byte(dtype: torch.dtype) -> None:
    weight = torch.tensor([[0.1, -0.0], [math.nan, math.inf], [1e-7, -65504.0]], dtype=dtype)
    kept = project(weight, random_direction(3), 0)
    assert raw(kept) == raw(weight)
    assert kept.data_ptr() != weight.data_ptr()


def test_the_weight_given_is_left_as_it_was() -> None:
    weight = random_weight(0, (16, 16), torch.float64)
    before = raw(weight)
    project(weight, random_direction(16), 1)
    assert raw(weight) == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_visible_and_in_its_column(dtype: torch.dtype, value: float) -> None:
    weight = random_weight(0, (8, 3), dtype)
    weight[5, 1] = value
    projected = project(weight, random_direction(8), 1)
    assert not bool(torch.isfinite(projected[5, 1]))
    assert bool(torch.isfinite(projected[:, [0, 2]]).all())


def test_a_square_matrix_loses_what_it_writes_and_keeps_what_it_reads() -> None:
    weight, direction = random_weight(0, (24, 24), torch.float64), random_direction(24)
    projected = project(weight, direction, 1)
    assert float((direction @ projected).abs().max()) < 1e-15
    read, still_read = weight @ direction, projected @ direction
    torch.testing.assert_close(still_read, read - direction * (direction @ read), rtol=0, atol=1e-15)
    assert float(still_read.norm()) > 0.5 * float(read.norm())


# More elements than torch gives to one thread; some more than one block of rows, some with an odd number of rows.
@pytest.mark.parametrize("shape", [(512, 1408), (1000, 384), (1408, 512), (333, 1001), (300_001,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_any_number_of_threads_gives_the_same_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, direction = random_weight(0, shape, dtype), random_direction(shape[0])
    results = []
    for count in (1, 2, 3, 8):
        with threads(count):
            results.append(raw(project(weight, direction, 1)))
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [(torch.float64, "218836ed7cd0b9a2"), (torch.float32, "4cb9e07ff24ca68a"), (torch.bfloat16, "87f008511813e70a")],
    ids=str,
)
def test_every_machine_gives_the_same_bytes(dtype: torch.dtype, digest: str) -> None:
    # Whole numbers over powers of two, so that nothing before the projection is rounded differently anywhere. Float64
    # shows the order of additions; another order is another edit of every model, and a new digest here.
    weight = ((torch.arange(1000 * 384) * 7919 % 10_007 - 5000).double() / 2**16).view(1000, 384).to(dtype)
    direction = unit_vector((torch.arange(1000) * 104_729 % 1009 - 500).double())
    assert hashlib.sha256(raw(project(weight, direction, 0.75))).hexdigest()[:16] == digest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(128, 128), (1000, 384)], ids=str)
def test_rounding_goes_through_float32_to_nearest_even(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight, direction = random_weight(3, shape, dtype), random_direction(shape[0])
    projected, expected = project(weight, direction, 1), rounded(oracle(weight, direction, 1), dtype)
    if dtype == torch.float64:
        # Nothing is rounded further, so the two orders of addition show in the last places themselves.
        torch.testing.assert_close(projected, expected, rtol=0, atol=1e-17 * shape[0])
        return
    # Neighbours of one sign are neighbours as integers too.
    places = [np.frombuffer(raw(each), INTEGERS[dtype.itemsize]).astype(np.int64) for each in (projected, expected)]
    apart = np.abs(places[0] - places[1])
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 1e-5


def test_a_number_just_above_a_tie_rounds_to_the_tie_first() -> None:
    # Float32 rounds 1 + 2**-8 + 2**-40 to the middle of two bfloat16 numbers, which then goes to the even one, 1.
    # Rounded at once it would be 1 + 2**-7.
    weight = torch.tensor([[1.0], [1.0]], dtype=torch.bfloat16)
    direction = torch.tensor([0.5, -(0.5 + 2**-7 + 2**-39)], dtype=torch.float64)
    assert oracle(weight, direction, 1)[0, 0] == 1 + 2**-8 + 2**-40
    assert float(project(weight, direction, 1)[0, 0]) == 1


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@quickly
@given(st.lists(numbers, min_size=1, max_size=50).filter(lambda values: max(map(abs, values)) > 1e-3))
def test_a_unit_vector_is_summed_exactly(values: list[float]) -> None:
    length = math.sqrt(float(sum(Fraction(value * value) for value in values)))
    unit = unit_vector(torch.tensor(values, dtype=torch.float64))
    assert unit.tolist() == [value / length for value in values]
    assert math.isclose(math.fsum(value * value for value in unit.tolist()), 1, rel_tol=1e-14)


def test_a_unit_vector_does_not_depend_on_the_order_of_its_numbers() -> None:
    # Added one by one, each small square would be lost beside the large one.
    vector = torch.full((100_001,), 1e-8, dtype=torch.float64)
    vector[0] = 1.0
    assert raw(unit_vector(vector.flip(0))) == raw(unit_vector(vector).flip(0))
    assert float(unit_vector(vector)[0]) == 1 / math.sqrt(1 + 100_000 * 1e-16)


@quickly
@given(weights(), scales, scales)
def test_one_scale_after_another_is_their_sum_less_their_product(weight: Tensor, first: float, second: float) -> None:
    direction = random_direction(len(weight))
    twice = project(project(weight, direction, first), direction, second).double()
    once = project(weight, direction, first + second - first * second).double()
    # The first edit is rounded to the stored type, and what that leaves is scaled by the second.
    largest = max(1.0, float(weight.double().abs().max()), float(twice.abs().max()))
    bound = 40 * torch.finfo(weight.dtype).eps * largest * (1 + abs(second)) * (1 + abs(first))
    torch.testing.assert_close(twice, once, rtol=0, atol=bound)


@quickly
@given(weights())
def test_scale_two_keeps_the_norm_of_every_column(weight: Tensor) -> None:
    before, after = weight.double(), project(weight, random_direction(len(weight)), 2).double()
    bound = 4 * torch.finfo(weight.dtype).eps * float(before.norm()) + 1e-15 + 1e-7 * (weight.dtype == torch.float16)
    torch.testing.assert_close(after.norm(dim=0), before.norm(dim=0), rtol=0, atol=bound)


@quickly
@given(weights(), scales)
def test_what_is_read_is_projected_as_what_is_written_of_the_transposed(weight: Tensor, scale: float) -> None:
    if weight.ndim == 1:
        return
    direction = random_direction(weight.shape[0])
    read = apply(weight.t().contiguous(), onto(direction), scale, stream_axis=1)
    exact = oracle(weight, direction, scale)
    assert (np.abs(read.t().double().numpy() - exact) <= tolerance(weight.dtype, exact)).all()


@quickly
@given(weights(), scales)
def test_two_vectors_take_out_the_left_as_often_as_the_right_measures(weight: Tensor, scale: float) -> None:
    left, right = random_direction(len(weight), 5), random_direction(len(weight), 6)
    w = weight.double().numpy()
    exact = w - scale * np.tensordot(left.numpy(), np.tensordot(right.numpy(), w, axes=(0, 0)), axes=0)
    edited = apply(weight, Projector(left[:, None], right[:, None]), scale).double().numpy()
    assert (np.abs(edited - exact) <= tolerance(weight.dtype, exact)).all()


@quickly
@given(weights(torch.float64), scales)
def test_the_result_may_take_the_place_of_the_weight(weight: Tensor, scale: float) -> None:
    projector = onto(random_direction(len(weight)))
    expected = apply(weight, projector, scale)
    assert apply(weight, projector, scale, out=weight) is weight
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, -1.0])
def test_old_column_norms_come_back_and_the_direction_does_not(axis: int, scale: float) -> None:
    weight, direction = random_weight(1, (24, 24), torch.float64), random_direction(24)
    weight[:, 3] = 0  # as seen with the stream along the rows
    stored = weight if axis == 0 else weight.t().contiguous()
    edited = apply(stored, onto(direction), scale, axis, keep_column_norms=True)
    columns = edited if axis == 0 else edited.t()
    torch.testing.assert_close(columns.norm(dim=0), weight.norm(dim=0), rtol=1e-12, atol=0)
    assert not columns[:, 3].any()
    plain = project(weight, direction, scale)
    cosines = torch.nn.functional.cosine_similarity(columns, plain, dim=0)
    assert float(cosines[[n for n in range(24) if n != 3]].min()) > 1 - 1e-12
    if scale == 1:
        assert float((direction @ columns).abs().max()) < 1e-15


def test_a_column_along_the_direction_is_not_blown_up_from_rounding() -> None:
    direction = random_direction(32)
    weight = torch.stack([direction * 7, torch.ones(32, dtype=torch.float64)], dim=1)
    edited = apply(weight, onto(direction), 1, keep_column_norms=True)
    assert float(edited[:, 0].abs().max()) < 1e-14


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keep", [False, True])
def test_any_number_of_threads_gives_the_same_bytes_for_readers_and_norms_too(axis: int, keep: bool) -> None:
    weight, direction = random_weight(9, (900, 900), torch.bfloat16), random_direction(900)
    found = set()
    for count in (1, 2, 3, 8):
        with threads(count):
            found.add(raw(apply(weight, onto(direction), 0.9, axis, keep)))
    assert len(found) == 1


def test_experts_are_edited_each_for_itself() -> None:
    stack, direction = random_weight(4, (5, 48, 48), torch.bfloat16), random_direction(48)
    for axis in (0, 1):
        together = apply(stack, onto(direction), 1, axis)
        for alone, edited in zip(stack, together, strict=True):
            assert torch.equal(apply(alone.clone(), onto(direction), 1, axis), edited)


def folded(rows: Array) -> Array:
    """The sum over the first axis: the lower half is added to the upper until one row is left."""
    rows = rows.copy()
    while len(rows) > 1:
        half = (len(rows) + 1) // 2
        rows[: len(rows) - half] += rows[half:]
        rows = rows[:half]
    return rows[0]


def in_order(weight: Tensor, projector: Projector, scale: float, axis: int, keep: bool) -> Array:
    """The edit in numpy float64, every addition in its place, seen with the stream along the rows of blocks; vectors
    are removed one after another."""
    w = weight.double().numpy()

    def total(numbers: Array) -> Array:
        if axis == 1:
            return folded(numbers.T)[:, None]
        size = max(1, (1 << 18) // numbers.shape[1])
        whole = np.zeros((min(size, len(numbers)), numbers.shape[1]))
        for top in range(0, len(numbers), size):
            block = numbers[top : top + size]
            whole[: len(block)] += block
        return folded(whole)[None, :]

    exact = w
    for left, right in zip(projector.left.T.numpy(), projector.right.T.numpy(), strict=True):
        left, right = (each[None, :] if axis == 1 else each[:, None] for each in (left, right))
        exact = exact - left * (total(exact * right) * scale)
    if keep:
        old, new = total(w * w), total(exact * exact)
        exact = exact * np.where(new > old * 1e-20, np.sqrt(old / new), 1.0)
    return np.asarray(exact)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (700, 1100), (1100, 700)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keep", [False, True])
def test_the_last_bit_is_that_of_an_oracle_that_adds_in_the_same_order(
    dtype: torch.dtype, shape: tuple[int, int], axis: int, keep: bool, rank: int
) -> None:
    weight = random_weight(11, shape, dtype)
    # Not biorthogonal, so that the order of vectors shows.
    left, right = (
        torch.stack([random_direction(shape[axis], seed + number) for number in range(rank)], dim=1)
        for seed in (12, 22)
    )
    projector = Projector(left, right)
    expected = rounded(in_order(weight, projector, 0.8, axis, keep), dtype)
    assert raw(apply(weight, projector, 0.8, axis, keep)) == raw(expected)


@quickly
@given(weights(torch.float64), scales)
def test_several_vectors_are_removed_as_all_at_once_and_rounded_once(weight: Tensor, scale: float) -> None:
    if len(weight) < 2:
        return
    basis = span(torch.stack([random_direction(len(weight), seed) for seed in (5, 6)], dim=1))
    exact = weight - scale * torch.einsum("ik,jk,j...->i...", basis, basis, weight)
    torch.testing.assert_close(apply(weight, Projector(basis, basis), scale), exact, rtol=0, atol=1e-14)
