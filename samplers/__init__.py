"""Samplers: from noise to latents, given a denoiser.

    basics     one page to read first: noise levels, denoiser, noise, euler and dpmpp_2m
    schedules  noise levels: those that networks were trained with, and choices of a few
    noise      random streams and Brownian paths, one per picture
    ode, sde   one step at a time: heun, dpm_2; with new noise: ddim, ancestral, dpmpp_sde, restart
    adams      remember slopes: plms, lms, ipndm
    multistep  remember estimates, in lambda: dpmpp_3m, their SDEs, deis, RES, ER-SDE
    predictor_corrector   uni_pc, sa_solver
    singlestep look ahead: DPM-Solver's singlestep, fast and adaptive forms, SEEDS
    distilled, cfg_pp     LCM and TCD; CFG++
    coefficients          the numbers in their formulas
    stepper, invert       a sampler driven from outside; a sampler run backwards
    published  faithful repeats of other programs' faults

A sampler is a generator function `sampler(denoise, x, sigmas, noise, **options)` that yields a Step after each of its
steps; those that draw nothing ignore `noise`. x is the noisy picture x0 + sigma * noise, in float32 or float64. This
package knows nothing of networks, prompts or files. SAMPLERS has every sampler by name; docs/samplers.md says which of
them are the same map.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from math import inf

from . import adams, cfg_pp, distilled, multistep, ode, predictor_corrector, sde, singlestep
from .basics import Streams
from .noise import brownian
from .schedules.levels import EXACT, Convention
from .step import Noise, Step

__all__ = ["INTERPOLATED", "SAMPLERS", "USUAL", "Sampler", "Scale", "Step", "find"]


@dataclass(frozen=True)
class Scale:
    """What a guidance scale means. divisor: a model's usual scale divided by it is the sampler's. off: a scale of this
    or less means no guidance."""

    divisor: float = 1.0
    off: float = 1.0


USUAL = Scale()
INTERPOLATED = Scale(divisor=12.5, off=-inf)  # CFG++: 0 to 1; the divisor is A1111's


@dataclass(frozen=True)
class Sampler:
    """A sampler, where it comes from, and the habits of its publisher."""

    run: Callable[..., Iterator[Step]]  # with its defaults bound
    paper: str = ""  # arXiv number, or the program that published it
    label: str = ""  # A1111's name
    names: tuple[str, ...] = ()  # other programs' names, where `plain` does not reduce them to this one
    convention: Convention = EXACT  # how a schedule becomes levels
    schedule: str = ""  # the one that it is made for; "": the model's
    path: Callable[[Streams, list[float]], Noise] | None = None  # makes its source of noise; None: the streams are it
    stochastic: bool = False  # it draws with its defaults, or with eta
    guidance: Scale = USUAL  # what its guidance scale means

    def noise(self, streams: Streams, sigmas: list[float]) -> Noise:
        """The source of noise for a run over these levels."""
        return self.path(streams, sigmas) if self.path else streams


EULER = Convention(unit_variance=False)  # k-diffusion and diffusers' Euler family
DPM = Convention(drops_last=True, whole_times=True)  # diffusers' DPM-Solver family
VP = Convention(whole_times=True, ends_at_zero=False)  # DDIM and PNDM
LOW = Convention(drops_last=True, whole_times=True, ends_at_zero=False)  # DPM-Solver's slopes, DEIS, SA-Solver
WHOLE = Convention(whole_times=True)  # DDPM and LCM
FAST = Convention(ends_at_zero=False, unit_variance=False)  # k-diffusion's DPM-Solver-fast and adaptive

SAMPLERS = {
    "euler": Sampler(ode.euler, "2206.00364", "Euler", ("EulerDiscrete", "EDMEuler", "EulerEDM"), convention=EULER),
    "euler_ancestral": Sampler(
        sde.euler_ancestral, "2010.02502", "Euler a", ("EulerAncestralDiscrete",), stochastic=True, convention=EULER
    ),
    "heun": Sampler(ode.heun, "2206.00364", "Heun", ("HeunDiscrete", "HeunEDM"), convention=EULER),
    "edm_stochastic": Sampler(
        partial(ode.heun, s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003),
        "2206.00364",
        stochastic=True,
        convention=EULER,
    ),
    "heunpp2": Sampler(ode.heunpp2, "sd-webui-samplers-scheduler", "HeunPP2", convention=EULER),
    "dpm_2": Sampler(ode.dpm_2, "2206.00927", "DPM2", ("KDPM2Discrete",), convention=EULER),
    "dpm_2_ancestral": Sampler(
        sde.dpm_2_ancestral, "2206.00927", "DPM2 a", ("KDPM2AncestralDiscrete",), stochastic=True, convention=EULER
    ),
    "lms": Sampler(adams.lms, "k-diffusion", "LMS", ("LMSDiscrete", "LinearMultistep"), convention=EULER),
    "ddim": Sampler(sde.ddim, "2010.02502", "DDIM", ("DDIMParallel",), stochastic=True, convention=VP),
    "ddpm": Sampler(
        partial(sde.ddim, eta=1.0), "2006.11239", names=("DDPMParallel",), stochastic=True, convention=WHOLE
    ),
    "plms": Sampler(adams.plms, "2202.09778", "PLMS", ("PNDM",), convention=VP),
    "ipndm": Sampler(adams.ipndm, "2204.13902", "IPNDM", convention=EULER),
    "ipndm_v": Sampler(partial(adams.lms, euler_at_zero=True), "2204.13902", "IPNDM_V", convention=EULER),
    "gradient_estimation": Sampler(adams.gradient_estimation, "2306.04848", "Gradient Estimation", convention=EULER),
    "dpm_solver": Sampler(multistep.dpm_solver, "2206.00927", convention=LOW),
    "deis": Sampler(multistep.deis, "2204.13902", "DEIS", ("DEISMultistep",), convention=LOW),
    "dpmpp_2m": Sampler(
        multistep.dpmpp_2m, "2211.01095", "DPM++ 2M", ("DPMSolverMultistep", "EDMDPMSolverMultistep"), convention=DPM
    ),
    "dpmpp_3m": Sampler(multistep.dpmpp_3m, "2211.01095", convention=DPM),
    "dpmpp_2m_sde": Sampler(
        multistep.dpmpp_2m_sde,
        "2211.01095",
        "DPM++ 2M SDE",
        ("CosineDPMSolverMultistep",),
        path=brownian,
        stochastic=True,
        convention=DPM,
    ),
    "dpmpp_2m_sde_heun": Sampler(
        partial(multistep.dpmpp_2m_sde, second="exact"),
        "2211.01095",
        "DPM++ 2M SDE Heun",
        path=brownian,
        stochastic=True,
        convention=DPM,
    ),
    "dpmpp_3m_sde": Sampler(
        multistep.dpmpp_3m_sde, "k-diffusion", "DPM++ 3M SDE", path=brownian, stochastic=True, convention=DPM
    ),
    "dpmpp_sde": Sampler(
        sde.dpmpp_sde, "2211.01095", "DPM++ SDE", ("DPMSolverSDE",), path=brownian, stochastic=True, convention=EULER
    ),
    "dpmpp_2s_ancestral": Sampler(
        sde.dpmpp_2s_ancestral, "2211.01095", "DPM++ 2S a", stochastic=True, convention=EULER
    ),
    "dpmpp_singlestep": Sampler(singlestep.singlestep, "2211.01095", names=("DPMSolverSinglestep",), convention=DPM),
    "dpm_fast": Sampler(singlestep.dpm_fast, "2206.00927", "DPM fast", convention=FAST),
    "dpm_adaptive": Sampler(singlestep.dpm_adaptive, "2206.00927", "DPM adaptive", ("dpm_ad",), convention=FAST),
    "uni_pc": Sampler(predictor_corrector.uni_pc, "2302.04867", "UniPC", ("UniPCMultistep",), convention=DPM),
    "uni_pc_bh2": Sampler(partial(predictor_corrector.uni_pc, order=3, end=0.001), "2302.04867"),
    "sa_solver": Sampler(
        partial(predictor_corrector.sa_solver, tau=predictor_corrector.authors_tau),
        "2309.05019",
        names=("SASolver",),
        stochastic=True,
        convention=LOW,
    ),
    "sa_solver_pece": Sampler(
        partial(
            predictor_corrector.sa_solver,
            predictor=3,
            corrector=4,
            tau=predictor_corrector.authors_tau,
            pece=True,
            second="exact",
        ),
        "2309.05019",
        stochastic=True,
        convention=EULER,
    ),
    "sa_solver_comfyui": Sampler(
        predictor_corrector.sa_solver_comfyui, "2309.05019", stochastic=True, convention=EULER
    ),
    "sa_solver_pece_comfyui": Sampler(
        partial(predictor_corrector.sa_solver_comfyui, pece=True), "2309.05019", stochastic=True, convention=EULER
    ),
    "res_multistep": Sampler(multistep.res_multistep, "2308.02157", "Res Multistep", convention=EULER),
    "res_multistep_ancestral": Sampler(
        multistep.res_multistep_ancestral, "2308.02157", stochastic=True, convention=EULER
    ),
    "er_sde": Sampler(multistep.er_sde, "2309.06169", "ER SDE", stochastic=True, convention=EULER),
    "seeds_2": Sampler(singlestep.seeds_2, "2305.14267", "SEEDS_2", stochastic=True, convention=EULER),
    "seeds_3": Sampler(singlestep.seeds_3, "2305.14267", "SEEDS_3", stochastic=True, convention=EULER),
    "exp_heun_2_x0": Sampler(
        partial(singlestep.seeds_2, eta=0.0, r=1.0, second="exact"), "2305.14267", stochastic=True, convention=EULER
    ),
    "exp_heun_2_x0_sde": Sampler(
        partial(singlestep.seeds_2, r=1.0, second="exact"), "2305.14267", stochastic=True, convention=EULER
    ),
    "restart": Sampler(sde.restart, "2306.14878", "Restart", stochastic=True, convention=EULER),
    "lcm": Sampler(distilled.lcm, "2310.04378", "LCM", stochastic=True, convention=WHOLE, schedule="lcm"),
    "tcd": Sampler(distilled.tcd, "2402.19159", "TCD", stochastic=True, schedule="lcm", convention=VP),
    "euler_cfg_pp": Sampler(
        cfg_pp.euler_cfg_pp, "2406.08070", "DDIM CFG++", ("ddim_cfgpp",), convention=EULER, guidance=INTERPOLATED
    ),
    "euler_ancestral_cfg_pp": Sampler(
        cfg_pp.euler_ancestral_cfg_pp,
        "2406.08070",
        names=("Euler a CFG++",),
        stochastic=True,
        guidance=INTERPOLATED,
        convention=EULER,
    ),
    "dpmpp_2m_cfg_pp": Sampler(cfg_pp.dpmpp_2m_cfg_pp, "2406.08070", convention=EULER, guidance=INTERPOLATED),
    "dpmpp_2s_ancestral_cfg_pp": Sampler(
        cfg_pp.dpmpp_2s_ancestral_cfg_pp,
        "2406.08070",
        names=("DPM++ 2S a CFG++",),
        stochastic=True,
        convention=EULER,
        guidance=INTERPOLATED,
    ),
    "res_multistep_cfg_pp": Sampler(cfg_pp.res_multistep_cfg_pp, "2406.08070", convention=EULER, guidance=INTERPOLATED),
    "res_multistep_ancestral_cfg_pp": Sampler(
        cfg_pp.res_multistep_ancestral_cfg_pp, "2406.08070", stochastic=True, convention=EULER, guidance=INTERPOLATED
    ),
    "gradient_estimation_cfg_pp": Sampler(
        cfg_pp.gradient_estimation_cfg_pp, "2406.08070", convention=EULER, guidance=INTERPOLATED
    ),
}


def plain(name: str) -> str:
    """A name as `find` compares names: "DPM++ 2M SDE", "k_dpmpp_2m_sde" and "dpmpp_2m_sde_gpu" are all dpmpp2msde."""
    name = name.strip().casefold().replace("++", "pp")
    for prefix in ("k_", "sample_"):
        name = name.removeprefix(prefix)
    for suffix in ("_gpu", "scheduler", "sampler"):
        name = name.removesuffix(suffix)
    return name.translate(str.maketrans("", "", " _-"))


def find(name: str) -> str:
    """The name in SAMPLERS of a sampler by any name that diffusers, A1111, ComfyUI or k-diffusion has for it.

    Raises ValueError for an unknown name, in one line that lists similar ones; TypeError for what is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"sampler {name!r}: a name is expected")
    known = {}
    for key, sampler in SAMPLERS.items():
        for other in (sampler.label or key, *sampler.names, key):
            known[plain(other)] = key
    if plain(name) in known:
        return known[plain(name)]
    for schedule in ("karras", "exponential"):  # A1111's older names say both
        alone = plain(name).removesuffix(schedule)
        if alone in known:
            both = f"sampler {known[alone]!r} and schedule {schedule!r}"
            raise ValueError(f"{name!r} is a sampler with a schedule: choose {both}")
    near = dict.fromkeys(known[match] for match in get_close_matches(plain(name), known, n=8, cutoff=0.5))
    raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(near or SAMPLERS)}")
