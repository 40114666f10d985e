"""The KL autoencoder: images (b 3 f*h f*w) in [-1, 1] <-> latents (b 4 h w); f is 8, or 4 for the x4 upscaler.

Parameter names are those of the published diffusers files. Latent diffusion, arXiv 2112.10752.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import ops
from .config import LatentConfig, VAEConfig


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; mean and logvar (b 4 h w)."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """noise: unit Gaussian (b 4 h w)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


def norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)  # 1e-5 in the resnets of the UNet


class Resnet(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.norm1 = norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(ops.group_norm(x, self.norm1, silu=True))
        h = self.conv2(ops.group_norm(h, self.norm2, silu=True))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # "to_out.0" in every published file
        self.attend = ops.Attend(heads=1)

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(ops.group_norm(x, self.group_norm), "b c h w -> b (h w) c")
        h = self.to_out[0](self.attend(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # only right and bottom; the UNet pads on all sides


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Resnets at one resolution, then perhaps a change of it. Encoder and decoder name the change differently."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, down: bool = False, up: bool = False):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(c_in if i == 0 else c_out, c_out, groups) for i in range(layers)])
        self.downsamplers = nn.ModuleList([Downsample(c_out)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    def __init__(self, cfg: VAEConfig):
        super().__init__()
        c = cfg.channels
        last = len(c) - 1
        self.conv_in = nn.Conv2d(cfg.image_channels, c[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [Level(c[max(i - 1, 0)], c[i], cfg.layers, cfg.groups, down=i < last) for i in range(len(c))]
        )
        self.mid_block = MidBlock(c[-1], cfg.groups)
        self.conv_norm_out = norm(c[-1], cfg.groups)
        self.conv_out = nn.Conv2d(c[-1], 2 * cfg.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # (b c 8h 8w)
        for level in self.down_blocks:  # h, w halve; c grows
            x = level(x)
        x = self.mid_block(x)
        return self.conv_out(ops.group_norm(x, self.conv_norm_out, silu=True))  # (b 8 h w)


class Decoder(nn.Module):
    def __init__(self, cfg: VAEConfig):
        super().__init__()
        c = cfg.channels[::-1]
        last = len(c) - 1
        self.conv_in = nn.Conv2d(cfg.latent_channels, c[0], 3, padding=1)
        self.mid_block = MidBlock(c[0], cfg.groups)
        self.up_blocks = nn.ModuleList(
            [Level(c[max(i - 1, 0)], c[i], cfg.layers + 1, cfg.groups, up=i < last) for i in range(len(c))]
        )
        self.conv_norm_out = norm(c[-1], cfg.groups)
        self.conv_out = nn.Conv2d(c[-1], cfg.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))  # (b c h w)
        for level in self.up_blocks:  # h, w double; c shrinks
            x = level(x)
        return self.conv_out(ops.group_norm(x, self.conv_norm_out, silu=True))  # (b 3 8h 8w)


class VAE(nn.Module):
    def __init__(self, cfg: VAEConfig):
        super().__init__()
        self.config = cfg
        self.factor = 2 ** (len(cfg.channels) - 1)  # pixels per latent
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.latent_channels, cfg.latent_channels, 1)

    def encode(self, image: Tensor) -> Posterior:
        """image (b 3 f*h f*w) in [-1, 1] -> Posterior over unscaled latents (b 4 h w)."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents z (b 4 h w) -> image (b 3 f*h f*w), about [-1, 1] but not clamped."""
        return self.decoder(self.post_quant_conv(z))


def affine(latent: LatentConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread (c 1 1) of the VAE's latents: z = mean + spread * what the UNet sees."""
    mean = like.new_tensor(latent.mean or (0.0,) * like.shape[1])
    std = like.new_tensor(latent.std or (1.0,) * like.shape[1])
    return mean[:, None, None], std[:, None, None] / latent.scale


class Decodes(Protocol):
    """A VAE or a TinyVAE."""

    def decode(self, z: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


def decode_latents(vae: Decodes, latent: LatentConfig, latents: Tensor) -> Tensor:
    """Latents (b 4 h w) as the UNet sees them -> image (b 3 f*h f*w), about [-1, 1]."""
    mean, spread = affine(latent, latents)
    return vae.decode((latents * spread + mean).to(next(vae.parameters()).dtype))
