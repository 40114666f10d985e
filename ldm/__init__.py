"""Latent diffusion, the Stable Diffusion family, from scratch.

Where things live, in reading order:
    tasks         text_to_image: five moves, each a function of one of the next four files; and every other task
    conditioning  prompts -> Conditioning(context, vector)
    plan          which noise levels a run visits, with which sampler
    guidance      functions from networks to networks: classifier-free guidance
    draw          the one loop: from noise to latents to pixels
    unet vae clip the networks; parameter names are those of the published diffusers files
    tokenizer     CLIP byte-pair encoding
    ops           the few numerical operations, their backends, the attention seam
    config        one constant per published network and per published model
    model         Model: networks, tokenizer and facts in one frozen bundle
Beside them:
    prompts       weights of words, long prompts, prompts that change while drawing
    images        pictures and masks as tasks take them
    blend         functions from denoisers to denoisers: what a run keeps of a picture
    adapters      LoRA and its relatives: merged into a model, or attached to it
    hooks         look into a network from outside: its layers, its attention
    compare       which block of two networks differs
    kernels       one Triton operation per file
    taesd         the tiny autoencoder
    pictures      PNGs that hold how they were made
    command       the command `ldm`
    stopping      how programs end when they are asked to
    terminal      what they write for people
"""
