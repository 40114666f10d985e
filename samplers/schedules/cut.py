"""Parts of a schedule. A schedule is a list, so where to begin, stop or hand over is slicing.

Three programs mean three things by the strength of an image-to-image run; each function says whose it is.
"""

from collections.abc import Callable, Mapping
from numbers import Real


def start_at_strength(sigmas: list[float], strength: float) -> list[float]:
    """The last int(strength * steps) steps: image-to-image as diffusers counts.

    The run begins from the picture with noise of level result[0]. Raises ValueError if no step is left or for a
    strength outside 0 to 1, TypeError for what is no number.
    """
    check_strength(strength)
    steps = len(sigmas) - 1
    kept = int(steps * strength)
    if kept < 1:
        raise ValueError(f"strength {strength} of {steps} steps: leaves none; choose at least {1 / steps:.3g}")
    return sigmas[steps - kept :]


def check_strength(strength: float) -> None:
    """Raises ValueError for a strength outside 0 to 1, TypeError for what is no number."""
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise TypeError(f"strength {strength!r}: a number is expected, more than 0, to 1")
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}: choose more than 0, to 1")


def start_at_strength_a1111(sigmas: list[float], strength: float) -> list[float]:
    """A1111's image-to-image: one step more than diffusers, and never from the very top."""
    steps = len(sigmas) - 1
    return sigmas[steps - int(min(strength, 0.999) * steps) - 1 :]


def start_at_strength_comfy(make: Callable[[int], list[float]], steps: int, strength: float) -> list[float]:
    """ComfyUI's image-to-image ("denoise"): always `steps` steps, the last of a longer schedule. make: count of steps
    -> sigmas with their end. Raises ValueError for a strength outside 0 to 1."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}: choose more than 0, to 1")
    return make(int(steps / strength))[-(steps + 1) :]


def split(sigmas: list[float], step: int) -> tuple[list[float], list[float]]:
    """Two lists that share the level where one model hands over to another, after `step` steps. Raises ValueError if
    there are not as many steps."""
    if not 0 <= step < len(sigmas):
        raise ValueError(f"cannot hand over after {step} steps of {len(sigmas) - 1}")
    return sigmas[: step + 1], sigmas[step:]


def split_at_time(sigmas: list[float], times: Mapping[float, float], cut: float) -> tuple[list[float], list[float]]:
    """SDXL's base and refiner as diffusers divide them: the base has the steps that begin at `cut` or later.

    times: sigma -> its time. cut: a trained time, 200 for denoising_end = 0.8. On Karras' schedule 40 steps become 25
    and 15, not 32 and 8.
    """
    base_steps = [sigma for sigma in sigmas[:-1] if times[sigma] >= cut]
    return split(sigmas, len(base_steps))


def discard_next_to_last(sigmas: list[float]) -> list[float]:
    """Leave out the level before the end: what A1111 and ComfyUI do for dpm_2 and uni_pc, from one step more."""
    return [*sigmas[:-2], sigmas[-1]]
