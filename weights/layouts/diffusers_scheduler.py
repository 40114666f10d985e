"""scheduler_config.json <-> how a model was trained, and how its publishers sample from it. Names and defaults are
those of diffusers 0.42.
"""

from typing import NamedTuple

from ldm.config import ModelConfig, NoiseConfig

from ..disk.settings import Settings, among, whole
from .diffusers_configs import VERSION

LINEAR = (0.0001, 0.02, "linear")


class Scheduler(NamedTuple):
    """A class of diffusers: our sampler for it; the spacing of the times and the betas that it takes for granted; and
    the settings that make it that sampler, which are written with it."""

    sampler: str
    spacing: str
    betas: tuple[float, float, str] = LINEAR
    written: dict = {}


EULER = Scheduler("euler", "linspace")
SCHEDULERS = {
    "EulerDiscreteScheduler": EULER,
    "EulerAncestralDiscreteScheduler": Scheduler("euler_ancestral", "linspace"),
    "HeunDiscreteScheduler": Scheduler("heun", "linspace", (0.00085, 0.012, "linear")),
    "DDIMScheduler": Scheduler("ddim", "leading", written=dict(clip_sample=False, set_alpha_to_one=False)),
    "PNDMScheduler": Scheduler("plms", "leading", written=dict(skip_prk_steps=True, set_alpha_to_one=False)),
    "DPMSolverMultistepScheduler": Scheduler(
        "dpmpp_2m",
        "linspace",
        written=dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"),
    ),
    "LCMScheduler": Scheduler("lcm", "leading", (0.00085, 0.012, "scaled_linear")),
    "DDPMScheduler": Scheduler("euler", "leading"),
    "EDMDPMSolverMultistepScheduler": Scheduler(
        "dpmpp_2m", "karras", written=dict(rho=7.0, solver_order=2, solver_type="midpoint", final_sigmas_type="zero")
    ),
    "EDMEulerScheduler": Scheduler("euler", "karras"),
}
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACING = among(SPACINGS)
LAW = among(["linear", "scaled_linear", "squaredcos_cap_v2"])
PREDICTION = among(PREDICTIONS)
EDM_PREDICTION = among(["epsilon", "v_prediction"])
KARRAS = among(["karras"])
OFFSET = whole(0)
TIMES = whole(2, 10_000)  # a table is made of them; published models have 1000
NOISE_ONLY = {  # a scheduler's other settings say how to sample; these say how the network was trained
    "trained_betas": (None,),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
    "rho": (7,),
}


def read_scheduler(json: Settings, name: str, has_sizes: bool) -> dict:
    """The fields of ModelConfig that a scheduler's settings decide. name: its class; an unknown one still says how the
    network was trained, and is sampled by Euler's method. has_sizes: the model is of SDXL's kin."""
    json.only(NOISE_ONLY)
    scheduler = SCHEDULERS.get(name, EULER)
    prediction = PREDICTIONS[json.one("prediction_type", "epsilon", PREDICTION)]
    if name.startswith("EDM"):
        noise = read_continuous_noise(json)
        offset = 1
        schedule = "karras"
    else:
        noise = read_discrete_noise(json, scheduler.betas)
        offset = json.one("steps_offset", 0, OFFSET) if has_sizes else 1  # SD's pipelines insist on 1
        schedule = json.one("timestep_spacing", scheduler.spacing, SPACING)
        if json.flag("use_karras_sigmas"):
            schedule = "karras"
    return dict(prediction=prediction, noise=noise, sampler=scheduler.sampler, schedule=schedule, offset=offset)


def read_discrete_noise(json: Settings, usual: tuple[float, float, str]) -> NoiseConfig:
    start, end, law = usual
    noise = NoiseConfig(
        beta_start=json.number("beta_start", start),
        beta_end=json.number("beta_end", end),
        beta_law=json.one("beta_schedule", law, LAW),
        trained=json.one("num_train_timesteps", 1000, TIMES),
        zero_snr=json.flag("rescale_betas_zero_snr"),
    )
    if not 0 < noise.beta_start <= noise.beta_end < 1:
        json.refuse("beta_start", "0 < beta_start <= beta_end < 1 is expected")
    return noise


def read_continuous_noise(json: Settings) -> NoiseConfig:
    json.one("sigma_schedule", "karras", KARRAS)
    json.one("prediction_type", "epsilon", EDM_PREDICTION)
    noise = NoiseConfig(
        edm=True,
        sigma_min=json.number("sigma_min", 0.002),
        sigma_max=json.number("sigma_max", 80.0),
        sigma_data=json.number("sigma_data", 0.5),
    )
    if not (0 < noise.sigma_min < noise.sigma_max and noise.sigma_data > 0):
        json.refuse("sigma_min", "0 < sigma_min < sigma_max and 0 < sigma_data are expected")
    return noise


def write_scheduler(facts: ModelConfig) -> dict:
    """The class of diffusers whose sampler is the model's own, or Euler's, with the model's noise."""
    noise = facts.noise
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    name = "EDMDPMSolverMultistepScheduler" if noise.edm else class_of_sampler(facts.sampler)
    values: dict[str, object] = {"_class_name": name, **VERSION, "prediction_type": predictions[facts.prediction]}
    if noise.edm:
        values |= {"sigma_min": noise.sigma_min, "sigma_max": noise.sigma_max, "sigma_data": noise.sigma_data}
    else:
        values |= write_discrete_noise(noise)
        values["timestep_spacing"] = facts.schedule if facts.schedule in SPACINGS else "leading"
        values["steps_offset"] = facts.offset
        if facts.schedule == "karras":
            values["use_karras_sigmas"] = True
        if noise.zero_snr:
            values["rescale_betas_zero_snr"] = True
    return values | SCHEDULERS[name].written


def class_of_sampler(sampler: str) -> str:
    for name, scheduler in SCHEDULERS.items():
        if scheduler.sampler == sampler:
            return name
    return "EulerDiscreteScheduler"


def write_discrete_noise(noise: NoiseConfig) -> dict:
    return dict(
        num_train_timesteps=noise.trained,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.beta_law,
    )


def write_low_res_scheduler(noise: NoiseConfig) -> dict:
    """Noise for the picture that the x4 upscaler is given."""
    values = dict(_class_name="DDPMScheduler", clip_sample=True, variance_type="fixed_small", prediction_type="epsilon")
    return values | VERSION | write_discrete_noise(noise)
