"""Norms of one image whose tokens were made a map: their gradients are right in a twin."""

from math import prod

import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.model.norms import clear
from torch_featviz.model.twin import twin

LAYERS = [nn.BatchNorm2d(6), nn.BatchNorm3d(6), nn.InstanceNorm2d(6), nn.InstanceNorm2d(6, track_running_stats=True)]


def plain(*shape):
    return torch.randn(shape, dtype=torch.double)


def of_tokens(*shape):
    """The same as a view of tokens `1 n c`."""
    return torch.randn(1, prod(shape[2:]), shape[1], dtype=torch.double).mT.view(shape)


def last(*shape):
    """The same with channels last, as torch lays them."""
    return plain(*shape).to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize(
    ("given", "back"),
    [
        (plain, of_tokens),
        (plain, last),
        (of_tokens, plain),
        (of_tokens, of_tokens),
        (of_tokens, last),
        (last, of_tokens),
    ],
)
def test_gradients_equal_those_of_values_in_their_usual_order(layer, given, back):
    torch.manual_seed(0)
    net = twin(nn.Sequential(layer).double())
    shape = (1, 6, 3, 4, 2)[: 5 if isinstance(layer, nn.BatchNorm3d) else 4]
    x, gradient = given(*shape).requires_grad_(), back(*shape)
    usual = x.detach().contiguous().requires_grad_()
    (found,) = torch.autograd.grad(net(x), x, gradient)
    (expected,) = torch.autograd.grad(net(usual), usual, gradient.contiguous())
    assert torch.allclose(found, expected, atol=1e-12)


def test_only_what_is_unclear_is_copied():
    for x in (
        plain(1, 6, 3, 4),
        plain(2, 6, 3, 4),
        plain(1, 6, 3),
        plain(1, 6, 3, 4).to(memory_format=torch.channels_last),
    ):
        assert clear(x) is x
    x = of_tokens(1, 6, 3, 4)
    assert clear(x).stride() == (72, 1, 24, 6)
    assert torch.equal(clear(x), x)


class Hybrid(nn.Module):
    """Tokens between convolutions, as LeViT, CvT and XCiT have them."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.mix, self.head = (
            nn.Conv2d(3, 6, 4, 4),
            nn.BatchNorm2d(6),
            nn.Linear(6, 6),
            nn.Linear(6, 4),
        )

    def forward(self, x):
        x = self.norm(self.stem(x))
        tokens = self.mix(x.flatten(2).mT).tanh()
        return self.head(tokens.square().mean(1))


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "gradcam"])
def test_one_image_has_the_heatmap_that_it_has_among_two(method):
    torch.manual_seed(0)
    net, images = Hybrid().eval().double(), torch.rand(2, 3, 16, 24, dtype=torch.double)
    options = {"method": method, "target": 1} | ({"layer": "stem"} if method == "gradcam" else {})
    both = fv.attribute(net, images, **options).heatmaps
    assert torch.allclose(fv.attribute(net, images[:1], **options).heatmaps, both[:1], atol=1e-9)
