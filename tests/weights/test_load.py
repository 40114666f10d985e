"""weights.load on real folders, as diffusers saves them: equal networks, equal facts, little memory."""

import copy
import hashlib
import inspect
import re
import shutil
import subprocess
import sys
from collections import UserDict
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import weights
from ldm import config, ops
from scripts import write_manifests as published
from support import tiny
from support.networks import POOLED, TIME_ID, TINY_CLIPS, TINY_UNETS, TINY_VAES, token_ids
from support.numbers import randn, relative_error, relative_l2
from support.paths import ROOT
from support.tiny import TEXT_FILE, UNET_FILE, VAE_FILE
from weights import CheckpointError
from weights.disk.settings import Settings
from weights.layouts import diffusers as folder
from weights.layouts import diffusers_configs as configs
from weights.layouts import diffusers_scheduler as scheduler

PIPELINES = {"sd": tiny.tiny_sd, "sd2": tiny.tiny_sd2, "sdxl": tiny.tiny_sdxl, "refiner": tiny.tiny_refiner}

SD_TABLE = config.NoiseConfig()  # SD's betas
FACTS = {
    "sd": config.ModelConfig(
        family=config.FAMILIES["sd1"],
        unet=replace(TINY_UNETS["sd15"][0], context_dim=32),
        vae=TINY_VAES["sd"][0],
        texts=(TINY_CLIPS["l"][0],),
        latent=config.SD_LATENT,
        pad_ids=(49407,),
        prediction="eps",
        noise=SD_TABLE,
        sampler="plms",
        schedule="leading",
        offset=1,
        steps=50,
        guidance=7.5,
        size=64,
        zero_empty_prompt=False,
    ),
    "sd2": config.ModelConfig(
        family=config.FAMILIES["sd2"],
        unet=replace(TINY_UNETS["sd2"][0], context_dim=48),
        vae=TINY_VAES["sd"][0],
        texts=(TINY_CLIPS["h"][0],),
        latent=config.SD_LATENT,
        pad_ids=(0,),
        prediction="v",
        noise=SD_TABLE,
        sampler="ddim",
        schedule="leading",
        offset=1,
        steps=50,
        guidance=7.5,
        size=64,
        zero_empty_prompt=False,
    ),
    "sdxl": config.ModelConfig(
        family=config.FAMILIES["sdxl"],
        unet=replace(TINY_UNETS["sdxl"][0], context_dim=72),
        vae=TINY_VAES["sd"][0],
        texts=(TINY_CLIPS["l"][0], TINY_CLIPS["bigg"][0]),
        latent=config.SDXL_LATENT,
        pad_ids=(49407, 0),
        prediction="eps",
        noise=SD_TABLE,
        sampler="euler",
        schedule="leading",
        offset=1,
        steps=50,
        guidance=5.0,
        size=64,
        zero_empty_prompt=True,
        careful_vae=True,
    ),
    "refiner": config.ModelConfig(
        family=config.FAMILIES["sdxl_refiner"],
        unet=TINY_UNETS["sdxl_refiner"][0],
        vae=TINY_VAES["sd"][0],
        texts=(TINY_CLIPS["bigg"][0],),
        latent=config.SDXL_LATENT,
        pad_ids=(0,),
        prediction="eps",
        noise=SD_TABLE,
        sampler="euler",
        schedule="leading",
        offset=1,
        steps=50,
        guidance=5.0,
        size=64,
        zero_empty_prompt=False,
        careful_vae=True,
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> (folder, diffusers pipeline saved there), made once; copy the folder before a change."""
    made = {}

    def get(name: str):
        if name not in made:
            path = tmp_path_factory.mktemp(name) / "model"
            made[name] = path, PIPELINES[name](path)
        return made[name]

    return get


@pytest.fixture
def broken(saved, tmp_path):
    """A copy of a folder, to be changed; gone after the test."""
    yield lambda name="sd": shutil.copytree(saved(name)[0], tmp_path / name)
    shutil.rmtree(tmp_path)


# the networks and the facts


def towers(pipeline) -> list[nn.Module]:
    return [tower for tower in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)) if tower is not None]


@torch.no_grad()
def outputs(model, pipeline, dtype) -> list[tuple]:
    """(ours, the pipeline's) of every network, for the same inputs."""
    cfg = model.facts.unet
    x, context = randn(2, cfg.in_channels, 8, 8, seed=1).to(dtype), randn(2, 7, cfg.context_dim, seed=2).to(dtype)
    t, ours, theirs = torch.tensor([981.0, 17.25]), {}, {}
    if cfg.vector_dim:
        pooled = randn(2, POOLED, seed=3).to(dtype)
        sizes = randn(2, (cfg.vector_dim - POOLED) // TIME_ID, seed=4).abs() * 500
        ours["vector"] = torch.cat([pooled, ops.sinusoid(sizes.flatten(), TIME_ID).view(2, -1).to(dtype)], dim=1)
        theirs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    pairs = [(model.unet(x, t, context, **ours), pipeline.unet(x, t, context, **theirs).sample)]
    for tower, reference, pad in zip(model.texts.values(), towers(pipeline), model.facts.pad_ids):
        ids = token_ids("l" if pad else "bigg")
        found, expected = tower(ids), reference(ids, output_hidden_states=True)
        pairs += [
            (found.last, expected.last_hidden_state),
            (found.hidden[-2], expected.hidden_states[-2]),
            (found.pooled, expected[0] if hasattr(expected, "text_embeds") else expected.pooler_output),
        ]
    image, z = randn(1, 3, 32, 48, seed=5).to(dtype), randn(1, 4, 4, 6, seed=6).to(dtype)
    posterior = pipeline.vae.encode(image).latent_dist
    return pairs + [
        (model.vae.encode(image).mean, posterior.mean),
        (model.vae.encode(image).logvar, posterior.logvar),
        (model.vae.decode(z), pipeline.vae.decode(z).sample),
    ]


@pytest.mark.parametrize("name", PIPELINES)
def test_networks_equal_the_pipeline_that_was_saved(name, saved):
    path, pipeline = saved(name)
    for ours, theirs in outputs(weights.load(path), pipeline, torch.float32):
        assert relative_l2(ours, theirs) <= 2e-6
    double = copy.deepcopy(pipeline)
    for part in (double.unet, double.vae, *towers(double)):
        part.double()
    for ours, theirs in outputs(weights.load(path, dtype=torch.float64), double, torch.float64):
        assert relative_error(ours, theirs) <= 1e-12


@pytest.mark.parametrize("name", PIPELINES)
def test_facts(name, saved):
    model = weights.load(saved(name)[0])
    assert model.facts == FACTS[name]
    assert model.tokenizer.length == 77 and model.source == str(saved(name)[0])
    for network in (model.unet, model.vae, *model.texts.values()):
        assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", config.UNETS)
def test_published_unets(name):
    assert configs.read_unet(Settings("config.json", published.UNETS[name])) == config.UNETS[name]


def test_published_vaes_and_text_towers():
    for name, settings in published.VAES.items():
        assert configs.read_vae(Settings("config.json", settings)) == config.VAES[name]
    for name, (tower, settings) in published.CLIPS.items():
        act = {"hidden_act": "quick_gelu" if name == "l" else "gelu"}
        projected = tower is transformers.CLIPTextModelWithProjection
        assert configs.read_clip(Settings("config.json", settings | act), projected) == config.CLIPS[name]


class Watched(UserDict):
    """Settings that remember which of them were asked for."""

    def get(self, key, default=None):
        self.__dict__.setdefault("asked", set()).add(key)
        return super().get(key, default)


IGNORED = {  # settings that change no output of a network in inference
    "unet": {"dropout", "upcast_attention", "addition_embed_type_num_heads", "addition_time_embed_dim", "sample_size"},
    "vae": {"sample_size", "force_upcast", "scaling_factor", "latents_mean", "latents_std"},
    "clip": {
        "attention_dropout",
        "initializer_range",
        "initializer_factor",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "projection_dim",
    },
}


@pytest.mark.parametrize(
    "kind, cls, read, table",
    [
        ("unet", diffusers.UNet2DConditionModel, configs.read_unet, configs.UNET_ONLY),
        ("vae", diffusers.AutoencoderKL, configs.read_vae, configs.VAE_ONLY),
        ("clip", transformers.CLIPTextConfig, lambda s: configs.read_clip(s, False), configs.CLIP_ONLY),
    ],
)
def test_every_setting_is_read_or_refused(kind, cls, read, table):
    known = {
        name: p.default for name, p in inspect.signature(cls.__init__).parameters.items() if p.default is not p.empty
    }
    if kind == "clip":  # among them the settings of every transformers model
        known = {name: getattr(cls(), name) for name in cls.__annotations__ if name in cls().to_dict()}
        known.pop("model_type", None)
    values = Watched(addition_embed_type="text_time", projection_class_embeddings_input_dim=8)
    read(Settings("config.json", values))
    assert known.keys() - values.asked == IGNORED[kind]
    for key, allowed in table.items():
        if key != "_class_name":
            assert known[key] == allowed[0], key
        with pytest.raises(CheckpointError, match=rf"config.json: {key} is 'other': only .* is implemented"):
            read(Settings("config.json", {key: "other"}))


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"block_out_channels": "320"}, "block_out_channels"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": [320, 0, 640, 640]}, "block_out_channels"),
        ({"block_out_channels": [100, 640, 1280, 1280]}, "norm_num_groups"),
        ({"norm_num_groups": None}, "norm_num_groups"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim"),
        ({"attention_head_dim": 7}, "attention_head_dim"),
        ({"num_attention_heads": 7}, "num_attention_heads"),
        ({"layers_per_block": [2, 2, 2, 1]}, "layers_per_block"),
        ({"layers_per_block": 10**6}, "layers_per_block"),
        ({"in_channels": 4.0}, "in_channels"),
        ({"in_channels": True}, "in_channels"),
        ({"cross_attention_dim": None}, "cross_attention_dim"),
        ({"transformer_layers_per_block": [[1], [1], [1], [1]]}, "transformer_layers_per_block"),
        ({"down_block_types": ["DownBlock2D"]}, "down_block_types"),
        ({"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
        ({"use_linear_projection": 1}, "use_linear_projection"),
        ({"only_cross_attention": [True]}, "only_cross_attention"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type"),
        ({"num_class_embeds": 0}, "num_class_embeds"),
        ({"time_cond_proj_dim": "256"}, "time_cond_proj_dim"),
    ],
)
def test_unet_settings_refused(changes, word):
    with pytest.raises(CheckpointError, match=f"^config.json: {word} is .*: "):
        configs.read_unet(Settings("config.json", changes))


def test_num_attention_heads_comes_before_attention_head_dim():
    settings = Settings("config.json", {"attention_head_dim": 8, "num_attention_heads": [5, 10, 20, 20]})
    assert configs.read_unet(settings).heads == (5, 10, 20, 20)


# samplers and prompts


@pytest.mark.parametrize("name", scheduler.SCHEDULERS)
def test_scheduler_defaults_are_those_of_the_class(name):
    facts = scheduler.read_scheduler(Settings("scheduler_config.json", {}), name, has_sizes=True)
    theirs = {key: p.default for key, p in inspect.signature(getattr(diffusers, name)).parameters.items()}
    noise = facts["noise"]
    if noise.edm:
        found = dict(
            sigma_min=noise.sigma_min,
            sigma_max=noise.sigma_max,
            sigma_data=noise.sigma_data,
            sigma_schedule=facts["schedule"],
        )
    else:
        found = dict(
            beta_start=noise.beta_start,
            beta_end=noise.beta_end,
            beta_schedule=noise.beta_law,
            num_train_timesteps=noise.trained,
            timestep_spacing=facts["schedule"],
            steps_offset=facts["offset"],
        )
    assert found == {key: theirs[key] for key in found}


@pytest.mark.parametrize(
    "name, settings, expected",
    [
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, ("euler", "karras", "eps")),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, ("euler_ancestral", "trailing", "eps")),
        ("HeunDiscreteScheduler", {"prediction_type": "sample"}, ("heun", "linspace", "x0")),
        ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, ("dpmpp_2m", "linspace", "v")),
        ("EDMEulerScheduler", {"sigma_max": 40.0}, ("euler", "karras", "eps")),
        ("SomethingNewScheduler", {"timestep_spacing": "leading"}, ("euler", "leading", "eps")),
    ],
)
def test_scheduler_settings(name, settings, expected):
    facts = scheduler.read_scheduler(Settings("scheduler_config.json", settings), name, has_sizes=True)
    assert (facts["sampler"], facts["schedule"], facts["prediction"]) == expected
    assert not name.startswith("EDM") or facts["noise"] == config.NoiseConfig(edm=True, sigma_max=40.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"trained_betas": [0.1]},
        {"rescale_betas_zero_snr": 1},
        {"timestep_type": "continuous"},
        {"beta_start": 2.0},
        {"prediction_type": "flow_prediction"},
        {"beta_schedule": "sigmoid"},
        {"timestep_spacing": "random"},
        {"beta_start": float("nan")},
        {"num_train_timesteps": 0},
        {"use_karras_sigmas": "yes"},
    ],
)
def test_scheduler_settings_refused(settings):
    with pytest.raises(CheckpointError, match=f"^scheduler_config.json: {next(iter(settings))} is "):
        scheduler.read_scheduler(Settings("scheduler_config.json", settings), "EulerDiscreteScheduler", has_sizes=True)


def test_sd_pipelines_insist_on_offset_1(tmp_path):
    pipeline = tiny.tiny_sd(tmp_path, scheduler=diffusers.DDIMScheduler(steps_offset=0, clip_sample=False))
    tiny.edit_json(tmp_path / "scheduler/scheduler_config.json", lambda c: c | {"steps_offset": 0})
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert pipeline.scheduler.config.steps_offset == again.scheduler.config.steps_offset == 1
    assert weights.load(tmp_path).facts.offset == 1


def test_own_defaults_which_diffusers_passes_over(broken):
    path = broken()
    own = {"steps": 20, "guidance": 4.0, "sampler": "heun", "schedule": "karras"}
    tiny.edit_json(path / "model_index.json", lambda index: index | {"_defaults": own})
    facts = weights.load(path).facts
    assert (facts.steps, facts.guidance, facts.sampler, facts.schedule) == (20, 4.0, "heun", "karras")
    again = diffusers.StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    assert again("fox", num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    "special, pad_id", [("!", 0), ({"content": "!", "lstrip": False}, 0), ("<|endoftext|>", 49407), (None, 49407)]
)
def test_published_tokenizer_folders(special, pad_id, broken):
    """They say "<|endoftext|>" in tokenizer_config.json; SD 2's then says "!" in special_tokens_map.json."""
    path = broken()
    shutil.rmtree(path / "tokenizer")
    tiny.write_tokenizer(path / "tokenizer", special)
    assert weights.load(path).facts.pad_ids == (pad_id,)
    if special is not None:
        assert transformers.CLIPTokenizer.from_pretrained(path / "tokenizer").pad_token_id == pad_id


def without(values: dict, key: str) -> dict:
    return {k: v for k, v in values.items() if k != key}


def test_zero_empty_prompt_is_the_pipelines_default(broken):
    path = broken("sdxl")
    tiny.edit_json(path / "model_index.json", lambda index: without(index, "force_zeros_for_empty_prompt"))
    assert weights.load(path).facts.zero_empty_prompt
    assert diffusers.StableDiffusionXLPipeline.from_pretrained(path).config.force_zeros_for_empty_prompt


def test_playground_latents(broken):
    path = broken("sdxl")
    given = config.PLAYGROUND_V25_LATENT
    tiny.edit_json(
        path / "vae/config.json",
        lambda c: c | dict(scaling_factor=given.scale, latents_mean=given.mean, latents_std=given.std),
    )
    assert weights.load(path).facts.latent == given


# files


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    """Equal values of all tensors. transformers >= 5.6 drops the level "text_model." of CLIPTextModel in memory."""
    found, expected = ours.state_dict(), theirs.state_dict()
    if isinstance(theirs, transformers.CLIPTextModel):
        expected = {"text_model." + key: tensor for key, tensor in expected.items()}
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_fp16_variant(tmp_path):
    pipeline = tiny.tiny_sd(tmp_path, dtype=torch.float16, variant="fp16")
    for variant in ("fp16", None):  # the only one there is needs no name
        model = weights.load(tmp_path, dtype=None, variant=variant)
        assert all(
            same(*pair)
            for pair in [
                (model.unet, pipeline.unet),
                (model.vae, pipeline.vae),
                (model.texts["text_encoder"], pipeline.text_encoder),
            ]
        )
    for name in (UNET_FILE, VAE_FILE, TEXT_FILE):
        shutil.copy((tmp_path / name).with_suffix(".fp16.safetensors"), tmp_path / name)
        tiny.edit_tensors(tmp_path / name, lambda tensors: {key: tensor.float() for key, tensor in tensors.items()})
    assert weights.load(tmp_path, dtype=None).unet.conv_in.weight.dtype == torch.float32  # plain comes first
    assert weights.load(tmp_path, dtype=None, variant="fp16").unet.conv_in.weight.dtype == torch.float16


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(variant, tmp_path):
    pipeline = tiny.tiny_sd(tmp_path, max_shard_size="2MB", variant=variant)
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 5
    for _ in range(2):
        model = weights.load(tmp_path, variant=variant)
        assert same(model.unet, pipeline.unet) and same(model.texts["text_encoder"], pipeline.text_encoder)
        assert sum("unet/" in name for name in model.files) > 5
        for index in tmp_path.glob("*/*.index.fp16.json"):  # the other place for the variant's name
            index.rename(index.with_name(index.name.replace(".safetensors.index.fp16", ".fp16.safetensors.index")))


def test_published_and_older_files(broken, saved):
    """The published names of a text tower, of which transformers 5 now saves no "text_model."; the names that the VAE's
    attention had before, and two tensors that only older files have."""
    path, pipeline = broken(), saved("sd")[1]
    assert not any(key.startswith("text_model.") for key in load_file(path / TEXT_FILE))
    tiny.edit_tensors(path / TEXT_FILE, lambda tensors: {"text_model." + key: t for key, t in tensors.items()})
    assert same(weights.load(path).texts["text_encoder"], pipeline.text_encoder)
    tiny.edit_tensors(
        path / TEXT_FILE,
        lambda tensors: tensors.update(
            {
                "text_model.embeddings.position_ids": torch.arange(77)[None],
                "logit_scale": torch.tensor(4.6),
                "text_projection.weight": torch.ones(3, 3),
            }
        ),
    )
    assert same(weights.load(path).texts["text_encoder"], pipeline.text_encoder)

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tiny.edit_tensors(
        path / VAE_FILE,
        lambda tensors: {
            re.sub(r"to_q|to_k|to_v|to_out\.0", lambda match: old[match[0]], key): t for key, t in tensors.items()
        },
    )
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in load_file(path / VAE_FILE)
    assert same(weights.load(path).vae, pipeline.vae)


@pytest.mark.gpu
def test_on_the_gpu(saved):
    path, pipeline = saved("sd")
    for dtype in (torch.float32, torch.float16):
        model = weights.load(path, dtype=dtype, device="cuda")
        assert model.device.type == "cuda" and same(model.unet, copy.deepcopy(pipeline.unet).to("cuda", dtype))


@pytest.mark.parametrize(
    "name, changes, expected",
    [
        ("sdxl", {}, torch.float32),
        ("sdxl", {"force_upcast": False}, torch.float16),
        ("refiner", {}, torch.float32),
        ("sd", {}, torch.float16),
    ],
)
def test_vae_that_overflows_in_float16_gets_float32(name, changes, expected, broken):
    path = broken(name)
    tiny.edit_json(path / "vae/config.json", lambda c: c | changes)
    model = weights.load(path, dtype=torch.float16)
    assert {p.dtype for p in model.vae.parameters()} == {expected}
    assert {p.dtype for net in (model.unet, *model.texts.values()) for p in net.parameters()} == {torch.float16}


@pytest.mark.parametrize("rows, careful", [(None, False), (1000, True)])
def test_x4_upscaler_has_such_a_vae_too(rows, careful, broken):
    path = broken()
    tiny.edit_json(path / "unet/config.json", lambda c: c | {"num_class_embeds": rows})
    assert folder.read(path).facts.careful_vae == careful


def test_dtypes(saved):
    path, pipeline = saved("sd")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = weights.load(path, dtype=dtype)
        assert same(model.unet, copy.deepcopy(pipeline.unet).to(dtype))
    with pytest.raises(ValueError, match="torch.int8: choose one of"):
        weights.load(path, dtype=torch.int8)


def test_float8_files_need_a_dtype(broken, saved):
    path = broken()
    tiny.edit_tensors(path / UNET_FILE, lambda tensors: {key: t.to(torch.float8_e4m3fn) for key, t in tensors.items()})
    unet = saved("sd")[1].unet
    assert torch.equal(weights.load(path).unet.conv_in.weight, unet.conv_in.weight.to(torch.float8_e4m3fn).float())
    with pytest.raises(CheckpointError, match="weight is of type F8_E4M3.*: choose a dtype"):
        weights.load(path, dtype=None)


def test_tensors_stay_in_their_file_and_cannot_change_it(broken):
    path = broken()
    before = hashlib.sha256((path / UNET_FILE).read_bytes()).hexdigest()
    model = weights.load(path)
    assert str(path / UNET_FILE) in Path("/proc/self/maps").read_text()
    model.unet.conv_in.weight.data += 1
    assert weights.file_hashes(model)[UNET_FILE] == before
    assert set(model.files) == {UNET_FILE, VAE_FILE, TEXT_FILE}
    del model
    model = weights.load(path, dtype=torch.float16)
    assert model.unet and str(path) not in Path("/proc/self/maps").read_text()


MEMORY = """
import re, sys, torch, weights
from pathlib import Path
def status(key): return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
weights.load(sys.argv[1])                            # pays for whatever is imported or built once
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")        # the peak begins here
model = weights.load(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
held = sum(p.nbytes for net in (model.unet, model.vae, *model.texts.values()) for p in net.parameters())
print(held, status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """dtype -> a folder of about 30 million numbers in that dtype."""
    path = tmp_path_factory.mktemp("wide")
    for dtype in ("float32", "float16"):
        tiny.tiny_sd(
            path / dtype,
            dtype=getattr(torch, dtype),
            unet=dict(block_out_channels=[64, 160, 224, 224], attention_head_dim=4),
        )
    yield lambda dtype: path / dtype
    shutil.rmtree(path)


@pytest.mark.parametrize("stored, dtype", [("float16", "float32"), ("float32", "float16"), ("float32", "float32")])
def test_memory(stored, dtype, saved, wide):
    """The peak is what is held in the end and a tenth more, not the file besides; 28 MB are for the tokenizer and
    for what is read between two of the places where the file is closed."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, saved("sd")[0], wide(stored), dtype],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    held, peak = map(int, run.stdout.split())
    assert held > (50e6 if dtype == "float16" else 100e6)
    assert peak <= 1.1 * held + 28e6, (peak / 1e6, held / 1e6)
