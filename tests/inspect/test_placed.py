"""What a layer returns, on the places of the images; and which norms stand out."""

import pytest
import torch
from torch import nn

from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.inspect.placed import artefact_norm, placed
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layout import Layout

IMAGES = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.relu(self.conv(x) - 0.2)
        return self.pool(self.relu(x.flip(3) - 0.1).add_(1)).flatten(1)


def test_maps_of_a_convolution_and_of_one_call():
    net = Twice()
    found = placed(net, Inputs(IMAGES), net.conv)
    assert found.layer == "conv"
    assert found.maps.equal(net.conv(IMAGES))
    assert placed(net, Inputs(IMAGES), "relu#1").maps.equal((net.conv(IMAGES) - 0.2).relu())


def test_what_goes_on_in_place_is_read_before():
    net = Twice()
    first = (net.conv(IMAGES) - 0.2).relu()
    layout = Layout((8, 12), channels=1, tokens=None, places=(2, 3))
    assert placed(net, Inputs(IMAGES), "relu#2", layout).maps.equal((first.flip(3) - 0.1).relu())


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        ("conv2", LayerError, "no layer 'conv2' in Twice"),
        ("relu", LayerError, "ran 2 times in one forward; choose one call"),
        ("unused", LayerError, "layer 'unused' did not run"),
        ("", ShapeError, r"layer '' returns shape \(3, 3\), whose places are not known; choose a convolution"),
    ],
)
def test_layers_without_one_map(layer, error, match):
    with pytest.raises(error, match=match):
        placed(Twice(), Inputs(IMAGES), layer)


def test_one_place_is_a_map():
    assert placed(Twice(), Inputs(IMAGES), "pool").maps.shape == (3, 3, 1, 1)


def gaussian(count, channels):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(1)).norm(dim=1)


def test_ordinary_tokens_raise_no_alarm():
    """Of normally distributed tokens of 16 channels or more none, however many; of lognormal norms below 1 %."""
    for channels in (16, 64, 768):
        norms = gaussian(20_000, channels)
        assert not (norms > artefact_norm(norms)).any()
    wide = (0.5 * torch.randn(100_000, generator=torch.Generator().manual_seed(2))).exp()
    assert 0 < (wide > artefact_norm(wide)).double().mean() < 0.01
    alike = 27 + 0.01 * torch.randn(10_000)
    alike[:200] += 3  # as far as 300 standard deviations, behind a norm layer
    assert not (alike > artefact_norm(alike)).any()


def test_planted_artefacts_are_found_and_nothing_else():
    norms = gaussian(2000, 64)
    planted = torch.zeros(2000, dtype=torch.bool)
    planted[::50] = True  # 2 %, of several times the norm of others
    norms[planted] *= 5
    assert (norms > artefact_norm(norms)).equal(planted)


def test_the_rule_by_hand():
    narrow, wide = torch.tensor([9.0, 10, 10, 10, 11]), torch.tensor([2.0, 6, 10, 14, 18])
    assert artefact_norm(narrow) == 20
    assert artefact_norm(wide) == pytest.approx(10 + 6 * 1.4826 * 4)
    assert artefact_norm(torch.tensor([1.0, torch.nan, 3.0, 2.0, torch.inf])) == pytest.approx(2 + 6 * 1.4826)
    assert artefact_norm(torch.tensor([torch.nan])) == 0
