"""The options of a sampler, checked before it runs: the keywords of its function, by name, kind and range."""

from collections.abc import Callable, Mapping, Sequence, Set
from inspect import Parameter, signature, unwrap
from math import inf, isfinite, isnan
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

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
    """It takes more options than it names; those of this package hand them on to step.churn."""
    return any(p.kind == Parameter.VAR_KEYWORD for p in signature(sampler).parameters.values())


def is_open(sampler: Callable[..., Any]) -> bool:
    """A function of somebody's own that takes more options than it names: any may be right."""
    return hands_on(sampler) and not is_of_this_package(sampler)


def is_of_this_package(sampler: Callable[..., Any]) -> bool:
    inner = unwrap(sampler)
    inner = getattr(inner, "func", inner)  # of a partial
    return str(getattr(inner, "__module__", "")).startswith("samplers.")


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments and no more; yes for one that does not tell."""
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def has_room_for(function: Callable[..., Any], count: int) -> bool:
    """Whether a function takes so many arguments, and perhaps needs more; yes for one that does not tell."""
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
    """The kinds of value that an option may have, by its type or else by its default; none if any may be right."""
    kind = parameter.annotation
    if get_origin(kind) in (Union, UnionType):
        return get_args(kind)
    if kind is not Parameter.empty and not isinstance(kind, str):
        return (kind,)
    kind = type(parameter.default)
    if kind is int:
        return (float,)
    return (kind,) if kind in (float, bool, str) else ()


def check_kind(name: str, value: Any, kinds: Sequence[Any]) -> None:
    if kinds and not any(is_of_kind(value, kind) for kind in kinds):
        words = [KINDS.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind))) for kind in kinds]
        raise TypeError(f"option {name}={show(value)}: {' or '.join(words)} is expected")


def is_of_kind(value: Any, kind: Any) -> bool:
    kind = get_origin(kind) or kind
    if kind is Callable:
        return callable(value)
    if kind is float or kind is int:
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return not isinstance(kind, type) or isinstance(value, kind)


def check_range(name: str, value: Real) -> None:
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
    except (TypeError, ValueError, RuntimeError):  # of numpy and torch for several elements, or none
        raise TypeError(f"{show(value)}: a number is expected") from None


def show(value: Any) -> str:
    """A value for a message of one line, the middle of a long one left out."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-30:]}"
