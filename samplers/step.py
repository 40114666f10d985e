"""What every sampler yields."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """Step i left noise level sigma: x is the new noisy picture, x0 the clean estimate that led there (b c h w)."""

    i: int
    sigma: float
    x: Tensor
    x0: Tensor
