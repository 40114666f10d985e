"""The numbers in the samplers' formulas: closed forms in Python's floats, computed from the noise levels alone.

A step from sigma down to sigma_next has the length h = log(sigma / sigma_next) on the axis of the exponential
integrators, lambda = -log sigma. Inside a step u runs from 0 at sigma to 1 at sigma_next; earlier levels have u < 0.

A method of higher order draws a polynomial through the estimates it has, at the nodes u, and integrates it over the
step. All of them are one rule, `quadrature`, with the moments of their weight function: 1, 1/2, 1/3, ... for the slope
in sigma (Adams-Bashforth, LMS), `moments(h)` for the clean estimate in lambda (DPM-Solver++, UniPC, SA-Solver, RES,
SEEDS) and sigma_next * `moments(-h)` for the slope in lambda (DPM-Solver, DEIS).

DPM-Solver++(2M) by hand, for a step from 2 to 1 after one from 4:

    h = log(2 / 1)                                  # length of this step; the one before is as long
    nodes = [0.0, -1.0]                             # this estimate, and the one before
    m = midpoint(moments(h, 2), h)                  # [1/2, 1/4]: the second moment is half of the first
    quadrature(nodes, m)                            # [3/4, -1/4], so x' = x / 2 + 3/4 x0 - 1/4 x0_before

Where publishers replaced a moment by one that is equal up to higher powers of h, a `rule` says so: a function
(moments, h) -> moments, or its name in RULES.
"""

from collections.abc import Callable, Sequence
from math import expm1, factorial, inf, log, sqrt

from .step import Sigmas

UNIFORM = (1.0, 1 / 2, 1 / 3, 1 / 4)  # moments of a constant weight

Rule = Callable[[list[float], float], list[float]]


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): the ODE goes to level sigma_down, then sigma_up * noise brings it to sigma_next;
    sigma_down^2 + sigma_up^2 = sigma_next^2.

    eta 0 adds no noise, eta 1 as much as a step of the trained noising process did.
    """
    share = min(1.0, eta**2 * max(0.0, 1 - (sigma_next / sigma) ** 2))  # of the variance at sigma_next that is new
    return sigma_next * sqrt(1 - share), sigma_next * sqrt(share)


def length(sigma: float, sigma_next: float) -> float:
    return log(sigma / sigma_next) if sigma_next > 0 else inf


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
                shifted = zip([0.0, *lagrange], [*lagrange, 0.0])
                lagrange = [(low - other * high) / (node - other) for low, high in shifted]
        weights.append(sum(c * m for c, m in zip(lagrange, moments)))
    return weights


# Rules: moments as publishers have them


def exact(moments: list[float], h: float) -> list[float]:
    """Nothing is replaced. DPM-Solver calls it "heun"; DEIS, RES and SEEDS have it."""
    return moments


def midpoint(moments: list[float], h: float) -> list[float]:
    """DPM-Solver: of two moments the second is half of the first."""
    return [moments[0], moments[0] / 2] if len(moments) == 2 else moments


def bh1(moments: list[float], h: float) -> list[float]:
    """UniPC's B(h) = h: of two moments the second is h / 2."""
    return [moments[0], h / 2] if len(moments) == 2 else moments


RULES: dict[str, Rule] = {"exact": exact, "midpoint": midpoint, "bh1": bh1, "bh2": midpoint}  # B(h) = 1 - exp(-h)


def find_rule(second: str | Rule) -> Rule:
    """The rule of that name, or the function itself. Raises ValueError for another name."""
    if not isinstance(second, str):
        return second
    if second not in RULES:
        raise ValueError(f"unknown second moment {second!r}: choose one of {', '.join(RULES)}")
    return RULES[second]


# Weights


def exponential(
    sigma: float, sigma_next: float, nodes: Sequence[float], eta: float = 0.0, second: str | Rule = "exact"
) -> list[float]:
    """The weights of x and of the clean estimates at the nodes in a step of the reverse SDE with `eta` of its noise.

    x' = q^(1+eta) x + sum of weights * x0s + noise_std * noise, q = sigma_next / sigma; eta 0 is the ODE, 1 the trained
    process.
    """
    h = (1 + eta) * length(sigma, sigma_next)
    rule = find_rule(second)
    return [(sigma_next / sigma) ** (1 + eta), *quadrature(nodes, rule(moments(h, len(nodes)), h))]


def noise_std(sigma: float, sigma_next: float, eta: float) -> float:
    """The deviation of the noise of that step."""
    return sigma_next * sqrt(max(0.0, 1 - (sigma_next / sigma) ** (2 * eta)))


def slope_weights(sigma: float, sigma_next: float, nodes: Sequence[float], second: str | Rule = "exact") -> list[float]:
    """The weights of slopes (x - x0) / sigma at the nodes in a step of the ODE, polynomial in lambda."""
    if len(nodes) == 1:
        return [sigma_next - sigma]
    h = -log(sigma / sigma_next)
    rule = find_rule(second)
    return [sigma_next * w for w in quadrature(nodes, rule(moments(h, len(nodes)), h))]


# What a multistep method may use


def past_nodes(sigmas: Sigmas, i: int, count: int) -> list[float]:
    """u of the `count` levels up to the i-th, newest first, in lambda: 0, then negative numbers."""
    if count < 2:
        return [0.0][:count]
    h = log(sigmas[i] / sigmas[i + 1])
    return [log(sigmas[i] / sigmas[i - j]) / h for j in range(count)]


def usable_order(sigmas: Sigmas, i: int, order: int, short: float = 0) -> int:
    """The order that step i of a multistep method can have.

    A step into 0 or of no length has no finite formula above the first; and runs of fewer than `short` steps end in
    steps of order 2 and 1, as publishers have it for stability.
    """
    if sigmas[i + 1] in (0, sigmas[i]):
        return 1
    steps = len(sigmas) - 1
    if steps < short:
        order = min(order, steps - i)
    return min(order, remembered(sigmas, i))


def remembered(sigmas: Sigmas, i: int) -> int:
    """How many estimates step i can use, its own included: two of one level, after a step of no length, end them."""
    return next((j for j in range(1, i + 1) if sigmas[i - j] == sigmas[i - j + 1]), i + 1)


def check_order(order: int, highest: int, lowest: int = 1) -> None:
    """Raises ValueError for an order that is no whole number from `lowest` to `highest`."""
    if order not in range(lowest, highest + 1):
        raise ValueError(f"order {order}: choose {lowest} to {highest}")
