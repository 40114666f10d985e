"""Numbers for tests: random weights and inputs, errors, stand-ins for networks, trajectories of a reference."""

import copy
import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a value that matters: layers keep the size of their input, none is zero or tiny."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "bias":
                noise = 0.3 * noise
            elif isinstance(part, nn.GroupNorm | nn.LayerNorm):
                noise = 1 + 0.3 * noise
            elif not isinstance(part, nn.Embedding) and noise.ndim:
                noise = noise / math.sqrt(noise[0].numel())
            parameter.copy_(noise)
    return module


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Every tensor, strictly; either may be ours."""
    state, wanted = source.state_dict(), target.state_dict().keys()
    level = "text_model."  # transformers >= 5.6 drops it in memory, for CLIPTextModel only
    if not any(key.startswith(level) for key in wanted):
        state = {key.removeprefix(level): tensor for key, tensor in state.items()}
    elif not any(key.startswith(level) for key in state):
        state = {level + key: tensor for key, tensor in state.items()}
    target.load_state_dict(state)


def pair(ours: nn.Module, reference: nn.Module, seed: int) -> tuple[nn.Module, nn.Module]:
    """Both with the same random float64 weights, in evaluation mode."""
    randomize(ours.double(), seed)
    copy_weights(ours, reference.double())
    return ours.eval(), reference.eval()


def as_float(pair: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
    return copy.deepcopy(pair[0]).float(), copy.deepcopy(pair[1]).float()


def randn(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers in float64 and, rounded, in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def to_float(inputs: dict) -> dict:
    """float64 tensors become float32, also those inside added_cond_kwargs; integers stay."""
    convert = {dict: to_float, Tensor: lambda a: a.float() if a.is_floating_point() else a}
    return {key: convert.get(type(value), lambda a: a)(value) for key, value in inputs.items()}


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of b, the reference; shapes must agree."""
    assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, a.dtype, b.shape, b.dtype)
    return ((a - b).abs().max() / b.abs().max()).item()


def relative_l2(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, a.dtype, b.shape, b.dtype)
    return ((a - b).norm() / b.norm()).item()


def network(x: Tensor, t: float) -> Tensor:
    """A smooth, bounded stand-in for a UNet where only the sampler matters, a function of all that it is given."""
    return torch.tanh(0.9 * x.roll(1, dims=-1) - 0.3 * x + 0.7 * torch.cos(torch.as_tensor(t) / 150))


def denoise(x: Tensor, sigma: float) -> Tensor:
    """The like for samplers alone: an estimate of the clean picture."""
    return torch.tanh(0.9 * x.roll(1, dims=-1) - 0.3 * x + torch.cos(torch.tensor(sigma).log()))


class TwoEstimates:
    """A denoiser with guidance: its unguided estimate is a share of the guided one."""

    def __init__(self, denoise, share: float):
        self.denoise = denoise
        self.share = share

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.denoise(x, sigma)

    def pair(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        x0 = self(x, sigma)
        return x0, self.share * x0


def trajectory(scheduler, x: Tensor, network=network, **options) -> list[Tensor]:
    """x after every step of diffusers' scheduler; not after the first half of a step, nor after the trial of PNDM."""
    xs = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
        xs.append(x)
    if type(scheduler).__name__ == "PNDMScheduler":
        return xs[1:] or xs
    return [*xs[1:-1:2], xs[-1]] if scheduler.order == 2 else xs


def unit_noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5)).to(dtype)
