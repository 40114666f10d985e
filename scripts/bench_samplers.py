"""Time one step of a sampler, ours against diffusers' schedulers, the network left out: in turn, medians of rounds.

    python scripts/bench_samplers.py                             # 1x4x128x128, an SDXL picture, on the CPU
    python scripts/bench_samplers.py --only uni_pc lms --rounds 50

Theirs is scale_model_input and step with a ready output; ours is the sampler with `denoise` ready, as a sampler sees
it, and then with our denoiser around a ready output, which does what theirs does in those two. Rows named "noise ready"
leave out drawing, on both sides. Needs the `test` extra. Prints a table; --out appends it to a Markdown file.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import diffusers as D
import torch
from torch import Tensor
from tqdm import tqdm

from samplers import SAMPLERS, Sampler
from samplers.denoiser import denoiser
from samplers.noise import BrownianTree, Streams
from samplers.schedule import noise_table

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TABLE = noise_table()
MULTI, NOISY = D.DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++")
READY = ", noise ready"
SCHEDULERS = {  # a sampler of the table, with options after a comma; the scheduler that does the same
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


def their_run(row: str, steps: int, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """(what to do before the clock starts, one run of `steps` steps)."""
    scheduler, ready = SCHEDULERS[row.removesuffix(READY)](), torch.randn_like(x)
    module = sys.modules[type(scheduler).__module__]
    drawing = getattr(module, "randn_tensor", None)
    takes = {"generator": torch.Generator().manual_seed(0)} if drawing else {}

    def reset():
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        if drawing:
            module.randn_tensor = (lambda *_, **__: ready) if row.endswith(READY) else drawing
        elif row.endswith(READY):
            scheduler.noise_sampler = lambda *_: ready

    def run():
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(ready, t, sample, return_dict=False, **takes)[0]

    reset()
    takes = takes if "generator" in scheduler.step.__code__.co_varnames else {}
    return reset, run


def our_run(row: str, steps: int, x: Tensor, whole: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same of ours; whole: with the denoiser."""
    name, _, order = row.removesuffix(READY).partition(", order ")
    sampler: Sampler = SAMPLERS[name]
    levels = [TABLE.sigma(999 - i * 998 / steps) for i in range(steps)] + [0.0 if sampler.ends_at_zero else 0.03]
    options = dict(order=int(order)) if order else {}
    ready, sources = torch.randn_like(x), {}
    denoise = denoiser(lambda x, t: ready, TABLE, "eps") if whole else lambda x, sigma: ready

    def reset():
        seeds, shape = range(x.shape[0]), x.shape[1:]
        brownian = name == "dpmpp_sde" and not row.endswith(READY)  # diffusers' others are white
        sources[0] = BrownianTree(seeds, shape, levels[-2], levels[0]) if brownian else Streams(seeds, shape)

    def run():
        more = [(lambda *_: ready) if row.endswith(READY) else sources[0]] if sampler.stochastic else []
        for _ in sampler.run(denoise, x, levels, *more, **options):
            pass

    return reset, run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SAMPLER", help="of the rows, without what follows a comma")
    parser.add_argument("--size", type=int, default=128, help="height and width of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)

    x = torch.randn(args.batch, 4, args.size, args.size, generator=torch.Generator().manual_seed(0)) * 14
    rows = [*SCHEDULERS, *(name + READY for name in STOCHASTIC)]
    rows = [row for row in rows if not args.only or row.split(",")[0] in args.only]
    lines = []
    for row in tqdm(rows, disable=None):
        sides = [our_run(row, args.steps, x, False), our_run(row, args.steps, x, True), their_run(row, args.steps, x)]
        seconds = [[], [], []]
        for round_ in range(args.rounds + 2):
            for side in range(3) if round_ % 2 else reversed(range(3)):  # none is always first
                reset, run = sides[side]
                reset()
                start = time.perf_counter()
                run()
                if round_ > 1:  # two rounds warm up
                    seconds[side].append(time.perf_counter() - start)
        bare, whole, theirs = (statistics.median(s) / args.steps * 1e6 for s in seconds)
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
    main()
