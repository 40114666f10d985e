"""The options of a sampler, checked before it runs: the keywords of its function, by name, kind and range."""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from math import inf, isnan
from numbers import Real
from operator import index
from typing import Any

from .step import churn

# What the options of several samplers may be, where any number would not do.
RANGES = {
    **dict.fromkeys(
        ("eta", "s_churn", "s_noise", "s_tmin", "s_tmax", "short", "low", "high", "end", "tau"), (0.0, inf)
    ),
    **dict.fromkeys(("predictor", "corrector", "order", "points", "steps", "times"), (1, inf)),
    **dict.fromkeys(("r", "r1", "r2"), (1e-6, 1.0)),
    **dict.fromkeys(("rtol", "atol", "h_init", "accept_safety"), (1e-12, inf)),
}


def options_of(sampler: Callable[..., Any]) -> dict[str, Any]:
    """The options of a sampler -> their defaults."""
    parameters = signature(sampler).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind == Parameter.KEYWORD_ONLY}
    if hands_on(sampler) and not is_open(sampler):
        found |= options_of(churn)
    return found


def hands_on(sampler: Callable[..., Any]) -> bool:
    """It takes more options than it names; those of this package hand them on to step.churn."""
    return any(p.kind == Parameter.VAR_KEYWORD for p in signature(sampler).parameters.values())


def is_open(sampler: Callable[..., Any]) -> bool:
    """A function of somebody's own that takes more options than it names: any may be right."""
    return hands_on(sampler) and not getattr(sampler, "func", sampler).__module__.startswith("samplers.")


def check_options(sampler: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that the sampler does not have or a number out of range, TypeError for a value of
    another kind than the default."""
    known = options_of(sampler)
    for name, value in options.items():
        if name not in known and not is_open(sampler):
            raise ValueError(f"option {name!r}: this sampler has no such option: {list_options(known)}")
        check_kind(name, value, known.get(name))
        low, high = RANGES.get(name, (-inf, inf))
        if isinstance(value, Real) and not low <= value <= high:
            raise ValueError(f"option {name}={value}: must be from {low:g} to {high:g}")


def check_kind(name: str, value: Any, default: Any) -> None:
    """Functions and None pass wherever they come: the sampler knows what to do with them."""
    if callable(value) or value is None or isinstance(value, type(default)):
        return
    if isinstance(value, Real) and isnan(value):
        raise ValueError(f"option {name}={value}: must be a number")
    if isinstance(default, int) and not isinstance(default, bool):
        try:
            index(value)
        except TypeError:
            raise TypeError(f"option {name}={value!r}: a whole number is expected") from None
    elif isinstance(default, float) and not isinstance(value, Real):
        raise TypeError(f"option {name}={value!r}: a number is expected")
    elif isinstance(default, bool | str):
        raise TypeError(f"option {name}={value!r}: a value like {default!r} is expected")


def list_options(known: Mapping[str, Any]) -> str:
    return f"choose one of {', '.join(known)}" if known else "it has none"
