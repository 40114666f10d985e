"""Which pipeline of diffusers runs a model, and the model_index.json that says so."""

from ldm.config import ModelConfig

from .diffusers_configs import VERSION

UPSCALE = "StableDiffusionUpscalePipeline"
PIPELINES = {  # steps and guidance where a pipeline's own defaults are not those of its family
    UPSCALE: (75, 9.0),
    "StableDiffusionXLInpaintPipeline": (50, 7.5),
    "StableUnCLIPPipeline": (20, 10.0),
    "StableUnCLIPImg2ImgPipeline": (20, 10.0),
}


def write_index(facts: ModelConfig, vae: str, scheduler: str) -> dict:
    """vae, scheduler: their classes."""
    defaults = dict(steps=facts.steps, guidance=facts.guidance, sampler=facts.sampler, schedule=facts.schedule)
    values: dict[str, object] = {
        "_class_name": pipeline_of(facts),
        **VERSION,
        "_defaults": defaults,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", scheduler],
        "vae": ["diffusers", vae],
    }
    if facts.family.name == "sdxl_refiner":
        values |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    for tower, cfg in zip(facts.family.towers, facts.texts):
        values[tower] = ["transformers", "CLIPTextModelWithProjection" if cfg.projection else "CLIPTextModel"]
        values[tower.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if values["_class_name"] == UPSCALE:
        return values | dict(low_res_scheduler=["diffusers", "DDPMScheduler"])
    if facts.family.has_sizes:
        return values | dict(force_zeros_for_empty_prompt=facts.zero_empty_prompt)
    return values | dict(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)


def pipeline_of(facts: ModelConfig) -> str:
    """The class of diffusers that runs such a model."""
    unet = facts.unet
    if facts.family.name == "sdxl_refiner":
        return "StableDiffusionXLImg2ImgPipeline"
    if facts.family.has_sizes:
        return "StableDiffusionXLInpaintPipeline" if unet.in_channels == 9 else "StableDiffusionXLPipeline"
    if unet.in_channels == 9:
        return "StableDiffusionInpaintPipeline"
    if unet.in_channels == 5:
        return "StableDiffusionDepth2ImgPipeline"
    if unet.class_count:
        return UPSCALE
    if unet.class_dim:
        return "StableUnCLIPImg2ImgPipeline"
    return "LatentConsistencyModelPipeline" if unet.guidance_dim else "StableDiffusionPipeline"
