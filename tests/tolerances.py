"""How far two results of the same mathematics may lie apart where kernels, shapes or threads differ.

A processor picks its matrix kernels by shape and by what it can do, and each adds in an order of its own. Every
addition rounds by up to half a unit in the last place, either way, so errors grow with the square root of how many
additions a value has passed: eps · √terms · scale (Higham and Mary 2019), with the terms of all sums that follow each
other, as the layers of a tower do, and the largest value on the way as the scale. `MARGIN` of these are allowed.

A wrong term still shows: one of n like terms left out, doubled or of the wrong sign changes a sum by scale / n or more,
which is above the tolerance up to n = 16,000 in float32. A weight that is wrong by half a percent shows up to n = 480.

Results of the same call on the same shapes on one machine run the same kernels: these are compared for equality.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MARGIN = 4
# The scale of a map of a localizer: cosines are at most 1, and a range of a tenth of them or more is stretched to 0–1.
STRETCHED = 10


def terms_of(*modules: nn.Module) -> int:
    """The additions of one pass through all layers of towers: for each matrix or filter, the terms of one output."""
    return sum(weight[0].numel() for module in modules for weight in module.parameters() if weight.ndim > 1)


def rounding(terms: int | nn.Module, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """What rounding explains after so many additions, or a tower's; scale: the largest value on the way."""
    count = terms if isinstance(terms, int) else terms_of(terms)
    return MARGIN * torch.finfo(dtype).eps * count**0.5 * scale


def assert_rounded(found: Any, expected: Any, terms: int | nn.Module, scale: float | None = None) -> None:
    """Both are one result, computed by other kernels; the scale is the largest expected value if None."""
    ours, theirs = (
        value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for value in (found, expected)
    )
    if scale is None:
        scale = float(theirs.abs().max())
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=rounding(terms, scale, ours.dtype))


def assert_same_choice(found: np.ndarray, expected: np.ndarray) -> None:
    """Labels or masks, chosen from numbers that rounding changes: one pixel in a thousand may lie on an edge."""
    assert found.shape == expected.shape
    assert (found != expected).mean() <= 1e-3
