"""Which vector a rule takes out."""

import pytest
import torch

from excise.edit.directions import Measured, edit_direction
from excise.edit.projection import unit_vector
from excise.plumbing.errors import StageError

ROWS = torch.stack(
    [unit_vector(row) for row in torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
)
MEANS = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MEASURED = Measured(ROWS, MEANS)


def test_a_whole_number_is_that_measurement_s_own() -> None:
    torch.testing.assert_close(edit_direction(MEASURED, 3, 1, "none"), ROWS[3], rtol=0, atol=1e-15)


def test_a_fraction_lies_between_the_unit_vectors_by_its_share() -> None:
    found = edit_direction(MEASURED, 2.25, 1, "none")
    torch.testing.assert_close(found, unit_vector(0.75 * ROWS[2] + 0.25 * ROWS[3]), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("how", "mean"), [("source", 3), ("target", 1)])
def test_orthogonalised_it_holds_nothing_of_that_mean_and_stays_a_unit_vector(how: str, mean: int) -> None:
    found = edit_direction(MEASURED, 3, 1, how)  # type: ignore[arg-type]
    assert abs(float(found @ MEANS[mean])) < 1e-14
    assert abs(float(found.norm()) - 1) < 1e-15
    assert abs(float(found @ MEANS[4 - mean])) > 1e-3


def test_a_direction_along_the_mean_is_refused() -> None:
    with pytest.raises(StageError, match="along the harmless mean"):
        edit_direction(Measured(ROWS, ROWS * 3), 2, 0, "source")
