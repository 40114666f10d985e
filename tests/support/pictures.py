"""What tests of tasks that begin from pictures share: pictures, generators, and diffusers' schedulers by our names."""

import diffusers
import torch
from torch import Tensor

PROMPTS = ["a red fox in the snow", "two boats, oil painting"]


def pictures(count: int, height: int = 64, width: int = 96) -> Tensor:
    """Smooth random pictures (count 3 h w) in [-1, 1] that hold both signs."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def scheduler(sampler: str, config):
    """diffusers' scheduler that is our sampler on leading."""
    classes = {
        "euler": (diffusers.EulerDiscreteScheduler, {}),
        "ddim": (diffusers.DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False)),
        "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
        "heun": (diffusers.HeunDiscreteScheduler, {}),
    }
    kind, options = classes[sampler]
    return kind.from_config(config, timestep_spacing="leading", use_karras_sigmas=False, **options)
