"""What the LyCORIS package makes of its own files: merged weights of one layer, by algorithm, kernel and strength.

    PYTHONPATH=tests python -m support.lycoris_values tests/ldm/lycoris.safetensors    # lycoris-lora 4.1.3 wrote it

The file holds for every case `<algorithm> <kernel>/` the weight `base`, the `fields` of the adapter's file, and
`merged <strength>`. LyCORIS computes in float32.
"""

import sys
from collections.abc import Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SHAPES = {"linear": (16, 4), "1x1": (16, 4, 1, 1), "3x3": (16, 4, 3, 3)}
STRENGTHS = (1.0, -0.6)
RANK = 2


def cases() -> Iterator[tuple[str, Tensor, dict[str, Tensor], tuple[float, ...]]]:
    """Name, base, fields, and the strengths at which ours is LyCORIS' rule."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for kernel, (o, i, *k) in SHAPES.items():
        ones = [1] * len(k)
        alpha = {"alpha": torch.tensor(3.0)}
        up = draw(o, RANK, *ones)
        down = draw(RANK, i, *k)
        lora = {"lora_up.weight": up, "lora_down.weight": down} | alpha
        flat = i * int(torch.tensor([1, *k]).prod())
        loha = {f"hada_w{n}_a": draw(o, RANK) for n in (1, 2)} | {f"hada_w{n}_b": draw(RANK, flat) for n in (1, 2)}
        per_output = (o, *[1] * (1 + len(k)))
        glora = {"a1": (i, RANK), "a2": (RANK, i), "b1": (o, RANK)}
        glora = {f"{name}.weight": draw(*shape, *ones) for name, shape in glora.items()}
        made = {
            "lora": lora,
            "loha": loha | {"alpha": torch.tensor(2.0)},  # merging, LyCORIS applies another scale than 1 twice
            "lokr": {"lokr_w1": draw(2, 2), "lokr_w2": draw(8, 2, *k)} | alpha,
            "glora": glora | {"b2.weight": draw(RANK, i, *k)} | alpha,
            "ia3 of outputs": {"weight": draw(*([1, o, *ones] if k else [o])), "on_input": torch.tensor(0)},
            "ia3 of inputs": {"weight": draw(*([1, i, *ones] if k else [i])), "on_input": torch.tensor(1)},
            "full": {"diff": draw(o, i, *k)},
            "oft": {"oft_blocks": draw(4, 4, 4), "alpha": torch.tensor(0.0)},
            "oft bounded": {"oft_blocks": draw(4, 4, 4), "alpha": torch.tensor(0.2)},
            "boft": {"oft_blocks": draw(3, 4, 4, 4), "alpha": torch.tensor(0.0)},
            "boft bounded": {"oft_blocks": draw(3, 4, 4, 4), "alpha": torch.tensor(0.2)},
        }
        if k == [3, 3]:
            made["tucker"] = {
                "lora_up.weight": draw(o, RANK, 1, 1),
                "lora_down.weight": draw(RANK, i, 1, 1),
                "lora_mid.weight": draw(RANK, RANK, 3, 3),
            } | alpha
        # At other strengths LyCORIS keeps the whole of `rescale`, and of DoRA the whole of the direction.
        whole = {
            "oft rescaled": made["oft"] | {"rescale": draw(*per_output)},
            "boft rescaled": made["boft"] | {"rescale": draw(*per_output)},
            "dora of outputs": lora | {"dora_scale": draw(*per_output).abs() + 1},
            "dora of inputs": lora | {"dora_scale": draw(1, i, *ones).abs() + 1},
        }
        for algorithm, fields in (made | whole).items():
            strengths = STRENGTHS[:1] if algorithm in whole else STRENGTHS
            yield f"{algorithm} {kernel}", draw(o, i, *k), fields, strengths


@torch.no_grad()
def merged(algorithm: str, base: Tensor, fields: dict[str, Tensor], strength: float) -> Tensor:
    """The weight of a layer, into which LyCORIS merges."""
    from lycoris.modules import IA3Module, LoConModule, get_module, make_module

    o, i, *k = base.shape
    layer = nn.Conv2d(i, o, k, bias=False) if k else nn.Linear(i, o, bias=False)
    layer.weight.copy_(base)
    if algorithm.startswith("ia3"):
        module = IA3Module("layer", layer, train_on_input=bool(fields["on_input"]))
        module.load_state_dict(fields)
    elif algorithm.startswith("dora of inputs"):
        alpha = float(fields["alpha"])
        module = LoConModule("layer", layer, lora_dim=RANK, alpha=alpha, weight_decompose=True, wd_on_out=False)
        module.load_state_dict(fields)
    else:
        named = {f"layer.{name}": tensor for name, tensor in fields.items()}
        kind, tensors = get_module(named, "layer")
        module = make_module(kind, tensors, "layer", layer)
    module.merge_to(strength)
    return layer.weight.detach().clone()


def main() -> None:
    tensors = {}
    for name, base, fields, strengths in cases():
        tensors[f"{name}/base"] = base
        tensors |= {f"{name}/fields/{field}": tensor.clone() for field, tensor in fields.items()}
        tensors |= {f"{name}/merged {strength}": merged(name, base, fields, strength) for strength in strengths}
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
