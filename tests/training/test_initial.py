"""What an initialisation of PyTorch has drawn is told from what was trained; and rows that are alike from others."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import init

from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor
from torch_featviz.training.initial import alike, drawn, twins

DRAWS = {
    "default": lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)),
    "kaiming uniform": lambda w: init.kaiming_uniform_(w, nonlinearity="relu"),
    "kaiming normal": lambda w: init.kaiming_normal_(w, nonlinearity="relu"),
    "kaiming normal, fan out": lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "xavier uniform": init.xavier_uniform_,
    "xavier normal": init.xavier_normal_,
    "lecun normal": lambda w: init.kaiming_normal_(w, nonlinearity="linear"),
    "0.02": lambda w: init.normal_(w, std=0.02),
    "0.01": lambda w: init.normal_(w, std=0.01),
    "embedding": init.normal_,
}
SHAPES = st.one_of(
    st.tuples(st.integers(12, 80), st.integers(12, 80)),
    st.tuples(st.integers(8, 48), st.integers(3, 24), st.just(3), st.just(3)),
    st.tuples(st.integers(8, 32), st.integers(4, 24), st.integers(3, 7)),
)
LARGE = st.tuples(st.integers(48, 90), st.integers(48, 90))


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_is_known(name):
    """Of a hundred shapes nearly all: each is a question of statistics."""
    known = []

    @settings(max_examples=30)
    @given(SHAPES, st.integers(0, 2**32))
    def draw(shape, seed):
        torch.manual_seed(seed)
        weight = torch.empty(shape)
        DRAWS[name](weight)
        known.append(drawn({"a": weight}) == ["a"])

    draw()
    assert sum(known) >= 0.95 * len(known), f"{sum(known)} of {len(known)}"


@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(8, 16, 3), nn.Conv1d(8, 16, 5), nn.LSTM(16, 24),
                                   nn.GRU(16, 24), nn.Embedding(50, 16), nn.Conv2d(32, 64, 3, groups=4)],
                         ids=lambda each: type(each).__name__)  # fmt: skip
def test_layers_as_they_begin(layer):
    weights = {name: p for name, p in layer.named_parameters() if p.dim() > 1}
    assert drawn(weights) == list(weights)


def test_a_few_steps_of_training_leave_another_weight():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 24))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    weights = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    assert drawn(weights) == list(weights)
    for _ in range(60):
        x = torch.randn(64, 24)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), x.argmax(1)).backward()
        optimizer.step()
    assert drawn(weights) == []


@settings(max_examples=30)
@given(LARGE, st.sampled_from(sorted(DRAWS)), st.integers(0, 2**32), st.sampled_from([0.7, 1.5, 3.0]))
def test_of_another_form_it_is_no_initialisation(shape, name, seed, factor):
    torch.manual_seed(seed)
    weight = torch.empty(shape)
    DRAWS[name](weight)
    mixed = weight * torch.where(torch.rand(shape) < 0.5, 1.0, 3.0)  # two spreads in one
    heavy = weight.sign() * weight.abs() ** 2 * factor
    assert drawn({"mixed": mixed}) == []
    assert drawn({"heavy": heavy}) == []


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf])
def test_constants_are_not_drawn(value):
    assert drawn({"a": torch.full((20, 20), value), "b": torch.full((20, 20), 1.0).fill_diagonal_(value)}) == []


def test_of_few_numbers_or_of_a_vector_nothing_is_said():
    assert drawn({"few": nn.Linear(11, 11).weight, "vector": torch.randn(500)}) == []
    assert drawn({"enough": nn.Linear(16, 8).weight}) == ["enough"]


def test_rows_that_are_alike_are_those_a_loop_finds():
    torch.manual_seed(0)
    weights = {
        "drawn": torch.randn(5, 4),
        "zero": torch.zeros(5, 4),
        "ones": torch.ones(5, 4),
        "same": torch.randn(1, 4).repeat(5, 1),
        "first two": torch.cat([torch.ones(2, 4), torch.randn(3, 4)]),
        "but the last": torch.cat([torch.ones(4, 4), torch.ones(1, 4) * 2]),
        "one row": torch.ones(1, 4),
        "kernels": torch.randn(1, 3, 2, 2).repeat(6, 1, 1, 1),
        "half": torch.full((3, 2), 0.5, dtype=torch.float16),
        "nan": torch.full((3, 3), torch.nan),
        "empty": torch.zeros(3, 0),
    }
    expected = [
        name
        for name, weight in weights.items()
        if len(weight) > 1
        and any(float(x) != 0 for x in weight[0].flatten())
        and all(row.flatten().tolist() == weight[0].flatten().tolist() for row in weight)
    ]
    assert expected == ["ones", "same", "kernels", "half"]
    several = {name: weight for name, weight in weights.items() if len(weight) > 1}
    assert alike(several, {name: len(weight) for name, weight in several.items()}) == expected


def test_rows_of_one_gate_are_compared_with_each_other():
    torch.manual_seed(0)
    gates = torch.tensor([[1.0], [2.0], [3.0]]).repeat_interleave(4, 0).repeat(1, 5)
    other = gates.clone()
    other[-1, -1] = 7.0
    assert alike({"gates": gates, "other": other}, {"gates": 4, "other": 4}) == ["gates"]
    assert alike({"gates": gates}, {"gates": 12}) == []
    assert alike({"first": other.flip(0)}, {"first": 4}) == []


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.LSTM(4, 6, batch_first=True), {"weight_ih_l0", "weight_hh_l0"}),
        (lambda: nn.GRU(4, 6, batch_first=True), {"weight_ih_l0", "weight_hh_l0"}),
        (lambda: nn.RNN(4, 6, batch_first=True), {"weight_ih_l0", "weight_hh_l0"}),
    ],
)
def test_a_recurrent_layer_of_constants_is_told(make, names):
    def train(constant):
        torch.manual_seed(0)
        net = nn.ModuleDict({"rnn": make(), "head": nn.Linear(6, 3)})
        for parameter in net["rnn"].parameters() if constant else ():
            nn.init.constant_(parameter, 0.1)
        if constant:
            nn.init.constant_(net["head"].weight, 0.1)
        optimizer, watch = torch.optim.SGD(net.parameters(), 0.1), Monitor(net, every=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FindingWarning)
            with watch.step():
                net["head"](net["rnn"](torch.randn(5, 7, 4))[0][:, -1]).square().mean().backward()
                optimizer.step()
            return {name for each in watch.findings if each.kind == "symmetric" for name in each.names}

    assert train(constant=False) == set()
    assert {f"rnn.{name}" for name in names} <= train(constant=True)


def test_a_twin_is_near_one_that_is_trained():
    torch.manual_seed(0)
    trained = [torch.randn(10, 10), torch.randn(4, 10), torch.randn(10, 10)]
    frozen = {
        "copy": trained[2].clone(),
        "follows": trained[0] * 0.9 + 0.1 * torch.randn(10, 10),
        "apart": torch.randn(10, 10),
        "of another shape": trained[1].T.clone(),
    }
    assert twins(frozen, trained) == {"copy", "follows"}
    assert twins(frozen, []) == set()
