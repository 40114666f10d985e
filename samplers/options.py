"""The options of a sampler, checked before it runs: the keywords of its function, by name, kind and range."""

from collections.abc import Callable, Mapping, Sequence, Set
from inspect import Parameter, signature, unwrap
from math import inf, isfinite, isnan
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from .step import churn

# (lowest, highest) of the options that may not be any number.
RANGES = {
    **dict.fromkeys(
        ("eta", "s_churn", "s_noise", "s_tmin", "s_tmax", "short", "low", "high", "end", "tau"), (0.0, inf)
    ),
    **dict.fromkeys(("predictor", "corrector", "order", "points", "steps", "times"), (1, inf)),
    **dict.fromkeys(("r", "r1", "r2"), (1e-6, 1.0)),
    **dict.fromkeys(("rtol", "atol", "h_init", "accept_safety"), (1e-12, inf)),
}
MAY_BE_INFINITE = ("s_churn", "s_tmax", "short")
KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a name",
    NoneType: "None",
    Callable: "a function",
    Sequence: "a list",
}


def options_of(sampler: Callable[..., Any]) -> dict[str, Any]:
    """The options of a sampler -> their defaults."""
    return {name: parameter.default for name, parameter in parameters_of(sampler).items()}


def parameters_of(sampler: Callable[..., Any]) -> dict[str, Parameter]:
    """The options of a sampler by name: all that comes after denoise, x, sigmas and noise."""
    found = {}
    for place, parameter in enumerate(signature(sampler).parameters.values()):
        follows = place >= 4 and parameter.kind == Parameter.POSITIONAL_OR_KEYWORD
        if follows or parameter.kind == Parameter.KEYWORD_ONLY:
            found[parameter.name] = parameter
    if hands_on(sampler) and not is_open(sampler):
        bound = getattr(unwrap(sampler), "keywords", {})  # of a partial, which its signature does not show
        for name, parameter in parameters_of(churn).items():
            found[name] = parameter.replace(default=bound.get(name, parameter.default))
    return found


def hands_on(sampler: Callable[..., Any]) -> bool:
    """Whether a sampler takes **options. Those of this package hand them on to step.churn."""
    return any(p.kind == Parameter.VAR_KEYWORD for p in signature(sampler).parameters.values())


def is_open(sampler: Callable[..., Any]) -> bool:
    """Whether any option may be right: for a function from outside this package that takes **options."""
    return hands_on(sampler) and not is_of_this_package(sampler)


def is_of_this_package(sampler: Callable[..., Any]) -> bool:
    """Whether a sampler, or the function inside a wrapper or a partial, was defined in this package."""
    inner = unwrap(sampler)
    inner = getattr(inner, "func", inner)  # of a partial
    return str(getattr(inner, "__module__", "")).startswith("samplers.")


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with exactly `count` arguments; True if it has no signature to read."""
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def has_room_for(function: Callable[..., Any], count: int) -> bool:
    """Whether a function takes `count` arguments, and perhaps needs more; True if it has no signature to read."""
    try:
        signature(function).bind_partial(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def check_options(sampler: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that the sampler does not have or a number out of range, TypeError for a value of
    another kind. The numbers of somebody's own sampler may be any."""
    if not isinstance(options, Mapping):
        raise TypeError(f"options {show(options)}: names with values are expected, such as {{'eta': 0.5}}")
    known = parameters_of(sampler)
    for name, value in options.items():
        if name in known:
            check_kind(name, value, kinds_of(known[name]))
        elif not is_open(sampler):
            raise ValueError(f"option {name!r}: this sampler has no such option: {list_options(known)}")
        if is_of_this_package(sampler) and isinstance(value, Real):
            check_range(name, value)


def kinds_of(parameter: Parameter) -> tuple[Any, ...]:
    """The types that an option may have: those of its annotation, else that of its default; () if any may be right."""
    kind = parameter.annotation
    if get_origin(kind) in (Union, UnionType):
        return get_args(kind)
    if kind is not Parameter.empty and not isinstance(kind, str):
        return (kind,)
    kind = type(parameter.default)
    # Without an annotation a default of 2 may stand for any number.
    if kind is int:
        return (float,)
    return (kind,) if kind in (float, bool, str) else ()


def check_kind(name: str, value: Any, kinds: Sequence[Any]) -> None:
    """Raises TypeError for a value of none of these kinds."""
    if kinds and not any(is_of_kind(value, kind) for kind in kinds):
        words = [KINDS.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind))) for kind in kinds]
        raise TypeError(f"option {name}={show(value)}: {' or '.join(words)} is expected")


def is_of_kind(value: Any, kind: Any) -> bool:
    """isinstance for annotations such as Callable[...] or Sequence[float]; True for one that is no class."""
    kind = get_origin(kind) or kind
    if kind is Callable:
        return callable(value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return not isinstance(kind, type) or isinstance(value, kind)


def check_range(name: str, value: Real) -> None:
    """Raises ValueError for a number that the option of this name may not be."""
    number = float(value)
    if isnan(number) or not (isfinite(number) or name in MAY_BE_INFINITE):
        raise ValueError(f"option {name}={value}: must be a finite number")
    low, high = RANGES.get(name, (-inf, inf))
    if not low <= number <= high:
        raise ValueError(f"option {name}={value}: must be from {low:g} to {high:g}")


def list_options(known: Mapping[str, Any]) -> str:
    return f"choose one of {', '.join(known)}" if known else "it has none"


def as_numbers(values: Any) -> list[float]:
    """Several numbers of any kind, in a list, an array, a tensor or a generator. Raises TypeError for anything else:
    texts that spell numbers, and what has no order."""
    if isinstance(values, str | bytes | Set | Mapping):
        raise TypeError(f"{show(values)}: several numbers are expected")
    return [as_number(value) for value in values]


def as_number(value: Any) -> float:
    """A number of any kind, a tensor with one element included. Raises TypeError for anything else, also for True."""
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"{show(value)}: a number is expected")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # numpy and torch raise these for several elements or none
        raise TypeError(f"{show(value)}: a number is expected") from None


def show(value: Any) -> str:
    """A value in one line for a message; the middle of a long one is left out."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-30:]}"
