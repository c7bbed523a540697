"""What is kept of a model and put back."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import test_untouched as calls
from torch_featviz.prove.state import State


class Odd(nn.Module):
    """Holds what a state dict does not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.conv.weight.grad = torch.ones_like(self.conv.weight)
        self.count, self.names = 0, {"a", "b"}
        self.caches = [{"deep": (torch.zeros(3),)}, OrderedDict(first=1)]
        self.noise = torch.Generator().manual_seed(0)
        self.hidden = [nn.Linear(2, 2)]  # which no parameter list knows
        self.plan = Plan()
        self.again = self.caches


class Plan:
    def __init__(self):
        self.steps = [1, 2]


def hidden(net):
    with torch.no_grad():
        net.hidden[0].bias.add_(1)


def rand(net):
    torch.rand(1, generator=net.noise)


CHANGES = {
    "a number": (lambda net: setattr(net, "count", 1), "the model.count"),
    "a set": (lambda net: net.names.add("c"), "the model.names"),
    "a tensor in containers": (lambda net: net.caches[0]["deep"][0].add_(1), "the model.caches.0.deep.0"),
    "an entry": (lambda net: net.caches[1].pop("first"), "the model.caches.1.first"),
    "a longer list": (lambda net: net.caches.append(1), "the model.caches.2"),
    "a shorter list": (lambda net: net.caches.pop(), "the model.caches.1"),
    "a generator": (rand, "the model.noise"),
    "a module in a list": (hidden, "the model.hidden.0._parameters.bias"),
    "an object": (lambda net: net.plan.steps.append(3), "the model.plan.steps.2"),
    "a gradient's values": (lambda net: net.conv.weight.grad.zero_(), "conv._parameters.weight.grad"),
    "a gradient": (lambda net: setattr(net.conv.weight, "grad", None), "conv._parameters.weight.grad"),
    "a parameter made anew": (lambda net: setattr(net.conv, "bias", None), "conv._parameters.bias"),
    "the sign of a zero": (lambda net: net.caches[0]["deep"][0].neg_(), "the model.caches.0.deep.0"),
    "NaN": (lambda net: net.caches[0]["deep"][0].fill_(float("nan")), "the model.caches.0.deep.0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_named_by_where_it_is_and_put_back(what):
    change, where = CHANGES[what]
    net = Odd()
    structure = calls.structure(net)
    state = State(net)
    assert state.changes() == {}
    change(net)
    assert list(state.changes()) == [where]
    state.restore()
    assert state.changes() == {}
    assert calls.structure(net) == structure


def test_nothing_is_written_to_where_nothing_changed():
    net = Odd()
    versions = [parameter._version for parameter in net.parameters()]
    State(net).restore()
    assert [parameter._version for parameter in net.parameters()] == versions


def test_the_order_of_modules_is_put_back():
    net = nn.Sequential(nn.ReLU(), nn.Tanh())
    state = State(net)
    net._modules["0"] = net._modules.pop("0")
    state.restore()
    assert list(net._modules) == ["0", "1"]


@given(st.lists(st.sampled_from(list(CHANGES)), unique=True))
def test_any_changes_together_are_put_back(several):
    net = Odd()
    state = State(net)
    before = calls.structure(net)
    for what in several:
        try:
            CHANGES[what][0](net)
        except (IndexError, AttributeError, KeyError):  # what another change took away
            continue
    assert bool(state.changes()) == bool(several)
    state.restore()
    assert state.changes() == {}
    assert calls.structure(net) == before
