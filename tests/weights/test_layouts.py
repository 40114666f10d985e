"""Single files of every family: the published names to the byte, recognition, equal networks, and the way back."""

import re
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import weights
from ldm import ops
from ldm.config import MODELS
from support.networks import token_ids
from support.numbers import randn, relative_error, relative_l2
from support.single_files import (
    COUNTERS,
    LAYOUTS,
    LOW_BUFFERS,
    POSITION_IDS,
    SDXL_POSITION_IDS,
    SDXL_TEXT_2,
    TINY,
    Written,
    ema_of,
    file_size,
    on_disk,
    published,
)
from weights.checkpoint import build, match_tensors
from weights.disk.safetensors import Held
from weights.layouts.names import SINGLE_FILES
from weights.layouts.single_file import describe_stored

SIGMAS = {"denoiser.sigmas": (1000,)}
PLAYGROUND = MODELS["playground_v25"].latent


def untransposed(keys):
    """As Playground v2's first upload: transformers' projection among open_clip's names, and no temperature."""
    keys.pop(SDXL_TEXT_2 + "logit_scale")
    return keys | {SDXL_TEXT_2 + "text_projection.weight": keys.pop(SDXL_TEXT_2 + "text_projection")}


def sdxl(dtype: str, sigmas: bool = False, **extra):
    return published("sdxl", dtype, **extra) | ({"denoiser.sigmas": (dtype, (1000,))} if sigmas else {})


PT = {"format": "pt"}
FILES = {  # published file -> model, keys, tensors, bytes, metadata, sorted by name, padded header
    "v1-5-pruned-emaonly": ("sd15", lambda: published("sd15", **POSITION_IDS, **COUNTERS), 1145, 4265146304, PT, 1, 0),
    "v1-5-pruned": (
        "sd15",
        lambda: published("sd15", **POSITION_IDS, **COUNTERS) | ema_of(published("sd15")),
        1831,
        7703324291,
        PT,
        1,
        0,
    ),
    "v2-1_768-ema-pruned": ("sd2_base", lambda: published("sd2_base", **COUNTERS), 1242, 5214604494, PT, 0, 0),
    "v2-1_768-nonema-pruned": ("sd2_base", lambda: published("sd2_base"), 1240, 5214604312, PT, 0, 0),
    "512-inpainting-ema": ("sd2_inpaint", lambda: published("sd2_inpaint", **COUNTERS), 1242, 5214662094, PT, 0, 0),
    "x4-upscaler-ema": ("sd_x4", lambda: published("sd_x4", **COUNTERS, **LOW_BUFFERS), 1207, 3531269371, PT, 0, 0),
    "sd_xl_turbo_1.0_fp16": ("sdxl", lambda: sdxl("F16", sigmas=True), 2515, 6938042488, None, 0, 1),
    "sd_xl_turbo_1.0": ("sdxl", lambda: sdxl("F32", sigmas=True), 2515, 13875721944, None, 0, 1),
    "playgroundv2": ("sdxl", lambda: untransposed(sdxl("F32")), 2513, 13875717756, None, 0, 1),
    "playground-v2.5-1024px-aesthetic.fp16": (
        "playground_v25",
        lambda: published("playground_v25", "F16", edm_mean=("F16", (1, 4, 1, 1)), edm_std=("F16", (1, 4, 1, 1))),
        2516,
        6938040576,
        None,
        0,
        1,
    ),
    "sdxl_lightning_4step": (
        "sdxl",
        lambda: sdxl("F16", **{SDXL_POSITION_IDS: ("F16", (1, 77))}),
        2515,
        6938040682,
        None,
        0,
        1,
    ),
    "an SDXL merge": (
        "sdxl",
        lambda: sdxl("F16", **{SDXL_POSITION_IDS: ("I64", (1, 77))}),
        2515,
        6938041144,
        None,
        0,
        1,
    ),
    "sd_turbo": (
        "sd_turbo",
        lambda: published("sd_turbo", **{"denoiser.sigmas": ("F32", (1000,))}),
        1229,
        5214561328,
        None,
        0,
        1,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_names_and_shapes_of_published_files_to_the_byte(name):
    """The length of a header depends on every key, dtype, shape and offset."""
    _, keys, count, size, metadata, by_name, padded = FILES[name]
    assert len(keys()) == count
    assert file_size(keys(), metadata, by_name, padded) == size


def value(held: Held) -> torch.Tensor:
    """Of the tensors that recognition looks into."""
    known = {"edm_mean": PLAYGROUND.mean, "edm_std": PLAYGROUND.std}
    return torch.tensor(known[held.key]).half().float() if held.key in known else torch.zeros(320)


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_recognized_and_complete(name):
    model, keys, *_ = FILES[name]
    found = describe_stored(on_disk(keys()), {}, "published", value)
    assert found.facts == MODELS[model]
    assert found.layout == LAYOUTS[model][0]
    for part in found.parts.values():
        network = build(part)
        assert len(match_tensors(network, part)) == len(network.state_dict())
    assert bool(found.warnings) == (model == "sd2_base")


@pytest.mark.parametrize("model", LAYOUTS)
def test_every_family_at_full_size(model):
    """The published names and shapes of all families lead to their facts; those of SD 2 are told by a value."""
    tells = 0.12 if model == "sd2_v" else 0.05
    keys = published(
        model,
        **({"edm_mean": ("F32", (1, 4, 1, 1)), "edm_std": ("F32", (1, 4, 1, 1))} if model == "playground_v25" else {}),
    )
    found = describe_stored(
        on_disk(keys),
        {},
        "published",
        lambda held: value(held) if "edm" in held.key else tells * torch.tensor([1.0, -1.0]),
    )
    assert found.facts == MODELS[model]
    for part in found.parts.values():
        match_tensors(build(part), part)


# tiny files with values


@pytest.fixture(scope="module", params=TINY)
def written(request, tmp_path_factory):
    """A tiny file of each model in turn; all tests of one model run before the next is made."""
    folder = tmp_path_factory.mktemp(request.param)
    marks = (
        {
            "edm_mean": torch.tensor(PLAYGROUND.mean)[None, :, None, None],
            "edm_std": torch.tensor(PLAYGROUND.std)[None, :, None, None],
        }
        if request.param == "playground_v25"
        else {}
    )
    yield Written(request.param, folder / "model.safetensors", **marks)
    shutil.rmtree(folder)


def load(path, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weights.load(path, **settings)


@torch.no_grad()
def outputs(model, written: Written, dtype) -> list[tuple]:
    """(ours, the reference's) of every network, for the same inputs."""
    for network in (written.unet, written.vae, *written.towers.values()):
        network.to(dtype)
    cfg = model.facts.unet
    x, context = randn(2, cfg.in_channels, 8, 8, seed=1).to(dtype), randn(2, 7, cfg.context_dim, seed=2).to(dtype)
    t, ours, theirs = torch.tensor([981.0, 17.25]), {}, {}
    if cfg.vector_dim:
        pooled, sizes = randn(2, 48, seed=3).to(dtype), randn(2, (cfg.vector_dim - 48) // 8, seed=4).abs() * 500
        ours["vector"] = torch.cat([pooled, ops.sinusoid(sizes.flatten(), 8).view(2, -1).to(dtype)], dim=1)
        theirs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    if cfg.class_dim:
        ours["vector"] = theirs["class_labels"] = randn(2, cfg.class_dim, seed=3).to(dtype)
    if cfg.class_count:
        ours["vector"] = theirs["class_labels"] = torch.tensor([20, 700])
    pairs = [(model.unet(x, t, context, **ours), written.unet(x, t, context, **theirs).sample)]
    for ours, (part, tower) in zip(model.texts.values(), written.towers.items()):
        pairs += text_pairs(ours, tower, SINGLE_FILES[LAYOUTS[written.model]][part].tower)
    image, z = randn(1, 3, 32, 48, seed=5).to(dtype), randn(1, 4, 4, 6, seed=6).to(dtype)
    return pairs + [
        (model.vae.encode(image).mean, written.vae.encode(image).latent_dist.mean),
        (model.vae.decode(z), written.vae.decode(z).sample),
    ]


def text_pairs(ours, tower, name: str) -> list[tuple]:
    ids = token_ids(name)
    found = ours(ids)
    if name == "l":
        expected = tower(ids, output_hidden_states=True)
        return [(found.last, expected.last_hidden_state), (found.hidden[-2], expected.hidden_states[-2])]
    h, hidden = tower.token_embedding(ids) + tower.positional_embedding, []
    for block in tower.transformer.resblocks:
        h = block(h, attn_mask=tower.attn_mask)
        hidden.append(h)
    if name == "h":  # SD 2 reads the last block but one, after the final norm
        return [(found.last, tower.ln_final(hidden[-2]))]
    return [(found.hidden[-2], hidden[-2]), (found.pooled, tower.encode_text(ids))]


def test_networks_equal_those_whose_weights_the_file_holds(written):
    for ours, theirs in outputs(load(written.path), written, torch.float32):
        assert relative_l2(ours, theirs) <= 2e-6
    for ours, theirs in outputs(load(written.path, dtype=torch.float64), written, torch.float64):
        assert relative_error(ours, theirs) <= 1e-12


def test_facts_of_tiny_files(written):
    """All but the sizes are those of the published model; a v-model of SD 2 is told by its values."""
    model, found, expected = written.model, load(written.path).facts, MODELS[written.model]
    row = "sd2_unclip_h" if model == "sd2_unclip_l" and found.unet.class_dim != 1536 else model
    assert found == replace(MODELS[row], unet=found.unet, vae=found.vae, texts=found.texts)
    assert found.unet.in_channels == expected.unet.in_channels and found.unet.cross_only == expected.unet.cross_only


def test_round_trips(written, tmp_path):
    """File -> model -> file gives back every tensor; file -> folder -> file too. What the model does not use is lost:
    the last block of SD 2's tower and the temperature of CLIP."""
    model, first = written.model, load(written.path)
    weights.save(first, tmp_path / "again.safetensors", layout=LAYOUTS[model][0])
    weights.save(first, tmp_path / "folder")
    folder = load(tmp_path / "folder")
    assert folder.facts == first.facts
    weights.save(folder, tmp_path / "there_and_back.safetensors", layout=LAYOUTS[model][0])
    unused = re.compile(r".*(logit_scale|resblocks\.3\..*)" + ("|.*text_projection" if "sd2" in LAYOUTS[model] else ""))
    kept = {key: tensor for key, tensor in written.tensors.items() if not unused.fullmatch(key)}
    for name in ("again", "there_and_back"):
        tensors = load_file(tmp_path / f"{name}.safetensors")
        assert tensors.keys() == kept.keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in kept.items())
        assert load(tmp_path / f"{name}.safetensors").facts == first.facts
    shutil.rmtree(tmp_path)
