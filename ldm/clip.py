"""The text towers of CLIP: token ids (b 77) -> features for the UNet. Parameter names are those of the published
transformers files. CLIP, arXiv 2103.00020; OpenCLIP, arXiv 2212.07143.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .config import CLIPConfig

EOT = 49407  # the end-of-text token; its position holds the summary of the text


@dataclass(frozen=True)
class TextFeatures:
    """hidden: the input of every layer and the output of the last, (b 77 d) each, before the final norm;
    last: hidden[-1] after the final norm; pooled (b p): `last` at the end of the text, projected where the tower
    has a projection."""

    hidden: list[Tensor]
    last: Tensor
    pooled: Tensor


class Embeddings(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(cfg.vocab, cfg.width)
        self.position_embedding = nn.Embedding(cfg.length, cfg.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class SelfAttention(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.q_proj = nn.Linear(cfg.width, cfg.width)
        self.k_proj = nn.Linear(cfg.width, cfg.width)
        self.v_proj = nn.Linear(cfg.width, cfg.width)
        self.out_proj = nn.Linear(cfg.width, cfg.width)
        self.attend = ops.Attend(cfg.heads, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.attend(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class MLP(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.fc1 = nn.Linear(cfg.width, cfg.hidden)
        self.fc2 = nn.Linear(cfg.hidden, cfg.width)
        self.activation = quick_gelu if cfg.quick_gelu else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)  # OpenAI's approximation; OpenCLIP trained with the exact erf form


class Layer(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(cfg.width)
        self.self_attn = SelfAttention(cfg)
        self.layer_norm2 = nn.LayerNorm(cfg.width)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(ops.layer_norm(x, self.layer_norm1))
        return x + self.mlp(ops.layer_norm(x, self.layer_norm2))


class Encoder(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.layers = nn.ModuleList([Layer(cfg) for _ in range(cfg.layers)])


class TextModel(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.embeddings = Embeddings(cfg)
        self.encoder = Encoder(cfg)
        self.final_layer_norm = nn.LayerNorm(cfg.width)


class CLIPText(nn.Module):
    def __init__(self, cfg: CLIPConfig):
        super().__init__()
        self.config = cfg
        self.text_model = TextModel(cfg)
        self.text_projection = nn.Linear(cfg.width, cfg.projection, bias=False) if cfg.projection else nn.Identity()

    def forward(self, ids: Tensor) -> TextFeatures:
        """ids (b n), n at most 77, with an EOT in every row. There is no padding mask: pad tokens are read too."""
        hidden = [self.text_model.embeddings(ids)]  # (b n d)
        for layer in self.text_model.encoder.layers:
            hidden.append(layer(hidden[-1]))
        last = ops.layer_norm(hidden[-1], self.text_model.final_layer_norm)
        end = (ids == EOT).int().argmax(dim=1)  # the first EOT; pads may repeat it
        pooled = self.text_projection(last[torch.arange(len(ids)), end])
        return TextFeatures(hidden, last, pooled)
