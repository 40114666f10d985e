"""scripts/compare.py points at the block with the fault, and at none where there is none."""

import copy
import functools
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from comparison import cases, report
from comparison.blocks import Case, compare, expect
from ldm import clip, ops
from ldm.compare import LIMIT, Comparison, Expected
from ldm.compare.rows import ratio
from support.networks import POOLED, clip_pair, token_ids, unet_pair, vae_pair
from support.numbers import randn
from support.paths import ROOT
from support.tiny import tiny_sdxl

PAIRS = {"unet": unet_pair, "encode": vae_pair, "decode": vae_pair, "text": clip_pair}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@functools.cache
def expected(kind: str, name: str, dtype: torch.dtype) -> tuple[Case, Expected]:
    """Tiny networks and what the reference computes; faults are planted in copies of our network."""
    ours, reference = (copy.deepcopy(network).float() for network in PAIRS[kind](name))
    generator = torch.Generator().manual_seed(0)
    if kind == "unet":
        context, pooled = randn(2, 7, ours.config.context_dim, seed=5).float(), randn(2, POOLED, seed=6).float()
        size = (8, 12) if name == "miniature" else (16, 24)  # at least 2 x 2 at the coarsest level
        case = cases.unet_case(ours, reference, dtype, size, cases.Text(context, pooled), generator)
    elif kind == "text":
        case = cases.text_case(name, ours, reference, dtype, token_ids(name))
    else:
        case = list(cases.vae_cases(ours, reference, dtype, 40, 24, generator))[kind == "decode"]
    return case, expect(case)


def found_in(
    kind: str, name: str, dtype: torch.dtype, plant=lambda network: None, backend: str = "torch"
) -> Comparison:
    case, there = expected(kind, name, dtype)
    case = case._replace(ours=copy.deepcopy(case.ours))
    plant(case.ours)
    return compare(case, there, backend)


@pytest.mark.parametrize(
    "kind, name, dtype, backend",
    [
        ("unet", "sd15", "float32", "torch"),
        ("unet", "sdxl", "float64", "reference"),
        *(
            (kind, name, dtype, backend)
            for dtype in DTYPES
            for backend in ("torch", "reference")
            for kind, name in (
                ("unet", "miniature"),
                ("encode", "sd"),
                ("decode", "sd"),
                ("text", "l"),
                ("text", "bigg"),
            )
        ),
    ],
)
def test_no_block_of_a_right_network_departs(kind, name, dtype, backend):
    found = found_in(kind, name, DTYPES[dtype], backend=backend)
    assert len(found.rows) == BLOCKS[kind, name]
    assert max(map(ratio, found.rows)) < 1.2 < LIMIT, found.verdict()  # 1 in the mean, by construction


BLOCKS = {
    ("unet", "sd15"): 526,
    ("unet", "sdxl"): 686,
    ("unet", "miniature"): 316,
    ("encode", "sd"): 75,
    ("decode", "sd"): 95,
    ("text", "l"): 38,
    ("text", "bigg"): 50,
}

BLOCK = "mid_block.attentions.0.transformer_blocks.0"


def replaced(path: str, forward):
    """The forward of one block becomes forward(block, ...)."""

    def plant(network):
        block = network.get_submodule(path)
        block.forward = functools.partial(forward, block)

    return plant


def changed(path: str, **values):
    return lambda network: [setattr(network.get_submodule(path), key, value) for key, value in values.items()]


@torch.no_grad()
def transposed(network):
    weight = network.get_submodule(BLOCK).attn1.to_q.weight
    weight.copy_(weight.T.clone())


def norms_swapped(network):
    block = network.get_submodule(BLOCK)
    block.norm1, block.norm2 = block.norm2, block.norm1


def bias_missing(network):
    nn.init.zeros_(network.get_submodule(BLOCK).attn2.to_out[0].bias)


class KeysFirst(ops.Attend):
    def forward(self, q, k, v):
        return super().forward(k, q, v)


def no_residual(block, x, context):
    x = block.attn1(ops.layer_norm(x, block.norm1), ops.layer_norm(x, block.norm1))
    x = x + block.attn2(ops.layer_norm(x, block.norm2), context)
    return x + block.ff(ops.layer_norm(x, block.norm3))


def gelu_by_tanh(block, x):
    value, gate = block.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate, approximate="tanh")


def halves_swapped(block, x):
    gate, value = block.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate)


def no_time(block, x, emb):
    h = block.conv1(ops.group_norm(x, block.norm1, silu=True))
    return block.conv_shortcut(x) + block.conv2(ops.group_norm(h, block.norm2, silu=True))


def no_silu(block, x, emb):
    h = block.conv1(ops.group_norm(x, block.norm1)) + block.time_emb_proj(F.silu(emb))[:, :, None, None]
    return block.conv_shortcut(x) + block.conv2(ops.group_norm(h, block.norm2, silu=True))


def bilinear(block, x, like):
    return block.conv(F.interpolate(x, size=like.shape[2:], mode="bilinear"))


def sines_first(network):
    width = network.config.channels[0]
    network.embed = lambda x, t, vector, guidance: network.time_embedding(
        ops.sinusoid(t, width).roll(width // 2, dims=-1).to(x.dtype), guidance
    )


def first_skip_first(block, x, skips, emb, context):
    return type(block).forward(block, x, skips[:-3] + skips[:-4:-1], emb, context)


def padded_on_all_sides(block, x):
    return F.conv2d(x, block.conv.weight, block.conv.bias, stride=2, padding=1)


def other_gelu(network):
    network.text_model.encoder.layers[1].mlp.activation = F.gelu


def position_off_by_one(block, ids):
    return block.token_embedding(ids) + block.position_embedding.weight[1 : ids.shape[1] + 1]


def pooled_at_the_end(network, ids):
    found = clip.CLIPText.forward(network, ids)
    return clip.TextFeatures(found.hidden, found.last, found.last[:, -1])


UNET, UP = ("unet", "miniature"), ("unet", "sd15")
FAULTS = {  # name: network; how it is planted; the block that departs, and the one in it that sees it first
    "epsilon of a resnet": (UNET, changed("mid_block.resnets.1.norm2", eps=1e-6), "mid_block.resnets.1.norm2", ""),
    "epsilon of a transformer": (
        UNET,
        changed("mid_block.attentions.0.norm", eps=1e-5),
        "mid_block.attentions.0.norm",
        "",
    ),
    "swapped norms": (UNET, norms_swapped, f"{BLOCK}.norm1", ""),
    "missing bias": (UNET, bias_missing, f"{BLOCK}.attn2.to_out.0", ""),
    "transposed projection": (UNET, transposed, f"{BLOCK}.attn1.to_q", ""),
    "head count": (UNET, changed(f"{BLOCK}.attn2.attend", heads=2), f"{BLOCK}.attn2", f"{BLOCK}.attn2.to_out.0"),
    "swapped q and k": (
        UNET,
        changed(f"{BLOCK}.attn1", attend=KeysFirst(4)),
        f"{BLOCK}.attn1",
        f"{BLOCK}.attn1.to_out.0",
    ),
    "missing residual": (UNET, replaced(BLOCK, no_residual), BLOCK, f"{BLOCK}.norm2"),
    "tanh gelu": (UNET, replaced(f"{BLOCK}.ff.net.0", gelu_by_tanh), f"{BLOCK}.ff.net.0", ""),
    "swapped halves": (UNET, replaced(f"{BLOCK}.ff.net.0", halves_swapped), f"{BLOCK}.ff.net.0", ""),
    "missing time": (
        UNET,
        replaced("up_blocks.1.resnets.0", no_time),
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.0.norm2",
    ),
    "missing silu": (
        UNET,
        replaced("down_blocks.1.resnets.0", no_silu),
        "down_blocks.1.resnets.0",
        "down_blocks.1.resnets.0.conv1",
    ),
    "bilinear": (
        UNET,
        replaced("up_blocks.0.upsamplers.0", bilinear),
        "up_blocks.0.upsamplers.0",
        "up_blocks.0.upsamplers.0.conv",
    ),
    "sines first": (UNET, sines_first, "", "time_embedding"),
    "swapped skips": (UP, replaced("up_blocks.0", first_skip_first), "up_blocks.0", "up_blocks.0.resnets.0"),
    "padding": (
        ("encode", "sd"),
        replaced("encoder.down_blocks.1.downsamplers.0", padded_on_all_sides),
        "encoder.down_blocks.1.downsamplers.0",
        "",
    ),
    "epsilon of the autoencoder": (
        ("encode", "sd"),
        changed("encoder.mid_block.attentions.0.group_norm", eps=1e-5),
        "encoder.mid_block.attentions.0.group_norm",
        "",
    ),
    "missing convolution": (("decode", "sd"), changed("post_quant_conv", forward=lambda z: z), "post_quant_conv", ""),
    "other gelu": (("text", "l"), other_gelu, "text_model.encoder.layers.1.mlp", "text_model.encoder.layers.1.mlp.fc2"),
    "not causal": (
        ("text", "bigg"),
        changed("text_model.encoder.layers.2.self_attn.attend", causal=False),
        "text_model.encoder.layers.2.self_attn",
        "text_model.encoder.layers.2.self_attn.out_proj",
    ),
    "positions": (("text", "l"), replaced("text_model.embeddings", position_off_by_one), "text_model.embeddings", ""),
    "pooled elsewhere": (("text", "l"), replaced("", pooled_at_the_end), "", ""),
}


@pytest.mark.parametrize(
    "fault, dtype",
    [
        (fault, dtype)
        for fault in FAULTS
        for dtype in ("float32", "float64")
        if fault != "swapped skips" or dtype == "float32"
    ],
)  # a large network
def test_points_at_the_planted_fault(fault, dtype):
    network, plant, path, first_seen = FAULTS[fault]
    found = found_in(*network, DTYPES[dtype], plant).faults
    assert (found[0].path, found[0].first_seen) == (path, first_seen)
    assert [row.path for row in found[1:]] == ([f"{BLOCK}.norm2"] if fault == "swapped norms" else [])


def wrong_skip(block, x, skips, emb, context):
    return type(block).forward(block, x, skips[::-1], emb, context)


def test_a_network_that_fails_is_located_too():
    found = found_in(*UNET, torch.float32, replaced("up_blocks.0", wrong_skip))
    rows, faults = found.rows, found.faults
    assert [(row.path, row.first_seen) for row in faults] == [("up_blocks.0", "")]  # before it calls another
    assert "RuntimeError" in faults[0].failure and "RuntimeError" in rows[0].failure
    assert faults[0].error == float("inf") and "RuntimeError" in report.describe("unet", found)
    assert next(row for row in rows if row.path == "up_blocks.1").run_error is None  # the run did not get there


@torch.no_grad()
def test_a_number_that_is_not_finite_departs():
    def plant(network):
        network.conv_in.bias[0] = torch.nan

    assert [row.path for row in found_in(*UNET, torch.float32, plant).faults] == ["conv_in"]


@pytest.fixture
def program(monkeypatch, capsys):
    """scripts/compare.py with arguments -> its exit status, what it prints, and its errors."""
    import compare as module

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            module.main()
        return stop.value.code, *capsys.readouterr()

    return run


SMALL, TINY = ("--height", 64, "--width", 96), ("--height", 16, "--width", 24)


def test_the_miniature_agrees(script, tmp_path):
    result = script("compare.py", *SMALL, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "agree" in line]
    assert [line.split(" blocks")[0] for line in lines] == [
        "unet: all 316",
        "vae encode: all 56",
        "vae decode: all 76",
        "text_encoder: all 38",
    ]
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["agrees"] and [len(rows) for rows in found["networks"].values()] == [316, 56, 76, 38]
    page = (tmp_path / "compare.html").read_text()
    assert all(line in page for line in lines) and "//" not in page and 'class="first"' not in page
    assert page.count("<details>") == 4 and "checked>" not in page  # all of it is folded
    assert page.count('type="checkbox"') > 10 and page.count("data-inner") > 30
    with Image.open(tmp_path / "compare.png") as image:
        assert image.format == "PNG" and image.size[0] == 2000


def test_a_fault_of_ours_shows(program, monkeypatch, tmp_path):
    """In every feed-forward layer; the first of them is named, and outlined on the page."""

    def tanh_geglu(x):
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate, approximate="tanh")

    monkeypatch.setattr(ops, "geglu", tanh_geglu)
    status, out, _ = program(*SMALL, "--parts", "unet", "--out", tmp_path)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0"
    assert status == 1
    assert out.startswith(f"unet: {path} (GEGLU) departs first: error ") and "9 more depart by themselves" in out
    rows = json.loads((tmp_path / "compare.json").read_text())["networks"]["unet"]
    assert [row["path"] for row in rows if row["own"]][0] == path
    page = (tmp_path / "compare.html").read_text()
    assert page.count('class="first"') == 1 and path in page.split('class="first"')[1][:200]
    assert page.count("<details open>") == 1
    # The blocks that hold a fault are unfolded, and no other
    bodies = page.split("<tbody>")[1:]
    assert any("checked" in body for body in bodies)
    assert all(("checked" in body) == ("data-inner class=" in body) for body in bodies)


def test_without_matplotlib_only_the_heat_map_is_left_out(program, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, errors = program("--network", "vae_taesd", *TINY, "--out", tmp_path, "--json")
    assert status == 0 and len(errors.splitlines()) == 1 and "pip install matplotlib" in errors
    assert json.loads(out) == json.loads((tmp_path / "compare.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "compare.json"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_weights_of_a_published_shape(program, dtype):
    status, out, _ = program("--network", "vae_taesd", *TINY, "--dtype", dtype, "--backend", "reference", "--all")
    assert status == 0, out
    assert "vae encode: all 58 blocks agree" in out and "vae decode: all 58 blocks agree" in out
    assert len(out.splitlines()) == 2 * (58 + 3)  # a verdict, a head, all blocks, an empty line


def test_every_manifest_is_a_network():
    manifests = (ROOT / "weights" / "manifests").glob("*.json")
    assert set(cases.NETWORKS) == {path.stem for path in manifests}


@pytest.mark.parametrize(
    "args, message",
    [
        (("--model", "nowhere"), "nowhere"),
        (("--parts", "text_encoder_2"), "has no text_encoder_2: its parts are unet, vae, text_encoder"),
        (("--network", "vae_taesd", "--parts", "vae"), "--parts and --variant go with --model"),
        (("--network", "unet_sd16"), "invalid choice: 'unet_sd16'"),
        (("--height", 60), "--height 60: choose a multiple of 8"),
        (("--device", "nonsense"), "nonsense"),
    ],
)
def test_bad_input_is_one_line(program, args, message):
    status, out, errors = program(*args)
    assert (status, out) == (2, "")
    assert message in errors.splitlines()[-1] and "Traceback" not in errors


def test_a_model_folder(program, tmp_path):
    tiny_sdxl(tmp_path / "model")
    status, out, _ = program("--model", tmp_path / "model", *SMALL)
    assert status == 0, out
    assert [line.split(":")[0] for line in out.splitlines() if " agree;" in line] == [
        "unet",
        "vae encode",
        "vae decode",
        "text_encoder",
        "text_encoder_2",
    ]
