"""Layers that a model keeps in containers of Python, and what is told of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor
from torch_featviz.training.hidden import hidden


class Keeps(nn.Module):
    """Its middle layer is where `keep` puts it."""

    def __init__(self, keep):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        middle = nn.Linear(4, 4)
        self.middle = keep(middle)
        self._run = lambda x: middle(x)

    def forward(self, x):
        return self.last(self._run(self.first(x).relu()).relu())


HIDES = {
    "list": (lambda layer: [layer], ["middle.0.weight", "middle.0.bias"]),
    "tuple": (lambda layer: (None, layer), ["middle.1.weight", "middle.1.bias"]),
    "dictionary": (lambda layer: {"a": 3, "b": layer}, ["middle.b.weight", "middle.b.bias"]),
    "both": (lambda layer: [{"a": (layer,)}], ["middle.0.a.0.weight", "middle.0.a.0.bias"]),
    "parameters": (lambda layer: list(layer.parameters()), ["middle.0", "middle.1"]),
}


@pytest.mark.parametrize(("keep", "names"), HIDES.values(), ids=list(HIDES))
def test_what_parameters_does_not_return(keep, names):
    net = Keeps(keep)
    assert list(hidden(net)) == names
    assert not {id(each) for each in hidden(net).values()} & {id(each) for each in net.parameters()}
    assert list(hidden(nn.Sequential(nn.ReLU(), net))) == [f"1.{name}" for name in names]


def test_what_is_registered_is_not_hidden():
    net = Keeps(lambda layer: layer)
    net.again = [net.middle, "words", 3, net.last.weight]
    net.sequence = nn.ModuleList([nn.Linear(2, 2)])
    net.rnn = nn.LSTM(3, 4, num_layers=2)  # which keeps lists of its weights
    assert hidden(net) == {}


def test_what_is_frozen_or_too_deep_is_left_alone():
    net = Keeps(lambda layer: [layer.requires_grad_(False)])
    assert hidden(net) == {}
    loop = []
    loop.append(loop)
    net.loop = loop
    assert hidden(net) == {}


def findings(net, parameters, steps=1):
    optimizer, watch = torch.optim.SGD(parameters, 0.1), Monitor(net, every=10)
    for _ in range(steps):
        with watch.step():
            F.cross_entropy(net(torch.randn(6, 4)), torch.tensor([0, 1] * 3)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch.findings


@pytest.mark.parametrize(("keep", "names"), HIDES.values(), ids=list(HIDES))
def test_it_is_told_at_the_first_look(keep, names):
    net = Keeps(keep)
    with pytest.warns(FindingWarning, match="keeps them in a Python list or dict"):
        (found,) = findings(net, net.parameters())
    assert (found.step, found.kind, found.names) == (0, "untrained", tuple(names))
    assert found.text.endswith("Keep layers in nn.ModuleList or nn.ModuleDict, and parameters in nn.ParameterList.")


def test_one_that_an_optimizer_holds_is_no_finding():
    net = Keeps(lambda layer: [layer])
    assert findings(net, [*net.parameters(), *net.middle[0].parameters()]) == ()


def test_one_without_a_gradient_is_no_finding():
    """A teacher that is hidden on purpose."""
    net = Keeps(lambda layer: layer)
    net.teacher = [nn.Linear(4, 2)]
    with torch.no_grad():
        net.teacher[0](torch.ones(1, 4))
    assert findings(net, net.parameters()) == ()


def test_one_in_evaluation_mode_is_no_finding():
    """A network that compares what the model makes with what it should be."""
    net = Keeps(lambda layer: [layer.eval()])
    assert hidden(net) == {}
    assert findings(net, net.parameters()) == ()


def test_one_that_another_optimizer_holds_is_no_finding_where_one_is_given():
    """The judge of a generator, say, that has an optimizer of its own."""
    net = Keeps(lambda layer: [layer])
    other = torch.optim.SGD(net.middle[0].parameters(), 0.1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = Monitor(net, every=10, optimizer=optimizer)
    with watch.step():
        F.cross_entropy(net(torch.randn(6, 4)), torch.tensor([0, 1] * 3)).backward()
        other.step()
        optimizer.step()
    assert watch.findings == ()


def unasked(*_):
    raise RuntimeError("nobody may ask")


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_a_container_that_loads_what_it_is_asked_for_is_not_asked(kind):
    lazy = type("Lazy", (kind,), {"__iter__": unasked, "__getitem__": unasked, "items": unasked})
    layer = nn.Linear(4, 4)
    net = Keeps(lambda _: lazy(((0, layer),)) if kind is dict else lazy([layer]))
    assert list(hidden(net)) == ["middle.0.weight", "middle.0.bias"]
