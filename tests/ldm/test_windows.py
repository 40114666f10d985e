"""Windows: where they lie, what they weigh, and that every sampler and every task can use them."""

import pytest
import torch

import weights
from ldm import tasks
from ldm.blend import Keep, around
from ldm.conditioning import Sizes, encode
from ldm.draw import draw, start
from ldm.guidance import condition
from ldm.plan import plan
from ldm.windows import Grid, Windows, windowed
from samplers import SAMPLERS
from samplers.basics import Streams
from support.numbers import TwoEstimates, denoise, randn, relative_l2
from support.pictures import pictures


@pytest.fixture(scope="module")
def miniature():
    return weights.load(weights.MINIATURE)


def test_the_last_window_lies_at_the_edge():
    """diffusers leaves out what does not fill a stride, and sets that strip to zero."""
    grid = Grid(size=8, stride=3)
    assert grid.starts(8) == [0] and grid.starts(5) == [0]
    assert grid.starts(14) == [0, 3, 6]
    assert grid.starts(16) == [0, 3, 6, 8]
    seen = torch.zeros(1, 1, 16, 13)

    def look(window):
        assert window.shape[2:] == (8, 8)
        window += 1
        return window

    grid.mean(look, seen)
    assert seen.min() >= 1


@pytest.mark.parametrize("weights", ["uniform", "gaussian"])
def test_the_mean_is_weighted(weights):
    """Against the sum over windows, pixel by pixel, of a function that differs from window to window."""
    x = randn(2, 4, 6, 11)
    grid = Grid(5, 2, weights)
    weight = torch.ones(5, 5, dtype=x.dtype)
    if weights == "gaussian":
        place = (torch.arange(5, dtype=x.dtype) - 2) / 5
        weight = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 0.01))
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    for top in (0, 1):
        for left in (0, 2, 4, 6):
            window = x[:, :, top : top + 5, left : left + 5]
            total[:, :, top : top + 5, left : left + 5] += weight * window * window.mean()
            count[:, :, top : top + 5, left : left + 5] += weight
    found = grid.mean(lambda window: window * window.mean(), x)
    assert relative_l2(found, total / count) < 1e-12
    same = grid.mean(lambda window: window, x.float())  # no pixel is lost where weights are small
    assert (same - x.float()).abs().max() < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde", "uni_pc", "euler_cfg_pp"])
def test_any_sampler_draws_in_windows(miniature, sampler):
    """A denoiser of one pixel at a time is the same in windows."""

    def local(x, sigma):
        return torch.tanh(x / (1 + sigma))

    run = plan(miniature, 4, sampler)
    streams = [Streams([3], (4, 9, 14)) for _ in range(2)]
    runs = [local, Windows(TwoEstimates(local, 1.0) if "pp" in sampler else local, Grid(5, 3))]
    ends = []
    for source, denoiser in zip(streams, runs):
        x = run.start_std * source.draw()
        noise = SAMPLERS[sampler].noise(source, run.sigmas)
        *_, last = run.sampler.run(denoiser, x, run.sigmas, noise)
        ends.append(last.x)
    assert relative_l2(ends[1], ends[0]) < 1e-5


def test_both_estimates_of_a_window():
    """Of CFG++: neither is mixed with the other."""
    both = TwoEstimates(lambda x, sigma: x * x.mean(), 0.25)
    guided, unguided = Windows(both, Grid(4, 2)).pair(randn(1, 4, 6, 9), 1.0)
    assert relative_l2(unguided, 0.25 * guided) < 1e-12
    assert guided.shape == (1, 4, 6, 9)


def test_windows_of_the_network_and_of_the_denoiser_are_one_map(miniature):
    grid = Grid(6, 3, "gaussian")
    cond = encode(miniature, ["a red apple"], Sizes((64, 104), (64, 104)))
    run = plan(miniature, 3, "dpmpp_2m")
    with torch.no_grad():
        ends = []
        for network, used in [
            (windowed(miniature.unet, grid), run),
            (miniature.unet, around(run, lambda denoise: Windows(denoise, grid))),
        ]:
            streams = Streams([5], (4, 8, 13))
            ends.append(draw(miniature, condition(network, cond), start(run, streams), used, streams, decode=False))
    assert relative_l2(ends[0], ends[1]) < 1e-5


def test_windows_within_what_is_kept(miniature):
    """The wrapper put around the plan last is the innermost: the mask is of the whole picture."""
    z, noise, x = randn(1, 4, 6, 9, seed=1), randn(1, 4, 6, 9, seed=2), randn(1, 4, 6, 9, seed=3)
    mask = (randn(1, 1, 6, 9, seed=4) > 0).double()
    run = plan(miniature, 3, "euler")
    kept = around(run, lambda inner: Keep(inner, mask, z, noise))
    both = around(kept, lambda inner: Windows(inner, Grid(4, 2)))
    *_, last = both.sampler.run(denoise, x, [5.0, 1.0, 0.2], None)
    *_, expected = run.sampler.run(Keep(Windows(denoise, Grid(4, 2)), mask, z, noise), x, [5.0, 1.0, 0.2], None)
    assert last.x.equal(expected.x)


def test_a_panorama_of_one_window_is_a_picture(miniature):
    sized = dict(steps=2, seeds=[4])
    one = tasks.panorama(miniature, "a red apple", width=miniature.facts.size, **sized)
    assert one.equal(tasks.text_to_image(miniature, "a red apple", **sized))
    side = miniature.facts.size
    assert tasks.panorama(miniature, "a red apple", stride=side // 16, **sized).shape == (1, 3, side, 2 * side)


def test_other_tasks_draw_in_windows(miniature):
    """Pictures to repaint have a mask of their whole size, and go in with every window."""
    calls = []

    def network(x, t, context, vector=None):
        calls.append(x.shape[2:])
        return miniature.unet(x, t, context, vector)

    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 48:] = 1
    image = pictures(1)
    found = tasks.inpaint(
        miniature, image, mask, "a red apple", steps=2, guidance=1.0, network=windowed(network, Grid(8, 4))
    )
    assert found.shape == image.shape and set(calls) == {(8, 8)} and len(calls) == 2 * 2


def test_windows_that_leave_gaps_are_refused(miniature):
    with pytest.raises(ValueError, match="^window 0: at least 1 latent is needed, such as 64$"):
        Grid(0)
    with pytest.raises(ValueError, match="^stride 9: choose from 1 to the window's 8 latents$"):
        Grid(8, 9)
    with pytest.raises(ValueError, match="^weights 'cosine': choose one of uniform, gaussian$"):
        tasks.panorama(miniature, "a red apple", weights="cosine")
