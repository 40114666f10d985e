"""Faithful repeats of other programs' faults, for parity and for pictures that somebody wants again.

    diffusers   moments with a wrong sign, strides that miss the next time, times cut off, a level that is there twice
    comfyui     a wrong distance to the previous estimate, guided estimates for unguided ones, lists too long
    orders      the third order of every published DPM-Solver and ER-SDE, which is the second

Nothing else in this project imports them. A function here goes wherever its right form goes:
tasks.text_to_image(model, prompt, sampler=published.dpmpp_3m) or dpm_solver(..., second=published.halved_third()).
"""

from .comfyui import ddim_uniform, dpmpp_2m_cfg_pp, laplace_clamped, res_multistep_ancestral
from .diffusers import (
    choose_range,
    ddim_strided,
    plms_strided,
    strided_legs,
    strided_targets,
    third_of_sde,
    third_of_singlestep_sde,
    trailing,
)
from .orders import dpmpp_3m, dpmpp_3m_sde, er_moments, halved_third

# fmt: off
__all__ = [
    "choose_range", "ddim_strided", "ddim_uniform", "dpmpp_2m_cfg_pp", "dpmpp_3m", "dpmpp_3m_sde", "er_moments",
    "halved_third", "laplace_clamped", "plms_strided", "res_multistep_ancestral",
    "strided_legs", "strided_targets", "third_of_sde",
    "third_of_singlestep_sde", "trailing",
]
# fmt: on
