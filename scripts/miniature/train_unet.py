"""Train the text tower and the UNet of the miniature together, on latents that the trained autoencoder makes once.

The objective is v-prediction (arXiv 2202.00512) on the noise levels of Stable Diffusion. A tenth of the captions are
dropped, so that classifier-free guidance works. Reads pictures.npy, pictures.json and vae.pt from --out; writes
latents.pt (a cache), unet.pt (a checkpoint, resumed if it is there) and unet.jsonl (losses). Stopping it at any
time loses at most --save seconds of work. Several processes share the work, each with a batch of its own:

    python scripts/miniature/train_unet.py --out build/miniature --minutes 31
    torchrun --nproc-per-node 2 scripts/miniature/train_unet.py
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import copy
import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captions import Captions, read_captions
from latents import load_latents
from ldm.clip import CLIPText
from ldm.config import CLIPConfig, UNetConfig
from ldm.tokenizer import Tokenizer
from ldm.unet import UNet
from progress import Progress, save
from samplers.schedules import noise_table
from workers import Workers, join_workers

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


def parse_arguments() -> argparse.Namespace:
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
    return parser.parse_args()


def main():
    args = parse_arguments()
    workers = join_workers()
    data = read_data(args.out, args.emoji, workers)
    training = begin(args.lr, workers.device)
    path = args.out / "unet.pt"
    if path.exists():
        resume(training, path, workers.device)
    train(training, data, workers, args)
    training.seconds = 60 * args.minutes
    if workers.is_first:
        save(path, make_checkpoint(training, data, workers, args.batch))


# Data: latents and captions


@dataclass(frozen=True)
class Data:
    """latents (n 4 h w) of all pictures, on the device of the training, with unit standard deviation: those of the
    autoencoder times scale. captions: what to say of them, and which of them to learn."""

    latents: Tensor
    scale: float
    captions: Captions


def read_data(folder: Path, emoji: Path, workers: Workers) -> Data:
    # The first process makes the latents, the others read what it has made
    if workers.is_first:
        load_latents(folder, workers.device)
    workers.wait()
    latents, scale = load_latents(folder, workers.device)
    latents = latents.to(workers.device, memory_format=torch.channels_last)
    return Data(latents, scale, read_captions(folder / "pictures.json", emoji))


@dataclass(frozen=True)
class Batch:
    """x0, noise (b 4 h w): clean latents and unit Gaussian noise. t (b): trained times. ids (b m): tokens."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    ids: Tensor


def draw_batch(data: Data, count: int, tokenizer: Tokenizer, rng: random.Random) -> Batch:
    device = data.latents.device
    rows = data.captions.choose(count, rng)
    ids = tokenizer(data.captions.write(rows, rng)).ids.to(device)
    x0 = data.latents[rows]
    noise = torch.randn(count, *data.latents.shape[1:], device=device)
    # One random offset for all: times spread evenly over the batch make the loss vary less (arXiv 2107.00630)
    t = ((torch.arange(count, device=device) + torch.rand((), device=device)) * 1000 / count).long()
    return Batch(x0, noise.contiguous(memory_format=torch.channels_last), t, ids)


# The networks and their loss


class Networks(nn.Module):
    """What learns: the names of its parameters begin with "unet." and "text."."""

    def __init__(self):
        super().__init__()
        self.unet = UNet(UNET)
        self.text = CLIPText(TEXT)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """x (b 4 h w) at times t (b), under captions ids (b m) -> v (b 4 h w)."""
        return self.unet(x, t, self.text(ids).last)


def initialize() -> Networks:
    torch.manual_seed(0)
    nets = Networks()
    embeddings = nets.text.text_model.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=0.5)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
    return nets


def make_alphas() -> Tensor:
    """alpha of every trained time (1000), what is left of the picture there: x = alpha x0 + sqrt(1 - alpha^2) noise.

    A table of the package `samplers` has the noise level relative to the picture instead, sqrt(1 - alpha^2) / alpha.
    """
    levels = torch.tensor(noise_table().sigmas, dtype=torch.float64)
    return (1 / (1 + levels**2).sqrt()).float()


def v_loss(nets: Networks, batch: Batch, alpha: Tensor) -> Tensor:
    """Mean squared error of the velocity v = alpha noise - sigma x0, per picture (b). alpha: (b 1 1 1).

    This is the v that NoiseTable.scaling turns into a picture. It says x0 = c_in^2 y - level c_in v, where c_in is
    alpha, level is sigma / alpha and y is x / alpha: that is x0 = alpha x - sigma v, which holds for this v, since
    alpha^2 + sigma^2 = 1.
    """
    sigma = (1 - alpha**2).sqrt()
    x = alpha * batch.x0 + sigma * batch.noise
    v = alpha * batch.noise - sigma * batch.x0
    out = nets(x, batch.t, batch.ids)
    return (out.float() - v).square().mean((1, 2, 3))


# What a checkpoint holds


@dataclass
class Training:
    """The networks as they learn, a moving average of their weights, and how far they have come. seconds: of all
    resumed runs together."""

    nets: Networks
    ema: Networks
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def begin(lr: float, device: str) -> Training:
    nets = initialize().to(device)
    # A word is seen seldom, so the steps of its embedding are larger
    words = list(nets.text.text_model.embeddings.parameters())
    others = [p for name, p in nets.named_parameters() if ".embeddings." not in name]
    groups = [dict(params=words, factor=8), dict(params=others, factor=1)]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return Training(nets, copy.deepcopy(nets).requires_grad_(False), optimizer)


def make_checkpoint(training: Training, data: Data, workers: Workers, batch: int) -> dict[str, Any]:
    return dict(
        nets=training.nets.state_dict(),
        ema=training.ema.state_dict(),
        optimizer=training.optimizer.state_dict(),
        scale=data.scale,
        learned=data.captions.names,
        config=dict(unet=dataclasses.asdict(UNET), text=dataclasses.asdict(TEXT)),
        size=data.latents.shape[-1] * 8,
        batch=batch * workers.count,
        device=workers.describe(),
        seconds=training.seconds,
        step=training.step,
    )


def resume(training: Training, path: Path, device: str) -> None:
    """Go on from a checkpoint."""
    state = torch.load(path, weights_only=True, map_location=device)
    training.nets.load_state_dict(state["nets"])
    training.ema.load_state_dict(state["ema"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.seconds = state["seconds"]
    training.step = state["step"]


# The loop


def train(training: Training, data: Data, workers: Workers, args: argparse.Namespace) -> None:
    """Learn until the time is over."""
    # Each process, and each run that goes on, draws other numbers
    seed = training.step * workers.count + workers.rank
    rng = random.Random(seed)
    torch.manual_seed(seed)
    device = workers.device
    tokenizer = Tokenizer(length=TEXT.length)
    alphas = make_alphas().to(device)
    loss_of = torch.compile(v_loss) if args.compile else v_loss
    progress = Progress(args.out, "unet", 60 * args.minutes, training.seconds)
    recent = []
    training.seconds = workers.agree(progress.seconds())
    while training.seconds < progress.total:
        batch = draw_batch(data, args.batch, tokenizer, rng)
        set_rates(training.optimizer, args.lr, training.step, training.seconds / progress.total)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(training.nets, batch, alphas[batch.t][:, None, None, None]).mean()
        learn(training, loss, workers)
        update_average(training, args.ema)
        recent.append(loss.item())
        if training.step % 100 == 0:
            if workers.is_first:
                mean = round(sum(recent) / len(recent), 4)
                progress.report(dict(step=training.step, seconds=round(training.seconds), loss=mean))
            recent.clear()
        if workers.is_first and progress.seconds_since_save() > args.save:
            progress.save(args.out / "unet.pt", make_checkpoint(training, data, workers, args.batch))
        training.seconds = workers.agree(progress.seconds())


def set_rates(optimizer: torch.optim.AdamW, lr: float, step: int, share: float) -> None:
    """Rise for 200 steps; fall in the second half of the time, of which a share is over."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"] * min(1, (step + 1) / 200, 2 * (1 - share) + 0.005)


def learn(training: Training, loss: Tensor, workers: Workers) -> None:
    """One step down the gradient of the loss, averaged over all processes."""
    training.optimizer.zero_grad()
    loss.backward()
    workers.average([p.grad for p in training.nets.parameters() if p.grad is not None])
    nn.utils.clip_grad_norm_(training.nets.parameters(), 1.0)
    training.optimizer.step()
    training.step += 1


def update_average(training: Training, most: float) -> None:
    """ema = decay ema + (1 - decay) nets. The decay grows to `most`, so that the first weights are soon forgotten."""
    decay = min(most, (training.step + 1) / (training.step + 10))
    torch._foreach_lerp_(list(training.ema.parameters()), list(training.nets.parameters()), 1 - decay)


if __name__ == "__main__":
    stopping.run(main)
