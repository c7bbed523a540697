"""Boxes, patches and exemplars of networks that swap, flip and permute axes, against the gradient of single units.

All weights are positive and nothing is cut off, so that what moves a unit is where its gradient is not 0.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz import Scale, deconvnet, exemplars, receptive_field, top_patches
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import rgb, untile
from torch_featviz.survey import read_patches
from torch_featviz.survey.patches import looks_at

SIZES = [(17, 17), (12, 21), (23, 13)]
K = 3


class Net(nn.Module):
    """A function of two convolutions and a linear layer; the map looked at is its output, a layer of its own."""

    def __init__(self, function, *, first=(3, 2), stride=(2, 1), padding=(0, 0), second=(2, 3)):
        super().__init__()
        self.function = function
        self.a = nn.Conv2d(1, 3, first, stride, padding, bias=False)
        self.b = nn.Conv2d(3, 4, second, bias=False)
        self.l = nn.Linear(3, 5, bias=False)
        self.end = nn.Identity()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, 0.5, 1)

    def forward(self, x):
        return self.end(self.function(self, x))


def backwards(x, dim):
    return x.index_select(dim, torch.arange(x.shape[dim] - 1, -1, -1))


NETS = {  # each with the axis of its channels, known from how it is written
    "swapped": (1, Net(lambda m, x: m.a(x.transpose(2, 3)))),
    "swapped between convolutions": (1, Net(lambda m, x: m.b(m.a(x).mT), padding=(1, 1))),
    "flipped": (1, Net(lambda m, x: m.b(m.a(x).flip(3)))),
    "flipped rows, padded": (1, Net(lambda m, x: m.a(x.flip(2)), padding=(2, 1))),
    "upside down": (1, Net(lambda m, x: m.b(m.a(x).rot90(2, (2, 3))))),
    "a quarter turn": (1, Net(lambda m, x: m.b(m.a(torch.rot90(x, 1, (2, 3)))))),
    "a quarter turn back": (1, Net(lambda m, x: m.a(torch.rot90(x, -1, (2, 3))))),
    "backwards by number": (1, Net(lambda m, x: F.avg_pool2d(m.a(backwards(x, 3).transpose(2, 3)), (1, 2)))),
    "channels last": (3, Net(lambda m, x: m.l(m.a(x).permute(0, 2, 3, 1)))),
    "channels last, swapped": (3, Net(lambda m, x: m.l(m.a(x).permute(0, 3, 2, 1)).flip(1))),
    "channels between": (2, Net(lambda m, x: m.b(m.a(x).transpose(2, 3)).permute(0, 2, 1, 3))),
    "every flip of the image": (1, Net(lambda m, x: m.a(x) + m.a(x.flip(3)).flip(3) + m.a(x.flip(2)).flip(2))),
    "a block in the middle": (1, Net(lambda m, x: m.b(m.l(m.a(x).movedim(1, 3))[..., :3].permute(0, 3, 2, 1)))),
}


def maps_of(net, images, channels_at):
    """`b k ...`, the axes of places in their own order."""
    return net(images).movedim(channels_at, 1)


def gradient_of(net, image, channels_at, unit):
    """Of one unit `(channel, row, column)` with respect to an image `c h w`."""
    leaf = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(maps_of(net, leaf, channels_at)[(0, *unit)], leaf)
    return gradient[0]


def seen_by(gradient):
    """What is seen of the image, as two slices."""
    lines = [gradient.abs().sum(0).sum(axis).nonzero().flatten() for axis in (1, 0)]
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_what_a_unit_sees_is_where_its_gradient_is(name, size):
    channels_at, net = NETS[name]
    torch.manual_seed(1)
    images = torch.rand(6, 1, *size)
    with torch.no_grad():
        maps = maps_of(net, images, channels_at)
    k, h, w = maps.shape[1:]

    seen = receptive_field(net, "end", size, channels=1, effective=True)
    assert (seen.map_size, seen.channels_at) == ((h, w), channels_at)
    for place in [(0, 0), (0, w - 1), (h // 2, w // 2), (h - 1, 0), (h - 1, w - 1), (1, 2)]:
        gradient = gradient_of(net, images[0], channels_at, (0, *place))
        rows, columns = seen_by(gradient)
        assert seen.box(*place) == ((rows.start, rows.stop), (columns.start, columns.stop))
        assert seen.kind == "exact"
        assert (gradient[:, rows, columns] != 0).all()
    leaf = torch.zeros(1, 1, *size, requires_grad=True)
    middle = maps_of(net, leaf, channels_at)[0, :, h // 2, w // 2].sum()
    torch.testing.assert_close(seen.effective, torch.autograd.grad(middle, leaf)[0][0, 0])

    best = top_patches(net, images.split(4), "end", k=K)
    patches = best.patches(range(k))
    torch.testing.assert_close(patches.cosine, torch.ones(k, dtype=torch.double), atol=1e-5, rtol=0)  # all is linear
    sheet = exemplars(patches)
    for channel in range(k):
        planes = maps[:, channel].flatten(1)
        values, numbers = planes.amax(1).topk(K)
        assert best.images[channel].tolist() == numbers.tolist()
        torch.testing.assert_close(best.values[channel].float(), values)
        drawn = [untile(cell, n=K, ncols=K) for cell in sheet.cells[2 * channel : 2 * channel + 2]]
        for i, number in enumerate(numbers.tolist()):
            place = divmod(int(planes[number].argmax()), w)
            assert tuple(best.places[channel, i].tolist()) == place
            gradient = gradient_of(net, images[number], channels_at, (channel, *place))
            rows, columns = seen_by(gradient)
            inside = patches.inside[channel, i]
            cut, down = images[number][:, rows, columns], gradient[:, rows, columns] * values[i]
            assert inside.sum() == cut.numel()
            assert patches.images[channel, i][:, inside].equal(cut.flatten(1))
            torch.testing.assert_close(patches.projections[channel, i][:, inside], down.flatten(1))
            assert drawn[0][i][:, inside].equal(rgb(cut[None].expand(-1, 3, -1, -1))[0].flatten(1))
            scaled = Scale(symmetric=True, vmax=float(down.max()))(down[None].expand(-1, 3, -1, -1))
            assert (drawn[1][i][:, inside].int() - rgb(scaled)[0].flatten(1).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["swapped", "channels last", "channels between"])
def test_a_channel_alone_is_projected_from_its_strongest_place(name):
    channels_at, net = NETS[name]
    images = torch.rand(1, 1, 12, 21, generator=torch.Generator().manual_seed(2))
    maps = maps_of(net, images, channels_at)[0]
    down = deconvnet(net, images, "end", [0, (1, 2, 1)])
    for found, channel, place in zip(down, (0, 1), (divmod(int(maps[0].argmax()), maps.shape[2]), (2, 1)), strict=True):
        expected = gradient_of(net, images[0], channels_at, (channel, *place)) * maps[(channel, *place)]
        torch.testing.assert_close(found, expected.detach())
    k, h, w = maps.shape
    with pytest.raises(OptionError, match=rf"rows 0 to {h - 1} and columns 0 to {w - 1}"):
        deconvnet(net, images, "end", [(0, h, 0)])
    with pytest.raises(OptionError, match=rf"has channels 0 to {k - 1}, got channel {k}"):
        deconvnet(net, images, "end", k)


def test_one_pass_over_layers_with_channels_on_different_axes(tmp_path):
    _, net = NETS["channels last, swapped"]
    images = torch.rand(9, 1, 12, 21, generator=torch.Generator().manual_seed(3))
    best = top_patches(net, images.split(4), ["end", "a", "l"], k=2, resume=tmp_path / "state.pt")
    again = top_patches(net, images.split(4), ["end", "a", "l"], k=2, resume=tmp_path / "state.pt")
    assert {name: len(top.values) for name, top in best.items()} == {"a": 3, "l": 5, "end": 5}
    together = read_patches(best, {name: [1, 2] for name in best})
    for name, top in best.items():
        assert top.places.equal(again[name].places)
        alone = top_patches(net, images.split(4), name, k=2).patches([1, 2])
        assert together[name].images.equal(alone.images)
        assert again[name].patches([1, 2]).images.equal(alone.images)


class Twice(nn.Module):
    """Runs one layer on maps with channels last, and on the same maps swapped."""

    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Conv2d(1, 3, 3, bias=False), nn.Softplus()

    def forward(self, x):
        return self.act(self.act(self.a(x).permute(0, 2, 3, 1)).transpose(1, 2))


def test_calls_of_a_layer_that_runs_twice():
    net, images = Twice(), torch.rand(5, 1, 12, 21, generator=torch.Generator().manual_seed(4))
    best = top_patches(net, [images], ["act#1", "act#2"], k=2)
    assert best["act#2"].places.equal(best["act#1"].places.flip(2))
    first, second = (top.patches([0, 2]) for top in best.values())
    assert first.images.equal(second.images)
    assert first.projections.any()


def test_tokens_are_a_map_on_their_grid():
    net = Net(lambda m, x: m.l(m.a(x).flatten(2).transpose(1, 2)))
    images = torch.rand(2, 1, 12, 21)
    best = top_patches(net, [images], "end", k=1)
    with torch.no_grad():
        tokens = net(images)
    rows = receptive_field(net, "a", (12, 21)).map_size
    for channel in range(5):
        image, place = divmod(int(tokens[:, :, channel].argmax()), tokens.shape[1])
        assert best.images[channel].tolist() == [image]
        assert best.places[channel].tolist() == [[place // rows[1], place % rows[1]]]
    seen = receptive_field(net, "end", (12, 21), channels=1)
    assert (seen.map_size, seen.kind) == (rows, "exact")
    assert seen.box(1, 2) == receptive_field(net, "a", (12, 21)).box(1, 2), "what the convolution sees there"


def test_tokens_without_a_place_are_no_map():
    net = Net(lambda m, x: m.l(m.a(x).flatten(2).transpose(1, 2)).cumsum(1).sort(1).values)
    with pytest.raises(
        ShapeError,
        match=r"layer 'end' returns shape \(1, 100, 5\), not a map 'b c h w'; choose a convolution or a layer after",
    ):
        top_patches(net, [torch.rand(2, 1, 12, 21)], "end")
    with pytest.raises(ShapeError, match="layer 'end' returns no map, so its units have no place"):
        receptive_field(net, "end", (12, 21), channels=1).box(0, 0)


@pytest.mark.parametrize("turn", [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2).transpose(2, 3)])
def test_where_a_unit_looks_without_one_stride(turn):
    """What stands between a unit's box and where it looks is the same for all units, but for rounding."""
    net = Net(lambda m, x: turn(F.interpolate(x, scale_factor=1.5)))
    seen = receptive_field(net, "end", (12, 16), channels=1)
    assert seen.stride == (None, None)
    for axis in (0, 1):
        places = [(i, j) for i in range(seen.map_size[0]) for j in range(seen.map_size[1])]
        apart = [seen.box(*place)[axis][0] - looks_at(seen, place, axis) for place in places]
        assert max(apart) - min(apart) <= 1
