"""Which block of one network stands for which block of the other."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from torch import nn


def pair_modules(ours: nn.Module, reference: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """Path in the reference -> path in ours, for every module that both have; the networks themselves are "".

    Raises ValueError for a name that no module bears, and for two modules of ours that stand for the same one.
    """
    our_paths = [path for path, _ in ours.named_modules() if path]
    their_paths = {path for path, _ in reference.named_modules() if path}
    for pattern, target in names.items():
        named = [path for path in our_paths if matches(pattern, path)]
        if not named:
            raise ValueError(f"names: {pattern!r} is no block of your network{near(pattern, our_paths)}")
        if pattern.count("*") < target.count("*"):
            raise ValueError(f"names: {target!r} has more * than {pattern!r}")
        for path in named:
            there = translate(path, names)
            if there and there not in their_paths:
                raise ValueError(
                    f"names: {path!r} is said to be {there!r}, which is no block of the reference"
                    f"{near(there, their_paths)}"
                )
    pairs = {"": ""}
    for path in our_paths:
        there = translate(path, names)
        if there not in their_paths:
            continue
        if there in pairs:
            raise ValueError(f"names: {pairs[there]!r} and {path!r} both stand for {there!r} of the reference")
        pairs[there] = path
    return pairs


def take_weights(ours: nn.Module, reference: nn.Module, names: Mapping[str, str] | None = None) -> None:
    """Put the reference's own tensors into our network, by the names of the blocks; nothing is copied.

    Raises ValueError if a tensor of one network has no counterpart in the other.
    """
    state = reference.state_dict()
    found = {}
    for key in ours.state_dict():
        path, _, leaf = key.rpartition(".")
        there = translate(path, names or {}) if path else ""
        their_key = f"{there}.{leaf}" if there else leaf
        if their_key not in state:
            raise ValueError(f"{key} has no counterpart: the reference has no {their_key}{near(their_key, state)}")
        found[key] = state.pop(their_key)
    if state:
        raise ValueError(f"{len(state)} tensors of the reference have no counterpart, {next(iter(state))} among them")
    ours.load_state_dict(found, assign=True)


def translate(path: str, names: Mapping[str, str]) -> str:
    """The path in the other network: the longest pattern that matches the beginning is replaced, the rest stays.

    Of patterns of equal length the one with the fewest "*" is taken. The k-th "*" of the target becomes the part of the
    path that the k-th "*" of the pattern stands for. A path that no pattern matches stays as it is.
    """
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        beginning = ".".join(parts[:count])
        fitting = [pattern for pattern in names if matches(pattern, beginning)]
        if fitting:
            pattern = min(fitting, key=lambda pattern: pattern.count("*"))
            met = iter([part for part, want in zip(parts, pattern.split(".")) if want == "*"])
            filled = []
            for part in names[pattern].split("."):
                filled.append(next(met) if part == "*" else part)
            # The target may be "", the network itself.
            return ".".join(part for part in [*filled, *parts[count:]] if part)
    return path


def matches(pattern: str, path: str) -> bool:
    """Whether a path is the pattern, part by part; "*" stands for any one part."""
    wanted = pattern.split(".")
    parts = path.split(".")
    return len(wanted) == len(parts) and all(want in ("*", part) for want, part in zip(wanted, parts))


def near(name: str, known: Iterable[str]) -> str:
    """A remark that names what may have been meant, if something resembles it."""
    found = get_close_matches(name, list(known), n=1)
    return f": is {found[0]!r} meant?" if found else ""
