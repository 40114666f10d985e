"""The JSON and tokenizer files of a model folder in diffusers' layout, from a model's facts: the inverse of folder.py
and configs.py. Loaded by diffusers 0.42 and transformers 5, but for depth and unCLIP models, whose image parts are not
here; and, to equal facts, by this package.
"""

import json
from pathlib import Path

from ldm.config import CLIPConfig, LatentConfig, ModelConfig, NoiseConfig, TinyVAEConfig, UNetConfig, VAEConfig
from ldm.tokenizer import published_files

from .folder import LAWS, PADS, PREDICTIONS, SPACINGS

VERSION = "0.42.1"  # of diffusers, whose names these are
UPSCALE = "StableDiffusionUpscalePipeline"
SCHEDULERS = {  # our sampler -> the class of diffusers that holds the same facts, and what it needs to be that sampler
    "plms": ("PNDMScheduler", dict(skip_prk_steps=True, set_alpha_to_one=False)),
    "ddim": ("DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=False)),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"),
    ),
}


def unet_json(cfg: UNetConfig, sample_size: int, time_ids: int = 0) -> dict:
    """time_ids: width of each embedded size, 256 in SDXL."""
    attention = ["CrossAttn" if depth else "" for depth in cfg.depth]
    values = dict(
        _class_name="UNet2DConditionModel",
        _diffusers_version=VERSION,
        sample_size=sample_size,
        in_channels=cfg.in_channels,
        out_channels=cfg.out_channels,
        block_out_channels=cfg.channels,
        down_block_types=[f"{a}DownBlock2D" for a in attention],
        up_block_types=[f"{a}UpBlock2D" for a in reversed(attention)],
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=cfg.layers,
        norm_num_groups=cfg.groups,
        attention_head_dim=cfg.heads,
        transformer_layers_per_block=[*(max(d, 1) for d in cfg.depth[:-1]), cfg.mid_depth],
        cross_attention_dim=cfg.context_dim,
        use_linear_projection=cfg.linear_projection,
        act_fn="silu",
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    )
    if cfg.cross_only:
        values |= dict(only_cross_attention=cfg.cross_only)
    if cfg.vector_dim:
        values |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=time_ids,
            projection_class_embeddings_input_dim=cfg.vector_dim,
        )
    if cfg.class_dim:
        values |= dict(class_embed_type="projection", projection_class_embeddings_input_dim=cfg.class_dim)
    if cfg.class_count:
        values |= dict(num_class_embeds=cfg.class_count)
    if cfg.guidance_dim:
        values |= dict(time_cond_proj_dim=cfg.guidance_dim)
    return values


def vae_json(cfg: VAEConfig, latent: LatentConfig, sample_size: int, careful: bool) -> dict:
    levels = len(cfg.channels)
    values = dict(
        _class_name="AutoencoderKL",
        _diffusers_version=VERSION,
        sample_size=sample_size,
        in_channels=cfg.image_channels,
        out_channels=cfg.image_channels,
        latent_channels=cfg.latent_channels,
        block_out_channels=cfg.channels,
        layers_per_block=cfg.layers,
        norm_num_groups=cfg.groups,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        act_fn="silu",
        scaling_factor=latent.scale,
        force_upcast=careful,
    )
    return values | (dict(latents_mean=latent.mean, latents_std=latent.std) if latent.mean else {})


def tiny_vae_json(cfg: TinyVAEConfig) -> dict:
    widths = [cfg.channels] * len(cfg.blocks)
    return dict(
        _class_name="AutoencoderTiny",
        _diffusers_version=VERSION,
        in_channels=cfg.image_channels,
        out_channels=cfg.image_channels,
        latent_channels=cfg.latent_channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=cfg.blocks,
        num_decoder_blocks=cfg.blocks[::-1],
        act_fn="relu",
        upsample_fn="nearest",
        scaling_factor=1.0,
    )


def text_json(cfg: CLIPConfig) -> dict:
    return dict(
        architectures=["CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=cfg.vocab,
        hidden_size=cfg.width,
        intermediate_size=cfg.hidden,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.length,
        hidden_act="quick_gelu" if cfg.quick_gelu else "gelu",
        layer_norm_eps=1e-5,
        projection_dim=cfg.projection or cfg.width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        dtype="float32",
    )  # transformers would run it in the dtype of the file, beside a float32 UNet


def scheduler_json(facts: ModelConfig) -> dict:
    noise = facts.noise
    prediction = next(theirs for theirs, ours in PREDICTIONS.items() if ours == facts.prediction)
    if noise.edm:
        return dict(
            _class_name="EDMDPMSolverMultistepScheduler",
            _diffusers_version=VERSION,
            sigma_min=noise.sigma_min,
            sigma_max=noise.sigma_max,
            sigma_data=noise.sigma_data,
            rho=7.0,
            prediction_type=prediction,
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
        )
    name, settings = SCHEDULERS.get(facts.sampler, SCHEDULERS["euler"])
    spacing = facts.schedule if facts.schedule in SPACINGS else "leading"
    return dict(
        _class_name=name,
        _diffusers_version=VERSION,
        num_train_timesteps=noise.trained,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=next(law for law in LAWS if law == noise.beta_law),
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=facts.offset,
        **dict(use_karras_sigmas=True) if facts.schedule == "karras" else {},
        **dict(rescale_betas_zero_snr=True) if noise.zero_snr else {},
        **settings,
    )


def low_res_json(noise: NoiseConfig) -> dict:
    """Noise for the picture that the x4 upscaler is given."""
    return dict(
        _class_name="DDPMScheduler",
        _diffusers_version=VERSION,
        num_train_timesteps=noise.trained,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.beta_law,
        clip_sample=True,
        variance_type="fixed_small",
        prediction_type="epsilon",
    )


def pipeline_of(facts: ModelConfig) -> str:
    """The class of diffusers that runs such a model."""
    match facts.family.name, facts.unet:
        case "sdxl_refiner", _:
            return "StableDiffusionXLImg2ImgPipeline"
        case "sdxl", UNetConfig(in_channels=9):
            return "StableDiffusionXLInpaintPipeline"
        case "sdxl", _:
            return "StableDiffusionXLPipeline"
        case _, UNetConfig(in_channels=9):
            return "StableDiffusionInpaintPipeline"
        case _, UNetConfig(in_channels=5):
            return "StableDiffusionDepth2ImgPipeline"
        case _, unet if unet.class_count:
            return UPSCALE
        case _, unet if unet.class_dim:
            return "StableUnCLIPImg2ImgPipeline"
        case _, unet if unet.guidance_dim:
            return "LatentConsistencyModelPipeline"
    return "StableDiffusionPipeline"


def index_json(facts: ModelConfig, scheduler: str, tiny_vae: bool) -> dict:
    defaults = dict(steps=facts.steps, guidance=facts.guidance, sampler=facts.sampler, schedule=facts.schedule)
    values = dict(
        _class_name=pipeline_of(facts),
        _diffusers_version=VERSION,
        _defaults=defaults,
        unet=["diffusers", "UNet2DConditionModel"],
        scheduler=["diffusers", scheduler],
        vae=["diffusers", "AutoencoderTiny" if tiny_vae else "AutoencoderKL"],
    )
    if facts.family.name == "sdxl_refiner":
        values |= dict(text_encoder=[None, None], tokenizer=[None, None], requires_aesthetics_score=True)
    for tower, cfg in zip(facts.family.towers, facts.texts):
        values[tower] = ["transformers", "CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"]
        values[tower.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if values["_class_name"] == UPSCALE:
        return values | dict(low_res_scheduler=["diffusers", "DDPMScheduler"])
    if not facts.family.has_sizes:
        return values | dict(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    return values | dict(force_zeros_for_empty_prompt=facts.zero_empty_prompt)


def write_tokenizer(folder: Path, pad_id: int, length: int) -> None:
    start, end = "<|startoftext|>", "<|endoftext|>"
    specials = dict(
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=next(token for token, number in PADS.items() if number == pad_id),
    )
    for name, text in published_files().items():
        write_text(folder / name, text)
    write_json(folder / "special_tokens_map.json", specials)
    write_json(
        folder / "tokenizer_config.json",
        specials | dict(tokenizer_class="CLIPTokenizer", model_max_length=length, do_lower_case=True),
    )


def write_facts(folder: Path, facts: ModelConfig) -> None:
    """All files of a folder but the weights."""
    latent_size = facts.size // facts.vae.factor
    numbers = facts.family.numbers
    time_ids = (facts.unet.vector_dim - facts.texts[-1].projection) // numbers if numbers else 0
    scheduler = scheduler_json(facts)
    tiny_vae = isinstance(facts.vae, TinyVAEConfig)
    write_json(folder / "unet" / "config.json", unet_json(facts.unet, latent_size, time_ids))
    write_json(
        folder / "vae" / "config.json",
        tiny_vae_json(facts.vae) if tiny_vae else vae_json(facts.vae, facts.latent, facts.size, facts.careful_vae),
    )
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for tower, cfg, pad_id in zip(facts.family.towers, facts.texts, facts.pad_ids):
        write_json(folder / tower / "config.json", text_json(cfg))
        write_tokenizer(folder / tower.replace("text_encoder", "tokenizer"), pad_id, cfg.length)
    if facts.unet.class_count:
        write_json(folder / "low_res_scheduler" / "scheduler_config.json", low_res_json(facts.noise))
    write_json(folder / "model_index.json", index_json(facts, scheduler["_class_name"], tiny_vae))


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
