"""Models that lack a network: what is missing is given, and everything else comes from the file or folder."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weights
from ldm.clip import CLIPText
from ldm.config import CLIPS
from support import tiny
from support.single_files import SDXL_TEXT_2, UNET_PREFIX, VAE_PREFIX, Written
from weights import CheckpointError
from weights.checkpoint import Part
from weights.hub.wanted import model_files, part_files, text_files
from weights.layouts import overrides
from weights.layouts.names import Section
from weights.layouts.shapes import sizes_of

TEXTS = ("cond_stage_model.", "conditioner.")
FIRST_TEXT = "conditioner.embedders.0.transformer."
LACKS = {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "text": TEXTS}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Model and what it lacks -> a tiny single file, made once."""
    folder = tmp_path_factory.mktemp("files")
    whole: dict[str, Written] = {}

    def get(model: str, lacks: str | tuple[str, ...] = ()) -> Path:
        if model not in whole:
            whole[model] = Written(model, folder / f"{model}.safetensors", torch.float16)
        if not lacks:
            return whole[model].path
        path = folder / f"{model} without {' '.join(lacks) if isinstance(lacks, tuple) else lacks}.safetensors"
        prefixes = LACKS.get(lacks, lacks)
        kept = {key: tensor for key, tensor in whole[model].tensors.items() if not key.startswith(prefixes)}
        save_file(kept, path)
        return path

    yield get
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole(files):
    """Model -> its whole file, loaded once."""
    return functools.cache(lambda model: load(files(model)))


def load(source: Path, **given):
    return weights.load(source, dtype=None, check_finite=False, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder with nothing missing."""
    path = tmp_path_factory.mktemp("folder") / "sdxl"
    tiny.tiny_sdxl(path, dtype=torch.float16)
    yield path
    shutil.rmtree(path.parent)


def refused(source: Path, **given) -> str:
    with pytest.raises(CheckpointError) as caught:
        weights.describe(source, **given)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 600 + 2 * len(str(source))
    return line


def tensors_of(model) -> dict[str, torch.Tensor]:
    networks = {"unet": model.unet, "vae": model.vae, **model.texts}
    return {f"{part}.{name}": value for part, net in networks.items() for name, value in net.state_dict().items()}


def assert_equal(found, expected):
    assert found.facts == expected.facts
    theirs = tensors_of(expected)
    assert tensors_of(found).keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors_of(found).items())


@pytest.mark.filterwarnings("ignore:.*does not say what its UNet predicts")
@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("model", ["sd15", "sd2_v", "sdxl", "sdxl_refiner"])
def test_what_a_file_lacks_is_given(model, lacks, files, whole):
    """From the whole file, so the model must be equal to it, with the same facts."""
    incomplete = files(model, lacks)
    found = load(incomplete, **{lacks: files(model)})
    assert_equal(found, whole(model))
    label = str(files(model))
    assert incomplete.name in found.files and any(name.startswith(label) for name in found.files)
    line = refused(incomplete)
    assert f"{lacks}=" in line and f"--{lacks} " in line and "missing" in line
    assert not any(f"{other}=" in line for other in LACKS if other != lacks), "its own networks stay"
    assert "load(base" not in line


def test_one_of_two_text_towers(files, whole, tmp_path):
    """The other stays the file's own, whichever is missing; a tower alone is told by what is missing, or by name."""
    expected = whole("sdxl")
    tensors = load_file(files("sdxl"))
    for tower, prefix in (("text_encoder", FIRST_TEXT), ("text_encoder_2", SDXL_TEXT_2)):
        incomplete = files("sdxl", (prefix,))
        line = refused(incomplete)
        assert f'text={{"{tower}": "owner/name"}}' in line and f"--text {tower}=owner/name" in line
        alone = tmp_path / f"{tower}.safetensors"
        save_file({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}, alone)
        assert_equal(load(incomplete, text=alone), expected)
        assert weights.describe(incomplete, text={tower: alone}).parts[tower].path == alone
        for source in (files("sdxl"), files("sdxl", "text")):
            assert "say which of them it is for" in refused(source, text=alone)
    both = {name: tmp_path / f"{name}.safetensors" for name in expected.texts}
    assert_equal(load(files("sdxl", "text"), text=both), expected)
    assert "text tower text_encoder is missing" in refused(
        files("sdxl", "text"), text={"text_encoder_2": both["text_encoder_2"]}
    )
    assert "unknown text tower 'clip_l'" in refused(files("sdxl"), text={"clip_l": files("sdxl")})


def test_towers_in_the_names_of_transformers(files, whole, tmp_path):
    """As other programs keep them: clip_g.safetensors with text_projection.weight, which the model needs."""
    weights.save_part(whole("sdxl").texts["text_encoder_2"], tmp_path / "clip_g.safetensors")
    assert "text_projection.weight" in load_file(tmp_path / "clip_g.safetensors")
    found = load(files("sdxl", (SDXL_TEXT_2,)), text=tmp_path / "clip_g.safetensors")
    assert_equal(found, whole("sdxl"))


def test_a_unet_by_itself_with_the_rest(files, whole, tmp_path):
    """In whichever names; half of the rest is not enough, and the line names the other half."""
    rest = files("sd15")
    for names in ("ldm", "diffusers"):
        path = tmp_path / f"{names}.safetensors"
        weights.save_part(whole("sd15").unet, path, names)
        assert_equal(load(path, vae=rest, text=rest), whole("sd15"))
        assert "unet=" in refused(path) and "vae= and text=" in refused(path)
        assert "text=" in refused(path, vae=rest) and "vae=" not in refused(path, vae=rest)


def test_what_is_given_must_fit(files):
    assert "VAE of another family" in refused(files("sdxl", "vae"), vae=files("sd15"))
    assert "text" in refused(files("sdxl", "text"), text=files("sd15"))
    assert "has no UNet" in refused(files("sd15", "unet"), unet=files("sd15"), ema=True)


def test_a_guessed_prediction_is_that_of_the_given_unet(files):
    """SD 2 without its UNet says nothing of what it predicts: the UNet's own file or folder does."""
    facts = weights.describe(files("sd2_v", "unet"), unet=files("sd2_v")).facts
    assert (facts.prediction, facts.size) == ("v", 768)


def drop(path: Path, *components: str) -> Path:
    for name in components:
        shutil.rmtree(path / name)
    return path


@pytest.mark.parametrize(
    "missing, given",
    [
        (("vae",), "vae"),
        (("unet",), "unet"),
        (("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"), "text"),
        (("text_encoder_2",), "text"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_what_a_folder_lacks_is_given(missing, given, listed, folder, tmp_path):
    """Whether model_index.json still names it or not. What the missing config.json said is that of the published
    SDXL, and of the size alone the tiny one has another."""
    path = drop(shutil.copytree(folder, tmp_path / "model"), *missing)
    if not listed:
        tiny.edit_json(path / "model_index.json", lambda index: index | dict.fromkeys(missing, [None, None]))
    line = refused(path)
    assert f"{given}=" in line and f"--{given} " in line
    found = weights.describe(path, **{given: folder})
    expected = weights.describe(folder)
    for name, value in vars(expected.facts).items():
        assert given == "unet" and name == "size" or getattr(found.facts, name) == value, name
    assert list(found.parts) == list(expected.parts)
    for name, part in found.parts.items():
        assert part.match()[1].keys() == expected.parts[name].match()[1].keys()


def test_the_whole_of_clip_gives_its_text_tower(tmp_path):
    """As the repository of CLIP itself has it: the settings of the tower lie inside those of both."""
    clip = shutil.copytree(weights.MINIATURE / "text_encoder", tmp_path / "clip")
    both = {"model_type": "clip", "architectures": ["CLIPModel"]}
    tiny.edit_json(clip / "config.json", lambda values: both | {"text_config": values})
    vision = {"vision_model.post_layernorm.bias": torch.ones(2), "visual_projection.weight": torch.ones(2, 2)}
    tiny.edit_tensors(clip / "model.safetensors", lambda t: t | vision | {"logit_scale": torch.ones(())})
    found = weights.describe(weights.MINIATURE, text=clip)
    assert found.facts == weights.describe(weights.MINIATURE).facts
    assert found.parts["text_encoder"].match()[1]["text_model.final_layer_norm.bias"].held.file.parent == clip


def test_the_whole_tower_of_sd2_in_the_names_of_transformers():
    """As ComfyUI keeps it, with the last block that SD 2 does not read: it must not be run."""
    with torch.device("meta"):
        whole = CLIPText(replace(CLIPS["h"], layers=24))
    stored = overrides.in_memory(whole.state_dict())
    config = sizes_of("text_encoder", Section("", "diffusers"), stored, Path("clip_h.safetensors"))
    assert config == CLIPS["h"]
    part = Part(config, stored, Path("clip_h.safetensors"), Path("clip_h.safetensors"))
    left = part.left_out()
    assert len(left) == 16 and all("layers.23." in key and "the last block" in what for key, what in left)


def test_a_missing_vae_is_that_of_the_family(folder, tmp_path):
    """Its scale belongs to the UNet, so a VAE of SD 1 is none for SDXL."""
    path = drop(shutil.copytree(folder, tmp_path / "model"), "vae")
    other = shutil.copytree(folder / "vae", tmp_path / "other")
    tiny.edit_json(other / "config.json", lambda values: values | {"scaling_factor": 0.18215})
    assert "VAE of another family" in refused(path, vae=other)


# folders that mix variants


def renamed(path: Path, *parts: str) -> Path:
    for part in parts:
        for file in (path / part).glob("*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    return path


def test_mixed_variants(folder, tmp_path):
    """As in diffusers: the plain file where a part has no such variant, and a line about it."""
    path = renamed(shutil.copytree(folder, tmp_path / "model"), "unet", "text_encoder")
    with pytest.warns(UserWarning) as told:
        model = weights.load(path, variant="fp16")
    warnings = sorted(str(warning.message) for warning in told if "no variant" in str(warning.message))
    assert len(warnings) == 2
    assert "text_encoder_2 has no variant 'fp16'" in warnings[0] and "text_encoder_2/model.safetensors" in warnings[0]
    assert "vae has no variant 'fp16'" in warnings[1] and "vae/diffusion_pytorch_model.safetensors" in warnings[1]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in model.files
    with pytest.raises(CheckpointError, match="no variant 'bf16'"):
        weights.load(path, variant="bf16")
    with pytest.raises(CheckpointError, match="/vae has no variant 'fp16'"):
        weights.load_part(path, "vae", variant="fp16")


def test_mixed_variants_of_a_repository():
    """The same choice before anything is downloaded."""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    names = ["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    names += [f"{part}/{file}" for part, stem in stems.items() for file in (f"{stem}.safetensors", "config.json")]
    found = [name for name in model_files(names, "fp16") if name.endswith("safetensors")]
    assert found == [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ]
    with pytest.raises(CheckpointError, match="unet has no variant 'fp16'"):
        model_files([name for name in names if "fp16" not in name], "fp16")
    swapped = part_files(names, "vae", "fp16", is_mixed=True)
    assert swapped == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    towers = ["text_encoder/config.json", "text_encoder/model.safetensors"]
    assert text_files(names, "fp16") == towers
    assert text_files(["config.json", "model.safetensors"]) == ["config.json", "model.safetensors"]


def test_a_part_from_elsewhere_needs_no_variant(folder, tmp_path):
    path = renamed(shutil.copytree(folder, tmp_path / "model"), "unet", "vae", "text_encoder", "text_encoder_2")
    with pytest.warns(UserWarning, match="no variant 'fp16' of the vae: diffusion_pytorch_model.safetensors is taken"):
        weights.load(path, variant="fp16", vae=folder)


# no signal at the last noise level


def test_zero_snr_may_be_asked_for(files, folder, tmp_path):
    facts = weights.describe(files("sdxl"), prediction="v", zero_snr=True).facts
    assert facts.noise.zero_snr and facts.schedule == "trailing" and facts.prediction == "v"
    assert "zero_snr cannot be: the model predicts eps" in refused(files("sdxl"), zero_snr=True)
    assert "zero_snr cannot be: the model predicts eps" in refused(folder, zero_snr=True)
    path = shutil.copytree(folder, tmp_path / "v")
    tiny.edit_json(path / "scheduler/scheduler_config.json", lambda c: c | {"prediction_type": "v_prediction"})
    assert not weights.describe(path).facts.noise.zero_snr
    model = weights.load(path, dtype=None, zero_snr=True)
    assert model.facts.noise.zero_snr and model.facts.schedule == "trailing"
    weights.save(model, tmp_path / "again")  # and is kept
    values = json.loads((tmp_path / "again/scheduler/scheduler_config.json").read_text())
    assert values["rescale_betas_zero_snr"] is True and values["timestep_spacing"] == "trailing"


def test_zero_snr_holds_for_a_unet_from_elsewhere(files):
    """Its own file has no mark either, so it is no reason to refuse it."""
    found = weights.describe(files("sdxl"), prediction="v", zero_snr=True, unet=files("sdxl"))
    assert found.facts.noise.zero_snr


def test_the_mark_without_velocity_is_ignored(files, tmp_path):
    """ztsnr says that the last noise level has no signal: a model of noise could predict nothing there."""
    marked = tmp_path / "marked.safetensors"
    save_file(load_file(files("sdxl")) | {"ztsnr": torch.zeros(())}, marked)
    with pytest.warns(UserWarning, match="the key ztsnr is ignored"):
        facts = weights.load(marked).facts
    assert facts == weights.describe(files("sdxl")).facts
    found = weights.describe(marked, prediction="v")
    assert found.facts.noise.zero_snr and found.facts.schedule == "trailing" and not found.warnings
    save_file(load_file(files("sdxl")) | {"ztsnr": torch.zeros(())}, marked, {"modelspec.predict_key": "v"})
    assert weights.describe(marked).facts.noise.zero_snr  # as ComfyUI says it
