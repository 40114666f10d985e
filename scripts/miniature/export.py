"""Write the trained miniature as a folder in the published layout.

Reads vae.pt, unet.pt, the loss logs, pictures.json and sources.json from --from; writes float16 safetensors, configs
that diffusers reads too, tokenizer files, loss.png and training.json (the facts of the model card) to --to.

    python scripts/miniature/export.py --from build/miniature --to weights/miniature
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

import weights
from ldm.clip import CLIPText
from ldm.config import FAMILIES, CLIPConfig, LatentConfig, ModelConfig, UNetConfig, VAEConfig
from ldm.model import Model
from ldm.tokenizer import Tokenizer
from ldm.unet import UNet
from ldm.vae import VAE
from weights.disk.write import write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def assemble(vae_state: dict[str, Any], unet_state: dict[str, Any]) -> Model:
    """The trained networks of the two checkpoints, of which the UNet and the text tower are averaged, in float16."""
    vae = VAE(VAEConfig(**vae_state["config"]))
    vae.load_state_dict(vae_state["vae"])
    unet = UNet(UNetConfig(**unet_state["config"]["unet"]))
    unet.load_state_dict(take_part(unet_state["ema"], "unet"))
    text = CLIPText(CLIPConfig(**unet_state["config"]["text"]))
    text.load_state_dict(take_part(unet_state["ema"], "text"))
    facts = ModelConfig(
        family=FAMILIES["sd1"],
        unet=unet.config,
        vae=vae.config,
        texts=(text.config,),
        pad_ids=(49407,),
        latent=LatentConfig(unet_state["scale"]),
        prediction="v",
        sampler="dpmpp_2m",
        schedule="karras",
        steps=20,
        guidance=3.0,
        size=unet_state["size"],
    )
    tokenizer = Tokenizer(length=text.config.length)
    return Model(unet.half(), vae.half(), {"text_encoder": text.half()}, tokenizer, facts)


def take_part(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors whose names begin with "PART.", without that."""
    prefix = part + "."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


LOSSES = {  # training -> the number of its log that is plotted, and what it is
    "vae": ("pixel", "mean absolute error of a pixel in [-1, 1]"),
    "unet": ("loss", "squared error of the velocity"),
}


def plot_losses(build: Path, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for axis, (name, (key, label)) in zip(axes, LOSSES.items()):
        log = [json.loads(line) for line in (build / f"{name}.jsonl").read_text().splitlines()]
        axis.plot([record["step"] for record in log], [record[key] for record in log], linewidth=1)
        axis.set(title=name, xlabel="step", ylabel=label, yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=80)


def describe(build: Path, model: Model, vae_state: dict[str, Any], unet_state: dict[str, Any]) -> dict[str, Any]:
    """The facts of the model card."""
    records = json.loads((build / "pictures.json").read_text())
    networks = dict(vae=model.vae, unet=model.unet, text=model.texts["text_encoder"])
    return dict(
        sources=json.loads((build / "sources.json").read_text()),
        torch=torch.__version__,
        size=unet_state["size"],
        device=unet_state["device"],
        pictures=len(records),
        emoji=len({record["label"] for record in records}),
        learned=unet_state["learned"],
        parameters={name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        vae=describe_run(vae_state),
        unet=describe_run(unet_state),
    )


def describe_run(state: dict[str, Any]) -> dict[str, int]:
    return dict(steps=state["step"], batch=state["batch"], minutes=round(state["seconds"] / 60))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="build", type=Path, default=Path("build/miniature"))
    parser.add_argument("--to", type=Path, default=Path("weights/miniature"))
    args = parser.parse_args()

    vae_state = torch.load(args.build / "vae.pt", weights_only=True, map_location="cpu")
    unet_state = torch.load(args.build / "unet.pt", weights_only=True, map_location="cpu")
    model = assemble(vae_state, unet_state)
    # weights.save writes to no folder that exists
    with tempfile.TemporaryDirectory(dir=args.build) as scratch:
        weights.save(model, Path(scratch) / "model")
        shutil.copytree(Path(scratch) / "model", args.to, dirs_exist_ok=True)
    plot_losses(args.build, args.to / "loss.png")
    write_json(args.to / "training.json", describe(args.build, model, vae_state, unet_state))
    total = sum(path.stat().st_size for path in args.to.rglob("*") if path.is_file())
    print(f"{args.to}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    stopping.run(main)
