"""Write the trained miniature as a folder in the published layout.

Reads vae.pt, unet.pt, the loss logs, pictures.json and sources.json from --from; writes float16 safetensors, configs
that diffusers reads too, tokenizer files, loss.png and training.json (the facts of the model card) to --to.

    python scripts/miniature/export.py --from build/miniature --to weights/miniature
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import matplotlib
import torch

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


def model(vae: dict, unet: dict) -> Model:
    """The trained networks, of which the UNet and the text tower are averaged, in float16."""
    configs = dict(
        vae=VAEConfig(**vae["config"]),
        unet=UNetConfig(**unet["config"]["unet"]),
        text=CLIPConfig(**unet["config"]["text"]),
    )
    networks = dict(vae=VAE(configs["vae"]), unet=UNet(configs["unet"]), text=CLIPText(configs["text"]))
    networks["vae"].load_state_dict(vae["vae"])
    for part in ("unet", "text"):
        networks[part].load_state_dict(
            {key.removeprefix(part + "."): value for key, value in unet["ema"].items() if key.startswith(part + ".")}
        )
    facts = ModelConfig(
        family=FAMILIES["sd1"],
        unet=configs["unet"],
        vae=configs["vae"],
        texts=(configs["text"],),
        pad_ids=(49407,),
        latent=LatentConfig(unet["scale"]),
        prediction="v",
        sampler="dpmpp_2m",
        schedule="karras",
        steps=20,
        guidance=3.0,
        size=unet["size"],
    )
    return Model(
        networks["unet"].half(),
        networks["vae"].half(),
        {"text_encoder": networks["text"].half()},
        Tokenizer(length=configs["text"].length),
        facts,
    )


def plot_losses(build: Path, path: Path):
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for axis, name, key in zip(axes, ("vae", "unet"), ("pixel", "loss")):
        log = [json.loads(line) for line in (build / f"{name}.jsonl").read_text().splitlines()]
        axis.plot([r["step"] for r in log], [r[key] for r in log], linewidth=1)
        axis.set(
            title=name,
            xlabel="step",
            ylabel=dict(pixel="mean absolute error of a pixel in [-1, 1]", loss="squared error of the velocity")[key],
            yscale="log",
        )
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="build", type=Path, default=Path("build/miniature"))
    parser.add_argument("--to", type=Path, default=Path("weights/miniature"))
    args = parser.parse_args()

    vae = torch.load(args.build / "vae.pt", weights_only=True, map_location="cpu")
    unet = torch.load(args.build / "unet.pt", weights_only=True, map_location="cpu")
    trained = model(vae, unet)
    networks = dict(vae=trained.vae, unet=trained.unet, text=trained.texts["text_encoder"])
    with tempfile.TemporaryDirectory(dir=args.build) as folder:  # weights.save writes to no folder that exists
        weights.save(trained, Path(folder) / "model")
        shutil.copytree(Path(folder) / "model", args.to, dirs_exist_ok=True)
    plot_losses(args.build, args.to / "loss.png")
    records = json.loads((args.build / "pictures.json").read_text())
    write_json(
        args.to / "training.json",
        dict(
            sources=json.loads((args.build / "sources.json").read_text()),
            torch=torch.__version__,
            size=unet["size"],
            device=unet["device"],
            pictures=len(records),
            emoji=len({r["label"] for r in records}),
            learned=unet["learned"],
            parameters={name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
            vae=dict(steps=vae["step"], batch=vae["batch"], minutes=round(vae["seconds"] / 60)),
            unet=dict(steps=unet["step"], batch=unet["batch"], minutes=round(unet["seconds"] / 60)),
        ),
    )
    total = sum(p.stat().st_size for p in args.to.rglob("*") if p.is_file())
    print(f"{args.to}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
