"""Every way to call a rectifier gets the rule, in both modes."""

import copy

import captum.attr as captum
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torch_featviz.errors import LayerError
from torch_featviz.explain.rectify import Rectify, refuse_others

X = torch.tensor([-4.0, -2.5, -1.0, -0.3, 0.2, 0.7, 1.5, 3.5, 5.0, 7.0, 9.0, -8.0])
ABOVE = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, 10.0, -11.0, 12.0])


def zeros(x):
    return torch.zeros_like(x)


RELU = {
    "layer": nn.ReLU(),
    "layer in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu input=": lambda x: F.relu(input=x),
    "F.relu inplace=": lambda x: F.relu(x, inplace=True),
    "F.relu positional": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "operator": torch.ops.aten.relu.default,
    "operator in place": torch.ops.aten.relu_.default,
    "clamp": lambda x: x.clamp(0),
    "clamp min=": lambda x: torch.clamp(x, min=0),
    "clamp tensor": lambda x: x.clamp(min=zeros(x)),
    "clamp_": lambda x: x.clamp_(min=0.0),
    "clip": lambda x: torch.clip(x, min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "threshold in place": lambda x: F.threshold(x, 0.0, 0.0, True),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
    "torch.threshold": lambda x: torch.threshold(x, 0, 0),
    "maximum": lambda x: torch.maximum(x, zeros(x)),
    "maximum turned": lambda x: torch.maximum(zeros(x), x),
    "max": lambda x: torch.max(x, torch.zeros(1)),
    "max turned": lambda x: torch.max(torch.zeros(12), x),
}
RELATIVES = {
    "nn.ReLU6": nn.ReLU6(),
    "F.relu6": F.relu6,
    "F.relu6 positional": lambda x: F.relu6(x, True),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "hardtanh in place": lambda x: F.hardtanh(x, 0.0, 6.0, True),
    "nn.Hardtanh": nn.Hardtanh(0, 6),
    "threshold": lambda x: F.threshold(x, 1.0, 0.0),
    "clamp both": lambda x: x.clamp(0, 6),
    "silu": F.silu,
    "silu in place": nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "elu": nn.ELU(),
    "elu_": lambda x: F.elu_(x),
    "leaky_relu": nn.LeakyReLU(0.1),
    "leaky_relu in place": lambda x: F.leaky_relu(x, 0.1, True),
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "softplus": F.softplus,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
    "rrelu": lambda x: torch.rrelu(x, 0.1, 0.3, False),
}
OTHERS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp max": lambda x: x.clamp(max=1),
    "maximum": lambda x: torch.maximum(x, torch.ones(())),
    "maximum of two": lambda x: torch.maximum(x, 0 * x),
    "max of one": lambda x: x.view(3, 4).max(0)[0].repeat(3),
}
EVERY = [pytest.param(f, id=name) for name, f in (RELU | RELATIVES).items()]


def down(function, mode=None):
    """Output and gradient; the tensor given is no leaf, so that it may be overwritten."""
    leaf = X.clone().requires_grad_()
    if mode is None:
        output = function(leaf * 1)
    else:
        with mode:
            output = function(leaf * 1)
    if mode is not None:
        refuse_others(output)
    return output.detach(), torch.autograd.grad(output, leaf, ABOVE)[0]


@pytest.mark.parametrize("function", EVERY)
def test_deconvolution_passes_what_is_positive(function):
    plain, _ = down(function)
    output, gradient = down(function, Rectify(guided=False))
    assert torch.equal(output, plain)
    assert torch.equal(gradient, ABOVE.clamp(min=0))


@pytest.mark.parametrize("function", EVERY)
def test_guided_multiplies_by_the_derivative(function):
    plain, slope = down(function)
    slope = slope / ABOVE
    output, gradient = down(function, Rectify(guided=True))
    assert torch.equal(output, plain)
    torch.testing.assert_close(gradient, ABOVE.clamp(min=0) * slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in RELU.items()])
def test_guided_at_a_relu_is_where_it_was_active(function):
    _, gradient = down(function, Rectify(guided=True))
    assert torch.equal(gradient, torch.where(X > 0, ABOVE.clamp(min=0), torch.zeros(())))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in OTHERS.items()])
def test_what_does_not_rectify_keeps_its_derivative(function, guided):
    for found, plain in zip(down(function, Rectify(guided=guided)), down(function), strict=True):
        assert torch.equal(found, plain)


def in_place_on_the_tensor_itself(x):
    F.relu(x, True)
    return x


@pytest.mark.parametrize("guided", [False, True])
def test_in_place_means_that_tensor(guided):
    output, gradient = down(in_place_on_the_tensor_itself, Rectify(guided=guided))
    assert torch.equal(output, X.clamp(min=0))
    active = X > 0 if guided else torch.ones(12, dtype=torch.bool)
    assert torch.equal(gradient, ABOVE.clamp(min=0) * active)


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU()),
            *(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 5)),
        ).eval()


@pytest.mark.filterwarnings("ignore:Setting .*backward hooks")
@pytest.mark.parametrize(("guided", "peer"), [(True, captum.GuidedBackprop), (False, captum.Deconvolution)])
def test_equals_captum(net, guided, peer):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net(images)
    expected = peer(copy.deepcopy(net)).attribute(images.clone().requires_grad_(), target=torch.tensor([0, 4, 2, 2]))
    leaf = images.clone().requires_grad_()
    with Rectify(guided=guided):
        scores = net(leaf)
    (found,) = torch.autograd.grad(scores[range(4), [0, 4, 2, 2]].sum(), leaf)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-7)
    (plain,) = torch.autograd.grad(net(leaf)[range(4), [0, 4, 2, 2]].sum(), leaf)
    assert (found - plain).abs().max() > 0.1 * found.abs().max()


def checkpointed(x):
    return checkpoint(torch.relu, x, use_reentrant=True)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.jit.script(nn.ReLU())

    def forward(self, x):
        return self.inner(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("guided", [False, True])
def test_what_is_out_of_reach_is_refused(guided):
    with pytest.raises(LayerError, match=r"Relu is called in scripted, compiled, checkpointed.*before torch.jit"):
        down(Scripted(), Rectify(guided=guided))
    with pytest.raises(LayerError, match="CheckpointFunction is called in scripted, compiled, checkpointed"):
        down(checkpointed, Rectify(guided=guided))
