"""Train the text tower and the UNet of the miniature together, on latents that the trained autoencoder makes once.

The objective is v-prediction (arXiv 2202.00512) on the noise levels of Stable Diffusion. A tenth of the captions are
dropped, so that classifier-free guidance works. Reads pictures.npy, pictures.json and vae.pt from --out; writes
latents.pt (a cache), unet.pt (a checkpoint, resumed if it is there) and unet.jsonl (losses). Stopping it at any
time loses at most --save seconds of work. Several processes share the work, each with a batch of its own:

    python scripts/miniature/train_unet.py --out build/miniature --minutes 31
    torchrun --nproc-per-node 2 scripts/miniature/train_unet.py
"""

import argparse
import copy
import dataclasses
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from ldm.clip import CLIPText
from ldm.config import CLIPConfig, UNetConfig, VAEConfig
from ldm.tokenizer import Tokenizer
from ldm.unet import UNet
from ldm.vae import VAE

TEXT = CLIPConfig(layers=3, width=96, heads=3, hidden=384, quick_gelu=True, length=32)
UNET = UNetConfig(
    in_channels=4,
    channels=(64, 128, 144),
    heads=(2, 4, 4),
    depth=(1, 1, 1),
    mid_depth=1,
    context_dim=TEXT.width,
    linear_projection=True,
    layers=1,
    groups=4,
)


def caption(record: dict, rng: random.Random) -> str:
    """One of the ways to say what a picture shows; '' one time in ten."""
    if rng.random() < 0.1:
        return ""
    subject = rng.choice(record["tags"]) if record["tags"] and rng.random() < 0.08 else record["label"]
    if record["small"]:
        subject = f"small {subject}"
    if rng.random() < 0.5:
        subject = f"{'an' if subject[0].lower() in 'aeiou' else 'a'} {subject}"
    style = f", {record['style']} style" if rng.random() < 0.5 else ""
    stated = record["background"] != "white" or rng.random() < 0.2
    return subject + style + (f", on a {record['background']} background" if stated else "")


def cached_latents(out: Path, device: str) -> tuple[torch.Tensor, float]:
    """Latents of all pictures (n 4 h w), scaled to unit standard deviation, and that scale."""
    path, state = out / "latents.pt", torch.load(out / "vae.pt", weights_only=True, map_location="cpu")
    encoder = state["vae"]["quant_conv.weight"]  # tells whether the cache is of this encoder
    if path.exists():
        cache = torch.load(path, weights_only=True)
        if torch.equal(cache["encoder"], encoder):
            return cache["latents"], cache["scale"]
    vae = VAE(VAEConfig(**state["config"])).to(device).eval()
    vae.load_state_dict(state["vae"])
    pictures, latents = np.load(out / "pictures.npy", mmap_mode="r"), []
    for start in tqdm(range(0, len(pictures), 256), desc="latents", disable=None):
        image = (
            torch.from_numpy(pictures[start : start + 256].copy()).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        with torch.no_grad():
            latents.append(vae.encode(image).mode().cpu())
    latents = torch.cat(latents)
    scale = 1 / latents.std().item()
    latents *= scale
    save(path, dict(latents=latents, scale=scale, encoder=encoder))
    return latents, scale


def device_name(device: str, world: int) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread"
    return f"{world} x {name}"


def save(path: Path, state: dict):
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def networks(device: str) -> nn.ModuleDict:
    torch.manual_seed(0)
    nets = nn.ModuleDict(dict(unet=UNet(UNET), text=CLIPText(TEXT)))
    embeddings = nets["text"].text_model.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=0.5)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
    return nets.to(device)


def v_loss(
    nets: nn.ModuleDict, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, alpha: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the velocity alpha noise - sigma x0, per picture (b)."""
    sigma = (1 - alpha**2).sqrt()
    out = nets["unet"](alpha * x0 + sigma * noise, t, nets["text"](ids).last)
    return (out.float() - (alpha * noise - sigma * x0)).square().mean((1, 2, 3))


def of_first(number: float, device: str) -> float:
    """The number that the first process holds, so that all stop at the same step."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor([number], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return shared.item()


def average(gradients: list[torch.Tensor]):
    """Average each gradient over all processes, in place."""
    if dist.is_initialized():
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, mean in zip(gradients, (flat / dist.get_world_size()).split([g.numel() for g in gradients])):
            g.copy_(mean.view_as(g))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/miniature"))
    parser.add_argument(
        "--emoji",
        type=Path,
        default=Path(__file__).with_name("emoji.txt"),
        help="the names to learn, one a line; the longer the list, the more time it takes",
    )
    parser.add_argument("--minutes", type=float, default=31, help="training time, all resumed runs together")
    parser.add_argument("--batch", type=int, default=24, help="pictures a step and process")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--save", type=float, default=120, help="seconds between checkpoints")
    parser.add_argument("--compile", action="store_true", help="worth its two minutes on a GPU")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        torch.cuda.set_device(rank % torch.cuda.device_count()) if device == "cuda" else None
    if rank == 0:
        cached_latents(args.out, device)
    if world > 1:
        dist.barrier()  # the others read what the first has made
    latents, scale = cached_latents(args.out, device)
    latents = latents.to(device, memory_format=torch.channels_last)
    records = json.loads((args.out / "pictures.json").read_text())
    names = args.emoji.read_text().splitlines()
    learned = [i for i, r in enumerate(records) if r["label"] in names]
    plain = [i for i in learned if records[i]["background"] == "white" and not records[i]["small"]]
    tokenizer = Tokenizer(length=TEXT.length)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = (1 - betas).cumprod(0).sqrt().to(device)

    nets = networks(device)
    ema = copy.deepcopy(nets).requires_grad_(False)
    words = nets["text"].text_model.embeddings.parameters()  # each is seen seldom, so its steps are larger
    others = [p for name, p in nets.named_parameters() if ".embeddings." not in name]
    groups = [dict(params=list(words), factor=8), dict(params=others, factor=1)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    path, done, step = args.out / "unet.pt", 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        nets.load_state_dict(state["nets"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        done, step = state["seconds"], state["step"]

    def checkpoint(seconds: float) -> dict:
        return dict(
            nets=nets.state_dict(),
            ema=ema.state_dict(),
            optimizer=optimizer.state_dict(),
            scale=scale,
            learned=names,
            config=dict(unet=dataclasses.asdict(UNET), text=dataclasses.asdict(TEXT)),
            size=latents.shape[-1] * 8,
            batch=args.batch * world,
            device=device_name(device, world),
            seconds=seconds,
            step=step,
        )

    rng = random.Random(step * world + rank)
    torch.manual_seed(step * world + rank)
    loss_of = torch.compile(v_loss) if args.compile else v_loss
    started, saved, total, recent = time.time() - done, time.time(), 60 * args.minutes, []
    log = (args.out / "unet.jsonl").open("a")
    bar = tqdm(total=round(total), unit="s", desc="unet", disable=None)
    while (elapsed := of_first(time.time() - started, device)) < total:
        rows = [rng.choice(plain if rng.random() < 0.5 else learned) for _ in range(args.batch)]
        ids = tokenizer([caption(records[row], rng) for row in rows]).ids.to(device)
        x0, noise = latents[rows], torch.randn(args.batch, *latents.shape[1:], device=device)
        t = ((torch.arange(args.batch, device=device) + torch.rand((), device=device)) * 1000 / args.batch).long()
        alpha = alphas[t][:, None, None, None]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * group["factor"] * min(1, (step + 1) / 200, 2 * (1 - elapsed / total) + 0.005)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(nets, x0, noise.contiguous(memory_format=torch.channels_last), t, alpha, ids).mean()
        optimizer.zero_grad()
        loss.backward()
        average([p.grad for p in nets.parameters()])
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(args.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(nets.parameters()), 1 - decay)
        recent.append(loss.item())
        if step % 100 == 0 and rank == 0:
            record = dict(step=step, seconds=round(elapsed), loss=round(sum(recent) / len(recent), 4))
            recent.clear()
            print(json.dumps(record), file=log, flush=True)
            bar.set_postfix(record)
            bar.n = round(elapsed)
            bar.refresh()
        if time.time() - saved > args.save and rank == 0:
            save(path, checkpoint(elapsed))
            saved = time.time()
    if rank == 0:
        save(path, checkpoint(total))


if __name__ == "__main__":
    main()
