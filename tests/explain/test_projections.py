"""How a unit is projected where nobody says: by what ran, and by guided backpropagation as autograd has it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torch_featviz.errors import OptionError
from torch_featviz.explain import deconvnet, project


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


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def cosines(projections):
    """Of all pairs."""
    rows = projections.double().flatten(1)
    return [float(F.cosine_similarity(rows[i], rows[j], 0)) for i in range(len(rows)) for j in range(i)]


class Guided(torch.autograd.Function):
    """A ReLU with a ceiling, as Springenberg et al. draw it: back goes what is positive, where the unit was active."""

    @staticmethod
    def forward(ctx, x, ceiling):
        ctx.save_for_backward((x > 0) & (x < ceiling))
        return x.clamp(0, ceiling)

    @staticmethod
    def backward(ctx, gradient):
        (active,) = ctx.saved_tensors
        return torch.where(active & (gradient > 0), gradient, torch.zeros(())), None


class GuidedLayer(nn.Module):
    def __init__(self, ceiling):
        super().__init__()
        self.ceiling = ceiling

    def forward(self, x):
        return Guided.apply(x, self.ceiling)


class Residual(nn.Module):
    def __init__(self, act, width, stride):
        super().__init__()
        self.deep = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), act(),
            nn.Sequential(nn.Conv2d(width, width, 1), act()),
        )  # fmt: skip
        self.short = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.short(x) + self.deep(x)


def nested(act, strides, gain):
    """Blocks within blocks, without a max pool; `gain` decides how many units are at a ceiling."""
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), act())
    with torch.no_grad():
        stem[0].weight.mul_(gain)
    return nn.Sequential(
        stem, nn.Sequential(*(Residual(act, 6, stride) for stride in strides)), nn.Conv2d(6, 5, 3, padding=1)
    )


@given(
    ceiling=st.sampled_from([6.0, math.inf]),
    strides=st.lists(st.sampled_from([1, 2]), min_size=1, max_size=2),
    gain=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_guided_projections_equal_autograd_with_replaced_rectifiers(ceiling, strides, gain, seed):
    kind = nn.ReLU6 if ceiling == 6 else lambda: nn.ReLU(inplace=True)
    net = seeded(lambda: nested(kind, strides, gain), seed)
    other = seeded(lambda: nested(lambda: GuidedLayer(ceiling), strides, gain), seed)
    images = waves(2, 16, seed=seed)
    leaf = images.clone().requires_grad_()
    maps = other(leaf)
    units = [(int(row.flatten(1).amax(1).argmax()), 1, 1) for row in maps]
    values = torch.stack([maps[(n, *unit)] for n, unit in enumerate(units)])
    (expected,) = torch.autograd.grad(values, leaf, values.detach().clamp(min=0))
    found = project(net, images, "2", units)
    assert (found.method, found.switches) == ("guided_backprop", False)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


SLOPES = {  # written out, of x and the normal or logistic distribution
    nn.SiLU: lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid())),
    nn.GELU: lambda x: (1 + torch.erf(x / 2**0.5)) / 2 + x * (-x * x / 2).exp() / (2 * math.pi) ** 0.5,
    nn.Hardswish: lambda x: torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6)),
}


@pytest.mark.parametrize("kind", SLOPES)
def test_of_other_activations_the_positive_part_goes_times_the_slope(kind):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2), kind(), nn.Conv2d(8, 4, 3, 2)))
    (image,) = images = waves(1)
    middle = net[0](images).detach()
    for unit in ((0, 2, 3), (1, 0, 0), (2, 4, 1), (3, 3, 3)):
        value = net(images)[(0, *unit)].detach().clamp(min=0)
        signal = torch.zeros(1, 4, 5, 5)
        signal[(0, *unit)] = value
        signal = F.conv_transpose2d(signal, net[2].weight, stride=2).clamp(min=0) * SLOPES[kind](middle)
        expected = F.conv_transpose2d(signal, net[0].weight, stride=2, output_padding=1)
        found = project(net, image[None], "2", [unit])
        assert found.method == "guided_backprop"
        torch.testing.assert_close(found.values, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, *SLOPES])
def test_without_max_pools_a_deconvnet_does_not_know_the_image_and_the_default_does(kind):
    def build():
        layers = [nn.Conv2d(3, 16, 3, 2), kind(), nn.Conv2d(16, 16, 3, 2), kind(), nn.Conv2d(16, 16, 3)]
        for conv in layers[::2]:
            nn.init.normal_(conv.weight, std=0.2)
        return nn.Sequential(*layers)

    net, images = seeded(build), 4 * waves(4)
    maps = net(images).detach()
    unit = divmod(int(maps.amin(0).argmax()), 9)  # above 0 in all of them
    unit = (unit[0], unit[1] // 3, unit[1] % 3)
    assert maps[:, unit[0], unit[1], unit[2]].min() > 0
    assert min(cosines(deconvnet(net, images, "4", [unit] * 4, projection="deconvnet"))) > 0.9999
    assert sum(cosines(deconvnet(net, images, "4", [unit] * 4))) / 6 < 0.95
    assert max(cosines(deconvnet(net, images, "4", [unit] * 4))) < 0.999


class Called(nn.Module):
    """A function in place of a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return x


WITH = {
    "layer": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 1, 1),
    "function": Called(lambda x: F.max_pool2d(x, 2)),
    "indices": Called(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "adaptive": nn.AdaptiveMaxPool2d(5),
    "fractional": nn.FractionalMaxPool2d(2, output_size=5),
    "of one axis": Called(lambda x: F.max_pool1d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])),
    "of three axes": Called(lambda x: F.max_pool3d(x[:, None], (1, 2, 2))[:, 0]),
    "a branch": Called(lambda x: x + F.max_pool2d(x, 3, 1, 1)),
    "the whole map": nn.AdaptiveMaxPool2d(1),
}
WITHOUT = {
    "nothing": nn.Identity(),
    "not called": Unused(),
    "average": nn.AvgPool2d(2),
    "of one place": nn.MaxPool2d(1, 2),
    "adaptive, of one place": nn.AdaptiveMaxPool2d(11),
    "of something else": Called(lambda x: x * F.max_pool2d(torch.ones(1, 1, 13, 13, requires_grad=True), 3, 1)),
    "a gate": Called(lambda x: x * F.adaptive_max_pool2d(x, 1).sigmoid()),
    "no gradient": Called(lambda x: x * F.max_pool2d(x, 3, 1, 1).detach()),
}


def around(middle):
    """A layer before and a layer after it, and a max pool further on."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), middle, nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(1)
    )


@pytest.mark.parametrize("middle", [*WITH, *WITHOUT])
def test_what_runs_between_the_layer_and_the_image_decides(middle):
    switches = middle in WITH
    net, images = seeded(lambda: around((WITH | WITHOUT)[middle])), waves(2)
    found = project(net, images, "3", [0, 1])
    assert (found.switches, found.method) == (switches, "deconvnet" if switches else "guided_backprop")
    assert torch.equal(deconvnet(net, images, "3", [0, 1]), found.values)
    for method in ("deconvnet", "guided_backprop"):
        asked = project(net, images, "3", [0, 1], projection=method)
        assert (asked.switches, asked.method) == (switches, method)
        assert torch.equal(asked.values, found.values) or method != found.method
    assert project(net, images, "0", [0, 1]).method == "guided_backprop"


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_pool_that_runs_for_some_images_only(scripted):
    pool = torch.jit.script(nn.MaxPool2d(2)) if scripted else nn.MaxPool2d(2)
    net = seeded(lambda: around(Called(lambda x: pool(x) if x.sum() > 0 else x[..., ::2, ::2])))
    with torch.no_grad():
        net[0].weight.abs_()
        net[0].bias.zero_()
    light = torch.ones(1, 3, 24, 24)
    assert project(net, light, "3", 0).method == "deconvnet"
    assert project(net, 0 * light, "3", 0).method == "guided_backprop"


def test_local_response_norm_goes_as_its_derivative():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(5, alpha=2.0), nn.Conv2d(8, 2, 3)))
    images = waves(1)
    leaf = images.clone().requires_grad_()
    value = net(leaf)[0, 1].max()
    (expected,) = torch.autograd.grad(value, leaf, value.detach())
    torch.testing.assert_close(deconvnet(net, images, "2", 1), expected, rtol=1e-5, atol=1e-7)
    assert (deconvnet(net, images, "2", 1, projection="deconvnet") - expected).abs().max() > 0.01 * expected.abs().max()


def test_projections_that_there_are_not():
    net, images = seeded(lambda: around(nn.MaxPool2d(2))), waves(1)
    with pytest.raises(
        OptionError, match="projection must be 'deconvnet' or 'guided_backprop', or None to choose by the network; got"
    ):
        deconvnet(net, images, "3", 0, projection="deconvolution")
    with pytest.raises(OptionError, match="pooling='overwrite' needs projection='deconvnet'; guided"):
        project(net, images, "3", 0, projection="guided_backprop", pooling="overwrite")
