"""Compare samplers and schedules: network evaluations against error, orders, levels and paths, on one page.

    python scripts/sampler_lab.py                                    # on a mixture of Gaussians, in seconds
    python scripts/sampler_lab.py --samplers heun dpmpp_2m uni_pc --schedules karras beta --steps 5 10 20 40 80
    python scripts/sampler_lab.py --problem model --prompt "a red apple" --steps 4 8 16    # on the small model

The mixture lies in two dimensions and its denoiser is known exactly. The error is the root mean square of the
distance from where the exact path of the same noise ends. Samplers that add noise follow no such path: they are
measured by the distance between the distribution of their samples and the true one. Every run ends at the smallest
trained level. Writes lab.html, which needs no other file, lab.csv, and the plots as PNG.
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import weights
from common import DTYPES, add_run_flags, as_text, fail, first_line, make_parser, tell
from destination import held
from lab.figures import Study, draw_figures
from lab.measure import Problem, choose_levels, find_exact_path, sample
from lab.mixture import FIVE, sliced_wasserstein
from lab.page import write_page, write_table
from ldm import conditioning, guidance
from ldm.plan import noise_levels
from ldm.scratch import at_home, together
from ldm.tasks.text_to_image import MAX_SEED
from samplers import INTERPOLATED, SAMPLERS, find
from samplers.basics import Streams, denoiser
from samplers.schedules import noise_table

MOST_POINTS = 100_000  # each takes 6 KB for its exact path
MOST_PICTURES = 1000


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--problem", choices=("mixture", "model"), default="mixture")
    parser.add_argument(
        "--samplers",
        nargs="+",
        metavar="NAME",
        default=["euler", "heun", "dpmpp_2m", "uni_pc", "lms", "euler_ancestral"],
    )
    parser.add_argument("--schedules", nargs="+", default=["karras", "normal", "ays_sdxl"], metavar="NAME")
    parser.add_argument("--steps", nargs="+", type=int, metavar="N", help="(default: 5 10 20 40 80; model: 4 8 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="points of the mixture (default: 2000) or pictures (default: 2)")
    parser.add_argument("--model", help="a folder in the diffusers layout (default: the miniature)")
    parser.add_argument("--prompt", default="a red apple")
    parser.add_argument("--guidance", type=float, help="1 or less: off")
    add_run_flags(parser, dtype="float32")
    parser.add_argument("--out", type=at_home, default=Path("outputs/lab"), help="a folder")
    return parser.parse_args()


def make_mixture_problem(args: argparse.Namespace) -> Problem:
    """Points (1 2 1 n) of a mixture of five Gaussians in the plane."""
    generator = torch.Generator().manual_seed(args.seed)
    count = args.count or 2000
    samples = FIVE.draw(count, generator)
    noise = torch.randn(1, 2, 1, count, generator=generator, dtype=torch.float64)
    others = FIVE.draw(count, torch.Generator().manual_seed(args.seed + 1))
    floor = sliced_wasserstein(others, samples)
    what = f"{count} points of a mixture of five Gaussians"
    return Problem(FIVE.denoise, noise_table(), noise, [args.seed], what, samples, floor)


def make_model_problem(args: argparse.Namespace) -> Problem:
    """Latents of a model for one prompt, a picture for each seed."""
    model = weights.load(args.model or weights.MINIATURE, dtype=DTYPES[args.dtype], device=args.device)
    facts = model.facts
    seeds = [args.seed + k for k in range(args.count or 2)]
    sizes = conditioning.Sizes(original=(facts.size, facts.size), target=(facts.size, facts.size))
    prompts = [args.prompt] * len(seeds)
    nothing = [None] * len(seeds)
    cond = conditioning.encode(model, prompts, sizes)
    scale = facts.guidance if args.guidance is None else args.guidance
    if scale > 1:
        uncond = conditioning.encode(model, nothing, sizes)
        network = guidance.classifier_free(model.unet, cond, uncond, scale)
    else:
        network = guidance.condition(model.unet, cond)
    side = facts.size // facts.vae.factor
    noise = Streams(seeds, (facts.vae.latent_channels, side, side), args.device).draw()
    what = f"latents of {args.model or 'the miniature'} for {args.prompt!r}"
    levels = noise_levels(facts.noise)
    denoise = denoiser(network, levels, facts.prediction)
    return Problem(denoise, levels, noise, seeds, what, picture=model.to_image)


def run_study(args: argparse.Namespace, problem: Problem) -> Study:
    """Run every sampler on every schedule with every count of steps."""
    samplers = list(dict.fromkeys(find(name) for name in args.samplers))
    schedules = list(dict.fromkeys(args.schedules))
    # Refuse wrong names before the first run
    for schedule, steps in product(schedules, args.steps):
        choose_levels(problem, schedule, steps)
    # A network is slow, so its exact path is as fine as the finest run needs it to be
    exact_steps = max(16, 2 * max(args.steps)) if problem.picture else 400
    exact = find_exact_path(problem, exact_steps)
    found = Study(problem, samplers, schedules, args.steps, [], exact, {})
    work = list(product(samplers, schedules, args.steps))
    for name, schedule, steps in tqdm(work, unit="run", disable=None):
        run, states = sample(problem, name, schedule, steps, exact[-1][1])
        found.runs.append(run)
        if schedule == schedules[0] and steps == found.shown_steps:
            found.states[name] = states
    return found


def refuse_interpolated(names: list[str]) -> None:
    """Raises ValueError for samplers of CFG++: with guidance they follow no ODE, so there is no exact path."""
    wrong = [name for name in names if SAMPLERS[find(name)].guidance == INTERPOLATED]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: CFG++ follows no path that an error could be measured from: leave it out, "
            "or take the mixture, which has no guidance"
        )


def experiment(args: argparse.Namespace, plt: Any) -> None:
    """Sample, measure, and write the figures, the table and the page."""
    if args.problem == "mixture":
        problem = make_mixture_problem(args)
    else:
        refuse_interpolated(args.samplers)
        problem = make_model_problem(args)
    found = run_study(args, problem)
    about = (
        f"Sampled: {problem.what}, seed {args.seed}, from noise level "
        f"{problem.levels.sigma_max:.4g} down to {problem.levels.sigma_min:.3g}."
    )
    with together(args.out) as scratch:
        sections = draw_figures(plt, scratch, found)
        write_table(scratch, found.runs)
        page = write_page(scratch, found, sections, about)
    tell(args.out / page.name)


def check(args: argparse.Namespace):
    """Refuse what no run could have, and flags that would have no effect."""
    most = MOST_POINTS if args.problem == "mixture" else MOST_PICTURES
    if args.count is not None and not 1 <= args.count <= most:
        fail(f"--count: choose at least 1, and at most {most:,} for the {args.problem}")
    if not 0 <= args.seed <= MAX_SEED - most:
        fail(f"--seed: choose 0 or more, and at most {MAX_SEED - most}")
    if args.problem == "mixture" and (args.model is not None or args.guidance is not None):
        fail("--model and --guidance have no effect on the mixture: add --problem model")
    if args.guidance is not None and not isfinite(args.guidance):
        fail(f"--guidance {args.guidance}: must be a number that is finite")
    args.prompt = as_text("--prompt", args.prompt)


def main():
    args = parse_arguments()
    usual = [5, 10, 20, 40, 80] if args.problem == "mixture" else [4, 8, 16]
    args.steps = sorted(set(args.steps or usual))
    check(args)
    try:
        import matplotlib.pyplot as plt

        plt.switch_backend("Agg")
    except ImportError:
        fail("plots need matplotlib: pip install matplotlib, or this project with its extra viz")
    try:
        with torch.no_grad(), held(args.out, "lab.html"):
            experiment(args, plt)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:  # CheckpointError is a ValueError
        fail(first_line(error))


if __name__ == "__main__":
    stopping.run(main, "stopped; nothing was written")
