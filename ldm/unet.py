"""The UNet of every family: noisy latents (b 4 h w), time step, text (b m d) -> predicted noise or velocity (b 4 h w).

One class serves SD 1.5, SD 2, SDXL, its refiner, the x4 upscaler, their fine-tunes and the smaller networks distilled
from them; what differs is in config.UNETS. Parameter names are those of the published diffusers files. Latent
diffusion, arXiv 2112.10752; SDXL, arXiv 2307.01952.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import ops
from .config import Depth, UNetConfig


class TimestepMLP(nn.Module):
    """Turns an embedded number or vector into a summand of the time embedding (b e)."""

    def __init__(self, c_in: int, c_out: int, guidance_dim: int = 0):
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)
        if guidance_dim:
            self.cond_proj = nn.Linear(guidance_dim, c_in, bias=False)  # LCM: the guidance scale, embedded

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        if guidance is not None:
            x = x + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(x)))


class Resnet(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb_dim: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-5)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-5)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(ops.group_norm(x, self.norm1, silu=True))
        h = self.conv2(ops.group_norm(h, self.norm2, silu=True, shift=self.time_emb_proj(F.silu(emb))))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    def __init__(self, width: int, context_dim: int, heads: int):
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # "to_out.0" in every published file
        self.attend = ops.Attend(heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out[0](self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))


class GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return ops.geglu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))  # "0" and "2"

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context_dim: int, heads: int, cross_only: bool):
        super().__init__()
        self.cross_only = cross_only
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, context_dim if cross_only else width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_dim, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = ops.layer_norm(x, self.norm1)
        x, h = ops.add_layer_norm(x, self.attn1(h, context if self.cross_only else h), self.norm2)
        x, h = ops.add_layer_norm(x, self.attn2(h, context), self.norm3)
        return x + self.ff(h)


class TokenConv(nn.Conv2d):
    """A 1x1 convolution in the file of SD1; on tokens (b n c) it is a linear layer."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, cross_only: bool, cfg: UNetConfig):
        super().__init__()
        projection = nn.Linear if cfg.linear_projection else TokenConv
        self.norm = nn.GroupNorm(cfg.groups, width, eps=1e-6)  # 1e-5 in the resnets
        self.proj_in = projection(width, width)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(width, cfg.context_dim, heads, cross_only) for _ in range(depth)]
        )
        self.proj_out = projection(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = rearrange(ops.group_norm(x, self.norm), "b c h w -> b (h w) c")
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=x.shape[2])


class NoTransformer(nn.Module):
    """Stands where there is no attention; holds no parameters."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x


def attention_layers(cfg: UNetConfig, level: int, depth: Depth, count: int) -> nn.ModuleList:
    """What stands behind each of the `count` resnets of a level. depth: one number for all, or one for each of them."""
    depths = depth if isinstance(depth, tuple) else (depth,) * count
    cross_only = bool(cfg.cross_only) and cfg.cross_only[level]
    return nn.ModuleList([transformer(cfg, level, blocks, cross_only) for blocks in depths])


def transformer(cfg: UNetConfig, level: int, depth: int, cross_only: bool) -> nn.Module:
    return Transformer(cfg.channels[level], cfg.heads[level], depth, cross_only, cfg) if depth else NoTransformer()


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """To the height and width of `like`: double, or one less where the way down rounded up."""
        return self.conv(F.interpolate(x, size=like.shape[2:], mode="nearest"))


class DownBlock(nn.Module):
    def __init__(self, cfg: UNetConfig, level: int, emb_dim: int):
        super().__init__()
        c_in, c_out = cfg.channels[max(level - 1, 0)], cfg.channels[level]
        self.resnets = nn.ModuleList(
            [Resnet(c_in if i == 0 else c_out, c_out, emb_dim, cfg.groups) for i in range(cfg.layers)]
        )
        self.attentions = attention_layers(cfg, level, cfg.depth[level], cfg.layers)
        last = level == len(cfg.channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c_out)])

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept = []
        for resnet, attention in zip(self.resnets, self.attentions):
            x = attention(resnet(x, emb), context)
            kept.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            kept.append(x)
        return x, kept


class MidBlock(nn.Module):
    """Two resnets and the attention between them; of distilled models one resnet alone, or nothing."""

    def __init__(self, cfg: UNetConfig, emb_dim: int):
        super().__init__()
        width = cfg.channels[-1]
        depths = (cfg.mid_depth, 0) if isinstance(cfg.mid_depth, int) else cfg.mid_depth
        self.resnets = nn.ModuleList([Resnet(width, width, emb_dim, cfg.groups) for _ in depths])
        self.attentions = nn.ModuleList([transformer(cfg, -1, blocks, False) for blocks in depths])

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions):
            x = attention(resnet(x, emb), context)
        return x


class UpBlock(nn.Module):
    def __init__(self, cfg: UNetConfig, level: int, emb_dim: int):
        super().__init__()
        here = cfg.channels[level]
        finer = cfg.channels[max(level - 1, 0)]
        last = len(cfg.channels) - 1
        inputs = [cfg.channels[min(level + 1, last)]] + [here] * cfg.layers
        skips = [here] * cfg.layers + [finer]  # channels of the skips, in the order they are taken
        self.resnets = nn.ModuleList([Resnet(c + skip, here, emb_dim, cfg.groups) for c, skip in zip(inputs, skips)])
        self.attentions = attention_layers(cfg, level, (cfg.up_depth or cfg.depth)[level], cfg.layers + 1)
        self.upsamplers = nn.ModuleList([Upsample(here)] if level else [])

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        """Takes its skips from the end of the list."""
        for resnet, attention in zip(self.resnets, self.attentions):
            x = torch.cat([x, skips.pop()], dim=1)
            x = attention(resnet(x, emb), context)
        for upsample in self.upsamplers:
            x = upsample(x, like=skips[-1])
        return x


def check_given(name: str, value: Tensor | None, wanted: bool) -> None:
    if (value is not None) != wanted:
        raise ValueError(f"this UNet {'needs a' if wanted else 'takes no'} {name}")


class UNet(nn.Module):
    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.config = cfg
        c = cfg.channels
        emb_dim = 4 * c[0]
        self.time_embedding = TimestepMLP(c[0], emb_dim, cfg.guidance_dim)
        if cfg.vector_dim:
            self.add_embedding = TimestepMLP(cfg.vector_dim, emb_dim)
        if cfg.class_dim:
            self.class_embedding = TimestepMLP(cfg.class_dim, emb_dim)
        if cfg.class_count:
            self.class_embedding = nn.Embedding(cfg.class_count, emb_dim)
        self.conv_in = nn.Conv2d(cfg.in_channels, c[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([DownBlock(cfg, level, emb_dim) for level in range(len(c))])
        self.mid_block = MidBlock(cfg, emb_dim)
        self.up_blocks = nn.ModuleList([UpBlock(cfg, level, emb_dim) for level in reversed(range(len(c)))])
        self.conv_norm_out = nn.GroupNorm(cfg.groups, c[0], eps=1e-5)
        self.conv_out = nn.Conv2d(c[0], cfg.out_channels, 3, padding=1)

    def embed(self, x: Tensor, t: Tensor | float, vector: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Time and vector -> (b 4c)."""
        cfg = self.config
        check_given("vector", vector, bool(cfg.vector_dim or cfg.class_dim or cfg.class_count))
        check_given("guidance embedding", guidance, bool(cfg.guidance_dim))
        t = t.to(x.device) if isinstance(t, Tensor) else torch.full((), t, device=x.device)  # copies nothing
        emb = self.time_embedding(ops.sinusoid(t.expand(len(x)), cfg.channels[0]).to(x.dtype), guidance)
        if cfg.vector_dim:
            emb = emb + self.add_embedding(vector)
        if cfg.class_dim or cfg.class_count:
            emb = emb + self.class_embedding(vector)
        return emb

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor,
                vector: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:  # fmt: skip
        """x (b c h w), t a number or (b), context (b m d) -> (b 4 h w).

        vector is what the family adds to the time embedding: pooled text and sizes (b 2816; the refiner 2560) for
        SDXL, the image embedding (b 2048 or 1536) for unCLIP, integer noise levels (b) for x4, else None.
        guidance is LCM's embedded guidance scale (b 256). Raises ValueError if one of them is missing or too many.
        """
        emb = self.embed(x, t, vector, guidance)  # (b e)
        x = self.conv_in(x)  # (b c h w)
        skips = [x]
        for block in self.down_blocks:  # h, w halve; c grows
            x, kept = block(x, emb, context)
            skips += kept
        x = self.mid_block(x, emb, context)
        for block in self.up_blocks:  # h, w double; c shrinks
            x = block(x, skips, emb, context)
        return self.conv_out(ops.group_norm(x, self.conv_norm_out, silu=True))
