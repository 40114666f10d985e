"""What adapter files call the modules of a model.

kohya's underscores cannot be turned back into dots, so names are looked up in a table made from the model's own paths:

    unet.down_blocks.0.attentions.0.proj_in, down_blocks.0...   diffusers, peft
    unet.input_blocks.1.1.proj_in                               OneTrainer; ComfyUI after `usual_name`
    lora_unet_down_blocks_0_attentions_0_proj_in                kohya, also with sgm's names
    lycoris_down_blocks_0_attentions_0_proj_in                  LyCORIS around any network, SimpleTuner
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ldm.adapters.lora import networks
from ldm.model import Model

from ..layouts.names import Table, rename, unet_table

FIRST_NAMES = {"to_out.0": "to_out", "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
HEADS = {  # how other programs begin the names of a network's modules -> how diffusers does
    "model.diffusion_model.": "unet.",  # as in single files of models
    "diffusion_model.": "unet.",  # ComfyUI
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_h.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
    "cond_stage_model.transformer.": "text_encoder.",  # again single files
    "conditioner.embedders.0.transformer.": "text_encoder.",
    "clip_l.": "text_encoder.",  # OneTrainer, also of SD 2's tower
    "clip_g.": "text_encoder_2.",
    "oft_unet_": "lora_unet_",  # kohya's OFT
}
UNREAD = ("text_encoder.text_projection", "lora_te1_text_projection")  # of a first tower; ComfyUI's has one without use
OF_KOHYA = ("lora_", "lycoris_", "oft_unet_")  # how names begin that have underscores in place of dots
OTHERS = {  # how modules are called in adapters for networks of other kinds -> whose they are
    r"(lora_|lycoris_)?prior[_.]": "Stable Cascade",
    r"(.*[._])?(double_blocks|single_blocks|single_transformer_blocks)[._]\d": "a transformer such as Flux",
    r"(.*[._])?joint_blocks[._]\d": "SD 3",
    r"(lora_|lycoris_)?transformer[._]": "a transformer such as Flux or SD 3",
    r"(lora_te3_|text_encoder_3\.|text_encoders\.t5|t5)": "SD 3 or Flux",
    r"(.*[._])?motion_modules[._]": "AnimateDiff",
    r"lllite_": "ControlNet-LLLite",
    r"(lora_unet_|diffusion_model\.)(blocks|layers)[._]\d": "a transformer such as Wan or Lumina",
}
BUNDLED = "bundle_emb."  # bundle_emb.<word>.<what an embedding's own file calls its tensor>
EMBEDDED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\.\*|emb_params|(?:clip_[lgh]|text_encoders_\d)(?:_out)?)")
OF_ADAPTER = re.compile(  # peft puts an adapter's name inside its keys: lora_A.default.weight
    r"(\.(?:lora_[AB]|lora_magnitude_vector|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|b?oft_[rRs]|ia3_l))"
    r"\.(?!(?:weight|bias|scaled_oft)$)([^.]+)(\.weight|\.bias)?$"
)


def names_of(model: Model, part: str | None) -> dict[str, list[str]]:
    """What a file may call a module -> the modules, by path, that it can mean: one, except for names without a part."""
    table: dict[str, list[str]] = defaultdict(list)
    sgm = unet_table(model.unet.config)
    heads = kohya_heads(model)
    for name, network in networks(model).items():
        for path, module in network.named_modules():
            if part in (None, name) and isinstance(getattr(module, "weight", None), nn.Parameter):
                for spelling in spellings(name, path, sgm):
                    flat = spelling.replace(".", "_")
                    of_lycoris = (f"lycoris_{flat}", f"lycoris_{name}_{flat}")
                    for form in (f"{name}.{spelling}", spelling, heads[name] + flat, *of_lycoris):
                        table[form].append(f"{name}.{path}")
                    if name == "unet":
                        table[f"oft_unet_{flat}"].append(f"{name}.{path}")  # kohya's OFT
    return table


def kohya_heads(model: Model) -> dict[str, str]:
    """How kohya's names of a network begin; those of SD's tower do not fit SDXL's, whose shapes are the same."""
    return {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if len(model.texts) > 1 else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }


def spellings(name: str, path: str, sgm: Table) -> set[str]:
    """diffusers' path of a module and sgm's; for text towers also transformers' since 5.6; those of the first files."""
    names = {path, rename(path, sgm)} if name == "unet" else {path, path.removeprefix("text_model.")}
    return names | {
        spelling.removesuffix(new) + old
        for spelling in names
        for new, old in FIRST_NAMES.items()
        if spelling.endswith("." + new)
    }


def usual_name(module: str) -> str:
    """A module's name with diffusers' head in place of another program's; kohya's without the dots that some keep."""
    for theirs, ours in HEADS.items():
        if module.startswith(theirs):
            return ours + without_dots(module).removeprefix(theirs)
    return without_dots(module)


def usual_names(modules: Iterable[str], table: Mapping[str, list[str]]) -> dict[str, str]:
    """Module -> its usual name. diffusers' converter to kohya's layout calls the only tower the first of two: it is
    taken for that where the rest of the file is for this UNet. table: see names_of."""
    names = {module: usual_name(module) for module in modules}
    of_two = any(name.startswith("lora_te2_") for name in names.values())
    of_this_unet = any(name.startswith("lora_unet_") and name in table for name in names.values())
    if of_this_unet and not of_two:
        for module, name in names.items():
            only = name.replace("lora_te1_", "lora_te_", 1)
            if only in table:
                names[module] = only
    return names


def without_dots(module: str) -> str:
    """kohya's names: OneTrainer keeps all dots, diffusers' converter one before the magnitudes of DoRA. Those of a
    compiled network say so."""
    return module.replace(".", "_").replace("__orig_mod_", "_", 1) if module.startswith(OF_KOHYA) else module


def split_adapter(key: str) -> tuple[str, str]:
    """A key without the adapter's name that peft put inside, and that name or ""."""
    found = OF_ADAPTER.search(key)
    if found is None:
        return key, ""
    field, name, ending = found.groups()
    return key[: found.start()] + field + (ending or ""), name


def split_word(key: str) -> tuple[str, str]:
    """The word of a bundled tensor and the rest of its key; a word may hold dots."""
    found = EMBEDDED.fullmatch(key)
    if found:
        return found[1], found[2]
    word, _, rest = key.removeprefix(BUNDLED).partition(".")
    return word, rest


def words_in(keys: Iterable[str]) -> tuple[str, ...]:
    """The new words that lie beside an adapter in its file."""
    return tuple(dict.fromkeys(split_word(key)[0] for key in keys if key.startswith(BUNDLED)))


def whose(keys: Sequence[str]) -> str:
    """What an adapter is for whose keys have names of another kind of network; "" if none has. The first thousand of
    them tell it."""
    keys = [key.replace("base_model.model.", "", 1) for key in keys[:1000]]
    for pattern, title in OTHERS.items():
        if any(re.match(pattern, key) for key in keys):
            return title
    return ""
