"""Where a program computes: the devices of this machine, and what --device may say."""

import torch

KINDS = ("cuda", "mps", "xpu", "cpu")  # the best first


def count(kind: str) -> int:
    """How many devices of a kind there are."""
    match kind:
        case "cuda":
            return torch.cuda.device_count() if torch.cuda.is_available() else 0
        case "mps":
            return int(torch.backends.mps.is_available())
        case "xpu":
            return torch.xpu.device_count() if torch.xpu.is_available() else 0
        case "cpu":
            return 1
    return 0


def available() -> list[str]:
    """The kinds of devices that this machine has, the best first; the CPU is always among them."""
    return [kind for kind in KINDS if count(kind)]


def check_device(text: str) -> str:
    """The device that --device names, "auto" being the best there is. Raises ValueError, one line that says what to
    use, for one that does not exist or that this machine does not have."""
    name = text.strip().casefold()
    here = available()
    if name in ("auto", "default"):
        return here[0]
    kind, colon, number = name.partition(":")
    shown = repr(text if len(text) <= 40 else text[:40] + "...")
    offer = f"use --device {' or '.join(here)}"
    if kind not in KINDS:
        raise ValueError(f"--device {shown}: no such device: {offer}")
    if not count(kind):
        raise ValueError(f"--device {shown}: this machine, or this PyTorch, has no {kind}: {offer}")
    if colon and not (number.isascii() and number.isdecimal() and int(number[:9]) < count(kind)):
        last = f"{kind}:{count(kind) - 1}"
        numbers = f"{kind}:0 to {last}" if count(kind) > 1 else f"{kind}:0, the only one"
        raise ValueError(f"--device {shown}: this machine has {numbers}: {offer}")
    return f"{kind}:{int(number)}" if colon else kind
