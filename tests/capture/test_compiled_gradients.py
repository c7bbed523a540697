"""Gradients of layers' outputs in compiled models: inside the graph, which is compiled once more and never again."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from torch_featviz.capture import Histogram, Moments, Ring, ToCPU, TopK, capture
from torch_featviz.errors import LayerError, OptionError
from torch_featviz.torch_private import hooks_in_graphs

pytestmark = [
    pytest.mark.skipif(not hooks_in_graphs(), reason="in this torch a compiled model runs uncompiled for gradients"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # Dynamo's own
]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.relu(y)


class Split(nn.Module):
    def forward(self, x):
        return x * 2, {"mean": x.mean((2, 3)), "size": x.shape[0]}


class Net(nn.Module):
    """In-place work, an activation that runs four times, blocks that are alike, and a layer that returns structures."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu, self.split, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), Split(), nn.Linear(4, 5)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.forwards, self.latest = torch.zeros(1), None

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block(x))
        x, more = self.split(x)
        self.forwards = self.forwards + 1
        self.latest = x.detach()
        return self.head(x.mean((2, 3)) + more["mean"])


LAYERS = ["stem", "relu", "blocks.*", "split", "head"]
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def oracle(net, x, names, loss=lambda output: output.square().sum()):
    """By torch.autograd.grad, of a twin that works out of place: the gradient of each call, in order."""
    twin, seen = copy.deepcopy(net), []
    for name, module in twin.named_modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if name in names:
            module.register_forward_hook(lambda _m, _i, output, name=name: seen.append((name, output)))
    value = loss(twin(x))
    parts = [output for _, output in seen]
    return list(zip([name for name, _ in seen], torch.autograd.grad(value, parts), strict=True))


def by_name(grads):
    """All that was captured, as pairs of a layer and a gradient, in order."""
    return [(key.partition("#")[0], value) for key, value in grads.items()]


def same(one, other, **options):
    assert [name for name, _ in one] == [name for name, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **options)
    return True


def backward(net, x=X):
    net.zero_grad(set_to_none=True)
    net(x).square().sum().backward()
    return [parameter.grad for parameter in net.parameters()]


def compiled(net, backend="aot_eager", **options):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(net, fullgraph=True, backend=counter, **options), counter


NAMES = ["stem", "relu", "blocks.0.conv", "blocks.1.norm", "blocks.2.relu", "head"]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(200, 3))


@pytest.mark.parametrize(
    ("make", "names", "backend"),
    [(Net, NAMES, "eager"), (Net, NAMES, "aot_eager"), (small, ["0", "1", "3"], "inductor")],
)
def test_one_more_graph_with_the_gradients_of_eager_mode(make, names, backend):
    """And those of the parameters are the very same as without the capture."""
    net = make()
    expected = oracle(net, X, names)
    fast, counter = compiled(net, backend)
    alone = backward(fast)
    for _ in range(3):
        with capture(fast, names, of="grad") as grads:
            captured = backward(fast)
        assert same(by_name(grads), expected)
        assert all(map(torch.equal, captured, alone))
        assert all(map(torch.equal, backward(fast), alone))
    assert counter.frame_count == 2, "one graph without capture, one with it"
    assert not counters["graph_break"]
