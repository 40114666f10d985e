"""The numbers in the samplers' formulas: closed forms in Python's floats, computed from the noise levels alone.

A step from sigma down to `lower` has the length h = log(sigma / lower) on the axis of the exponential integrators,
lambda = -log sigma. Inside a step u runs from 0 at sigma to 1 at `lower`; earlier levels have u < 0.

A method of higher order draws a polynomial through the estimates it has, at the nodes u, and integrates it over the
step. All of them are one rule, `quadrature`, with the moments of their weight function: 1, 1/2, 1/3, ... for the slope
in sigma (Adams-Bashforth, LMS), `moments(h)` for the clean estimate in lambda (DPM-Solver++, UniPC, SA-Solver, RES,
SEEDS) and lower * `moments(-h)` for the slope in lambda (DPM-Solver, DEIS). Where publishers replaced a weight by one
that is equal up to higher powers of h, or by a wrong one, a moment differs: `adjusted`.
"""

from collections.abc import Sequence
from math import expm1, factorial, inf, log, sqrt

UNIFORM = (1.0, 1 / 2, 1 / 3, 1 / 4)  # moments of a constant weight
SECONDS = ("exact", "midpoint", "bh1", "bh2")
THIRDS = ("exact", "published", "diffusers_sde", "diffusers_sde_singlestep")


def ancestral(sigma: float, lower: float, eta: float) -> tuple[float, float]:
    """(down, up): the ODE goes to level `down`, then up * noise brings it to `lower`; down^2 + up^2 = lower^2.

    eta 0 adds no noise, eta 1 as much as a step of the trained noising process did.
    """
    share = min(1.0, eta**2 * max(0.0, 1 - (lower / sigma) ** 2))  # of the variance at `lower` that is new
    return lower * sqrt(1 - share), lower * sqrt(share)


def length(sigma: float, lower: float) -> float:
    return log(sigma / lower) if lower > 0 else inf


def moments(h: float, count: int) -> list[float]:
    """Integrals of h exp(h (u - 1)) u^k over 0 < u < 1 for k = 0 .. count - 1, for any h, infinity included.

    1 - exp(-h), then phi_2, then twice phi_3 of the papers. The recursion m_k = 1 - k / h m_(k-1) runs upward where h
    is large and, to lose no digits, downward from a power series where it is small.
    """
    if abs(h) > 1:
        found = [-expm1(-h)]
        for k in range(1, count):
            found.append(1 - k / h * found[-1])
        return found
    top = count - 1
    found = [sum(h * (-h) ** n * factorial(top) / factorial(top + n + 1) for n in range(18))]
    for k in range(top, 0, -1):
        found.insert(0, (1 - found[0]) * h / k)
    return found


def quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights that integrate the polynomial through values at the nodes; moments: of the weight function, one each."""
    weights = []
    for node in nodes:
        lagrange = [1.0]  # coefficients of the polynomial that is 1 at this node and 0 at the others, constant first
        for other in nodes:
            if other != node:
                lagrange = [
                    (low - other * high) / (node - other) for low, high in zip([0.0, *lagrange], [*lagrange, 0.0])
                ]
        weights.append(sum(c * m for c, m in zip(lagrange, moments)))
    return weights


def adjusted(moments: list[float], h: float, second: str, third: str) -> list[float]:
    """Moments as publishers have them; "exact" changes nothing.

    second, for two nodes only: "midpoint" (DPM-Solver) or "bh2" (UniPC) is half the first moment, "bh1" is h / 2.
    third: "published" is half the exact one, as every DPM-Solver(3M) and DPM-Solver++(3M) has it, which leaves them
    the second order. "diffusers_sde" is that with the wrong sign that diffusers 0.42 gives a term of its SDE, and
    "diffusers_sde_singlestep" the exact one with it. Raises ValueError for other names.
    """
    for moment, name, names in (("second", second, SECONDS), ("third", third, THIRDS)):
        if name not in names:
            raise ValueError(f"unknown {moment} moment {name!r}: choose one of {', '.join(names)}")
    if len(moments) == 2 and second != "exact":
        return [moments[0], (h if second == "bh1" else moments[0]) / 2]
    if len(moments) < 3:
        return moments
    match third:
        case "exact":
            return moments
        case "published":
            return [*moments[:2], moments[2] / 2]
        case "diffusers_sde":
            return [*moments[:2], moments[2] / 2 - 1]
        case "diffusers_sde_singlestep":
            return [*moments[:2], moments[2] - 2]


def exponential(
    sigma: float, lower: float, nodes: Sequence[float], eta: float = 0.0, second: str = "exact", third: str = "exact"
) -> list[float]:
    """The weights of x and of the clean estimates at the nodes in a step of the reverse SDE with `eta` of its noise.

    x' = q^(1+eta) x + sum of weights * x0s + fresh * noise, q = lower / sigma; eta 0 is the ODE, 1 the trained process.
    """
    h = (1 + eta) * length(sigma, lower)
    return [(lower / sigma) ** (1 + eta), *quadrature(nodes, adjusted(moments(h, len(nodes)), h, second, third))]


def fresh(sigma: float, lower: float, eta: float) -> float:
    """The deviation of the noise of that step."""
    return lower * sqrt(max(0.0, 1 - (lower / sigma) ** (2 * eta)))


def past_nodes(sigmas: Sequence[float], i: int, count: int) -> list[float]:
    """u of the `count` levels up to the i-th, newest first, in lambda: 0, then below."""
    if count < 2:
        return [0.0][:count]
    h = log(sigmas[i] / sigmas[i + 1])
    return [log(sigmas[i] / sigmas[i - j]) / h for j in range(count)]


def usable_order(sigmas: Sequence[float], i: int, order: int, short: float = 0) -> int:
    """The order that step i of a multistep method can have.

    A step into 0 or of no length has no finite formula above the first; and runs of fewer than `short` steps end in
    steps of order 2 and 1, as publishers have it for stability.
    """
    if sigmas[i + 1] in (0, sigmas[i]):
        return 1
    steps = len(sigmas) - 1
    return min(order, remembered(sigmas, i), steps - i if steps < short else order)


def remembered(sigmas: Sequence[float], i: int) -> int:
    """How many estimates step i can use, its own included: two of one level, after a step of no length, end them."""
    return next((j for j in range(1, i + 1) if sigmas[i - j] == sigmas[i - j + 1]), i + 1)


def check_order(order: int, highest: int, lowest: int = 1) -> None:
    if not lowest <= order <= highest:
        raise ValueError(f"order {order}: choose {lowest} to {highest}")
