"""weights/manifests/ is the contract: what it says of the published files, and that our networks keep it."""

import json
import math

import pytest
import torch

from ldm.clip import CLIPText
from ldm.config import CLIPS, TAESD, UNETS, VAES
from ldm.taesd import TinyVAE
from ldm.unet import UNet
from ldm.vae import VAE
from support.paths import ROOT

FOLDER = ROOT / "weights" / "manifests"

# parameters and tensors; the same totals were counted in the original ldm and sgm code
TOTALS = {
    "unet_sd15": (859_520_964, 686),
    "unet_sd15_inpaint": (859_535_364, 686),
    "unet_sd2": (865_910_724, 686),
    "unet_sd2_inpaint": (865_925_124, 686),
    "unet_sd2_depth": (865_913_604, 686),
    "unet_sd2_unclip_h": (870_173_124, 690),
    "unet_sd2_unclip_l": (869_517_764, 690),
    "unet_sd_x4": (473_398_020, 687),
    "unet_sdxl": (2_567_463_684, 1680),
    "unet_sdxl_inpaint": (2_567_478_084, 1680),
    "unet_sdxl_refiner": (2_259_526_660, 1220),
    "unet_lcm_sdxl": (2_567_545_604, 1681),
    "unet_bk_sdm_base": (579_384_964, 442),  # these seven: 0.58, 0.49 and 0.33; 1.3, 0.74; 0.78 and 1.16 billion, as
    "unet_bk_sdm_small": (482_346_884, 396),  # their papers say
    "unet_bk_sdm_tiny": (323_384_964, 358),
    "unet_ssd_1b": (1_331_334_404, 944),
    "unet_segmind_vega": (745_225_604, 564),
    "unet_koala_700m": (782_822_724, 584),
    "unet_koala_1b": (1_161_184_324, 790),
    "vae_sd": (83_653_863, 248),
    "vae_sd_x4": (55_325_927, 204),
    "vae_taesd": (2_445_063, 134),
    "clip_l": (123_060_480, 196),
    "clip_h": (340_387_840, 372),
    "clip_bigg": (694_659_840, 517),
}

# network, type, with position_ids, with the header of the first safetensors versions, bytes by its git-LFS pointer
FILE_SIZES = [
    ("unet_sd15", "F32", False, False, 3_438_167_536),
    ("unet_sd2_inpaint", "F16", False, False, 1_731_933_536),
    ("unet_sd_x4", "F16", False, False, 946_878_752),
    ("unet_sdxl", "F16", False, False, 5_135_149_760),
    ("unet_sdxl", "F32", False, False, 10_270_077_736),
    ("vae_sd", "F32", False, False, 334_643_268),
    ("vae_sd", "F16", False, False, 167_335_342),
    ("vae_sd_x4", "F16", False, False, 110_674_374),
    ("clip_bigg", "F32", False, False, 2_778_702_264),
    ("clip_h", "F16", True, False, 680_821_096),
    ("unet_sd2", "F32", False, True, 3_463_726_498),
    ("clip_l", "F32", True, True, 492_265_879),
    ("clip_h", "F32", True, True, 1_361_597_018),
]


def manifest(name: str) -> dict[str, list[int]]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def file_size(shapes: dict[str, list[int]], dtype: str, position_ids: bool, old_header: bool) -> int:
    """Bytes of the .safetensors file with these tensors.

    The first versions of safetensors sorted the header by name; later ones put wide types first and pad it to 8 bytes.
    """
    width = {"F16": 2, "F32": 4, "I64": 8}
    tensors = {key: (dtype, shape) for key, shape in shapes.items()}
    if position_ids:
        tensors["text_model.embeddings.position_ids"] = ("I64", [1, 77])
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key in sorted(tensors, key=lambda key: key if old_header else (-width[tensors[key][0]], key)):
        kind, shape = tensors[key]
        start, end = end, end + width[kind] * math.prod(shape)
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + (0 if old_header else -length % 8) + end


def test_one_manifest_per_published_network():
    assert {path.stem for path in FOLDER.glob("*.json")} == TOTALS.keys()
    assert {f"unet_{name}" for name in UNETS} | {f"clip_{name}" for name in CLIPS} < TOTALS.keys()


def test_manifests_are_what_diffusers_and_transformers_build(script, tmp_path):
    result = script("write_manifests.py", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.stem for path in tmp_path.iterdir()} == TOTALS.keys()
    assert [name for name in TOTALS if json.loads((tmp_path / f"{name}.json").read_text()) != manifest(name)] == []


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_the_published_ones(name):
    tensors = manifest(name)
    assert (sum(math.prod(shape) for shape in tensors.values()), len(tensors)) == TOTALS[name]


@pytest.mark.parametrize("name, dtype, position_ids, old_header, size", FILE_SIZES)
def test_published_files_have_the_predicted_size(name, dtype, position_ids, old_header, size):
    """The header spells every name and shape, so its length checks them all at once, without the file."""
    assert file_size(manifest(name), dtype, position_ids, old_header) == size


@pytest.mark.parametrize("name", UNETS)
def test_unet_keeps_the_contract(name):
    with torch.device("meta"):
        assert shapes(UNet(UNETS[name])) == manifest(f"unet_{name}")


@pytest.mark.parametrize("name", VAES)
def test_vae_keeps_the_contract(name):
    published = "vae_sd_x4" if name == "sd_x4" else "vae_sd"
    with torch.device("meta"):
        assert shapes(VAE(VAES[name])) == manifest(published)


def test_tiny_vae_keeps_the_contract():
    with torch.device("meta"):
        assert shapes(TinyVAE(TAESD)) == manifest("vae_taesd")


@pytest.mark.parametrize("name", CLIPS)
def test_clip_keeps_the_contract(name):
    with torch.device("meta"):
        assert shapes(CLIPText(CLIPS[name])) == manifest(f"clip_{name}")
