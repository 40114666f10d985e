"""What trainers and other programs leave in the files of models: tensors that no network needs, and what each is.
Whatever else has no place in a network is an error.
"""

import re

from ldm.config import CLIPConfig

from .layouts.training import MARK

LAST_BLOCK = "the last block of the text tower: the model reads the one before it"
READ_BY_SD2 = 23  # of the 24 blocks of its tower
BLOCKS = {"open_clip": "transformer.resblocks", "diffusers": "text_model.encoder.layers"}
POSITIONS = "the numbers 0 to 76, which older versions of transformers stored"
TEMPERATURE = "the temperature of CLIP's training"
PROJECTION = "the projection of a pooled output that the model does not use"
REMNANT = "a remnant of training"
HARMLESS = (  # a tensor without a place in our networks -> what it is, which is why it can be left out
    (r"(.*\.)?(embeddings\.)?position_ids", POSITIONS),
    (r"(.*\.)?attn_mask", "the causal mask, which needs no storing"),
    (r"(transformer\.)?logit_(scale|bias)", TEMPERATURE),
    (r"(transformer\.)?text_projection(\.weight)?", PROJECTION),
    (r"(vision_model|visual|visual_projection)\..*", "the vision tower of CLIP"),
    (r"loss\..*|model_ema\..*|logvar", REMNANT),  # in the files of a VAE
)
SCHEDULE = "the noise schedule of its training"
EXTRAS = (  # keys outside the networks, and what they are
    (r"betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod", SCHEDULE),
    (r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar", SCHEDULE),
    (r"(denoiser\.|model_sampling\.)?(log_)?sigmas", SCHEDULE),
    (r"(cond_stage_model|conditioner\.embedders\.\d)\.(model\.)?logit_scale", TEMPERATURE),
    (r"(cond_stage_model|conditioner\.embedders\.\d)\.(model\.)?text_projection(\.weight)?", PROJECTION),
    (r"(cond_stage_model|conditioner\.embedders\.\d)\.(\w+\.)*embeddings\.position_ids", POSITIONS),
    (r"low_scale_model\..*", "the noise schedule for the small picture of the x4 upscaler"),
    (r"model_ema\..*", "averaged weights, or what counts them"),
    (r"edm_(mean|std)|edm_vpred\.sigma_(min|max)|v_pred|ztsnr", MARK),
    (r"depth_model\..*", "MiDaS, the network that estimates depth"),
    (r"embedder\..*", "the vision tower of CLIP"),
    (r"(embedding_manager|loss)\..*|global_step|scale_factor|epoch|iteration", REMNANT),
)


def inside_network(key: str, names: str, config: object) -> str | None:
    """What a tensor is that lies among those of a network, by its key there; None if nobody knows. names: whose."""
    if isinstance(config, CLIPConfig) and is_last_block(key, names, config):
        return LAST_BLOCK
    return first_match(HARMLESS, key)


def is_last_block(key: str, names: str, config: CLIPConfig) -> bool:
    """Whether a tensor is of the block after all that we have; in transformers' names only where SD 2's tower is
    whole."""
    if names != "open_clip" and config.layers != READ_BY_SD2:
        return False
    return key.startswith(f"{BLOCKS[names]}.{config.layers}.")


def outside_networks(key: str) -> str | None:
    """What a tensor of a single file is that lies outside all networks; None if nobody knows."""
    return first_match(EXTRAS, key)


def first_match(table: tuple[tuple[str, str], ...], key: str) -> str | None:
    for pattern, what in table:
        if re.fullmatch(pattern, key):
            return what
    return None
