"""Receptive fields of networks that swap, flip and permute axes, against the support of gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torch_featviz.inspect.receptive import receptive_field

KERNELS = st.tuples(st.integers(1, 3), st.integers(1, 3))


def convolution(draw):
    kernel, stride, dilation = draw(KERNELS), draw(st.tuples(st.integers(1, 3), st.integers(1, 2))), draw(KERNELS)
    padding = tuple(draw(st.integers(0, n - 1)) for n in kernel)
    conv = nn.Conv2d(2, 2, kernel, stride, padding, dilation, bias=False).double()
    nn.init.ones_(conv.weight)
    return conv


def pool(draw):
    kernel = draw(KERNELS)
    return nn.AvgPool2d(kernel, draw(st.sampled_from([kernel, 1])), tuple(n // 2 for n in kernel))


class Move(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def transposition(draw):
    return Move(lambda x: x.transpose(2, 3))


def flip(draw):
    dims = draw(st.sampled_from([(2,), (3,), (2, 3)]))
    return Move(lambda x: x.flip(dims))


def turn(draw):
    k = draw(st.integers(-3, 5))
    return Move(lambda x: x.rot90(k, (3, 2)))


class Block(nn.Module):
    """Channels last for a linear layer, and back, perhaps with rows and columns swapped."""

    def __init__(self, order):
        super().__init__()
        self.order, self.linear = order, nn.Linear(2, 2, bias=False).double()
        nn.init.ones_(self.linear.weight)

    def forward(self, x):
        return self.linear(x.permute(self.order)).movedim(3, 1)


def block(draw):
    return Block(draw(st.sampled_from([(0, 2, 3, 1), (0, 3, 2, 1)])))


@st.composite
def chains(draw):
    steps = draw(
        st.lists(st.sampled_from([convolution, pool, transposition, flip, turn, block]), min_size=2, max_size=6)
    )
    return nn.Sequential(*(step(draw) for step in steps))


@given(chains(), st.tuples(st.integers(9, 16), st.integers(9, 16)), st.permutations([1, 2, 3]), st.data())
def test_any_chain_of_turns_and_windows(chain, size, order, data):
    """Each unit sees what its gradient says; away from borders, as the formula of size, stride and start says."""
    leaf = torch.ones(1, 2, *size, dtype=torch.double, requires_grad=True)
    try:
        turned = chain(leaf)
    except RuntimeError:  # nothing is left of the map
        return
    net = nn.Sequential(chain, Move(lambda x: x.permute(0, *order)))
    output = turned.permute(0, *order)
    at = 1 + order.index(1)
    maps = output.movedim(at, 1)[0]
    seen = receptive_field(net, "1", size, channels=2)
    assert (seen.map_size, seen.channels_at) == (maps.shape[1:], at)
    for _ in range(4):
        place = tuple(data.draw(st.integers(0, n - 1)) for n in seen.map_size)
        (gradient,) = torch.autograd.grad(maps[(0, *place)], leaf, retain_graph=True, materialize_grads=True)
        box = tuple(
            (int(at.min()), int(at.max()) + 1) if len(at) else (0, 0) for at in (gradient[0, 0] != 0).nonzero().T
        )
        assert seen.box(*place) == box
        for axis, (low, high) in enumerate(box):
            start = seen.start[axis] + place[seen.along[axis]] * seen.stride[axis]
            if high - low == seen.size[axis]:
                assert (low, high) == (start, start + seen.size[axis])


def field(function, size=(8, 11), layer="0"):
    return receptive_field(nn.Sequential(Move(function)), layer, size, channels=1)


def test_strides_of_what_is_flipped_are_negative():
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), Move(lambda x: x.flip(2)), nn.Conv2d(1, 1, (2, 3), stride=(3, 2))
    )
    seen = receptive_field(net, "2", (20, 15))
    assert (seen.size, seen.stride, seen.start, seen.along) == ((4, 5), (-3, 2), (17, -1), (0, 1))
    assert [seen.box(i, 0)[0] for i in range(7)] == [(17, 20), (14, 18), (11, 15), (8, 12), (5, 9), (2, 6), (0, 3)]


def test_places_are_the_maps_and_intervals_the_images():
    seen = field(lambda x: x.transpose(2, 3).flip(2))
    assert (seen.input_size, seen.map_size, seen.along) == ((8, 11), (11, 8), (1, 0))
    assert (seen.size, seen.stride, seen.start, seen.kind) == ((1, 1), (1, -1), (0, 10), "exact")
    assert seen.box(2, 7) == ((7, 8), (8, 9))


@pytest.mark.parametrize("kind", [torch.long, torch.bool])
def test_places_chosen_by_number(kind):
    index = torch.tensor([6, 4, 2]) if kind is torch.long else torch.arange(11).remainder(5) == 2
    seen = field(lambda x: x[:, :, :, index])
    wanted = index.tolist() if kind is torch.long else [2, 7]
    assert [seen.box(0, i)[1] for i in range(len(wanted))] == [(at, at + 1) for at in wanted]
    assert (seen.stride, seen.start) == (((1, -2), (0, 6)) if kind is torch.long else ((1, 5), (0, 2)))
    assert field(lambda x: x[:, :, [1, -1, 4]]).stride == (None, 1)


def test_a_large_axis_that_is_sliced_costs_no_table():
    seen = field(lambda x: x.flatten(1)[:, 1:], (400, 400))
    assert seen.kind == "whole"


def test_rows_among_the_channels_are_seen_by_all():
    """What shuffles channels, or makes places of them, mixes the rows that lie there."""
    for function in (
        lambda x: F.pixel_shuffle(x.transpose(1, 2), 2),
        lambda x: F.channel_shuffle(x.transpose(1, 2), 2),
        lambda x: nn.Conv2d(8, 3, 1, bias=False)(x.transpose(1, 2)),
    ):
        seen = field(function, (8, 12))
        assert seen.kind == "whole"
        assert seen.box(0, 0)[0] == (0, 8)


@pytest.mark.parametrize(
    ("function", "channels_at", "map_size"),
    [
        (lambda x: x + x.transpose(2, 3), 1, (9, 9)),
        (lambda x: (x + x.transpose(2, 3)).permute(0, 2, 3, 1), 3, (9, 9)),
        (lambda x: x.permute(0, 2, 3, 1) * x.permute(0, 3, 2, 1), 3, (9, 9)),
    ],
)
def test_places_are_known_where_what_they_see_is_not(function, channels_at, map_size):
    seen = field(function, (9, 9))
    assert (seen.kind, seen.channels_at, seen.map_size) == ("whole", channels_at, map_size)
    assert seen.box(0, 0)[0] == (0, 9)


def test_a_norm_over_channels_that_are_last_says_where_they_are():
    net = nn.Sequential(Move(lambda x: torch.fft.fft2(x).real), nn.LayerNorm(9))
    assert receptive_field(net, "1", (9, 9), channels=1).channels_at == 3
