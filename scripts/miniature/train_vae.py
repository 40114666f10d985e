"""Train the autoencoder of the miniature on the pictures that data.py made.

The loss is L1 on pixels and on their local differences (edges), plus a small KL term. Then the decoder alone is
trained on, while the latents no longer change. Writes vae.pt (a checkpoint, resumed if it is there) and vae.jsonl
(losses) to --out; stopping it at any time loses at most --save seconds of work.

    python scripts/miniature/train_vae.py --out build/miniature --minutes 13 --decoder-minutes 27
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ldm.config import VAEConfig
from ldm.vae import VAE

CONFIG = VAEConfig(channels=(16, 32, 64, 96), layers=1, groups=1)  # one group: color survives the norms


def edges(image: torch.Tensor) -> list[torch.Tensor]:
    """Differences between neighbours, at full and at half size."""
    half = F.avg_pool2d(image, 2)
    return [a for x in (image, half) for a in (x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :])]


def losses(vae: VAE, image: torch.Tensor, noise: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    posterior = vae.encode(image)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    decoded = vae.decode(posterior.sample(noise)).float()
    pixel = (decoded - image).abs().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(edges(decoded), edges(image)))
    return pixel + 0.3 * edge + kl_weight * kl, pixel


def initialized() -> VAE:
    """Convolutions that keep variance, residual branches that begin at zero, hardly any posterior noise."""
    torch.manual_seed(0)
    vae = VAE(CONFIG)
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "to_out.0")):
                torch.nn.init.zeros_(module.weight)
    torch.nn.init.constant_(vae.quant_conv.bias[CONFIG.latent_channels :], -6)
    return vae


def save(path: Path, state: dict):
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/miniature"))
    parser.add_argument("--minutes", type=float, default=13, help="time for both halves, all resumed runs together")
    parser.add_argument("--decoder-minutes", type=float, default=27, help="time for the decoder alone, after that")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--save", type=float, default=60, help="seconds between checkpoints")
    parser.add_argument("--compile", action="store_true", help="worth its two minutes on a GPU")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = np.load(args.out / "pictures.npy", mmap_mode="r")
    vae = initialized().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)
    path, done, step = args.out / "vae.pt", 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        done, step = state["seconds"], state["step"]

    def checkpoint(seconds: float) -> dict:
        return dict(
            config=dataclasses.asdict(CONFIG),
            vae=vae.state_dict(),
            optimizer=optimizer.state_dict(),
            batch=args.batch,
            seconds=seconds,
            step=step,
        )

    rng = np.random.default_rng(step)
    loss_of = torch.compile(losses) if args.compile else losses
    started, saved, total = time.time() - done, time.time(), 60 * (args.minutes + args.decoder_minutes)
    log = (args.out / "vae.jsonl").open("a")
    bar = tqdm(total=round(total), initial=round(done), unit="s", desc="vae", disable=None)
    while (elapsed := time.time() - started) < total:
        rows = np.sort(rng.integers(len(pictures), size=args.batch))
        image = torch.from_numpy(pictures[rows]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if rng.random() < 0.5:
            image = image.flip(-1)
        noise = torch.randn(args.batch, 4, *(s // CONFIG.factor for s in image.shape[2:]), device=device)
        decoder_only = elapsed > 60 * args.minutes
        for module in (vae.encoder, vae.quant_conv):
            module.requires_grad_(not decoder_only)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 100, 2 * (1 - elapsed / total) + 0.01)
        with torch.autocast(device, torch.bfloat16):
            loss, pixel = loss_of(vae, image.contiguous(memory_format=torch.channels_last), noise, args.kl)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            record = dict(step=step, seconds=round(elapsed), loss=round(loss.item(), 4), pixel=round(pixel.item(), 4))
            print(json.dumps(record), file=log, flush=True)
            bar.set_postfix(record)
            bar.n = round(elapsed)
            bar.refresh()
        if time.time() - saved > args.save:
            save(path, checkpoint(elapsed))
            saved = time.time()
    save(path, checkpoint(total))


if __name__ == "__main__":
    main()
