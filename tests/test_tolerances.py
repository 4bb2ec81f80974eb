"""What the tolerance of float comparisons lets through, and what it does not."""

import pytest
import torch

from tests.tolerances import assert_rounded


@pytest.mark.parametrize("count", [8, 500, 8000])
def test_other_orders_of_a_sum_are_let_through_and_a_lost_or_wrong_term_is_not(count: int) -> None:
    terms = 1 - 0.1 * torch.rand(count, generator=torch.Generator().manual_seed(count))  # float32
    exact = terms.double().sum()
    for found in (terms.sum(), terms.cumsum(0)[-1], terms.flip(0).cumsum(0)[-1], terms.view(4, -1).sum(0).sum()):
        assert_rounded(found, exact, count)
    for wrong in (terms[1:].sum(), terms.sum() + terms[0], terms.sum() - 2 * terms[0]):
        with pytest.raises(AssertionError):
            assert_rounded(wrong, exact, count)
