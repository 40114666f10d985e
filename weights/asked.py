"""What a user asks of a model beyond its name: facts that its files do not say, and networks from elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoint import Part


class Given(NamedTuple):
    """A network for a model that lacks it, or to take the place of the model's own. path: its source on this machine.
    commit: of the repository that it came from, or "". training: what the UNet was trained for, as far as its source
    says. warning: what the user should know of it, or ""."""

    part: Part
    path: Path
    commit: str = ""
    training: Mapping[str, Any] = {}
    warning: str = ""


class Asked(NamedTuple):
    """help(weights) describes the first three; given: by part."""

    prediction: str | None = None
    zero_snr: bool = False
    ema: bool = False
    given: Mapping[str, Given] = {}


NOTHING = Asked()
