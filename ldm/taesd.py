"""TAESD, a tiny autoencoder for previews: images (b 3 8h 8w) in [-1, 1] <-> latents (b 4 h w) as the UNet sees them.

Distilled from the KL autoencoder by O. B. Bohan (github.com/madebyollin/taesd): 2.4 million parameters, no norms, no
attention. Parameter names are those of diffusers' AutoencoderTiny, whose files number the layers of two sequences.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TinyVAEConfig
from .vae import Posterior


def conv(c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=bias)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            conv(channels, channels), nn.ReLU(), conv(channels, channels), nn.ReLU(), conv(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Encoder(nn.Module):
    def __init__(self, cfg: TinyVAEConfig):
        super().__init__()
        c = cfg.channels
        layers: list[nn.Module] = []
        for level, count in enumerate(cfg.blocks):
            layers.append(conv(c, c, stride=2, bias=False) if level else conv(cfg.image_channels, c))
            layers += [Block(c) for _ in range(count)]
        self.layers = nn.Sequential(*layers, conv(c, cfg.latent_channels))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers((image + 1) / 2)  # trained on images in [0, 1]


class Decoder(nn.Module):
    def __init__(self, cfg: TinyVAEConfig):
        super().__init__()
        c = cfg.channels
        layers: list[nn.Module] = [conv(cfg.latent_channels, c), nn.ReLU()]
        for level, count in reversed(list(enumerate(cfg.blocks))):
            layers += [Block(c) for _ in range(count)]
            if level:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), conv(c, c, bias=False)]
        self.layers = nn.Sequential(*layers, conv(c, cfg.image_channels))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(torch.tanh(z / 3) * 3) * 2 - 1  # no latent beyond 3; images in [0, 1] made [-1, 1]


class TinyVAE(nn.Module):
    """Decodes the guess of every sampling step in a fraction of a VAE's time: `image = taesd.decode(step.x0)`."""

    def __init__(self, cfg: TinyVAEConfig):
        super().__init__()
        self.config = cfg
        self.factor = cfg.factor  # pixels per latent
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    def encode(self, image: Tensor) -> Posterior:
        """image (b 3 8h 8w) in [-1, 1] -> latents (b 4 h w) as a Posterior without spread: any sample is the mode."""
        z = self.encoder(image)
        return Posterior(z, logvar=torch.full_like(z, -torch.inf))

    def decode(self, z: Tensor) -> Tensor:
        """Latents z (b 4 h w) -> image (b 3 8h 8w), about [-1, 1] but not clamped."""
        return self.decoder(z)
