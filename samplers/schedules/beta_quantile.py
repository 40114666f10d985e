"""The quantile function of the Beta distribution, in float64: 12 digits for parameters from 0.1 to 5.

The regularised incomplete beta function is a continued fraction (DLMF 8.17.22), inverted by Newton's method.
"""

from itertools import count
from math import exp, lgamma, log, log1p


def quantile(p: float, a: float, b: float) -> float:
    """The x below which a Beta(a, b) variable lies with probability p.

    Raises ValueError for p outside 0 .. 1 and for parameters that are not positive.
    """
    if not 0 <= p <= 1 or a <= 0 or b <= 0:
        raise ValueError(f"quantile of {p} for Beta({a}, {b}): p is from 0 to 1, and both parameters are above 0")
    if p in (0.0, 1.0):
        return float(p)
    if p > cumulative(0.5, a, b):  # the smaller half of x is where x has all its digits
        return 1 - lower_quantile(1 - p, b, a)
    return lower_quantile(p, a, b)


def lower_quantile(p: float, a: float, b: float) -> float:
    """The quantile where it is at most 1/2: Newton's method for log P(log x), which is nearly a straight line."""
    low, high = -708.0, log(0.5)  # of log x
    u = min((log(p) + log(a) + log_beta(a, b)) / a, high)
    for _ in range(100):
        x = exp(u)
        share = cumulative(x, a, b)
        low, high = (u, high) if share < p else (low, u)
        slope = exp(a * u + (b - 1) * log1p(-x) - log_beta(a, b)) / share
        step = log(p / share) / slope
        u = u + step if low <= u + step <= high else (low + high) / 2
        if abs(step) < 1e-15:
            break
    return exp(u)


def cumulative(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for 0 < x < 1."""
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - cumulative(1 - x, b, a)
    return exp(a * log(x) + b * log1p(-x) - log_beta(a, b)) / (a * fraction(x, a, b))


def log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) by the modified Lentz method."""
    value = ratio = 1.0
    inverse = 0.0
    for j in count(1):
        m = j // 2
        if j % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        ratio, inverse = 1 + d / ratio, 1 / (1 + d * inverse)
        value *= ratio * inverse
        if abs(ratio * inverse - 1) < 1e-15:
            break
    return value
