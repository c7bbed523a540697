"""Of NaN and infinity the cause is told: the first tensor that was broken, in time and along the way of values."""

import math
import warnings

import pytest
import torch
from torch import nn

from tests.training.rules.samples import FINE, MOVED, account, layer, sample, still, told, weight
from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor
from torch_featviz.training.findings import Findings
from torch_featviz.training.records import StepRecord

NAN = {name: layer(nan=3) for name in FINE}
LOST = dict.fromkeys(MOVED, weight(grad=math.nan, ratio=math.nan, norm=math.nan))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        yield


def first(look, known=None, before=()):
    """What is told of one look, after others: step, name and text."""
    findings = Findings()
    told(*before, findings=findings)
    step = 100 * len(before)
    findings.look(sample(step, **look), known or account(losses=[1.0], start=step))
    if not findings.all:
        return None
    (found,) = findings.all
    assert found.kind == "nonfinite"
    return found.step, *found.names, found.text


# From the first to the last along the way: each look below has all that is broken further on, too.
WAY = [
    ("inputs", {"inputs": {"inputs": layer(nan=2)}}, {}, "The input has 2 NaN and 0 infinite of 642 values"),
    ("a.weight", {}, {"before": {"a.weight": math.nan}}, "a.weight has NaN or infinity before the first step"),
    ("a", {"layers": NAN}, {}, "Layer a is the first with NaN or infinity at step 0 (3 NaN and 0 infinite of 643"),
    ("loss", {"layers": FINE}, {"losses": [math.nan]}, "The loss is nan at step 0, although all layer outputs"),
    ("a.weight", {}, {"losses": [1.0]}, "The gradient of a.weight has NaN or infinity at step 0, although all layer"),
    ("b.weight", {"parameters": {**MOVED, "b.weight": weight(norm=math.inf)}}, {},
     "b.weight has NaN or infinity after step 0, although its gradient was finite: lower the learning rate"),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(WAY)))
def test_the_first_along_the_way_is_named(place):
    look, known = {"parameters": LOST}, {}
    for _, parts, facts, _ in reversed(WAY[place:-1]):
        look, known = {"parameters": LOST, **look, **parts}, {**known, **facts}
    name, _, _, text = WAY[place]
    if place == 5:
        look = WAY[5][1]
    found = first(look, account(**known))
    assert found[:2] == (0, name)
    assert text in found[2]


def test_a_step_between_two_looks_is_earlier_than_all_of_this_one():
    records = (
        StepRecord(101, 1.0, {"loss": 2.0}),
        StepRecord(102, math.nan, {"loss": 3.0}),
        StepRecord(103, math.nan, {"loss": math.nan}),
    )
    known = account()
    known = type(known)(**{**vars(known), "records": (*records, StepRecord(200, math.nan, {"loss": math.nan}))})
    step, name, text = first({"layers": NAN, "parameters": LOST}, known, [{}, {}])
    assert (step, name) == (102, "gradient")
    assert "The gradient has NaN or infinity at step 102, although the loss is finite (3)" in text
    assert "(at step 101: loss 2, gradient norm 1)" in text
    assert "These weights now contain NaN or infinity: a.weight, b.weight, c.weight." in text
    known = type(known)(
        **{**vars(known), "records": (StepRecord(101, math.nan, {"loss": math.inf}), StepRecord(200, 1.0, {}))}
    )
    step, name, text = first({"layers": {**FINE, "b": layer(inf=1)}}, known, [{}, {}])
    assert (step, name) == (101, "loss")
    assert "The loss is inf at step 101; this is the first such step, so its batch" in text
    assert "Layer b is the first with NaN or infinity at step 200" in text
    assert text.count("Check the data") == 1  # one thing to do
    assert "At step 200 all values are finite again." in first({}, known, [{}, {}])[2]


def test_where_steps_are_not_known_nothing_is_said_of_the_first():
    """As after a checkpoint, or of more steps than are kept."""
    known = account()
    known = type(known)(
        **{**vars(known), "records": (StepRecord(150, math.nan, {"loss": math.nan}), StepRecord(200, 1.0, {}))}
    )
    step, name, text = first({}, known, [{}, {}])
    assert (step, name) == (150, "loss")
    assert "The loss is nan at step 150, or in an earlier step: not all steps from 101 on were recorded." in text
    assert "first such step" not in text


def test_what_was_seen_before_is_said():
    before = [{"layers": {**FINE, "b": layer(low=-3.5, high=7.25)}}] * 2
    _, name, text = first({"layers": {**FINE, "b": layer(nan=1)}}, before=before)
    assert name == "b"
    assert "at step 100 its output was finite, from -3.5 to 7.25; ranges of the layers before it: a -2 to 2" in text
    assert "Run again with every=1 from step 100 on" in text
    _, _, text = first({"layers": {"a": layer(nan=1)}, "inputs": {"inputs": layer()}})
    assert "the model's input is finite" in text


def test_layers_that_are_not_watched_are_named():
    known = account(leaves=("rnn", "norm", "a", "act", "b", "drop", "c"), losses=[1.0])
    assert "an earlier layer that is not watched: rnn, norm." in first({"layers": NAN}, known)[2]
    _, name, text = first({"layers": {**FINE, "b": layer(nan=1)}}, known)
    assert name == "b"
    assert "the cause may be an earlier layer that is not watched: act;" in text
    assert "not watched" not in first({"layers": NAN}, account(leaves=("a", "b", "c")))[2]
    many = account(leaves=(*(f"l{i}" for i in range(9)), "a"))
    assert "l0, l1, l2, l3, l4 and 4 more" in first({"layers": NAN}, many)[2]


def test_a_skipped_step_of_a_scaler_is_no_finding():
    skipped = {"parameters": {**MOVED, "b.weight": weight(grad=math.inf, ratio=0.0)}}
    assert first(skipped) is None
    assert first({"parameters": {**MOVED, "b.weight": weight(grad=math.inf, ratio=1e-9)}})[1] == "b.weight"


def test_weights_that_no_step_moved():
    assert first({"parameters": {"a.weight": still(norm=math.nan)}}, account(before={"a.weight": math.nan}))[1:] == (
        "a.weight",
        "a.weight has NaN or infinity before the first step: check how it is initialised or loaded.",
    )
    assert (
        "after step 0"
        in first({"parameters": {"a.weight": still(norm=math.nan)}}, account(before={"a.weight": 1.0}))[2]
    )


def test_each_is_told_once_and_what_follows_is_not():
    broken = {"layers": {**FINE, "b": layer(nan=1)}}
    other = {"layers": {**FINE, "a": layer(nan=1)}}
    assert told({}, broken, other, other) == [(100, "nonfinite", ("b",))]
    assert told({}, broken, {}, broken, {}, other) == [(100, "nonfinite", ("b",)), (500, "nonfinite", ("a",))]
    assert told({}, broken, {}, other, ignore={"nonfinite": "b"}) == [(300, "nonfinite", ("a",))]


# Networks


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(4, 8, nonlinearity="relu", batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def learn(net, *, layers=None, steps=3, every=1, give=None, loss=None, spoil=None):
    optimizer, watch = torch.optim.SGD(net.parameters(), 0.01), Monitor(net, layers, every=every)
    for i in range(steps):
        x = torch.randn(6, 5, 4)
        with watch.step() as step:
            answer = net(x if give is None else give(i, x))
            value = answer.square().mean() if loss is None else loss(i, answer)
            value.backward()
            step.log(loss=value)
            if spoil:
                spoil(i)
            optimizer.step()
            optimizer.zero_grad()
    return [(each.step, each.kind, each.names) for each in watch.findings], " ".join(
        each.text for each in watch.findings
    )


def test_nan_in_the_data():
    def give(i, x):
        return x if i != 1 else torch.where(x > 1, torch.nan, x)

    found, text = learn(Recurrent(), give=give)
    assert found == [(1, "nonfinite", ("inputs",))]
    assert "check the data" in text


def test_a_recurrent_layer_before_the_only_one_that_is_watched():
    net = Recurrent()
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(1e30)
        net.rnn.weight_ih_l0.mul_(1e30)
    found, text = learn(net, layers=["head"], steps=1)
    assert found == [(0, "nonfinite", ("head",))]
    assert "the cause may be an earlier layer that is not watched: rnn;" in text
    net = Recurrent()
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(1e30)
        net.rnn.weight_ih_l0.mul_(1e30)
    assert learn(net, steps=1)[0] == [(0, "nonfinite", ("rnn",))]
    assert learn(Recurrent())[0] == []


def test_a_weight_that_was_loaded_broken():
    net = Recurrent()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    found, text = learn(net)
    assert found == [(0, "nonfinite", ("head.weight",))]
    assert "before the first step" in text


def test_a_loss_that_is_nan_by_itself():
    found, text = learn(Recurrent(), loss=lambda i, answer: answer.mean() * (torch.tensor(0.0).log() * 0 if i else 1))
    assert found == [(1, "nonfinite", ("loss",))]
    assert "look for log(0), 0 / 0 or an empty mean" in text


def test_a_gradient_that_is_nan_by_itself():
    found, text = learn(Recurrent(), loss=lambda i, answer: answer.square().mean() + (answer[0, 0] * 0 * i).sqrt())
    assert found[0][:2] in ((0, "nonfinite"), (1, "nonfinite"))
    assert "although all layer outputs are finite" in text


def test_a_weight_that_is_broken_by_the_step():
    net = Recurrent()

    def spoil(i):
        if i == 1:
            net.head.weight.data[0, 0] = torch.inf  # as an optimizer of one's own might

    found, text = learn(net, spoil=spoil)
    assert found[0][:2] == (1, "nonfinite")
    assert "head.weight has NaN or infinity after step 1, although its gradient was finite" in text
