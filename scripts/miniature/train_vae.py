"""Train the autoencoder of the miniature on the pictures that data.py made.

The loss is L1 on pixels and on their local differences (edges), plus a small KL term. Then the decoder alone is
trained on, while the latents no longer change. Writes vae.pt (a checkpoint, resumed if it is there) and vae.jsonl
(losses) to --out; stopping it at any time loses at most --save seconds of work.

    python scripts/miniature/train_vae.py --out build/miniature --minutes 13 --decoder-minutes 27
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import VAEConfig
from ldm.vae import VAE
from progress import Progress, save

CONFIG = VAEConfig(channels=(16, 32, 64, 96), layers=1, groups=1)  # one group: color survives the norms


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/miniature"))
    parser.add_argument("--minutes", type=float, default=13, help="time for both halves, all resumed runs together")
    parser.add_argument("--decoder-minutes", type=float, default=27, help="time for the decoder alone, after that")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--save", type=float, default=60, help="seconds between checkpoints")
    parser.add_argument("--compile", action="store_true", help="worth its two minutes on a GPU")
    return parser.parse_args()


def main():
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = np.load(args.out / "pictures.npy", mmap_mode="r")
    training = begin(args.lr, device)
    path = args.out / "vae.pt"
    if path.exists():
        resume(training, path, device)
    train(training, pictures, device, args)
    training.seconds = 60 * (args.minutes + args.decoder_minutes)
    save(path, make_checkpoint(training, args.batch))


# The network and its loss


def initialize() -> VAE:
    """Convolutions that keep variance, residual branches that begin at zero, hardly any posterior noise."""
    torch.manual_seed(0)
    vae = VAE(CONFIG)
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "to_out.0")):
                nn.init.zeros_(module.weight)
            if name == "quant_conv":
                # The second half of its channels is the logarithm of the posterior's variance
                nn.init.constant_(module.bias[CONFIG.latent_channels :], -6)
    return vae


def find_edges(image: Tensor) -> list[Tensor]:
    """Differences between neighbours, at full and at half size."""
    found = []
    for x in (image, F.avg_pool2d(image, 2)):
        found.append(x[..., 1:] - x[..., :-1])
        found.append(x[..., 1:, :] - x[..., :-1, :])
    return found


def vae_loss(vae: VAE, image: Tensor, noise: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """The loss to minimize, and of it the mean absolute error of a pixel. image (b 3 8h 8w); noise (b 4 h w)."""
    posterior = vae.encode(image)
    mean = posterior.mean.float()
    logvar = posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()  # to the unit Gaussian (arXiv 1312.6114, appendix B)
    decoded = vae.decode(posterior.sample(noise)).float()
    pixel = (decoded - image).abs().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(find_edges(decoded), find_edges(image)))
    return pixel + 0.3 * edge + kl_weight * kl, pixel


# What a checkpoint holds


@dataclass
class Training:
    """The network as it learns, and how far it has come. seconds: of all resumed runs together."""

    vae: VAE
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def begin(lr: float, device: str) -> Training:
    vae = initialize().to(device).to(memory_format=torch.channels_last)
    return Training(vae, torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), fused=True))


def make_checkpoint(training: Training, batch: int) -> dict[str, Any]:
    return dict(
        config=dataclasses.asdict(CONFIG),
        vae=training.vae.state_dict(),
        optimizer=training.optimizer.state_dict(),
        batch=batch,
        seconds=training.seconds,
        step=training.step,
    )


def resume(training: Training, path: Path, device: str) -> None:
    """Go on from a checkpoint."""
    state = torch.load(path, weights_only=True, map_location=device)
    training.vae.load_state_dict(state["vae"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.seconds = state["seconds"]
    training.step = state["step"]


# The loop


def train(training: Training, pictures: np.ndarray, device: str, args: argparse.Namespace) -> None:
    """Learn until the time is over."""
    rng = np.random.default_rng(training.step)
    loss_of = torch.compile(vae_loss) if args.compile else vae_loss
    progress = Progress(args.out, "vae", 60 * (args.minutes + args.decoder_minutes), training.seconds)
    training.seconds = progress.seconds()
    while training.seconds < progress.total:
        image = draw_pictures(pictures, args.batch, rng, device)
        noise = torch.randn(args.batch, 4, *(side // CONFIG.factor for side in image.shape[2:]), device=device)
        freeze_encoder(training.vae, training.seconds > 60 * args.minutes)
        set_rate(training.optimizer, args.lr, training.step, training.seconds / progress.total)
        with torch.autocast(device, torch.bfloat16):
            loss, pixel = loss_of(training.vae, image, noise, args.kl)
        learn(training, loss)
        if training.step % 20 == 0:
            losses = dict(loss=round(loss.item(), 4), pixel=round(pixel.item(), 4))
            progress.report(dict(step=training.step, seconds=round(training.seconds)) | losses)
        if progress.seconds_since_save() > args.save:
            progress.save(args.out / "vae.pt", make_checkpoint(training, args.batch))
        training.seconds = progress.seconds()


def draw_pictures(pictures: np.ndarray, count: int, rng: np.random.Generator, device: str) -> Tensor:
    """Pictures (n h w 3) uint8 -> some of them, (b 3 h w) in [-1, 1]; half of the batches are mirrored."""
    rows = np.sort(rng.integers(len(pictures), size=count))
    image = torch.from_numpy(pictures[rows]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    if rng.random() < 0.5:
        image = image.flip(-1)
    return image.contiguous(memory_format=torch.channels_last)


def freeze_encoder(vae: VAE, frozen: bool) -> None:
    """Without a gradient the latents stay as they are, also those of the UNet's training."""
    for module in (vae.encoder, vae.quant_conv):
        module.requires_grad_(not frozen)


def set_rate(optimizer: torch.optim.AdamW, lr: float, step: int, share: float) -> None:
    """Rise for 100 steps; fall in the second half of the time, of which a share is over."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1, (step + 1) / 100, 2 * (1 - share) + 0.01)


def learn(training: Training, loss: Tensor) -> None:
    """One step down the gradient of the loss."""
    training.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(training.vae.parameters(), 1.0)
    training.optimizer.step()
    training.step += 1


if __name__ == "__main__":
    stopping.run(main)
