"""Which layers are watched by default, functions that clip among them; and training is what it would have been."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from torch_featviz.errors import LayerError
from torch_featviz.training import Monitor
from torch_featviz.training.figures import range_of
from torch_featviz.training.watched import Watched


class Clips(nn.Module):
    """Functional tanh, twice, and sigmoid."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 40), nn.Linear(40, 40), nn.Linear(40, 2)

    def forward(self, x):
        x = torch.tanh(self.one(x))
        x = torch.tanh(self.two(x)) * torch.sigmoid(x)
        return self.three(x)


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(5, 40)

    def forward(self, x):
        return self.one(x).tanh().sigmoid()


def fresh(kind=Clips):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_the_saturated_share_of_functions_is_numpys(scale):
    net, x = fresh(), scale * torch.randn(50, 5)
    watch = Monitor(net, every=1)
    with watch.step():
        net(x)
    layers = watch.history[0].layers
    with torch.no_grad():
        one = torch.tanh(net.one(x))
        two, gate = torch.tanh(net.two(one)), torch.sigmoid(one)
    clipped = {name: each for name, each in layers.items() if each.saturated is not None}
    assert len(clipped) == 3
    for (name, each), (values, low, high) in zip(
        clipped.items(), [(one, -1, 1), (two, -1, 1), (gate, 0, 1)], strict=True
    ):
        array, edge = values.double().numpy(), (high - low) / 32
        assert each.saturated == ((array < low + edge) | (array >= high - edge)).mean(), name
        np.testing.assert_allclose((each.mean, each.std), (array.mean(), array.std()), rtol=1e-5, atol=1e-6)
    assert {"one", "two", "three"} < set(layers)


def test_methods_of_a_tensor_are_functions_too():
    net, x = fresh(Method), 4 * torch.randn(50, 5)
    watch = Monitor(net, every=1)
    with watch.step():
        answer = net(x)
    first, second = [each for each in watch.history[0].layers.values() if each.saturated is not None]
    array = torch.tanh(net.one(x)).detach().double().numpy()
    assert first.saturated == ((array < -15 / 16) | (array >= 15 / 16)).mean() > 0
    assert second.max == answer.max().item()


def trained(net, watch=None, model=None, steps=9):
    model = net if model is None else model
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    torch.manual_seed(3)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 5)
        with watch.step() if watch else torch.enable_grad():
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [p.detach().clone() for p in net.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("options", [{}, {"check_finite": False}, {"noise": True}, {"every": 4}], ids=str)
@pytest.mark.parametrize("kind", [Clips, Method])
def test_training_is_what_it_would_have_been(kind, options):
    bare, watched = fresh(kind), fresh(kind)
    watch = Monitor(watched, **{"every": 2, **options})
    losses, parameters, rng = trained(bare)
    for found, expected in zip(trained(watched, watch), (losses, parameters, rng), strict=True):
        assert str(found) == str(expected)
    assert all(torch.equal(p, q) for p, q in zip(watched.parameters(), parameters, strict=True))
    watch.close()
    assert watch.history.steps[0] == 0


def test_a_compiled_model_stays_compiled_and_its_functions_are_unseen():
    counted = []

    def backend(graph, inputs):
        def run(*args):
            counted.append(len(inputs))
            return graph(*args)

        return run

    bare, watched = fresh(), fresh()
    compiled = torch.compile(watched, backend=backend)
    watch = Monitor(compiled, every=2)
    found, expected = trained(watched, watch, compiled, steps=4), trained(bare, steps=4)
    assert found[0] == expected[0]
    assert len(counted) == 4  # none of the steps ran uncompiled
    assert list(watch.history[0].layers) == ["one", "two", "three"]
    eager = fresh()
    other = Monitor(eager, every=2)
    trained(eager, other, steps=4)
    for name in ("one", "two", "three"):
        np.testing.assert_allclose(watch.history.values(name, "std"), other.history.values(name, "std"), rtol=1e-5)


def test_what_is_watched_by_default():
    class Everything(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.up = nn.Embedding(10, 8), nn.ConvTranspose1d(8, 8, 3)
            self.norm, self.rnn, self.attend = nn.LayerNorm(8), nn.GRU(8, 8), nn.MultiheadAttention(8, 2)
            self.act, self.gate, self.relu = nn.Tanh(), nn.Hardsigmoid(), nn.ReLU()
            self.own = nn.Parameter(torch.ones(3))
            self.packed = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)

    watched = Watched(Everything(), None, 16)
    chosen = {"words", "up", "norm", "rnn", "attend", "act", "gate"}
    assert chosen <= set(watched.layers) <= {*chosen, "attend.out_proj"}
    assert "attend.in_proj_weight" in watched.parameters
    assert "rnn.weight_hh_l0" in watched.parameters
    assert "own" in watched.parameters  # of the model itself
    assert "packed" not in watched.everything
    about = watched.about["words.weight"]
    assert (about.table, about.axes, about.rows, about.dtype, about.frozen) == (True, 2, 0, "float32", False)
    assert watched.leaves[:2] == ("words", "up")


def test_only_what_is_asked_for_is_watched_and_all_is_accounted_for():
    watched = Watched(fresh(), ["two"], 16)
    assert list(watched.layers) == ["two"]
    assert list(watched.parameters) == ["two.weight", "two.bias"]
    assert len(watched.everything) == len(watched.about) == 6
    assert watched.is_asked_for("two")
    with pytest.raises(LayerError, match="no layer 'four'"):
        Watched(fresh(), ["four"], 16)


def test_rows_are_counted_of_layers_in_one_group():
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 3), nn.Linear(4, 2))
    net[3].bfloat16().requires_grad_(False)
    about = Watched(net, None, 16).about
    assert {name: each.rows for name, each in about.items()} == {
        "0.weight": 8, "0.bias": 0, "1.weight": 0, "1.bias": 0, "2.weight": 0, "2.bias": 0, "3.weight": 2, "3.bias": 0,
    }  # fmt: skip
    assert about["3.weight"][1:] == ("bfloat16", False, 2, True)


def test_the_model_is_as_it_was_between_steps(instance_state):
    net = fresh()
    before = instance_state(net)
    watch = Monitor(net, every=1)
    trained(net, watch, steps=2)
    assert instance_state(net) == before
    assert copy.deepcopy(net)(torch.ones(1, 5)).tolist() == net(torch.ones(1, 5)).tolist()


def test_states_of_recurrent_layers_have_ends():
    """Of a tanh and of a GRU; not of a ReLU, nor of an LSTM's, which the output gate holds down."""
    ends = {
        nn.RNN(3, 4): (-1.0, 1.0),
        nn.RNNCell(3, 4): (-1.0, 1.0),
        nn.GRU(3, 4): (-1.0, 1.0),
        nn.GRUCell(3, 4): (-1.0, 1.0),
        nn.RNN(3, 4, nonlinearity="relu"): None,
        nn.RNNCell(3, 4, nonlinearity="relu"): None,
        nn.LSTM(3, 4): None,
    }
    assert {layer: range_of(layer) for layer in ends} == ends
    net = nn.ModuleDict({"rnn": nn.RNN(3, 4), "head": nn.Linear(4, 2)})
    assert list(Watched(net, None, 64).layers) == ["rnn", "head"]
    assert list(Watched(net, None, 64).drawn) == ["head"]
