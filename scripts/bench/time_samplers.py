"""Time one step of a sampler, ours against diffusers' schedulers, the network left out: in turn, medians of rounds.

    python scripts/bench/time_samplers.py                             # 1x4x128x128, an SDXL picture, on the CPU
    python scripts/bench/time_samplers.py --only uni_pc lms --rounds 50

Theirs is scale_model_input and step with a ready output; ours is the sampler with `denoise` ready, as a sampler sees
it, and then with our denoiser around a ready output, which does what theirs does in those two. Rows named "noise ready"
leave out drawing, on both sides. Needs the `test` extra. Prints a table; --out appends it to a Markdown file.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import inspect
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import diffusers as D
import torch
from torch import Tensor
from tqdm import tqdm

from samplers import SAMPLERS, Sampler
from samplers.basics import Streams, denoiser
from samplers.noise import BrownianTree
from samplers.schedules import noise_table

BETAS: dict[str, Any] = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TABLE = noise_table()
MULTI = D.DPMSolverMultistepScheduler
NOISY: dict[str, Any] = dict(algorithm_type="sde-dpmsolver++")
READY = ", noise ready"
# A sampler of ours, with options after a comma -> the scheduler that does the same
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "euler": partial(D.EulerDiscreteScheduler, **BETAS),
    "euler_ancestral": partial(D.EulerAncestralDiscreteScheduler, **BETAS),
    "heun": partial(D.HeunDiscreteScheduler, **BETAS),
    "dpm_2": partial(D.KDPM2DiscreteScheduler, **BETAS),
    "dpm_2_ancestral": partial(D.KDPM2AncestralDiscreteScheduler, **BETAS),
    "lms": partial(D.LMSDiscreteScheduler, **BETAS),
    "ddim": partial(D.DDIMScheduler, **BETAS, clip_sample=False),
    "ddpm": partial(D.DDPMScheduler, **BETAS, clip_sample=False),
    "plms": partial(D.PNDMScheduler, **BETAS, skip_prk_steps=True),
    "dpmpp_2m": partial(MULTI, **BETAS),
    "dpmpp_3m": partial(MULTI, **BETAS, solver_order=3),
    "dpmpp_2m_sde": partial(MULTI, **BETAS, **NOISY),
    "dpmpp_3m_sde": partial(MULTI, **BETAS, **NOISY, solver_order=3),
    "dpm_solver": partial(MULTI, **BETAS, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
    "dpmpp_singlestep": partial(D.DPMSolverSinglestepScheduler, **BETAS),
    "dpmpp_sde": partial(D.DPMSolverSDEScheduler, **BETAS, noise_sampler_seed=0),
    "deis": partial(D.DEISMultistepScheduler, **BETAS),
    "deis, order 3": partial(D.DEISMultistepScheduler, **BETAS, solver_order=3),
    "uni_pc": partial(D.UniPCMultistepScheduler, **BETAS),
    "uni_pc, order 3": partial(D.UniPCMultistepScheduler, **BETAS, solver_order=3),
    "sa_solver": partial(D.SASolverScheduler, **BETAS),
    "lcm": partial(D.LCMScheduler, **BETAS),
    "tcd": partial(D.TCDScheduler, **BETAS),
}
STOCHASTIC = (
    "euler_ancestral",
    "dpm_2_ancestral",
    "ddpm",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "sa_solver",
    "lcm",
    "tcd",
)
Run = tuple[Callable[[], None], Callable[[], None]]  # what to do before the clock starts; one run of all steps


def prepare_theirs(row: str, steps: int, x: Tensor) -> Run:
    """A scheduler of diffusers with a ready output."""
    scheduler: Any = SCHEDULERS[row.removesuffix(READY)]()
    ready = torch.randn_like(x)
    # Schedulers draw with the function randn_tensor of their module, or with a noise sampler of their own
    module: Any = sys.modules[type(scheduler).__module__]
    drawing = getattr(module, "randn_tensor", None)
    takes = {}
    if drawing and "generator" in inspect.signature(scheduler.step).parameters:
        takes["generator"] = torch.Generator().manual_seed(0)

    def give_ready_noise(*args: Any, **kwargs: Any) -> Tensor:
        return ready

    def reset() -> None:
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        if drawing:
            module.randn_tensor = give_ready_noise if row.endswith(READY) else drawing
        elif row.endswith(READY):
            scheduler.noise_sampler = give_ready_noise

    def run() -> None:
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(ready, t, sample, return_dict=False, **takes)[0]

    reset()
    return reset, run


def prepare_ours(row: str, steps: int, x: Tensor, whole: bool) -> Run:
    """Our sampler of the same row with a ready output. whole: the denoiser makes x0 from it; else it is x0 itself."""
    name, _, order = row.removesuffix(READY).partition(", order ")
    sampler: Sampler = SAMPLERS[name]
    end = 0.0 if sampler.convention.ends_at_zero else 0.03
    levels = [TABLE.sigma(999 - i * 998 / steps) for i in range(steps)]
    levels.append(end)
    options: dict[str, Any] = {}
    if order:
        options["order"] = int(order)
    ready = torch.randn_like(x)
    source: Any = None

    def give_ready(x: Tensor, sigma: float) -> Tensor:
        return ready

    def give_ready_noise(sigma: float, sigma_next: float) -> Tensor:
        return ready

    denoise = denoiser(give_ready, TABLE, "eps") if whole else give_ready

    def reset() -> None:
        nonlocal source
        seeds = range(x.shape[0])
        shape = x.shape[1:]
        if row.endswith(READY):
            source = give_ready_noise
        elif name == "dpmpp_sde":
            source = BrownianTree(seeds, shape, levels[-2], levels[0])
        else:
            source = Streams(seeds, shape)  # white, as diffusers' others

    def run() -> None:
        for _ in sampler.run(denoise, x, levels, source, **options):
            pass

    return reset, run


def measure(sides: list[Run], rounds: int) -> list[float]:
    """The median of the seconds of each, in turn."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 2):
        # None is always first
        order = list(range(len(sides)))
        if turn % 2 == 0:
            order.reverse()
        for side in order:
            reset, run = sides[side]
            reset()
            start = time.perf_counter()
            run()
            if turn > 1:  # two rounds warm up
                seconds[side].append(time.perf_counter() - start)
    return [statistics.median(values) for values in seconds]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SAMPLER", help="of the rows, without what follows a comma")
    parser.add_argument("--size", type=int, default=128, help="height and width of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)

    x = torch.randn(args.batch, 4, args.size, args.size, generator=torch.Generator().manual_seed(0)) * 14
    rows = [*SCHEDULERS, *(name + READY for name in STOCHASTIC)]
    if args.only:
        rows = [row for row in rows if row.split(",")[0] in args.only]
    lines = []
    for row in tqdm(rows, disable=None):
        sides = [
            prepare_ours(row, args.steps, x, whole=False),
            prepare_ours(row, args.steps, x, whole=True),
            prepare_theirs(row, args.steps, x),
        ]
        bare, whole, theirs = (seconds / args.steps * 1e6 for seconds in measure(sides, args.rounds))
        lines.append(
            f"| {row} | {bare:.0f} | {whole:.0f} | {theirs:.0f} | {theirs / bare:.1f} | {theirs / whole:.1f} |"
        )

    table = [
        f"{date.today()}, {platform.machine()} CPU, {args.threads} thread, torch {torch.__version__}, diffusers "
        f"{D.__version__}, {args.steps} steps on {args.batch}x4x{args.size}x{args.size} float32, medians of "
        f"{args.rounds} interleaved runs, microseconds a step:",
        "",
        "| sampler | ours | ours with denoiser | diffusers | diffusers / ours | diffusers / ours with denoiser |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ]
    print("\n".join(table))
    if args.out:
        with args.out.open("a") as file:
            file.write("\n" + "\n".join(table))


if __name__ == "__main__":
    stopping.run(main)
