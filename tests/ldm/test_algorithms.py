"""The algorithms of adapter files, by value: against their formulas, written out here with whole matrices in float64,
for a linear layer, a 1x1 and a 3x3 convolution, at several strengths; against LyCORIS and peft; in stacks; alphas;
saving."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import IA3Config, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.adapters import lora
from ldm.adapters.deltas import DoRA, GLoRA, PeftDoRA, Product
from ldm.adapters.products import BOFT, IA3, OFT, InputOFT, KohyaOFT, OFTDiag, OneTrainerOFT
from ldm.config import MODELS, UNetConfig
from ldm.model import Model
from ldm.unet import UNet
from support import lycoris_values
from support.networks import clip_pair, unet_inputs, unet_pair
from support.numbers import randn, randomize, relative_error, relative_l2
from weights import CheckpointError
from weights.adapters.kinds import build, scale_of, split_key
from weights.adapters.read import load_adapter
from weights.adapters.write import save_adapter

EXACT = 1e-13  # of float64, after a few products of small matrices; measured 1e-15
STRENGTHS = (1.0, 0.6, -0.7, 2.0)
EPS = torch.finfo(torch.float64).eps
BLOCK = "mid_block.attentions.0"
LAYERS = {  # in the small network: (8 6), (8 8 1 1), (8 4 3 3)
    "linear": f"{BLOCK}.transformer_blocks.0.attn2.to_k",
    "1x1": f"{BLOCK}.proj_in",
    "3x3": "conv_in",
}
OUTPUTS = 8
MARK = "kohya's"  # no tensor of a file, but a sign that kohya's OFT writes it


@pytest.fixture(scope="module")
def loaded() -> Model:
    unet = UNetConfig(
        in_channels=4,
        channels=(OUTPUTS,),
        heads=(2,),
        depth=(1,),
        mid_depth=1,
        context_dim=6,
        layers=1,
        groups=4,
        linear_projection=False,
    )
    network = randomize(UNet(unet).double(), 0)
    return Model(network, None, {}, None, replace(MODELS["sd15"], unet=unet, texts=()))


@pytest.fixture
def model(loaded) -> Model:
    return copy.deepcopy(loaded)


Fields = dict[str, Tensor]
Formula = Callable[[Tensor, float], Tensor]  # weight, strength -> changed weight


def blocks_on_diagonal(blocks: Tensor) -> Tensor:
    """(k n n) as one matrix (o o)."""
    return torch.block_diag(*blocks)


def cayley(blocks: Tensor) -> Tensor:
    """(k n n) -> the rotation (o o)."""
    whole = blocks_on_diagonal(blocks)
    skew = whole - whole.T
    identity = torch.eye(len(whole), dtype=torch.float64)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def part_of(matrix: Tensor, strength: float) -> Tensor:
    identity = torch.eye(len(matrix), dtype=torch.float64)
    return strength * matrix + (1 - strength) * identity


def rotate(matrix: Tensor, weight: Tensor) -> Tensor:
    return (matrix @ weight.flatten(1)).reshape(weight.shape)


def bounded(blocks: Tensor, limit: float) -> Tensor:
    """The blocks, smaller, so that the norm of blocks - blocks^T is the limit."""
    norm = (blocks - blocks.mT).square().sum().sqrt()
    assert norm > limit  # else the test shows nothing
    return blocks * limit / (norm + 1e-8)


def butterfly(blocks: Tensor, weight: Tensor, strength: float) -> Tensor:
    """BOFT as permutations: at each stage a block holds n/2 pairs of outputs that are apart by 2^stage n / 2."""
    count, size = blocks.shape[1:3]
    for stage, stage_blocks in enumerate(blocks):
        apart = 2**stage * size // 2
        order = []
        for start in range(0, count * size, 2 * apart):
            for first in range(start, start + apart):
                order += [first, first + apart]
        permutation = torch.eye(count * size, dtype=torch.float64)[order]
        turn = permutation.T @ part_of(cayley(stage_blocks), strength) @ permutation
        weight = rotate(turn, weight)
    return weight


def lora_pair(shape: tuple[int, ...]) -> tuple[Fields, Tensor]:
    """A LoRA of rank 2 and alpha 3 in kohya's names, and its change."""
    o, i, *k = shape
    up = randn(o, 2, seed=1)
    down = randn(2, i, *k, seed=2)
    change = 3 / 2 * (up @ down.flatten(1)).reshape(shape)
    fields = {"lora_up.weight": up.reshape(o, 2, *[1] * len(k)), "lora_down.weight": down, "alpha": torch.tensor(3.0)}
    return fields, change


def added(fields: Fields, change: Tensor) -> tuple[Fields, Formula]:
    return fields, lambda weight, s: weight + s * change


def decomposed(fields: Fields, change: Tensor, of_inputs: bool) -> tuple[Fields, Formula]:
    """W + s (m (W + D) / (|W + D| + eps) - W), row by row or column by column."""
    o, i, *k = change.shape
    shape = (1, i) if of_inputs else (o, 1)
    magnitude = randn(*shape, *[1] * len(k), seed=3).abs() + 1

    def formula(weight: Tensor, s: float) -> Tensor:
        moved = weight + change
        whole = torch.empty_like(weight)
        for index in range(i if of_inputs else o):
            place = (slice(None), index) if of_inputs else (index,)
            length = moved[place].square().sum().sqrt() + EPS
            whole[place] = magnitude.flatten()[index] * moved[place] / length
        return weight + s * (whole - weight)

    return fields | {"dora_scale": magnitude}, formula


def plain_lora(shape):
    return added(*lora_pair(shape))


def full(shape):
    change = randn(*shape, seed=1)
    return added({"diff": change}, change)


def scalar_lora(shape):
    """LyCORIS' use_scalar, in files that keep it apart."""
    fields, change = lora_pair(shape)
    return added(fields | {"scalar": torch.tensor(0.25)}, 0.25 * change)


def whole_lokr(shape):
    """No factor is a product: alpha does not count, scalar does."""
    o, i, *k = shape
    first, second = randn(2, 2, seed=1), randn(o // 2, i // 2, *k, seed=2)
    change = torch.empty(shape, dtype=torch.float64)
    for row in range(o):
        for column in range(i):
            factor = first[row // (o // 2), column // (i // 2)]
            change[row, column] = factor * second[row % (o // 2), column % (i // 2)]
    fields = {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(5.0)}
    return added(fields | {"scalar": torch.tensor([0.5])}, 0.5 * change)


def glora(shape, old: bool = False):
    """W + s alpha / r (W A1 A2 + B1 B2); before LyCORIS 3.0 the factors had each other's shapes and places."""
    o, i, *k = shape
    ones = [1] * len(k)
    a1, a2, b1, b2 = randn(i, 2, seed=1), randn(2, i, seed=2), randn(o, 2, seed=3), randn(2, i, *k, seed=4)

    def formula(weight: Tensor, s: float) -> Tensor:
        mixed = torch.zeros_like(weight)
        for column in range(i):
            for other in range(i):
                mixed[:, column] += weight[:, other] * (a1 @ a2)[other, column]
        return weight + s * 3 / 2 * (mixed + (b1 @ b2.flatten(1)).reshape(shape))

    tensors = {"a1": a2, "a2": a1, "b1": b2, "b2": b1} if old else {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    fields = {f"{name}.weight": tensor for name, tensor in tensors.items()}
    for name, tensor in fields.items():
        if tensor.ndim == 2:
            fields[name] = tensor.reshape(*tensor.shape, *ones)
    return fields | {"alpha": torch.tensor(3.0)}, formula


def glora_with_magnitudes(shape):
    """ComfyUI reads both together."""
    fields, formula = glora(shape)
    magnitude = randn(OUTPUTS, 1, *[1] * (len(shape) - 2), seed=5).abs() + 1

    def decomposed(weight: Tensor, s: float) -> Tensor:
        moved = formula(weight, 1.0)
        lengths = torch.stack([row.square().sum().sqrt() for row in moved]).reshape(magnitude.shape)
        return weight + s * (moved / (lengths + EPS) * magnitude - weight)

    return fields | {"dora_scale": magnitude}, decomposed


def ia3(shape, on_input: bool):
    """Each output or each input times 1 + s w."""
    o, i, *k = shape
    size = i if on_input else o
    factor = randn(size, seed=1)
    columns = (1, size) if on_input else (size, 1)

    def formula(weight: Tensor, s: float) -> Tensor:
        return weight * (1 + s * factor.reshape(*columns, *[1] * len(k)))

    fields = {"weight": factor.reshape(1, size, 1, 1) if k else factor, "on_input": torch.tensor(int(on_input))}
    return fields, formula


def oft(shape, alpha: float | None = None, rescale: bool = False):
    """(1 + s (c - 1)) (I + s (R^T - I)) W."""
    blocks = randn(2, 4, 4, seed=1)
    used = bounded(blocks, alpha * OUTPUTS) if alpha else blocks
    fields = {"oft_blocks": blocks} | ({} if alpha is None else {"alpha": torch.tensor(alpha, dtype=torch.float64)})
    scale = randn(OUTPUTS, *[1] * (len(shape) - 1), seed=2) if rescale else torch.ones(1, dtype=torch.float64)

    def formula(weight: Tensor, s: float) -> Tensor:
        return (1 + s * (scale - 1)) * rotate(part_of(cayley(used).T, s), weight)

    return fields | ({"rescale": scale} if rescale else {}), formula


def kohya_oft(shape):
    """Its bound has the epsilon above the line, too."""
    blocks = randn(2, 4, 4, seed=1)
    norm = (blocks - blocks.mT).square().sum().sqrt()
    used = blocks * (0.05 * OUTPUTS + 1e-8) / (norm + 1e-8)
    fields = {MARK: torch.empty(0), "oft_blocks": blocks, "alpha": torch.tensor(0.05, dtype=torch.float64)}
    return fields, lambda weight, s: rotate(part_of(cayley(used).T, s), weight)


def oft_diag(shape):
    """R itself, which need not be a rotation."""
    blocks = randn(2, 4, 4, seed=1)
    return {"oft_diag": blocks}, lambda weight, s: rotate(part_of(blocks_on_diagonal(blocks).T, s), weight)


def onetrainer_oft(shape, is_scaled: bool = False, is_shared: bool = False):
    """The inputs (i h w) are rotated by (I + Q) (I + Q + Q^2 + Q^3): by its transpose in linear layers."""
    inputs = torch.Size(shape[1:]).numel()
    triangles = 0.3 * randn(1 if is_shared else inputs // 2, 1, seed=1)
    skew = torch.zeros(inputs, inputs, dtype=torch.float64)
    for block in range(inputs // 2):
        value = triangles[0 if is_shared else block, 0]
        skew[2 * block, 2 * block + 1] = value
        skew[2 * block + 1, 2 * block] = -value
    identity = torch.eye(inputs, dtype=torch.float64)
    turn = identity + 2 * skew + 2 * skew @ skew + 2 * skew @ skew @ skew + skew @ skew @ skew @ skew
    if len(shape) == 2:
        turn = turn.T
    fields = {"oft_R.weight": triangles}
    if is_scaled:  # by the root of the number of elements, which is 1 in blocks of 2
        fields["oft_R.scaled_oft"] = torch.tensor(1)
    return fields, lambda weight, s: (weight.flatten(1) @ part_of(turn, s)).reshape(weight.shape)


def boft(shape, stages: int, size: int, alpha: float = 0.0, rescale: bool = False):
    blocks = randn(stages, OUTPUTS // size, size, size, seed=1)
    used = bounded(blocks, alpha * OUTPUTS) if alpha else blocks
    scale = randn(OUTPUTS, *[1] * (len(shape) - 1), seed=2) if rescale else torch.ones(1, dtype=torch.float64)
    fields = {"oft_blocks": blocks, "alpha": torch.tensor(alpha, dtype=torch.float64)}

    def formula(weight: Tensor, s: float) -> Tensor:
        return (1 + s * (scale - 1)) * butterfly(used, weight, s)

    return fields | ({"rescale": scale} if rescale else {}), formula


ALGORITHMS: dict[str, Callable[[tuple[int, ...]], tuple[Fields, Formula]]] = {
    "LoRA": plain_lora,
    "full": full,
    "scalar": scalar_lora,
    "whole LoKr": whole_lokr,
    "DoRA of outputs": lambda shape: decomposed(*lora_pair(shape), of_inputs=False),
    "DoRA of inputs": lambda shape: decomposed(*lora_pair(shape), of_inputs=True),
    "DoRA of a difference": lambda shape: decomposed({"diff": randn(*shape)}, randn(*shape), of_inputs=False),
    "GLoRA": glora,
    "GLoRA, old": lambda shape: glora(shape, old=True),
    "GLoRA with magnitudes": glora_with_magnitudes,
    "IA3 of outputs": lambda shape: ia3(shape, on_input=False),
    "IA3 of inputs": lambda shape: ia3(shape, on_input=True),
    "OFT": oft,
    "OFT, alpha 0": lambda shape: oft(shape, alpha=0.0),
    "OFT, bounded": lambda shape: oft(shape, alpha=0.05),
    "OFT, rescaled": lambda shape: oft(shape, alpha=0.05, rescale=True),
    "OFT of kohya": kohya_oft,
    "OFT before LyCORIS 2.1": oft_diag,
    "OFT of OneTrainer": onetrainer_oft,
    "OFT of OneTrainer, shared": lambda shape: onetrainer_oft(shape, is_scaled=True, is_shared=True),
    "BOFT": lambda shape: boft(shape, stages=2, size=4),
    "BOFT in pairs": lambda shape: boft(shape, stages=3, size=2),
    "BOFT, bounded, rescaled": lambda shape: boft(shape, stages=3, size=2, alpha=0.1, rescale=True),
}


def weight_of(model: Model, layer: str) -> Tensor:
    return model.unet.get_parameter(f"{LAYERS[layer]}.weight")


def write(path: Path, layer: str, fields: Fields) -> Path:
    head = "oft_unet_" if MARK in fields else "lora_unet_"
    stem = head + LAYERS[layer].replace(".", "_")
    save_file(
        {f"{stem}.{field}": tensor.clone().contiguous() for field, tensor in fields.items() if field != MARK}, path
    )
    return path


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_formula(algorithm, layer, model, tmp_path):
    """From a file, at every strength; strength 0 and undoing leave the base, bit for bit."""
    base = weight_of(model, layer).detach().clone()
    if algorithm == "GLoRA, old" and layer == "3x3":
        pytest.skip("it was for linear layers and 1x1 convolutions")
    fields, formula = ALGORITHMS[algorithm](tuple(base.shape))
    adapter = load_adapter(write(tmp_path / "a.safetensors", layer, fields), model)
    assert adapter.unmatched == () and list(adapter.deltas) == [f"unet.{LAYERS[layer]}.weight"]
    for strength in STRENGTHS:
        expected = formula(base, strength)
        merged = lora.merge(model, [(adapter, strength)])
        assert relative_error(weight_of(model, layer), expected) < EXACT
        assert relative_l2(expected, base) > 0.01  # the change is seen
        merged.undo()
        assert torch.equal(weight_of(model, layer), base)
    with lora.merged(model, [(adapter, 0.0)]):
        assert torch.equal(weight_of(model, layer), base)


@pytest.mark.parametrize("algorithm", ["OFT, rescaled", "BOFT", "IA3 of inputs", "GLoRA", "DoRA of inputs"])
def test_half_precision_is_rounded_once(algorithm, model, tmp_path):
    """Computed in float32; strength 0 keeps every bit, of -0 too."""
    fields, _ = ALGORITHMS[algorithm]((OUTPUTS, 6))
    adapter = load_adapter(write(tmp_path / "a.safetensors", "linear", fields), model)
    model.unet.half()
    weight_of(model, "linear").data[0, 0] = -0.0
    base = weight_of(model, "linear").detach().clone()
    name = f"unet.{LAYERS['linear']}.weight"
    with lora.merged(model, [(adapter, 0.0)]):
        assert torch.equal(weight_of(model, "linear").view(torch.int16), base.view(torch.int16))
    with lora.merged(model, [(adapter, 0.6)]):
        found = weight_of(model, "linear")
        exact = adapter.deltas[name].apply(base.double(), 0.6)
        if algorithm != "DoRA of inputs":  # float32 adds another rounding unit to its norm
            assert found.dtype == torch.float16 and relative_error(found.double(), exact) < 1e-3  # half a unit is 5e-4
        assert torch.equal(found, adapter.deltas[name].apply(base.float(), 0.6).half())


@pytest.mark.parametrize("source", ["stored", "live"])
def test_lycoris_merges_the_same(source):
    """The values that LyCORIS 4.1.3 gave, and those of the package that is installed, if one is. float32: 1e-5."""
    if source == "live":
        pytest.importorskip("lycoris", reason="lycoris-lora is not installed; its stored values are compared anyway")
    stored = load_file(Path(__file__).with_name("lycoris.safetensors"))
    seen = 0
    for name, base, fields, strengths in lycoris_values.cases():
        if source == "stored":
            head = f"{name}/fields/"
            base = stored[f"{name}/base"]
            fields = {key.removeprefix(head): tensor for key, tensor in stored.items() if key.startswith(head)}
        named = {"weight" if field == "weight" else split_key(f"x.{field}")[1]: fields[field] for field in fields}
        (delta,) = build(named, scale_of("x", named, {})).values()
        for strength in strengths:
            expected = stored[f"{name}/merged {strength}"]
            if source == "live":
                expected = lycoris_values.merged(name, base, fields, strength)
            assert relative_error(delta.apply(base.double(), strength), expected.double()) < 1e-5, (name, strength)
            seen += 1
    assert seen == 3 * (11 * 2 + 4) + 2


ALPHAS = {  # alpha of a LoRA of rank 2 -> its scale
    "none": (None, 1.0),
    "float32": (torch.tensor(3.0), 1.5),
    "float16": (torch.tensor(3.0).half(), 1.5),
    "bfloat16": (torch.tensor([3.0]).bfloat16(), 1.5),
    "int64": (torch.tensor(3), 1.5),
    "int32": (torch.tensor([3], dtype=torch.int32), 1.5),
    "zero": (torch.tensor(0.0), 1.0),
    "whole zero": (torch.tensor(0), 1.0),
    "negative": (torch.tensor(-1.0), -0.5),
    "a fraction": (torch.tensor(0.5, dtype=torch.float64), 0.25),
}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_alphas(alpha, model, tmp_path):
    """0 and none stand for the rank, "no scaling", in kohya's tools and in LyCORIS."""
    tensor, scale = ALPHAS[alpha]
    one = {} if tensor is None else {"alpha": tensor}
    o, i = 8, 6
    up, down, other, w1 = randn(o, 2, seed=1), randn(2, i, seed=2), randn(o, 2, seed=3), randn(4, 3, seed=4)
    glora = {"a1.weight": randn(i, 2), "a2.weight": randn(2, i), "b1.weight": up, "b2.weight": down}
    base = weight_of(model, "linear").detach().clone()
    changes = [
        ({"lora_up.weight": up, "lora_down.weight": down}, up @ down),
        ({"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": other, "hada_w2_b": down}, (up @ down) * (other @ down)),
        ({"lokr_w1": w1, "lokr_w2_a": up[:2], "lokr_w2_b": down[:, :2]}, torch.kron(w1, up[:2] @ down[:, :2])),
        (glora, base @ randn(i, 2) @ randn(2, i) + up @ down),
    ]
    for fields, change in changes:
        adapter = load_adapter(write(tmp_path / "a.safetensors", "linear", fields | one), model)
        with lora.merged(model, [(adapter, 0.5)]):
            assert relative_error(weight_of(model, "linear"), base + 0.5 * scale * change) < EXACT


def test_square_weights_in_both_generations_of_glora():
    """Their factors have equal shapes; the rank is the smaller number."""
    a, b, down, up = randn(8, 2, seed=1), randn(2, 8, seed=2), randn(2, 8, seed=3), randn(8, 2, seed=4)
    weight = randn(8, 8, seed=5)
    alpha = torch.tensor(4.0)
    for fields in ({"a1": a, "a2": b, "b1": up, "b2": down}, {"a1": b, "a2": a, "b1": down, "b2": up}):
        fields["alpha"] = alpha
        (delta,) = build(fields, scale_of("x", fields, {})).values()
        assert relative_error(delta.apply(weight, 0.5), weight + 0.5 * 2 * (weight @ a @ b + up @ down)) < EXACT


def test_adapters_act_in_the_order_of_the_list(model, tmp_path):
    """Each on what those before it left; those that add can be exchanged, the others cannot."""
    base = weight_of(model, "linear").detach().clone()
    made = {}
    for name in ("LoRA", "full", "DoRA of outputs", "GLoRA", "OFT", "BOFT", "IA3 of outputs"):
        fields, formula = ALGORITHMS[name](tuple(base.shape))
        made[name] = load_adapter(write(tmp_path / f"{name}.safetensors", "linear", fields), model), formula
    orders = [["LoRA", "OFT", "full"], ["OFT", "LoRA", "DoRA of outputs"], list(made), list(made)[::-1]]
    for order in orders:
        expected = base
        for name in order:
            expected = made[name][1](expected, 0.7)
        with lora.merged(model, [(made[name][0], 0.7) for name in order]):
            assert relative_error(weight_of(model, "linear"), expected) < EXACT
    found = []
    for order in (("LoRA", "full"), ("full", "LoRA"), ("LoRA", "OFT"), ("OFT", "LoRA")):
        with lora.merged(model, [(made[name][0], 0.7) for name in order]):
            found.append(weight_of(model, "linear").detach().clone())
    assert relative_error(found[0], found[1]) < EXACT and relative_l2(found[2], found[3]) > 0.1


def test_strength_of_dora_follows_the_writer(model, tmp_path):
    """The same tensors under kohya's names and under peft's: equal at strength 1, and at 0 only kohya's is the base."""
    base = weight_of(model, "linear").detach().clone()
    fields, change = lora_pair(tuple(base.shape))
    magnitude = randn(OUTPUTS, 1, seed=3).abs() + 1
    kohya = load_adapter(write(tmp_path / "kohya.safetensors", "linear", fields | {"dora_scale": magnitude}), model)
    stem = f"unet.{LAYERS['linear']}"
    tensors = {"lora_A.weight": fields["lora_down.weight"], "lora_B.weight": 1.5 * fields["lora_up.weight"]}
    tensors["lora_magnitude_vector"] = magnitude[:, 0].clone()
    save_file({f"{stem}.{field}": tensor for field, tensor in tensors.items()}, tmp_path / "peft.safetensors")
    peft = load_adapter(tmp_path / "peft.safetensors", model)
    assert type(kohya.deltas[f"{stem}.weight"]) is DoRA and type(peft.deltas[f"{stem}.weight"]) is PeftDoRA
    for strength in (1.0, 0.0, 0.4, -1.3):
        moved = base + strength * change
        scaled = moved / torch.stack([row.square().sum().sqrt() for row in moved])[:, None] * magnitude
        with lora.merged(model, [(peft, strength)]):
            by_peft = weight_of(model, "linear").detach().clone()
        with lora.merged(model, [(kohya, strength)]):
            by_kohya = weight_of(model, "linear").detach().clone()
        assert relative_error(by_peft, scaled) < EXACT
        assert (relative_l2(by_kohya, by_peft) < 1e-14) == (strength == 1)
        assert torch.equal(by_kohya, base) == (strength == 0)


def test_an_output_of_zeros_stays_finite(model, tmp_path):
    """The rounding unit beside the norm, as in LyCORIS: no 0 / 0."""
    fields, _ = ALGORITHMS["DoRA of a difference"]((OUTPUTS, 6))
    fields["diff"] = torch.zeros(OUTPUTS, 6, dtype=torch.float64)
    weight_of(model, "linear").data[3] = 0
    adapter = load_adapter(write(tmp_path / "a.safetensors", "linear", fields), model)
    with lora.merged(model, [(adapter, 0.5)]):
        assert weight_of(model, "linear").isfinite().all()
        assert torch.equal(weight_of(model, "linear")[3], torch.zeros(6, dtype=torch.float64))


def test_peft_merges_ia3_the_same(tmp_path):
    """Of inputs and of outputs, where peft scales the bias too; in layers that have one and that have none."""
    _, reference = unet_pair("sd15")
    model = Model(copy.deepcopy(unet_pair("sd15")[0]), None, {}, None, replace(MODELS["sd15"], texts=()))
    config = IA3Config(target_modules=["to_k", "to_out.0", "ff.net.2"], feedforward_modules=["ff.net.2"])
    network = get_peft_model(copy.deepcopy(reference), config)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in network.named_parameters():
        if "ia3_l" in key:
            parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=generator).double()
    network.save_pretrained(tmp_path)
    inputs = [{key: value[:1] for key, value in part.items()} for part in unet_inputs("sd15", (16, 16))]
    pipeline = StableDiffusionPipeline(
        unet=network,
        text_encoder=clip_pair("l")[1],
        **dict.fromkeys(("vae", "tokenizer", "scheduler", "safety_checker", "feature_extractor")),
    )
    with torch.no_grad():
        expected = pipeline.unet(**inputs[1]).sample
        before = model.unet(**inputs[0])
        adapter = load_adapter(tmp_path, model)
        assert {name.rpartition(".")[2] for name in adapter.deltas} == {"weight", "bias"}
        with lora.merged(model, [(adapter, 1.0)]):
            assert relative_error(model.unet(**inputs[0]), expected) < 1e-12  # as whole networks: measured 1e-14
        assert relative_l2(before, expected) > 0.01
        assert torch.equal(model.unet(**inputs[0]), before)


@pytest.mark.parametrize("is_series", [True, False])
def test_peft_merges_oft_the_same(is_series, tmp_path):
    """Of linear layers. The series and the exact form turn in opposite directions."""
    ours, reference = unet_pair("sd15")
    model = Model(copy.deepcopy(ours), None, {}, None, replace(MODELS["sd15"], texts=()))
    config = OFTConfig(oft_block_size=8, target_modules=["to_q", "to_v"], use_cayley_neumann=is_series)
    network = get_peft_model(copy.deepcopy(reference), config)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in network.named_parameters():
        if "oft_R" in key:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).double()
    network.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path, model)
    assert len(adapter.deltas) == len(network.base_model.targeted_module_names)
    with lora.merged(model, [(adapter, 1.0)]):
        for name in adapter.deltas:
            path = name.removeprefix("unet.").removesuffix(".weight")
            layer = network.base_model.model.get_submodule(path)
            with torch.no_grad():
                x = randn(3, layer.in_features)
                assert relative_error(model.unet.get_submodule(path)(x), layer(x)) < 1e-12, path
                assert relative_l2(layer.base_layer(x), layer(x)) > 0.01
    assert relative_error(model.unet.conv_in.weight, ours.conv_in.weight) == 0


def test_oft_of_peft_that_is_refused(loaded, tmp_path):
    """Other rules than those that are implemented, by the name of the setting."""
    stem = f"base_model.model.{LAYERS['linear']}"
    save_file({f"{stem}.oft_R.weight": torch.ones(3, 1)}, tmp_path / "adapter_model.safetensors")
    good = {"peft_type": "OFT", "peft_version": "0.21.2", "oft_block_size": 2}
    wrong = {"coft": True, "num_cayley_neumann_terms": 3, "peft_version": None}
    for key, value in wrong.items():
        config = good | {key: value}
        if value is None:
            del config[key]
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"{key} is "):
            load_adapter(tmp_path, loaded)
    (tmp_path / "adapter_config.json").write_text(json.dumps(good))
    (delta,) = load_adapter(tmp_path, loaded).deltas.values()
    assert type(delta) is InputOFT
    with pytest.raises(CheckpointError, match="kohya's layout cannot hold peft's OFT"):
        save_adapter(load_adapter(tmp_path, loaded), tmp_path / "new.safetensors", loaded, "kohya")


def test_scaled_oft_of_onetrainer():
    """Q is divided by the root of the number of its elements, 3 in blocks of 3."""
    triangles = randn(2, 3, seed=1)
    fields = {"triangles": triangles, "scaled_oft": torch.tensor(1)}
    (delta,) = build(fields, 1.0).values()
    weight = randn(4, 6, seed=2)
    assert relative_error(delta.apply(weight, 1.0), OneTrainerOFT(triangles / 3**0.5).apply(weight, 1.0)) < EXACT
    assert relative_l2(delta.apply(weight, 1.0), OneTrainerOFT(triangles).apply(weight, 1.0)) > 0.01


def test_attaching_takes_lora_only(model, tmp_path):
    """The others are refused with the name of their kind."""
    kinds = {"DoRA of outputs": "DoRA", "GLoRA": "GLoRA", "IA3 of inputs": "IA3", "OFT": "OFT", "BOFT": "BOFT"}
    for algorithm, kind in kinds.items():
        fields, _ = ALGORITHMS[algorithm]((OUTPUTS, 6))
        adapter = load_adapter(write(tmp_path / "a.safetensors", "linear", fields), model)
        with pytest.raises(ValueError, match=f"is no LoRA of a layer: merge it; {kind} cannot be attached"):
            with lora.attached(model, [(adapter, 1.0)]):
                pass


def test_saving_keeps_the_algorithm(model, tmp_path):
    """In kohya's layout, for a linear layer and for a convolution; diffusers' cannot hold them."""
    pair = Product(randn(6, 2), randn(2, 6))
    made = {
        "linear": [
            GLoRA(pair, Product(randn(8, 2), randn(2, 6)), 0.25),
            DoRA(GLoRA(pair, Product(randn(8, 2), randn(2, 6))), randn(8, 1) + 5),
            IA3(randn(8), on_input=False),
            IA3(randn(6), on_input=True),
            OFT(randn(2, 4, 4)),
            OFT(randn(2, 4, 4), 0.01, randn(8)),
            KohyaOFT(randn(2, 4, 4), 0.01),
            OFTDiag(randn(4, 2, 2)),
            BOFT(randn(2, 2, 4, 4), 0.01, randn(8)),
            OneTrainerOFT(randn(2, 3)),
        ],
        "3x3": [
            GLoRA(Product(randn(4, 2), randn(2, 4)), Product(randn(8, 2), randn(2, 4, 3, 3)), 0.25),
            IA3(randn(4), on_input=True),
            OFT(randn(2, 4, 4), 0.01, randn(8)),
            BOFT(randn(3, 4, 2, 2)),
        ],
    }
    number = 0
    for layer, deltas in made.items():
        weight = weight_of(model, layer).detach()
        name = f"unet.{LAYERS[layer]}.weight"
        for delta in deltas:
            number += 1
            path = tmp_path / f"{number}.safetensors"
            save_adapter(lora.Adapter({name: delta}), path, model, "kohya")
            again = load_adapter(path, model).deltas[name]
            assert type(again) is type(delta)
            assert torch.equal(again.apply(weight, 0.6), delta.apply(weight, 0.6))
            with pytest.raises(CheckpointError, match="^diffusers' layout cannot hold the [^\n]*: save it in kohya's$"):
                save_adapter(lora.Adapter({name: delta}), tmp_path / "new.safetensors", model)
    of_bias = lora.Adapter({"unet.conv_in.bias": IA3(randn(8), on_input=False)})
    with pytest.raises(CheckpointError, match="cannot hold the factors of unet.conv_in.bias"):
        save_adapter(of_bias, tmp_path / "new.safetensors", model, "kohya")


Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"  # (8 6)
FAULTS = {  # tensors -> what the error says
    "GLoRA of other inputs": (
        {"a1.weight": (5, 2), "a2.weight": (2, 5), "b1.weight": (8, 2), "b2.weight": (2, 6)},
        "are of two weights",
    ),
    "no square": ({"a1.weight": (5, 2), "a2.weight": (2, 6), "b1.weight": (8, 2), "b2.weight": (2, 6)}, "do not mix"),
    "GLoRA of vectors": (dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), (8,)), "are no matrices"),
    "half of a GLoRA": ({"a1.weight": (6, 2), "b1.weight": (8, 2)}, "a2 is missing"),
    "OFT of other outputs": ({"oft_blocks": (2, 3, 3)}, r"change of the shape \(2, 3, 3\), and .* is \(8, 6\)"),
    "no blocks": ({"oft_blocks": (0, 4, 4)}, "are no square matrices"),
    "rescale of others": ({"oft_blocks": (2, 4, 4), "rescale": (7, 1)}, "is not of 8 outputs"),
    "rescale of blocks": ({"oft_blocks": (2, 4, 4), "rescale": (2, 4, 1)}, "is no factor for each channel"),
    "no butterfly": ({"oft_blocks": (3, 2, 4, 4)}, "are no butterfly"),
    "odd butterfly": ({"oft_blocks": (1, 8, 1, 1)}, "are no butterfly"),
    "OFT with magnitudes": ({"oft_blocks": (2, 4, 4), "dora_scale": (8, 1)}, "dora_scale cannot stand with oft_blocks"),
    "OFT and LoRA": (
        {"oft_blocks": (2, 4, 4), "lora_up.weight": (8, 2), "lora_down.weight": (2, 6)},
        "down, up cannot stand with oft_blocks",
    ),
    "IA3 of others": ({"weight": (7,), "on_input": (1,)}, r"change of the shape \(7,\), and .* is \(8, 6\)"),
    "IA3 of a matrix": ({"weight": (8, 6), "on_input": (1,)}, "is no factor for each channel"),
    "IA3 without its weight": ({"on_input": (1,)}, "weight is missing"),
    "IA3 of nothing": ({"weight": (8,), "on_input": (2,)}, "on_input must be one number"),
    "IA3 of a convolution, of peft": ({"ia3_l": (1, 8, 1, 1)}, "is read for linear layers only"),
    "two scalars": (
        {"lora_up.weight": (8, 2), "lora_down.weight": (2, 6), "scalar": (2,)},
        "scalar must be one number",
    ),
    "T-LoRA": ({"lambda_layer": (2,)}, "T-LoRA is not implemented"),
    "peft's BOFT": ({"boft_R": (1, 2, 4, 4)}, "BOFT of peft is not implemented"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files(fault, loaded, tmp_path):
    shapes, message = FAULTS[fault]
    save_file({f"{Q}.{field}": torch.ones(shape) for field, shape in shapes.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_adapter(tmp_path / "a.safetensors", loaded)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
