"""Write the trained miniature as a folder in the published layout.

Reads vae.pt, unet.pt, the loss logs, pictures.json and sources.json from --from; writes float16 safetensors, configs
that diffusers reads too, tokenizer files, loss.png and training.json (the facts of the model card) to --to.

    python scripts/miniature/export.py --from build/miniature --to weights/miniature
"""

import argparse
import json
from pathlib import Path

import matplotlib
import torch
from safetensors.torch import save_file

from ldm import tokenizer
from ldm.clip import CLIPText
from ldm.config import CLIPConfig, UNetConfig, VAEConfig
from ldm.unet import UNet
from ldm.vae import VAE

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

VERSION = "0.42.1"   # of diffusers, whose layout this is
DEFAULTS = dict(steps=20, guidance=3.0)


def unet_json(cfg: UNetConfig, sample_size: int) -> dict:
    attention = ["CrossAttn" if depth else "" for depth in cfg.depth]
    return dict(
        _class_name="UNet2DConditionModel", _diffusers_version=VERSION, sample_size=sample_size,
        in_channels=cfg.in_channels, out_channels=cfg.out_channels, block_out_channels=cfg.channels,
        down_block_types=[f"{a}DownBlock2D" for a in attention],
        up_block_types=[f"{a}UpBlock2D" for a in reversed(attention)], mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=cfg.layers, norm_num_groups=cfg.groups, attention_head_dim=cfg.heads,
        transformer_layers_per_block=[max(d, 1) for d in cfg.depth], cross_attention_dim=cfg.context_dim,
        use_linear_projection=cfg.linear_projection, act_fn="silu", norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0)


def vae_json(cfg: VAEConfig, scale: float, sample_size: int) -> dict:
    levels = len(cfg.channels)
    return dict(
        _class_name="AutoencoderKL", _diffusers_version=VERSION, sample_size=sample_size, in_channels=3, out_channels=3,
        latent_channels=cfg.latent_channels, block_out_channels=cfg.channels, layers_per_block=cfg.layers,
        norm_num_groups=cfg.groups, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, act_fn="silu", scaling_factor=scale, force_upcast=False)


def text_json(cfg: CLIPConfig) -> dict:
    return dict(
        architectures=["CLIPTextModel"], model_type="clip_text_model", vocab_size=cfg.vocab, hidden_size=cfg.width,
        intermediate_size=cfg.hidden, num_hidden_layers=cfg.layers, num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.length, hidden_act="quick_gelu" if cfg.quick_gelu else "gelu",
        layer_norm_eps=1e-5, projection_dim=cfg.width, bos_token_id=0, eos_token_id=2, pad_token_id=1,
        dtype="float32")   # transformers would run it in the dtype of the file, beside a float32 UNet


SCHEDULER = dict(
    _class_name="DPMSolverMultistepScheduler", _diffusers_version=VERSION, num_train_timesteps=1000,
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
    algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", use_karras_sigmas=True,
    timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=True, steps_offset=1)
MODEL_INDEX = dict(
    _class_name="StableDiffusionPipeline", _diffusers_version=VERSION, _defaults=DEFAULTS,
    scheduler=["diffusers", "DPMSolverMultistepScheduler"], text_encoder=["transformers", "CLIPTextModel"],
    tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
    vae=["diffusers", "AutoencoderKL"], safety_checker=[None, None], feature_extractor=[None, None],
    image_encoder=[None, None], requires_safety_checker=False)


def write_json(path: Path, value: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_weights(path: Path, network: torch.nn.Module, state: dict):
    """float16 safetensors, after a strict load into the network they belong to."""
    network.load_state_dict(state, strict=True)
    tensors = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_tokenizer(folder: Path, length: int):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer.published_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    start, end = "<|startoftext|>", "<|endoftext|>"
    specials = dict(bos_token=start, eos_token=end, unk_token=end, pad_token=end)
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json",
               specials | dict(tokenizer_class="CLIPTokenizer", model_max_length=length, do_lower_case=True))


def plot_losses(build: Path, path: Path):
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for axis, name, key in zip(axes, ("vae", "unet"), ("pixel", "loss")):
        log = [json.loads(line) for line in (build / f"{name}.jsonl").read_text().splitlines()]
        axis.plot([r["step"] for r in log], [r[key] for r in log], linewidth=1)
        axis.set(title=name, xlabel="step", ylabel=dict(pixel="mean absolute error of a pixel in [-1, 1]",
                                                        loss="squared error of the velocity")[key], yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="build", type=Path, default=Path("build/miniature"))
    parser.add_argument("--to", type=Path, default=Path("weights/miniature"))
    args = parser.parse_args()

    vae = torch.load(args.build / "vae.pt", weights_only=True, map_location="cpu")
    unet = torch.load(args.build / "unet.pt", weights_only=True, map_location="cpu")
    vae_config, unet_config = VAEConfig(**vae["config"]), UNetConfig(**unet["config"]["unet"])
    text_config = CLIPConfig(**unet["config"]["text"])
    size = unet["size"]

    write_weights(args.to / "vae/diffusion_pytorch_model.safetensors", VAE(vae_config), vae["vae"])
    averaged = unet["ema"]
    for part, file, network in (("unet", "unet/diffusion_pytorch_model.safetensors", UNet(unet_config)),
                                ("text", "text_encoder/model.safetensors", CLIPText(text_config))):
        own = {k.removeprefix(part + "."): v for k, v in averaged.items() if k.startswith(part + ".")}
        write_weights(args.to / file, network, own)
    write_json(args.to / "vae/config.json", vae_json(vae_config, unet["scale"], size))
    write_json(args.to / "unet/config.json", unet_json(unet_config, size // vae_config.factor))
    write_json(args.to / "text_encoder/config.json", text_json(text_config))
    write_json(args.to / "scheduler/scheduler_config.json", SCHEDULER)
    write_json(args.to / "model_index.json", MODEL_INDEX)
    write_tokenizer(args.to / "tokenizer", text_config.length)
    plot_losses(args.build, args.to / "loss.png")
    records = json.loads((args.build / "pictures.json").read_text())
    networks = dict(vae=VAE(vae_config), unet=UNet(unet_config), text=CLIPText(text_config))
    write_json(args.to / "training.json", dict(
        sources=json.loads((args.build / "sources.json").read_text()),
        torch=torch.__version__, size=size,
        device=unet["device"], pictures=len(records), emoji=len({r["label"] for r in records}),
        learned=unet["learned"],
        parameters={name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        vae=dict(steps=vae["step"], batch=vae["batch"], minutes=round(vae["seconds"] / 60)),
        unet=dict(steps=unet["step"], batch=unet["batch"], minutes=round(unet["seconds"] / 60))))
    total = sum(p.stat().st_size for p in args.to.rglob("*") if p.is_file())
    print(f"{args.to}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
