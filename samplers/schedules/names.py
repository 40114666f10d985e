"""Schedules by the names that other programs have for them, however they are spelled."""

from collections.abc import Collection

NAMES = {  # ours -> other programs' names, where `plain` does not reduce them to ours
    "normal": ("uniform",),  # A1111, k-diffusion's get_sigmas
    "ddim_uniform": ("ddim",),  # A1111
    "beta_times": ("beta sampling",),  # ComfyUI's node
    "ays_sd15": ("ays_sd1", "align your steps sd15", "align your steps sd1"),
    "ays_sdxl": ("align your steps sdxl", "align your steps xl"),
    "sgm": ("LegacyDDPMDiscretization",),  # Stability's sgm
    "gits": ("align your steps gits",),  # Forge
}
EITHER_AYS = ("ays", "alignyoursteps")  # a list for SD 1.5 and another for SDXL; A1111 takes the model's


def plain(name: str) -> str:
    """A name as `find` compares names: "SGM Uniform", "sgm_uniform" and "use_sgm_uniform_sigmas" are all sgmuniform."""
    name = name.strip().casefold()
    for prefix in ("get_sigmas_", "use_"):
        name = name.removeprefix(prefix)
    for suffix in ("_sigmas", "scheduler", "schedule"):
        name = name.removesuffix(suffix)
    return name.translate(str.maketrans("", "", " _-"))


def find(name: str, known: Collection[str], sdxl: bool | None = None) -> str:
    """The one of the `known` schedules that a name means, by any name that diffusers, A1111, ComfyUI or k-diffusion has
    for it; two names with a colon between them stay two.

    sdxl: whether "Align Your Steps" means the list for SDXL or that for SD 1.5. Raises ValueError for an unknown name,
    in one line that lists similar ones, and for "Align Your Steps" if sdxl is None.
    """
    first, colon, second = name.partition(":")
    names = {plain(key): key for key in known}
    names |= {plain(other): key for key, others in NAMES.items() if key in names.values() for other in others}
    if sdxl is not None:
        names |= dict.fromkeys(EITHER_AYS, "ays_sdxl" if sdxl else "ays_sd15")
    parts = [plain(part) for part in ((first, second) if colon else (first,))]
    if all(part in names for part in parts):
        return ":".join(names[part] for part in parts)
    shown = repr(name if len(name) <= 60 else name[:60] + "...")
    if parts[0] in EITHER_AYS:
        raise ValueError(f"schedule {shown} is a list for each model: choose ays_sd15 or ays_sdxl")
    raise ValueError(f"unknown schedule {shown}: choose one of {', '.join(known)}")
