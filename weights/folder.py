"""A model folder in diffusers' layout: its JSON files as data -> Checkpoint. No class is looked up by name and nothing
is executed. Names and defaults of the settings are those of diffusers 0.42.
"""

from collections.abc import Collection
from pathlib import Path

from ldm.config import FAMILIES, CLIPConfig, Family, ModelConfig, NoiseConfig, TinyVAEConfig, UNetConfig, VAEConfig

from .configs import TINY_LATENT, clip_config, latent_config, latent_size, tiny_vae_config, unet_config, vae_config
from .disk import names_in, read_json
from .errors import CheckpointError, shown
from .files import find_weights, read_stored
from .parts import TOKENS, Checkpoint, Part
from .settings import Settings, is_number, is_whole

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PIPELINES = {  # steps and guidance where a pipeline's own defaults are not those of its family
    "StableDiffusionUpscalePipeline": (75, 9.0),
    "StableDiffusionXLInpaintPipeline": (50, 7.5),
    "StableUnCLIPPipeline": (20, 10.0),
    "StableUnCLIPImg2ImgPipeline": (20, 10.0),
}
LINEAR = (0.0001, 0.02, "linear")
SCHEDULERS = {  # class -> our sampler; what the class takes for granted: spacing of the times, betas and their law
    "EulerDiscreteScheduler": ("euler", "linspace", LINEAR),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace", LINEAR),
    "HeunDiscreteScheduler": ("heun", "linspace", (0.00085, 0.012, "linear")),
    "DDIMScheduler": ("ddim", "leading", LINEAR),
    "PNDMScheduler": ("plms", "leading", LINEAR),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace", LINEAR),
    "LCMScheduler": ("lcm", "leading", (0.00085, 0.012, "scaled_linear")),
    "DDPMScheduler": ("euler", "leading", LINEAR),
    "EDMDPMSolverMultistepScheduler": ("dpmpp_2m", "karras", LINEAR),
    "EDMEulerScheduler": ("euler", "karras", LINEAR),
}
UNKNOWN_SCHEDULER = ("euler", "linspace", LINEAR)
SPACINGS = {name: name for name in ("leading", "linspace", "trailing")}
LAWS = {name: name for name in ("linear", "scaled_linear", "squaredcos_cap_v2")}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
NOISE_ONLY = {  # a scheduler's other settings say how to sample; these say how the network was trained
    "trained_betas": (None,),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
    "rho": (7,),
}
PADS = {"!": 0, "<|endoftext|>": 49407}


def read_folder(folder: Path, variant: str | None = None, without: Collection[str] = ()) -> Checkpoint:
    """All that the JSON files say, and what the weight files hold, but those of the parts `without`. CheckpointError
    names the file and the setting that this program cannot use."""
    if "model_index.json" not in names_in(folder):
        raise CheckpointError(f"{folder}: model_index.json is missing: this is no model folder in diffusers' layout")
    index = Settings(str(folder / "model_index.json"), read_json(folder / "model_index.json"))
    unet_json, vae_json = part(folder, index, "unet"), part(folder, index, "vae")
    tiny = class_of(index, "vae") == "AutoencoderTiny"
    unet, vae = unet_config(unet_json), tiny_vae_config(vae_json) if tiny else vae_config(vae_json)
    family = family_of(folder, index, unet)
    texts = tuple(
        clip_config(part(folder, index, tower), projected=class_of(index, tower) == "CLIPTextModelWithProjection")
        for tower in family.towers
    )
    pad_ids = tuple(pad_id(folder, index, tower.replace("text_encoder", "tokenizer")) for tower in family.towers)
    size = latent_size(unet_json) * vae.factor
    choices = sampling(
        part(folder, index, "scheduler", "scheduler_config.json"), class_of(index, "scheduler"), family.has_sizes
    )
    choices |= defaults(index, family, unet, size, choices)
    latent = TINY_LATENT if tiny else latent_config(vae_json, vae)
    careful = (family.has_sizes or unet.class_count > 0) and not tiny and vae_json.flag("force_upcast", True)
    facts = ModelConfig(
        family=family,
        unet=unet,
        vae=vae,
        texts=texts,
        latent=latent,
        pad_ids=pad_ids,
        size=size,
        careful_vae=careful,
        zero_empty_prompt=family.has_sizes and index.flag("force_zeros_for_empty_prompt", True),
        **choices,
    )
    check_parts_fit(index, facts, unet_json)
    configs = {"unet": unet, "vae": vae} | dict(zip(family.towers, texts))
    return Checkpoint(
        facts,
        {name: read_part(folder / name, config, variant) for name, config in configs.items() if name not in without},
    )


def read_part(folder: Path, config: UNetConfig | VAEConfig | TinyVAEConfig | CLIPConfig, variant: str | None) -> Part:
    """One network's own folder."""
    path = find_weights(folder, "model" if isinstance(config, CLIPConfig) else "diffusion_pytorch_model", variant)
    return Part(config, read_stored(path), path, described_by=str(folder / "config.json"))


def class_of(index: Settings, name: str) -> str | None:
    """The class that model_index.json names for a component; None where it has none."""
    entry = index.values.get(name)
    if entry is None or entry == [None, None]:
        return None
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        index.refuse(name, "a library and a class are expected")
    return entry[1]


def part(folder: Path, index: Settings, name: str, file: str = "config.json") -> Settings:
    """The settings of a component that the model cannot do without."""
    check_component(folder, index, name)
    return Settings(str(folder / name / file), read_json(folder / name / file))


def check_component(folder: Path, index: Settings, name: str) -> None:
    found = class_of(index, name)
    if found is None or not (folder / name).is_dir():
        what = shown(index.values.get("_class_name", "this pipeline"))
        where = "in model_index.json" if found is None else "as a folder"
        raise CheckpointError(f"{folder}: the component {name} of {what} is missing {where}: it cannot be done without")
    if name in CLASSES and found not in CLASSES[name]:
        index.refuse(name, f"only {' or '.join(CLASSES[name])} is implemented")


def family_of(folder: Path, index: Settings, unet: UNetConfig) -> Family:
    """Told by what the UNet adds to its time embedding, and by the text towers."""
    if unet.vector_dim:
        return FAMILIES["sdxl" if class_of(index, "text_encoder") else "sdxl_refiner"]
    if class_of(index, "text_encoder_2"):
        index.refuse("text_encoder_2", "the UNet of unet/config.json takes one text encoder, it is not SDXL's")
    activation = part(folder, index, "text_encoder").values.get("hidden_act", "quick_gelu")
    return FAMILIES["sd1" if activation == "quick_gelu" else "sd2"]  # CLIP-L's; no other tower has it


def pad_id(folder: Path, index: Settings, name: str) -> int:
    """The token that fills up prompts. Where the two files differ, as in SD 2, special_tokens_map.json is right."""
    check_component(folder, index, name)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if file in names_in(folder / name):
            json = Settings(str(folder / name / file), read_json(folder / name / file))
            token = json.values.get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token in list(PADS):
                return PADS[token]
            if token is not None:
                json.refuse("pad_token", f"only {' or '.join(map(shown, PADS))} is implemented")
    if "tokenizer_config.json" not in names_in(folder / name):
        raise CheckpointError(f"{folder / name}: special_tokens_map.json and tokenizer_config.json are missing")
    return PADS["<|endoftext|>"]  # the class's own


def sampling(json: Settings, name: str, has_sizes: bool) -> dict:
    """The fields of ModelConfig that a scheduler's settings decide. An unknown class still says how the network was
    trained; it is sampled by Euler's method."""
    json.only(NOISE_ONLY)
    sampler, spacing, (start, end, law) = SCHEDULERS.get(name, UNKNOWN_SCHEDULER)
    prediction = json.choice("prediction_type", PREDICTIONS, "epsilon")
    edm = name.startswith("EDM")
    offset = 1 if edm or not has_sizes else json.whole("steps_offset", 0, least=0)  # SD's pipelines insist on 1
    if edm:
        noise = NoiseConfig(
            edm=True,
            sigma_min=json.number("sigma_min", 0.002),
            sigma_max=json.number("sigma_max", 80.0),
            sigma_data=json.number("sigma_data", 0.5),
        )
        if not (0 < noise.sigma_min < noise.sigma_max and noise.sigma_data > 0):
            json.refuse("sigma_min", "0 < sigma_min < sigma_max and 0 < sigma_data are expected")
        if prediction == "x0":
            json.refuse("prediction_type", "an EDM model predicts 'epsilon' or 'v_prediction'")
        schedule = json.choice("sigma_schedule", {"karras": "karras"}, "karras")
    else:
        noise = NoiseConfig(
            json.number("beta_start", start),
            json.number("beta_end", end),
            json.choice("beta_schedule", LAWS, law),
            json.whole("num_train_timesteps", 1000, least=2),
            json.flag("rescale_betas_zero_snr"),
        )
        if not 0 < noise.beta_start <= noise.beta_end < 1:
            json.refuse("beta_start", "0 < beta_start <= beta_end < 1 is expected")
        schedule = "karras" if json.flag("use_karras_sigmas") else json.choice("timestep_spacing", SPACINGS, spacing)
    return dict(prediction=prediction, noise=noise, sampler=sampler, schedule=schedule, offset=offset)


def defaults(index: Settings, family: Family, unet: UNetConfig, size: int, choices: dict) -> dict:
    """Steps and guidance as the model's publishers recommend. Our own folders may say better in "_defaults", which
    diffusers passes over, as all names that begin with an underscore."""
    steps, guidance = PIPELINES.get(str(index.values.get("_class_name")), (50, 5.0 if family.has_sizes else 7.5))
    of_turbo = unet.context_dim in (1024, 2048) and size == 512
    if of_turbo and choices["schedule"] == "trailing" and choices["prediction"] == "eps":
        steps, guidance = 1, 0.0  # SD-Turbo and SDXL-Turbo
    elif choices["noise"].edm:
        guidance = 3.0  # Playground v2.5
    elif unet.guidance_dim:
        steps, guidance = 4, 8.5  # LCM
    own = index.values.get("_defaults", {})
    checks = {
        "steps": lambda n: is_whole(n, 1),
        "guidance": is_number,
        "sampler": lambda s: isinstance(s, str),
        "schedule": lambda s: isinstance(s, str),
    }
    if not isinstance(own, dict) or not all(key in checks and checks[key](value) for key, value in own.items()):
        index.refuse("_defaults", f"an object with some of {', '.join(checks)} is expected")
    return dict(steps=steps, guidance=guidance) | own


def check_parts_fit(index: Settings, facts: ModelConfig, unet_json: Settings) -> None:
    """The parts of one model take what the others give."""
    unet, texts = facts.unet, facts.texts
    text_width = sum(text.width for text in texts)
    numbers = facts.family.numbers
    vector = texts[-1].projection + numbers * unet_json.whole("addition_time_embed_dim", None) if numbers else 0
    pairs = [
        ("cross_attention_dim", unet.context_dim, "the width of the text", text_width),
        ("projection_class_embeddings_input_dim", unet.vector_dim, "the width of pooled text and sizes", vector),
        ("out_channels", unet.out_channels, "the VAE's latent_channels", facts.vae.latent_channels),
    ]
    for key, found, what, expected in pairs:
        if found != expected:
            raise CheckpointError(
                f"{unet_json.file}: {key} is {found} and {what} is {expected}: these are parts of different models"
            )
    if unet.in_channels < unet.out_channels:
        unet_json.refuse("in_channels", f"at least the {unet.out_channels} channels of the latents are expected")
    if len({text.length for text in texts}) > 1 or min(text.vocab for text in texts) < TOKENS:
        raise CheckpointError(
            f"{index.file}: the text encoders take {[text.length for text in texts]} tokens from "
            f"vocabularies of {[text.vocab for text in texts]}: equal numbers of tokens, from at "
            f"least the {TOKENS} of CLIP, are expected"
        )
