"""ldm.compare says which block of a network is wrong, whatever the network and the names of its blocks."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.compare import LIMIT, Rules, assert_same, compare, expect, take_weights
from ldm.compare.names import translate
from ldm.config import UNetConfig
from ldm.unet import UNet
from support.numbers import randn, randomize

CONFIG = UNetConfig(
    in_channels=4,
    channels=(32, 48),
    heads=(2, 3),
    depth=(1, 1),
    mid_depth=1,
    context_dim=24,
    linear_projection=True,
    layers=1,
    groups=8,
)
BLOCK = "mid_block.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def unet() -> UNet:
    return randomize(UNet(CONFIG), seed=1).float()


@pytest.fixture(scope="module")
def inputs() -> dict:
    return dict(x=randn(2, 4, 8, 12), t=torch.tensor([981.0, 17.0]), context=randn(2, 7, 24, seed=1))


@pytest.fixture(scope="module")
def expected(unet, inputs):
    return {dtype: expect(unet, inputs, dtype=dtype) for dtype in (torch.float32, torch.float64)}


def swap_norms(network: nn.Module):
    block = network.get_submodule(BLOCK)
    block.norm1, block.norm2 = block.norm2, block.norm1


def change_epsilon(network: nn.Module):
    network.get_submodule("mid_block.attentions.0.norm").eps = 1e-5  # 1e-6 in the published networks


@torch.no_grad()
def transpose(network: nn.Module):
    weight = network.get_submodule(f"{BLOCK}.attn1.to_q").weight
    weight.copy_(weight.T.clone())


def change_heads(network: nn.Module):
    network.get_submodule(f"{BLOCK}.attn2.attend").heads = 1


def drop_bias(network: nn.Module):
    network.get_submodule("conv_in").bias = None


FAULTS = {  # how it is planted; the blocks that depart by themselves; what the verdict says of the first
    "swapped norms": (swap_norms, [f"{BLOCK}.norm1", f"{BLOCK}.norm2"], "its weight is not that of the reference"),
    "epsilon": (change_epsilon, ["mid_block.attentions.0.norm"], "eps is 1e-05 here and 1e-06 in the reference"),
    "transposed": (transpose, [f"{BLOCK}.attn1.to_q"], "its weight is that of the reference transposed"),
    "heads": (change_heads, [f"{BLOCK}.attn2.attend"], "heads is 1 here and 3 in the reference"),
    "bias": (drop_bias, ["conv_in"], "it has no bias"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_names_exactly_the_block_with_the_planted_fault(unet, expected, fault, dtype):
    plant, paths, reason = FAULTS[fault]
    mine = copy.deepcopy(unet)
    plant(mine)
    found = compare(mine, expected[dtype])
    assert [row.path for row in found.faults] == paths
    assert not found.agrees and reason in found.verdict()
    assert found.verdict().startswith(
        f"{paths[0]} ({type(mine.get_submodule(paths[0])).__name__}) departs first: error"
    )
    line = next(line for line in str(found).splitlines() if "<--" in line)
    assert line.split()[0] == paths[0].split(".")[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_copy_agrees(unet, expected, dtype):
    found = compare(copy.deepcopy(unet), expected[dtype])
    assert found.agrees and not found.faults and not found.unmatched
    assert len(found.rows) > 100
    assert found.verdict().startswith(f"all {len(found.rows)} blocks agree")


def test_own_errors_are_told_from_inherited_ones(unet, expected):
    mine = copy.deepcopy(unet)
    transpose(mine)
    rows = {row.path: row for row in compare(mine, expected[torch.float32]).rows}
    later = rows["up_blocks.0.resnets.0.conv2"]
    assert not later.departs and later.error <= LIMIT * later.noise  # of its own
    assert later.run_error is not None and later.run_error > 100 * later.run_noise  # inherited
    holder = rows[f"{BLOCK}.attn1"]
    assert holder.departs and not holder.own  # only holds the faulty block


# A network of one's own, whose blocks have other names, other classes and other arguments


class Theirs(nn.Module):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(4, 8)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.emb_proj = nn.Linear(6, 8)

        def forward(self, hidden: Tensor, emb: Tensor, scale: float = 1.0) -> Tensor:
            h = self.conv(F.silu(self.norm(hidden))) + self.emb_proj(emb)[:, :, None, None]
            return hidden + scale * h

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList([Theirs.Block(), Theirs.Block()])
        self.attn = nn.Linear(8, 8)

    def forward(self, sample: Tensor, emb: Tensor) -> dict[str, Tensor]:
        x = self.conv_in(sample)
        for block in self.blocks:
            x = block(x, emb)
        tokens = x.flatten(2).transpose(1, 2)
        return {"sample": x + self.attn(tokens).transpose(1, 2).reshape(x.shape)}


class Mine(nn.Module):
    class Res(nn.Module):
        def __init__(self):
            super().__init__()
            self.forgets = False
            self.n = nn.GroupNorm(4, 8)
            self.c = nn.Conv2d(8, 8, 3, padding=1)
            self.t = nn.Linear(6, 8)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = self.n(x)
            F.silu(h, inplace=True)
            h = self.c(h)
            if not self.forgets:
                h += self.t(t)[:, :, None, None]
            h += x
            return h

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.res = nn.ModuleList([Mine.Res(), Mine.Res()])
        self.out = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.res:
            x = block(x, t)
        return x + self.out(x)


NAMES = {
    "first": "conv_in",
    "res": "blocks",
    "res.*.n": "blocks.*.norm",
    "res.*.c": "blocks.*.conv",
    "res.*.t": "blocks.*.emb_proj",
    "out": "attn",
}
ALL_BUT_OUT = {path: there for path, there in NAMES.items() if path != "out"}


class PictureRules(Rules):
    """The reference's attention works on tokens (b n c), mine on a picture (b c h w)."""

    def arguments(self, block, call):
        args, kwargs = super().arguments(block, call)
        if isinstance(block, nn.Conv2d):
            kwargs = {name: x.transpose(1, 2)[..., None] if x.ndim == 3 else x for name, x in kwargs.items()}
        return args, kwargs


@pytest.fixture
def pair():
    """Two networks that compute the same."""
    theirs = randomize(Theirs(), seed=2).float()
    mine = Mine()
    renamed = {"conv_in": "first", "blocks": "res", "norm": "n", "conv": "c", "emb_proj": "t", "attn": "out"}
    state = {}
    for key, value in theirs.state_dict().items():
        state[".".join(renamed.get(part, part) for part in key.split("."))] = value
    state["out.weight"] = state["out.weight"][:, :, None, None]
    mine.load_state_dict(state)
    return mine, theirs


GIVEN = (randn(2, 3, 4, 6), randn(2, 6, seed=1))  # in order: the networks name them differently


def test_a_network_with_names_of_its_own(pair):
    mine, theirs = pair
    found = compare(mine, expect(theirs, GIVEN), NAMES, rules=PictureRules())
    assert found.agrees, str(found)
    assert [row.path for row in found.rows] == [
        "",
        "first",
        *("res.0", "res.0.n", "res.0.c", "res.0.t"),
        *("res.1", "res.1.n", "res.1.c", "res.1.t"),
        "out",
    ]


def test_the_message_of_a_test_is_the_verdict(pair):
    mine, theirs = pair
    mine.res[1].forgets = True
    with pytest.raises(AssertionError) as error:
        assert_same(mine, theirs, ALL_BUT_OUT, GIVEN)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("res.1 (Res) departs first: error ")
    assert "it shows in what comes out" in lines[1]
    assert lines[-1].strip().startswith("what the whole network gives is off by")
    mine.res[1].forgets = False
    assert_same(mine, theirs, ALL_BUT_OUT, GIVEN)
    assert_same(mine, theirs, ALL_BUT_OUT, GIVEN, dtype=torch.float64)


def test_a_tolerance_of_ones_own(pair):
    mine, theirs = pair
    mine.res[0].n.eps = 1e-4
    assert_same(mine, theirs, ALL_BUT_OUT, GIVEN, tolerance=1e-3)
    with pytest.raises(AssertionError, match=r"res\.0\.n \(GroupNorm\) departs first: error .*, tolerance 1.0e-07"):
        assert_same(mine, theirs, ALL_BUT_OUT, GIVEN, tolerance=1e-7)


def test_blocks_without_a_counterpart_are_told(pair):
    mine, theirs = pair
    found = compare(mine, expect(theirs, GIVEN), {"first": "conv_in", "res.0": "blocks.0"})
    assert [row.path for row in found.rows] == ["", "first", "res.0"]
    assert found.unmatched == ["res.0.n", "res.0.c", "res.0.t", "res.1", "out"]
    assert str(found).endswith(
        "not compared, since the reference has no counterpart: res.0.n, res.0.c, res.0.t, res.1, out"
    )


def test_the_longest_pattern_counts_and_then_the_one_with_fewer_stars():
    names = {"res": "blocks", "res.*.n": "blocks.*.norm", "res.1.n": "last", "*.*.c.*": "*.x.*", "top": ""}
    paths = ("res.0", "res.0.n.weight", "res.1.n", "a.b.c.d.e", "a.b.d", "top.a", "top")
    assert [translate(path, names) for path in paths] == [
        "blocks.0",
        "blocks.0.norm.weight",
        "last",
        "a.x.b.e",
        "a.b.d",
        "a",
        "",
    ]


@pytest.mark.parametrize(
    "names, message",
    [
        ({"frist": "conv_in"}, "names: 'frist' is no block of your network: is 'first' meant?"),
        (
            {"first": "conv_inn"},
            "names: 'first' is said to be 'conv_inn', which is no block of the reference: is 'conv_in'",
        ),
        (
            {"res.0": "blocks.0", "res.1": "blocks.0"},
            "names: 'res.0' and 'res.1' both stand for 'blocks.0' of the reference",
        ),
        ({"first": "*"}, "names: '*' has more * than 'first'"),
    ],
)
def test_wrong_names_are_refused(pair, names, message):
    mine, theirs = pair
    with pytest.raises(ValueError) as error:
        compare(mine, expect(theirs, GIVEN), names)
    assert str(error.value).startswith(message)


def test_both_networks_are_left_as_they_were(pair):
    mine, theirs = pair
    theirs.double()
    theirs.attn.bias.data += 1e-12  # float32 cannot hold it
    theirs.blocks[0].train(False)
    before = [copy.deepcopy(network.state_dict()) for network in pair]
    owners = [list(network.parameters()) for network in pair]
    compare(mine, expect(theirs, GIVEN, dtype=torch.float32))
    compare(mine, expect(theirs, GIVEN, dtype=torch.bfloat16))
    for network, state, parameters in zip(pair, before, owners):
        assert all(a is b for a, b in zip(network.parameters(), parameters))
        for key, value in network.state_dict().items():
            assert value.dtype == state[key].dtype and torch.equal(value, state[key])
    assert theirs.training and not theirs.blocks[0].training and mine.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in theirs.modules())


def test_a_network_on_the_meta_device_takes_the_weights(unet, expected):
    with torch.device("meta"):
        mine = UNet(CONFIG)
    assert compare(mine, expected[torch.float32]).agrees
    assert mine.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()


def test_weights_go_by_the_names_of_the_blocks(pair):
    _, theirs = pair
    mine = Mine()
    mine.out = nn.Linear(8, 8)
    take_weights(mine, theirs, NAMES)
    assert torch.equal(mine.res[1].t.weight, theirs.blocks[1].emb_proj.weight)
    with pytest.raises(ValueError, match=r"out\.weight has no counterpart: the reference has no out\.weight"):
        take_weights(mine, theirs, ALL_BUT_OUT)
    del mine.out
    with pytest.raises(ValueError, match=r"2 tensors of the reference have no counterpart, attn\.weight among them"):
        take_weights(mine, theirs, ALL_BUT_OUT)


def test_a_network_that_fails_is_a_finding(pair):
    mine, theirs = pair
    mine.res[1].t = nn.Linear(5, 8)
    found = compare(mine, expect(theirs, GIVEN), NAMES, rules=PictureRules())
    assert [row.path for row in found.faults] == ["res.1.t"]
    assert "RuntimeError" in found.verdict()


def test_an_assertion_of_ones_own_code_is_a_finding_too(pair):
    mine, theirs = pair

    def refuse(t: Tensor):
        raise AssertionError("t must be an integer")

    mine.res[0].t.forward = refuse
    found = compare(mine, expect(theirs, GIVEN), NAMES, rules=PictureRules())
    assert [row.path for row in found.faults] == ["res.0.t"]
    assert "AssertionError: t must be an integer" in found.verdict()


class Stats(nn.Module):
    """Holds buffers, and returns what holds tensors."""

    @dataclass
    class Output:
        mean: Tensor
        name: str

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.norm.running_mean += 0.1

    def forward(self, x: Tensor):
        return Stats.Output(self.norm(x), "stats")

    def name(self, x: Tensor) -> str:
        return "stats"


def test_buffers_and_dataclasses():
    mine, theirs = Stats(), Stats()
    before = copy.deepcopy(theirs.state_dict())
    x = randn(4, 6)
    assert_same(mine, theirs, None, (x,), dtype=torch.float64)
    assert theirs.norm.running_mean.dtype == torch.float32 and theirs.norm.num_batches_tracked == 0
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())
    mine.norm.running_mean += 0.1
    with pytest.raises(
        AssertionError, match=r"norm \(BatchNorm1d\) departs first: (.|\n)* its running_mean is not that"
    ):
        assert_same(mine, theirs, None, (x,))


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="the reference returns no tensors: say with run=... what to compare"):
        expect(Stats(), (randn(4, 6),), run=Stats.name)


def test_what_is_compared_can_be_chosen(unet, inputs):
    """Some method in place of forward, of both networks."""

    def sum_of_channels(network: nn.Module, **inputs) -> Tensor:
        return network(**inputs).sum(dim=1)

    mine = copy.deepcopy(unet)
    assert_same(mine, unet, None, inputs, run=sum_of_channels)
    change_epsilon(mine)
    with pytest.raises(AssertionError, match="mid_block.attentions.0.norm .* departs first"):
        assert_same(mine, unet, None, inputs, run=sum_of_channels)


class NeedsMore(nn.Linear):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x) * scale


def test_a_block_that_needs_other_arguments_is_told_and_no_fault(pair):
    """The network around it is still compared."""
    mine, theirs = pair
    linear = mine.res[0].t
    mine.res[0].t = NeedsMore(6, 8)
    mine.res[0].t.load_state_dict(linear.state_dict())
    mine.res[0].t.register_forward_pre_hook(lambda module, args: (*args, torch.ones(())))
    found = compare(mine, expect(theirs, GIVEN), ALL_BUT_OUT)
    assert found.agrees and found.misfits == ["res.0.t"]
    assert str(found).endswith("not compared, since they need other arguments (see Rules): res.0.t")
