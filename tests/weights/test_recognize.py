"""What a file is: marks, metadata, guesses, copies, merges, parts alone, parts swapped, and what is no model."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

import weights
from ldm.config import MODELS, NoiseConfig, TinyVAEConfig
from support import tiny
from support.numbers import randn, randomize, relative_l2
from support.single_files import SD1_TEXT, SDXL_TEXT_2, SGM_TEXT, Written
from support.tiny import TEXT_FILE, UNET_FILE, VAE_FILE
from weights import CheckpointError
from weights.disk.safetensors import read_header
from weights.layouts.names import ema_key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny single files, made once; `change` writes a copy with other tensors or metadata."""
    folder, made = tmp_path_factory.mktemp("files"), {}

    def get(model: str) -> Written:
        if model not in made:
            made[model] = Written(model, folder / f"{model}.safetensors")
        return made[model]

    yield get
    shutil.rmtree(folder)


@pytest.fixture
def changed(files, tmp_path):
    def write(model: str, change=lambda tensors: tensors, metadata=None):
        path = tmp_path / "changed.safetensors"
        save_file(change(dict(files(model).tensors)), path, metadata)
        return path

    yield write
    shutil.rmtree(tmp_path)


def facts_of(path, **settings):
    return weights.describe(path, **settings).facts


# what the network was trained for


def test_sd2_is_told_by_a_value_and_the_user_is_told(files):
    for model, kind, size in (("sd2_base", "eps", 512), ("sd2_v", "v", 768)):
        with pytest.warns(UserWarning, match=rf"does not say what its UNet predicts; {kind} is taken.*0\.09"):
            facts = weights.load(files(model).path).facts
        assert (facts.prediction, facts.size, facts.sampler) == (kind, size, MODELS[model].sampler)


def test_what_is_asked_or_noted_needs_no_guess(files, changed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights.load(files("sd2_base").path, prediction="v").facts.prediction == "v"
        assert weights.load(files("sd2_v").path, prediction="eps").facts.prediction == "eps"
        for text, kind in (("v", "v"), ("epsilon", "eps")):
            path = changed("sd2_v", metadata={"modelspec.prediction_type": text})
            assert weights.load(path).facts.prediction == kind
    with pytest.raises(ValueError, match="unknown prediction 'flow'"):
        weights.load(files("sd2_base").path, prediction="flow")


@pytest.mark.parametrize(
    "marks, expected",
    [
        ({"v_pred": torch.zeros(())}, dict(prediction="v")),
        (
            {"v_pred": torch.zeros(()), "ztsnr": torch.zeros(())},
            dict(prediction="v", noise=NoiseConfig(zero_snr=True), schedule="trailing"),
        ),
        (
            {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.004)},
            dict(
                prediction="v",
                sampler="dpmpp_2m",
                schedule="karras",
                noise=NoiseConfig(edm=True, sigma_min=pytest.approx(0.004), sigma_max=120.0, sigma_data=1.0),
            ),
        ),
    ],
)
def test_marks_of_sdxl_fine_tunes(marks, expected, files, changed):
    plain = facts_of(files("sdxl").path)
    assert plain.prediction == "eps" and not plain.noise.edm
    found = facts_of(changed("sdxl", lambda tensors: tensors | marks))
    assert found == replace(plain, **expected)


def test_playground_v25_is_never_plain_sdxl(files, changed):
    """Its UNet takes other latents and other times: as SDXL it would draw noise without an error."""
    wanted = MODELS["playground_v25"]
    marks = {
        f"edm_{key}": torch.tensor(values)[None, :, None, None].half()
        for key, values in (("mean", wanted.latent.mean), ("std", wanted.latent.std))
    }
    path = changed("sdxl", lambda tensors: tensors | marks)
    facts = facts_of(path)
    for name in ("latent", "noise", "sampler", "schedule", "guidance"):
        assert getattr(facts, name) == getattr(wanted, name)  # the published numbers, not float16's
    with pytest.raises(CheckpointError, match="trained with the noise.*cannot be swapped in"):
        weights.load(files("sdxl").path, unet=path)
    other = changed("sdxl", lambda tensors: tensors | marks | {"edm_std": marks["edm_std"] * 1.5})
    assert facts_of(other).latent.std == pytest.approx([1.5 * value for value in wanted.latent.std], rel=1e-3)


def test_averaged_copy_on_request(files, changed):
    unet = {key: tensor for key, tensor in files("sd15").tensors.items() if key.startswith("model.diffusion_model.")}
    copies = {ema_key(key): tensor + 1 for key, tensor in unet.items()}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5, dtype=torch.int32)}
    path = changed("sd15", lambda tensors: tensors | copies | counters)
    assert "model_ema.diffusion_modelinput_blocks00weight" in copies
    for ema, offset in ((False, 0), (True, 1)):
        model = weights.load(path, ema=ema)
        assert torch.equal(model.unet.conv_in.weight, unet["model.diffusion_model.input_blocks.0.0.weight"] + offset)
        assert torch.equal(
            model.unet.up_blocks[3].resnets[2].conv2.bias,
            unet["model.diffusion_model.output_blocks.11.0.out_layers.3.bias"] + offset,
        )
    with pytest.raises(CheckpointError, match="has no averaged copy of its UNet"):
        weights.load(files("sd15").path, ema=True)


# what merges and other programs make of the names


def without_level(tensors):
    return {key.replace("transformer.text_model.", "transformer."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    "model, change",
    [
        ("sd15", without_level),
        ("sd15", lambda t: t | {SD1_TEXT + "embeddings.position_ids": torch.arange(77)[None].half()}),
        ("sdxl", without_level),
        (
            "sdxl",
            lambda t: t | {SDXL_TEXT_2 + "transformer.text_model.embeddings.position_ids": torch.arange(77)[None]},
        ),
        ("sdxl", lambda t: {key: value for key, value in t.items() if not key.endswith("logit_scale")}),
        (
            "sdxl",
            lambda t: (
                {key: value for key, value in t.items() if not key.endswith("text_projection")}
                | {SDXL_TEXT_2 + "text_projection.weight": t[SDXL_TEXT_2 + "text_projection"].T.contiguous()}
            ),
        ),
        ("sdxl_refiner", lambda t: t | {"denoiser.sigmas": torch.rand(1000)}),
        ("sd15", lambda t: t | {"betas": torch.rand(1000), "global_step": torch.tensor(7), "logvar": torch.rand(1000)}),
        ("sd2_depth", lambda t: t | {"depth_model.model.scratch.refinenet1.out_conv.weight": torch.rand(2, 2)}),
    ],
)
def test_variants_load_to_equal_models(model, change, files, changed):
    plain, varied = weights.load(files(model).path), weights.load(changed(model, change))
    assert plain.facts == varied.facts
    for ours, theirs in zip(
        (plain.unet, plain.vae, *plain.texts.values()), (varied.unet, varied.vae, *varied.texts.values())
    ):
        found = theirs.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in ours.state_dict().items())


POSITIONS = "embeddings.position_ids"
LEFTOVERS = {  # model -> tensors that other programs leave in its file, and what they are told to be
    "sd15": {
        "cond_stage_model.logit_scale": "the temperature of CLIP's training",  # ComfyUI
        "cond_stage_model.text_projection": "the projection of a pooled output",
        "cond_stage_model.transformer.text_projection.weight": "the projection of a pooled output",
        "cond_stage_model.transformer.logit_scale": "the temperature of CLIP's training",
        "cond_stage_model.transformer.vision_model.post_layernorm.weight": "the vision tower of CLIP",
        "cond_stage_model.transformer.visual_projection.weight": "the vision tower of CLIP",
        f"cond_stage_model.transformer.{POSITIONS}": "the numbers 0 to 76",
        "first_stage_model.loss.logvar": "a remnant of training",
        "first_stage_model.loss.discriminator.main.0.weight": "a remnant of training",
        "first_stage_model.model_ema.decay": "a remnant of training",
        "model_sampling.sigmas": "the noise schedule",
        "model_sampling.log_sigmas": "the noise schedule",
        "log_one_minus_alphas_cumprod": "the noise schedule",
        "embedding_manager.initial_embeddings.*": "a remnant of training",
    },
    "sd2_v": {
        "cond_stage_model.model.visual.proj": "the vision tower of CLIP",
        "cond_stage_model.model.attn_mask": "the causal mask",
        f"cond_stage_model.model.transformer.text_model.{POSITIONS}": "the numbers 0 to 76",
        "cond_stage_model.logit_scale": "the temperature of CLIP's training",
    },
    "sdxl": {
        "conditioner.embedders.0.logit_scale": "the temperature of CLIP's training",
        "conditioner.embedders.0.text_projection": "the projection of a pooled output",
        "conditioner.embedders.0.text_projection.weight": "the projection of a pooled output",
        "conditioner.embedders.0.transformer.text_projection.weight": "the projection of a pooled output",
        "conditioner.embedders.0.transformer.logit_scale": "the temperature of CLIP's training",
        "conditioner.embedders.1.logit_scale": "the temperature of CLIP's training",
        "conditioner.embedders.1.model.visual.proj": "the vision tower of CLIP",
        "conditioner.embedders.1.model.logit_bias": "the temperature of CLIP's training",
        f"conditioner.embedders.1.{POSITIONS}": "the numbers 0 to 76",
        "denoiser.sigmas": "the noise schedule",
        "denoiser.log_sigmas": "the noise schedule",
    },
}


@pytest.mark.filterwarnings("ignore:.*does not say what its UNet predicts")
@pytest.mark.parametrize("kind", [torch.float16, torch.int64])
@pytest.mark.parametrize("model", LEFTOVERS)
def test_leftovers_of_other_programs_are_named(model, kind, files, changed):
    """They change nothing, whatever their type, and `inspect` says what each of them is."""
    leftovers = {key: torch.ones(2, 2).to(kind) for key in LEFTOVERS[model]}
    found = weights.describe(changed(model, lambda tensors: tensors | leftovers))
    plain = weights.describe(files(model).path)
    assert found.facts == plain.facts
    told = dict(found.left_out())
    for key, what in LEFTOVERS[model].items():
        assert told.pop(key).startswith(what), key
    assert told == dict(plain.left_out())


def test_a_leftover_of_a_vae_alone(files, tmp_path):
    """The published fine-tunes of 2022 keep what they were trained with."""
    vae = {key: tensor for key, tensor in files("sd15").tensors.items() if key.startswith("first_stage_model.")}
    bare = {key.removeprefix("first_stage_model."): tensor for key, tensor in vae.items()}
    training = {
        "loss.logvar": torch.ones(()),
        "model_ema.decay": torch.ones(()),
        "model_ema.encoderconv_inweight": torch.ones(2),
    }
    save_file(bare | training, tmp_path / "vae.safetensors")
    part = weights.describe_part(tmp_path / "vae.safetensors")
    assert {key for key, _ in part.left_out()} == training.keys()
    with pytest.raises(CheckpointError, match="1 unexpected tensors, 'losses.x'"):
        save_file(bare | {"losses.x": torch.ones(2)}, tmp_path / "vae.safetensors")
        weights.load_part(tmp_path / "vae.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"surprise.weight": torch.zeros(3)}, "1 unexpected tensors outside its networks, 'surprise"),
        (lambda t: t | {"model.diffusion_model.surprise": torch.zeros(3)}, "unexpected tensors, 'model.diff"),
        (
            lambda t: {k: v for k, v in t.items() if "output_blocks.4.0.out_layers.3" not in k},
            "tensors 2 are missing, 'up_blocks.1.resnets.1.conv2",
        ),
        (lambda t: t | {"model.diffusion_model.out.2.bias": torch.zeros(5)}, r"another shape.*out.2.bias \(5,\) for"),
        (
            lambda t: {k: v for k, v in t.items() if "time_embed" in k or not k.startswith("model.")},
            "not a whole model",
        ),
        (lambda t: t | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(64, 4)}, "another shape"),
        (
            lambda t: t | {key: t[key][:100].contiguous() for key in t if key.endswith("token_embedding.weight")},
            r"vocabularies of \[100\]: equal numbers of tokens, from at least the 49408 of CLIP",
        ),
    ],
)
def test_incomplete_and_surprising_files(change, message, changed):
    with pytest.raises(CheckpointError, match=message) as error:
        weights.load(changed("sd15", change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tensors, message",
    [
        (
            {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 32)},
            "is an adapter such as",
        ),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(4, 32)}, "is an adapter such as LoRA"),
        ({"control_model.input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3)}, "is a ControlNet"),
        ({"ip_adapter.1.to_k_ip.weight": torch.zeros(32, 64)}, "is an IP-Adapter"),
        ({"emb_params": torch.zeros(1, 768)}, "is a textual inversion"),
        ({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, "is a textual inversion"),
        ({"text_encoders_0": torch.zeros(1, 768)}, "is a textual inversion"),
        ({"x": torch.zeros(1)}, "holds no network known here but 'x'"),
        ({}, "holds no network known here but no tensor at all"),
        ({"clip_l.text_model.final_layer_norm.lora_up.weight": torch.zeros(4, 2)}, "is an adapter such as LoRA"),
        ({"oft_unet_mid_block_resnets_0_conv1.oft_blocks": torch.zeros(2, 4, 4)}, "is an adapter such as LoRA"),
        ({"lycoris_mid_block_resnets_0_conv1.diff": torch.zeros(4, 4)}, "is an adapter such as LoRA"),
        ({"diffusion_model.input_blocks.1.1.norm.diff_b": torch.zeros(4)}, "is an adapter such as LoRA"),
        ({"mid_block.motion_modules.0.proj_in.weight": torch.zeros(4, 4)}, "is a motion module of AnimateDiff"),
    ],
)
def test_files_that_are_no_models_are_named(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=message):
        weights.load(tmp_path / "file.safetensors")


# networks alone

BARE = {  # name -> part, tensors of a whole file -> those of the network alone
    "unet, ldm": ("unet", "model.diffusion_model.", ""),
    "unet, prefix": ("unet", "model.diffusion_model.", None),
    "unet, diffusion_model": ("unet", "model.diffusion_model.", "diffusion_model."),
    "vae, ldm": ("vae", "first_stage_model.", ""),
    "vae, prefix": ("vae", "first_stage_model.", None),
    "vae, vae": ("vae", "first_stage_model.", "vae."),
    "text, open_clip": ("text_encoder", SGM_TEXT, ""),
    "text, text": ("text_encoder", SGM_TEXT, "text."),
}


@pytest.mark.parametrize("name", BARE)
def test_networks_alone_in_a_file(name, files, changed):
    part, prefix, new = BARE[name]
    path = changed(
        "sd_turbo",
        lambda tensors: {
            (key if new is None else new + key.removeprefix(prefix)): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        },
    )
    whole, network = weights.load(files("sd_turbo").path), weights.load_part(path)
    expected = {"unet": whole.unet, "vae": whole.vae, "text_encoder": whole.texts["text_encoder"]}[part]
    found = network.state_dict()
    assert network.config == expected.config
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.state_dict().items())
    with pytest.raises(CheckpointError, match="not a whole model"):
        weights.load(path)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A folder with its pipeline, a UNet and a VAE to swap in, and TAESD in both of its forms."""
    root = tmp_path_factory.mktemp("sd")
    pipeline = tiny.tiny_sd(root / "base")
    unet = randomize(UNet2DConditionModel.from_config(pipeline.unet.config), seed=31)
    unet.save_pretrained(root / "spin" / "unet")  # as UCLA-AGI/SPIN-Diffusion-iter3
    vae = randomize(AutoencoderKL.from_config(pipeline.vae.config), seed=32)
    vae.save_pretrained(root / "fix")  # as madebyollin/sdxl-vae-fp16-fix: at the root
    taesd = randomize(AutoencoderTiny(), seed=33)
    taesd.save_pretrained(root / "taesd")
    for side, first in (("encoder", 0), ("decoder", 1)):
        layers = [key.split(".", 1) + [tensor] for key, tensor in getattr(taesd, side).layers.state_dict().items()]
        save_file(
            {f"{int(number) + first}.{rest}": tensor for number, rest, tensor in layers},
            root / f"taesd_{side}.safetensors",
        )
    yield root, pipeline, unet, vae, taesd
    shutil.rmtree(root)


@torch.no_grad()
def test_swapped_parts(sd):
    root, pipeline, unet, vae, _ = sd
    base, model = weights.load(root / "base"), weights.load(root / "base", unet=root / "spin", vae=root / "fix")
    assert model.facts == base.facts
    x, context = randn(2, 4, 8, 8, seed=1).float(), randn(2, 7, 32, seed=2).float()
    t = torch.tensor([981.0, 3.0])
    assert relative_l2(model.unet(x, t, context), unet(x, t, context).sample) <= 2e-6
    # 2.24e-6 on processors whose instructions round float32 otherwise.
    assert relative_l2(model.vae.decode(x), vae.decode(x).sample) <= 4e-6
    assert torch.equal(
        model.texts["text_encoder"].text_model.final_layer_norm.weight,
        base.texts["text_encoder"].text_model.final_layer_norm.weight,
    )
    assert set(model.files) == {TEXT_FILE, f"{root}/spin/{UNET_FILE}", f"{root}/fix/{Path(VAE_FILE).name}"}
    assert weights.file_hashes(model).keys() == model.files.keys()


@torch.no_grad()
@pytest.mark.parametrize("source", ["taesd", "taesd_decoder.safetensors", "taesd_encoder.safetensors"])
def test_taesd_as_the_vae(source, sd):
    """It takes latents as the UNet has them: diffusers gives it a scaling_factor of 1."""
    root, pipeline, _, _, taesd = sd
    model = weights.load(root / "base", vae=root / source)
    assert model.facts.vae == TinyVAEConfig() and model.facts.latent.scale == 1
    latents = randn(1, 4, 8, 8, seed=1).float()
    assert relative_l2(model.to_image(latents), taesd.decode(latents).sample) <= 2e-6
    folder = root / f"with_{Path(source).stem}"
    weights.save(model, folder)
    again = weights.load(folder)
    assert again.facts == model.facts and torch.equal(again.to_image(latents), model.to_image(latents))
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert torch.equal(pipe.vae.decode(latents).sample, taesd.decode(latents).sample)


def test_half_of_taesd_alone(sd, tmp_path):
    shutil.copy(sd[0] / "taesd_decoder.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="one half of TAESD, its decoder: its encoder is expected beside it"):
        weights.load_part(tmp_path / "taesd_decoder.safetensors")


def test_swaps_that_cannot_be(sd, files, tmp_path):
    root = sd[0]
    for part, other, message in (
        ("unet", files("sdxl").path, "trained with the latent|reads text of width"),
        ("vae", files("sd_x4").path, "makes latents of one 4th"),
        ("unet", root / "fix", "holds a VAE, not a unet"),
        ("vae", root / "spin", "has neither config.json nor 'vae'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            weights.load(root / "base", **{part: other})
    AutoencoderKL.from_config(sd[3].config, scaling_factor=0.13025).save_pretrained(tmp_path / "xl")
    with pytest.raises(CheckpointError, match="scales latents by 0.13025, and the model's by 0.18215"):
        weights.load(root / "base", vae=tmp_path / "xl")


def test_swaps_know_the_model_around_them(sd, files, tmp_path):
    """A part is not taken for another's because its sub-folder or its file was named."""
    root = sd[0]
    shutil.copytree(root / "base", tmp_path / "v")
    scheduler = tmp_path / "v/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
    for source in ("v", "v/unet", f"v/{UNET_FILE}"):
        with pytest.raises(CheckpointError, match="trained with the prediction v, and the model's with eps"):
            weights.load(root / "base", unet=tmp_path / source)
    shutil.copy(tmp_path / "v" / UNET_FILE, tmp_path / "alone.safetensors")  # which tells nothing
    assert weights.load(root / "base", unet=tmp_path / "alone.safetensors").facts.prediction == "eps"
    with pytest.raises(CheckpointError, match="scales latents by 0.13025, and the model's by 0.18215"):
        weights.load(files("sd15").path, vae=files("sdxl").path)


def test_old_attention_names_of_a_vae(sd, tmp_path):
    """As most fine-tunes of 2022 have them: query, key, value and proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(?=\.)")
    tensors = {
        pattern.sub(lambda m: old[m[0]], key): tensor for key, tensor in load_file(sd[0] / "base" / VAE_FILE).items()
    }
    assert sum("proj_attn" in key for key in tensors) == 4
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="divisible by num_groups"):  # shapes cannot tell that it has 8 groups
        weights.load_part(tmp_path / "vae.safetensors")
    shutil.copytree(sd[0] / "base" / "vae", tmp_path / "vae")
    save_file(tensors, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    found, expected = weights.load_part(tmp_path / "vae"), weights.load(sd[0] / "base").vae.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


# what is written


def test_diffusers_runs_the_kin_of_sd15(files, tmp_path):
    """A folder names the pipeline of its model; that of the upscaler has a second scheduler."""
    picture, mask = torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    for model, pipeline, inputs in (
        ("sd15_inpaint", StableDiffusionInpaintPipeline, dict(image=picture, mask_image=mask)),
        ("sd_x4", StableDiffusionUpscalePipeline, dict(image=picture[..., :8, :8])),
    ):
        weights.save(weights.load(files(model).path), tmp_path / model)
        found = DiffusionPipeline.from_pretrained(tmp_path / model, safety_checker=None)
        assert type(found) is pipeline
        found.set_progress_bar_config(disable=True)
        drawn = found("a fox", **inputs, num_inference_steps=1, output_type="pt").images
        assert drawn.isfinite().all()


def test_a_note_goes_where_it_belongs(tmp_path):
    """A folder's files can be used alone, and a note that came with older metadata does not stay."""
    model = weights.load(weights.MINIATURE, dtype=None)
    weights.save(model, tmp_path / "folder", metadata={"ldm.facts": '{"steps": 4}', "by": "me"})
    for part, network in (("unet", model.unet), ("vae", model.vae), ("text_encoder", model.texts["text_encoder"])):
        (file,) = (tmp_path / "folder" / part).glob("*.safetensors")
        alone = weights.load_part(file, dtype=None)
        assert alone.config == network.config
        assert read_header(file).metadata["by"] == "me"
    plain = weights.load(tmp_path / "folder")
    assert plain.facts == model.facts


def test_saving_leaves_what_lies_there(tmp_path):
    model = weights.load(weights.MINIATURE, dtype=None)
    (tmp_path / "keep.part").mkdir()
    (tmp_path / "keep.part" / "file").write_text("mine")
    weights.save(model, tmp_path / "keep")
    assert {path.name for path in tmp_path.iterdir()} == {"keep", "keep.part"}
    assert (tmp_path / "keep.part" / "file").read_text() == "mine"
    for path, message in (
        (tmp_path / "keep.part/file/x", "cannot be written: (Not a directory|File exists)"),
        (tmp_path / ("n" * 300), "cannot be written: File name too long"),
        (tmp_path / "keep", "exists already"),
    ):
        with pytest.raises(CheckpointError, match=message):
            weights.save(model, path)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("pad_ids", [60000], "tokens that fill up prompts"),
        ("unet.heads", [1, 1, 1, 7], "counts of heads and groups"),
        ("unet.groups", 7, "counts of heads and groups"),
        ("steps", 0, "counts of pixels and steps"),
    ],
)
def test_notes_that_cannot_be(path, value, message, changed):
    file = changed("sd15", metadata={"ldm.facts": json.dumps({path: value})})
    with pytest.raises(CheckpointError, match=f"says impossible things of the {message}"):
        weights.load(file)


def test_the_users_word_comes_before_the_notes(changed):
    file = changed("sd15", metadata={"ldm.facts": json.dumps({"prediction": "x0"})})
    assert facts_of(file).prediction == "x0" and facts_of(file, prediction="eps").prediction == "eps"
