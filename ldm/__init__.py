"""Latent diffusion, the Stable Diffusion family, from scratch.

Where things live:
    config        one constant per published network and per published model
    ops           the few numerical operations, their backends, the attention seam
    unet vae clip the networks; parameter names are those of the published diffusers files
    tokenizer     CLIP byte-pair encoding
    conditioning  prompts -> Conditioning(context, vector)
    guidance      functions from networks to networks: classifier-free guidance
    model         Model: networks, tokenizer and facts in one frozen bundle
    tasks         text_to_image
"""
