"""Samplers: from noise to latents, given a denoiser.

    schedule, spacing, tables, beta, parts   noise levels: those trained, choices of a few, pieces of a choice
    denoiser   a network that predicts noise, velocity or the picture -> denoise(x, sigma) = x0
    noise      random streams and Brownian paths, one per picture
    ode, sde   one step at a time: euler, heun, dpm_2; with fresh noise: ddim, ancestral, dpmpp_sde, restart
    adams      remember slopes: plms, lms, ipndm
    multistep  remember estimates, in lambda: dpmpp_2m, dpmpp_3m, their SDEs, deis, RES, ER-SDE
    predictor_corrector   uni_pc, sa_solver
    singlestep look ahead: DPM-Solver's singlestep, fast and adaptive forms, SEEDS
    distilled, cfg_pp     LCM and TCD; CFG++
    coefficients          the numbers in their formulas
    stepper, invert       a sampler driven from outside; a sampler run backwards

A sampler is a generator function `sampler(denoise, x, sigmas)` that yields a Step after each of its steps; the
stochastic ones take `noise` as well. x is the noisy picture x0 + sigma * noise, in float32 or float64. This package
knows nothing of networks, prompts or files. SAMPLERS has every sampler by name; docs/samplers.md says which of them
are the same map.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

from . import adams, cfg_pp, distilled, multistep, ode, predictor_corrector, sde, singlestep
from .schedule import noise_table


class Sampler(NamedTuple):
    """A sampler, where it comes from, and the habits of its published implementation."""

    run: Callable  # with its defaults bound
    paper: str  # arXiv number, or the program that published it
    label: str = ""  # A1111's name
    names: tuple[str, ...] = ()  # of other programs, where `find` cannot tell
    noise: str = ""  # "": none is taken; "white", fresh in every step; "brownian", one path
    drops_last: bool = False  # leading and linspace choose one time step more and drop the smallest
    whole_times: bool = False  # the network is given whole time steps
    ends_at_zero: bool = True  # or at the smallest trained noise level
    unit_variance: bool = True  # always starts at sqrt(1 + sigma^2); False: at sigma where the first time is the last
    schedule: str = ""  # that it is made for, rather than the model's
    takes_table: bool = False  # takes the trained noise levels as `table`
    takes_pairs: bool = False  # denoise returns the estimates with and without guidance

    @property
    def stochastic(self) -> bool:
        """Takes a source of noise, though it may draw nothing from it."""
        return self.noise != ""


TABLE = noise_table()  # Stable Diffusion's
OLD = dict(unit_variance=False)  # k-diffusion and diffusers' Euler family
DPM = dict(drops_last=True, whole_times=True)  # diffusers' DPM-Solver family
VP = dict(whole_times=True, ends_at_zero=False)  # DDIM and PNDM
LOW = dict(drops_last=True, whole_times=True, ends_at_zero=False)
SOME = lambda sigma: float(TABLE.sigma(199.5) < sigma < TABLE.sigma(800.5))  # SA-Solver's usual tau: times 200 to 800

SAMPLERS = {
    "euler": Sampler(ode.euler, "2206.00364", "Euler", ("EulerDiscrete", "EDMEuler", "EulerEDM"), **OLD),
    "euler_ancestral": Sampler(
        sde.euler_ancestral, "2010.02502", "Euler a", ("EulerAncestralDiscrete",), noise="white", **OLD
    ),
    "heun": Sampler(ode.heun, "2206.00364", "Heun", ("HeunDiscrete", "HeunEDM"), **OLD),
    "edm_stochastic": Sampler(
        partial(ode.heun, s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003), "2206.00364", noise="white", **OLD
    ),
    "heunpp2": Sampler(ode.heunpp2, "sd-webui-samplers-scheduler", "HeunPP2", **OLD),
    "dpm_2": Sampler(ode.dpm_2, "2206.00927", "DPM2", ("KDPM2Discrete",), **OLD),
    "dpm_2_ancestral": Sampler(
        sde.dpm_2_ancestral, "2206.00927", "DPM2 a", ("KDPM2AncestralDiscrete",), noise="white", **OLD
    ),
    "lms": Sampler(adams.lms, "k-diffusion", "LMS", ("LMSDiscrete", "LinearMultistep"), **OLD),
    "ddim": Sampler(sde.ddim, "2010.02502", "DDIM", ("DDIMParallel",), noise="white", **VP),
    "ddpm": Sampler(partial(sde.ddim, eta=1.0), "2006.11239", names=("DDPMParallel",), noise="white", whole_times=True),
    "plms": Sampler(adams.plms, "2202.09778", "PLMS", ("PNDM",), **VP),
    "ipndm": Sampler(adams.ipndm, "2204.13902", "IPNDM", **OLD),
    "ipndm_v": Sampler(partial(adams.lms, euler_at_zero=True), "2204.13902", "IPNDM_V", **OLD),
    "gradient_estimation": Sampler(adams.gradient_estimation, "2306.04848", "Gradient Estimation", **OLD),
    "dpm_solver": Sampler(multistep.dpm_solver, "2206.00927", **LOW),
    "deis": Sampler(multistep.deis, "2204.13902", "DEIS", ("DEISMultistep",), **LOW),
    "dpmpp_2m": Sampler(
        multistep.dpmpp_2m, "2211.01095", "DPM++ 2M", ("DPMSolverMultistep", "EDMDPMSolverMultistep"), **DPM
    ),
    "dpmpp_3m": Sampler(multistep.dpmpp_3m, "2211.01095", **DPM),
    "dpmpp_2m_sde": Sampler(
        multistep.dpmpp_2m_sde, "2211.01095", "DPM++ 2M SDE", ("CosineDPMSolverMultistep",), noise="brownian", **DPM
    ),
    "dpmpp_2m_sde_heun": Sampler(
        partial(multistep.dpmpp_2m_sde, second="exact"), "2211.01095", "DPM++ 2M SDE Heun", noise="brownian", **DPM
    ),
    "dpmpp_3m_sde": Sampler(multistep.dpmpp_3m_sde, "k-diffusion", "DPM++ 3M SDE", noise="brownian", **DPM),
    "dpmpp_sde": Sampler(sde.dpmpp_sde, "2211.01095", "DPM++ SDE", ("DPMSolverSDE",), noise="brownian", **OLD),
    "dpmpp_2s_ancestral": Sampler(sde.dpmpp_2s_ancestral, "2211.01095", "DPM++ 2S a", noise="white", **OLD),
    "dpmpp_singlestep": Sampler(singlestep.singlestep, "2211.01095", names=("DPMSolverSinglestep",), **DPM),
    "dpm_fast": Sampler(singlestep.dpm_fast, "2206.00927", "DPM fast", ends_at_zero=False, **OLD),
    "dpm_adaptive": Sampler(
        singlestep.dpm_adaptive, "2206.00927", "DPM adaptive", ("dpm_ad",), ends_at_zero=False, **OLD
    ),
    "uni_pc": Sampler(predictor_corrector.uni_pc, "2302.04867", "UniPC", ("UniPCMultistep",), **DPM),
    "uni_pc_bh2": Sampler(partial(predictor_corrector.uni_pc, order=3, end=0.001), "2302.04867"),
    "sa_solver": Sampler(
        partial(predictor_corrector.sa_solver, tau=SOME), "2309.05019", names=("SASolver",), noise="white", **LOW
    ),
    "sa_solver_pece": Sampler(
        partial(predictor_corrector.sa_solver, predictor=3, corrector=4, tau=SOME, pece=True, second="exact"),
        "2309.05019",
        noise="white",
        **OLD,
    ),
    "res_multistep": Sampler(multistep.res_multistep, "2308.02157", "Res Multistep", **OLD),
    "res_multistep_ancestral": Sampler(multistep.res_multistep_ancestral, "2308.02157", noise="white", **OLD),
    "er_sde": Sampler(multistep.er_sde, "2309.06169", "ER SDE", noise="white", **OLD),
    "seeds_2": Sampler(singlestep.seeds_2, "2305.14267", "SEEDS_2", noise="white", **OLD),
    "seeds_3": Sampler(singlestep.seeds_3, "2305.14267", "SEEDS_3", noise="white", **OLD),
    "exp_heun_2_x0": Sampler(
        partial(singlestep.seeds_2, eta=0.0, r=1.0, second="exact"), "2305.14267", noise="white", **OLD
    ),
    "exp_heun_2_x0_sde": Sampler(
        partial(singlestep.seeds_2, r=1.0, second="exact"), "2305.14267", noise="white", **OLD
    ),
    "restart": Sampler(sde.restart, "2306.14878", "Restart", noise="white", **OLD),
    "lcm": Sampler(
        distilled.lcm, "2310.04378", "LCM", noise="white", whole_times=True, schedule="lcm", takes_table=True
    ),
    "tcd": Sampler(distilled.tcd, "2402.19159", "TCD", noise="white", schedule="lcm", takes_table=True, **VP),
    "euler_cfg_pp": Sampler(cfg_pp.euler_cfg_pp, "2406.08070", "DDIM CFG++", ("ddim_cfgpp",), takes_pairs=True, **OLD),
    "euler_ancestral_cfg_pp": Sampler(
        cfg_pp.euler_ancestral_cfg_pp, "2406.08070", names=("Euler a CFG++",), noise="white", takes_pairs=True, **OLD
    ),
    "dpmpp_2m_cfg_pp": Sampler(cfg_pp.dpmpp_2m_cfg_pp, "2406.08070", takes_pairs=True, **OLD),
}


def plain(name: str) -> str:
    """A name as `find` compares it: "DPM++ 2M SDE", "k_dpmpp_2m_sde" and "dpmpp_2m_sde_gpu" are all dpmpp2msde."""
    name = name.strip().casefold().replace("++", "pp")
    for prefix in ("k_", "sample_"):
        name = name.removeprefix(prefix)
    for suffix in ("_gpu", "scheduler", "sampler"):
        name = name.removesuffix(suffix)
    return name.translate(str.maketrans("", "", " _-"))


def find(name: str) -> str:
    """The name in SAMPLERS of a sampler by any name that diffusers, A1111, ComfyUI or k-diffusion has for it.

    Raises ValueError, in one line that lists what comes near.
    """
    known = {plain(other): key for key, s in SAMPLERS.items() for other in (s.label or key, *s.names, key)}
    if plain(name) in known:
        return known[plain(name)]
    for schedule in ("karras", "exponential"):  # A1111's older names say both
        if plain(name).removesuffix(schedule) in known:
            both = f"sampler {known[plain(name).removesuffix(schedule)]!r} and schedule {schedule!r}"
            raise ValueError(f"{name!r} is a sampler with a schedule: choose {both}")
    near = dict.fromkeys(known[match] for match in get_close_matches(plain(name), known, n=8, cutoff=0.5))
    raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(near or SAMPLERS)}")
