"""Noise belongs to pictures; the Brownian tree is torchsde's."""

import random
import warnings

import pytest
import torch
import torchsde

from samplers.noise import BrownianTree, Streams

SEEDS = [5, 2**40 + 3]
SHAPE = (4, 5, 7)
RANGES = [(0.0291675348, 14.6146469), (0.002, 80.0), (0.0292, 4096.0)]


def published(seed: int, low: float, high: float):
    """noise(sigma, lower) of one picture, as k-diffusion asks torchsde for it."""
    tree = torchsde.BrownianTree(low, torch.zeros(SHAPE), high, entropy=seed)

    def noise(sigma: float, lower: float) -> torch.Tensor:
        a, b = sorted((sigma, lower))
        with warnings.catch_warnings():  # about the rounding of the range to 6 digits
            warnings.simplefilter("ignore")
            return tree(a, b) * (-1 if sigma > lower else 1) / (b - a) ** 0.5

    return noise


@pytest.mark.parametrize("low, high", RANGES)
def test_tree_is_torchsdes_bit_for_bit(low, high):
    ours, theirs = BrownianTree(SEEDS, SHAPE, low, high), [published(seed, low, high) for seed in SEEDS]
    draw = random.Random(0)
    pairs = [(high, low), (low, high), (high, high / 2)]
    pairs += [(draw.uniform(low, high), draw.uniform(low, high)) for _ in range(25)]
    for pair in pairs:
        assert torch.equal(ours(*pair), torch.stack([noise(*pair) for noise in theirs]))


def test_queries_of_a_sampler_are_torchsdes_bit_for_bit():
    """Two intervals per step that share their start, as in DPM++ SDE; the tree keeps what the next query needs."""
    low, high = RANGES[0]
    sigmas = [high * (low / high) ** (i / 9) for i in range(9)] + [low]
    ours, theirs = BrownianTree(SEEDS, SHAPE, low, high), published(SEEDS[1], low, high)
    for sigma, lower in zip(sigmas, sigmas[1:]):
        for end in ((sigma * lower) ** 0.5, lower):
            assert torch.equal(ours(sigma, end)[1], theirs(sigma, end))


def test_defaults_of_torch_do_not_matter():
    """Noise is drawn in float32 on the CPU whatever the default dtype and device are."""
    low, high = RANGES[0]
    expected = [Streams(SEEDS, SHAPE).draw(), BrownianTree(SEEDS, SHAPE, low, high)(high, 2.0)]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # a GPU in its place
            found = [Streams(SEEDS, SHAPE).draw(), BrownianTree(SEEDS, SHAPE, low, high)(high, 2.0)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected))


def test_order_batch_and_history_do_not_matter():
    low, high = RANGES[0]
    pairs = [(14.0, 3.0), (3.0, 1.0), (2.0, 0.5), (14.0, 0.1), (0.1, 0.05)]
    batch, alone = BrownianTree([7, 8, 9], SHAPE, low, high), BrownianTree([8], SHAPE, low, high)
    forward = [batch(*pair) for pair in pairs]
    backward = [alone(*pair) for pair in reversed(pairs)][::-1]
    assert all(torch.equal(a[1:2], b) for a, b in zip(forward, backward))
    assert not torch.equal(forward[0][0], forward[0][2])


def test_increments_add_up_and_have_unit_variance():
    tree = BrownianTree([3], (1, 100, 100), 1.0, 10.0)
    whole, first, second = tree(10.0, 1.0) * 3.0, tree(10.0, 4.0) * 6**0.5, tree(4.0, 1.0) * 3**0.5
    assert torch.allclose(whole, first + second, atol=2e-6)  # float32 sums of numbers up to 10, in another order
    # 10,000 draws: a deviation of 1 is known to 0.007, and a correlation of 0 to 0.01; four times that.
    assert whole.std().item() / 3 == pytest.approx(1, abs=0.028)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.04
    shared = torch.corrcoef(torch.stack([whole.flatten(), first.flatten()]))[0, 1].item()
    assert shared == pytest.approx((6 / 9) ** 0.5, abs=0.03)
    assert torch.equal(tree(1.0, 4.0), -tree(4.0, 1.0))


def test_levels_outside_the_range_are_refused():
    tree = BrownianTree([0], SHAPE, 0.03, 14.6)
    for pair in ((14.7, 1.0), (1.0, 0.02), (1.0, 1.0), (1.0, 1.0 - 1e-7)):
        with pytest.raises(ValueError, match="^noise between .*: choose two levels from 0.03 to 14.6$"):
            tree(*pair)


def test_streams_belong_to_pictures():
    batch, alone = Streams([7, 8, 9], SHAPE), Streams([8], SHAPE)
    for _ in range(3):
        assert torch.equal(batch.draw()[1:2], alone.draw())
    assert torch.equal(Streams([8], SHAPE)(3.0, 1.0), Streams([8], SHAPE).draw())


def test_nothing_touches_the_global_generator():
    before = torch.get_rng_state()
    BrownianTree(SEEDS, SHAPE, 0.03, 14.6)(3.0, 1.0)
    Streams(SEEDS, SHAPE).draw()
    assert torch.equal(before, torch.get_rng_state())
