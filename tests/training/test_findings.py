"""Findings: each rule at its threshold, networks broken on purpose, and healthy ones of which nothing is said."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from torch_featviz.errors import FeatvizError, FindingWarning, OptionError
from torch_featviz.training import Bins, LayerFigures, Monitor, ParameterFigures, Sample
from torch_featviz.training.findings import Findings
from torch_featviz.zoo import XO, augment_marks, card
from torch_featviz.zoo.recipe import _begin, pool_first

pytestmark = pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")  # each is looked at here


def layer(std=1.0, low=-2.0, high=2.0, n=640, nan=0, inf=0, saturated=None):
    bins = Bins(-2.0, 4.0, (n,))
    return LayerFigures(0.0, std, low, high, 0.0, 0, 10, nan, inf, bins, saturated)


def weight(grad=1.0, ratio=1e-3, unreached=0, size=100, norm=1.0, rows=64):
    return ParameterFigures(size, norm, grad, ratio, None, rows, unreached)


def told(*samples, every=100, start=0):
    """(step, kind, names) of each finding over samples `(layers, parameters)`."""
    findings = Findings()
    for i, (layers, parameters) in enumerate(samples):
        new = findings.look(Sample(start + i * every, layers, parameters))
        assert all(each.step == start + i * every for each in new)
    return [(each.step, each.kind, each.names) for each in findings.all]


FINE = {"a": layer(), "b": layer(), "c": layer()}
MOVED = {"a.weight": weight(), "b.weight": weight(), "c.weight": weight()}


def with_b(figures):
    """A sample whose middle layer, or its weight, has these figures; where they are small, so are the last one's."""
    if isinstance(figures, LayerFigures):
        last = figures if figures.std < 1e-2 and figures.min < figures.max else layer()
        return {**FINE, "b": figures, "c": last}, MOVED
    return FINE, {**MOVED, "b.weight": figures}


# kind, what is beyond the limit, what is just not
LASTING = {
    "mostly dead": ("dead", weight(unreached=48), weight(unreached=47)),
    "one value": ("dead", layer(std=0.0, low=1.0, high=1.0), layer(low=1.0, high=1.0001)),
    "small gradient": ("vanishing", weight(grad=0.99e-4, ratio=0.9e-7), weight(grad=1.01e-4)),
    "small gradient for its size": ("vanishing", weight(grad=0.99e-3, ratio=0.9e-7, size=10_000), weight(grad=1.01e-3)),
    "small gradient, ordinary steps": ("vanishing", weight(grad=0.99e-4, ratio=0.9e-7), weight(grad=0.99e-4)),
    "small values": ("vanishing", layer(std=0.99e-4), layer(std=1.01e-4)),
    "swallowed": ("stopped", weight(ratio=2.0**-25), weight(ratio=1.01e-6)),
    "behind the median": ("stopped", weight(ratio=0.99e-6), weight(ratio=1.01e-6)),
    "large updates": ("large_updates", weight(ratio=0.101), weight(ratio=0.1)),
}


@pytest.mark.parametrize("case", LASTING)
def test_what_may_pass_is_told_after_three_in_a_row(case):
    kind, bad, good = LASTING[case]
    name = "b" if isinstance(bad, LayerFigures) else "b.weight"
    begin = (FINE, MOVED)
    assert told(begin, *[with_b(good)] * 9) == []
    assert told(begin, *[with_b(bad)] * 2, with_b(good), *[with_b(bad)] * 2) == []
    names = (name, "c") if case == "small values" else (name,)
    assert told(begin, *[with_b(bad)] * 9) == [(300, kind, names)]
    none = ({"a": layer(), "c": layer()}, {"a.weight": weight(), "c.weight": weight()})
    if case != "small values":
        assert told(begin, with_b(bad), none, with_b(bad), none, with_b(bad)) == [(500, kind, (name,))]


def test_a_saturated_layer_is_told_where_it_holds_back_the_gradient():
    held = {**MOVED, "a.weight": weight(grad=0.09)}  # what feeds the activation
    for share, parameters, expected in ((0.8, held, 1), (0.799, held, 0), (0.8, MOVED, 0)):
        samples = [({**FINE, "b": layer(saturated=share)}, {**parameters, "b.weight": None})] * 5
        samples = [(layers, {k: v for k, v in each.items() if v}) for layers, each in samples]
        assert told(*samples) == [(200, "saturated", ("b",))] * expected
    gate = layer(saturated=0.9, low=0.0, high=1.0)
    learnt = [({**FINE, "b": layer(saturated=0.1, low=0.0, high=1.0)}, held)] + [({**FINE, "b": gate}, held)] * 5
    assert told(*learnt) == []  # a gate that learnt to be open or shut
    assert told(*[({**FINE, "b": gate}, {k: v for k, v in held.items() if k != "b.weight"})] * 5)


def test_a_layer_without_any_gradient():
    gone = weight(grad=0.0, ratio=0.0, unreached=64)
    behind = {**MOVED, "a.weight": gone, "b.weight": gone}
    assert told((FINE, MOVED), *[(FINE, behind)] * 9) == [(300, "dead", ("a.weight", "b.weight"))]
    narrow = {**MOVED, "a.weight": weight(grad=0.0, ratio=0.0, unreached=63, rows=63)}
    assert told((FINE, MOVED), *[(FINE, narrow)] * 9) == [(300, "dead", ("a.weight",))]
    assert told((FINE, MOVED), *[(FINE, {**MOVED, "a.weight": weight(unreached=62, rows=63)})] * 9) == []
    # of a head whose task asks for nothing, all that comes before it learns; silent layers are dead anyway
    assert told((FINE, MOVED), *[(FINE, {**MOVED, "b.weight": gone})] * 9) == []
    silent = {**FINE, "b": layer(low=-9.0, high=-8.0)}
    assert told((FINE, MOVED), *[(silent, {**MOVED, "b.weight": gone})] * 9) == [(300, "dead", ("b.weight",))]


AT_ONCE = {
    "beyond float16": (layer(std=65505.0), layer(std=999.0)),
    "a thousand times the first": (layer(std=1001.0), layer(std=999.0)),
    "a thousand times the usual gradient": (weight(grad=1001.0), weight(grad=999.0)),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_what_explodes_is_told_at_once(case):
    bad, good = AT_ONCE[case]
    name = "b" if isinstance(bad, LayerFigures) else "b.weight"
    begin = [(FINE, MOVED)] * 5
    assert told(*begin, with_b(good)) == []
    assert told(*begin, with_b(bad), with_b(bad)) == [(500, "exploding", (name,))]


def test_values_beyond_float16_are_told_of_the_first_sample_too():
    assert told(with_b(layer(std=65505.0))) == [(0, "exploding", ("b",))]
    assert told(with_b(layer(std=65504.0))) == []
    big = [with_b(layer(std=100.0)), with_b(layer(std=65505.0))]  # less than 1000 times
    assert told(*big) == [(100, "exploding", ("b",))]


def test_a_gradient_is_not_unusual_when_a_learnt_network_meets_a_hard_image():
    learnt = [with_b(weight(grad=1e-6, ratio=1e-9))] * 40
    assert told(*[(FINE, MOVED)] * 9, *learnt, (FINE, MOVED))[:1] == [(1100, "vanishing", ("b.weight",))]
    quiet = (FINE, {name: weight(grad=1e-6) for name in MOVED})
    assert told(*[(FINE, MOVED)] * 9, *[quiet] * 40, (FINE, MOVED)) == []


def test_nothing_is_told_without_figures():
    frozen = ParameterFigures(100, 1.0)
    one_number = ParameterFigures(10, 1.0, 0.0, 0.5)  # a bias: no rows
    assert told(*[(FINE, {"a.weight": frozen, "b.weight": frozen, "c.bias": one_number})] * 9) == []
    assert told(*[({}, {})] * 5) == []
    assert told(*[({"a": layer(std=math.nan, low=math.nan, high=math.nan, n=0)}, {})] * 5) == []


def test_odd_figures_raise_nothing():
    empty = ParameterFigures(0, 0.0, 0.0, 0.0, None, 10, 10)
    flat = {"a": layer(std=0.0, low=0.0, high=1e-320), "b": layer(std=0.0, low=0.0, high=1e-320)}  # squares underflow
    assert told(*[(flat, {"a.weight": empty, "b.bias": ParameterFigures(3, 1.0, 1.0, 1e-3)})] * 5) == []
    assert told(*[({}, {"a.weight": weight(grad=5e-324, size=10**6), "b.weight": weight()})] * 2) == []


def test_a_loss_that_asks_for_nothing_kills_nothing():
    gone = weight(grad=0.0, ratio=0.0, unreached=64)
    assert told((FINE, MOVED), *[(FINE, dict.fromkeys(MOVED, gone))] * 9) == []
    assert told(*[(FINE, dict.fromkeys(MOVED, gone))] * 9) == [(0, "untrained", tuple(MOVED))]


def test_a_few_values_or_the_answers_rows_are_no_sign():
    few = {**FINE, "b": layer(n=159)}
    assert told(*[(few, {**MOVED, "b.weight": weight(unreached=60)})] * 9) == []
    enough = {**FINE, "b": layer(n=160)}
    assert told(*[(enough, {**MOVED, "b.weight": weight(unreached=60)})] * 3) == [(200, "dead", ("b.weight",))]
    assert told(*[(FINE, {**MOVED, "c.weight": weight(unreached=60)})] * 9) == []
    assert told(*[({**FINE, "c": layer(low=0.5, high=0.5, n=15)}, MOVED)] * 9) == []
    negative = {**FINE, "c": layer(low=-9.0, high=-1.0)}
    assert told(*[(negative, MOVED)] * 9) == []


def test_of_dead_layers_the_cause_is_first():
    gone = weight(grad=0.0, ratio=0.0, unreached=64)
    layers = {**FINE, "b": layer(low=-9.0, high=-8.0)}
    samples = [
        (layers, {"a.weight": gone, "b.weight": gone, "c.weight": gone, "c.bias": ParameterFigures(9, 1.0, 1.0)})
    ]
    assert told(*samples * 4) == [(200, "dead", ("b.weight", "a.weight", "c.weight"))]


def test_the_last_layers_answer_may_be_sure():
    assert told(*[({**FINE, "c": layer(saturated=1.0)}, MOVED)] * 9) == []


def test_ordinary_values_after_large_inputs_are_not_small():
    assert told(*[({"a": layer(std=2e4), "b": layer()}, {})] * 9) == []


def test_at_the_end_of_a_schedule_all_stand():
    for last in (0.0, 1e-9, 1e-7):
        ratios = {"a.weight": 3.0 * last, "b.weight": last, "c.weight": 0.0}
        end = (FINE, {name: weight(ratio=ratio) for name, ratio in ratios.items()})
        assert told(*[(FINE, MOVED)] * 5, *[end] * 5) == []


def test_most_of_a_network_may_stand():
    stand = {"a.weight": weight(), "b.weight": weight(ratio=0.0), "c.weight": weight(ratio=0.0)}
    assert told(*[(FINE, stand)] * 3) == [(200, "stopped", ("b.weight", "c.weight"))]


def test_what_began_at_zero_has_time():
    late = [with_b(weight(grad=0.0, unreached=64))] + [
        with_b(weight(grad=1e-9 * 1.1**k, ratio=1e-9)) for k in range(99)
    ]
    assert told(*late) == []
    arrived = [with_b(weight())] + [with_b(weight(grad=1e-5, ratio=1e-9))] * 3
    assert told(*late, *arrived) == [(10_300, "vanishing", ("b.weight",))]
    nothing, little = layer(std=0.0, low=0.0, high=0.0), layer(std=1e-6, low=-1e-5, high=1e-5)
    values = [({**FINE, "b": each, "c": each}, MOVED) for each in (nothing, *[little] * 9)]
    assert told(*values) == []
    head = [with_b(weight(ratio=math.inf))] + [with_b(weight(ratio=1 / k)) for k in range(1, 60)]
    assert told(*head, every=1) == []
    assert told(*head, every=1, start=700) == []  # thawed late
    assert told(*[with_b(weight(ratio=0.2))] * 60, every=1) == [(22, "large_updates", ("b.weight",))]


def test_findings_of_one_kind_are_one():
    names = [f"layers.{i}" for i in range(20)]
    samples = [({"first": layer(), **{name: layer(saturated=0.85) for name in names}, "last": layer()}, {})] * 3
    findings = Findings()
    for i, (layers, parameters) in enumerate(samples):
        findings.look(Sample(i, layers, parameters))
    (found,) = findings.all
    assert found.names == tuple(names)
    assert "layers.4 (85 %) and 15 more, in 3 samples in a row, steps 0 to 2. Initialise with" in found.text
    assert "layers.5" not in found.text
    assert "80 %" in found.text


def test_nan_is_told_at_once_with_what_was_before():
    findings = Findings()
    findings.look(Sample(0, FINE, MOVED))
    findings.look(Sample(100, {**FINE, "b": layer(low=-3.5, high=7.25)}, MOVED))
    broken = {"a": layer(low=-1.5, high=1.0), "b": layer(nan=3, inf=2), "c": layer(nan=640, n=0, std=math.nan)}
    (found,) = findings.look(Sample(200, broken, {"a.weight": weight(grad=math.nan, ratio=math.nan)}))
    assert (found.kind, found.names) == ("nonfinite", ("b",))
    for part in ("b is the first", "at step 200", "3 NaN and 2 infinite of 645",
                 "at step 100 its output was finite", "-3.5 to 7.25",
                 "a -1.5 to 1.", "with every=1 from step 100 on", "first_nonfinite(model, inputs)"):  # fmt: skip
        assert part in found.text, part
    all_broken = {name: layer(nan=640, n=0, std=math.nan, low=math.nan, high=math.nan) for name in FINE}
    for step in range(300, 900, 100):
        assert findings.look(Sample(step, all_broken, {"a.weight": weight(norm=math.nan)})) == []
    findings.look(Sample(900, FINE, MOVED))
    assert findings.look(Sample(1000, broken, MOVED)) == []  # b was told
    findings.look(Sample(1100, FINE, MOVED))
    assert [each.names for each in findings.look(Sample(1200, all_broken, MOVED))] == [("a",)]


def test_broken_gradients_and_weights():
    bad = {
        **MOVED,
        "b.weight": weight(grad=math.inf, ratio=math.nan),
        "c.weight": weight(grad=math.nan, ratio=math.nan),
    }
    assert told((FINE, MOVED), (FINE, bad)) == [(100, "nonfinite", ("b.weight",))]
    skipped = {**MOVED, "b.weight": weight(grad=math.inf, ratio=0.0)}  # as a GradScaler skips a step
    assert told(*[(FINE, skipped)] * 5) == []
    assert told((FINE, {**MOVED, "b.weight": weight(norm=math.inf)})) == [(0, "nonfinite", ("b.weight",))]


def test_a_broken_sample_ends_no_row_and_adds_to_none():
    held = {"a.weight": weight(grad=0.01), "c.weight": weight()}
    saturated = ({**FINE, "b": layer(saturated=0.9)}, held)
    broken = ({**FINE, "b": layer(nan=1, saturated=0.9)}, held)
    assert told(saturated, saturated, broken, saturated)[1:] == [(300, "saturated", ("b",))]
    assert told(saturated, broken, saturated)[1:] == []


def test_beside_what_explodes_nothing_is_small():
    layers = {"a": layer(std=1e5), "b": layer(std=1e5), "c": layer(std=1e-6), "d": layer(std=1e-6)}
    assert [kind for _, kind, _ in told(*[(layers, MOVED)] * 9)] == ["exploding"]
    assert told(*[(layers, MOVED)] * 2, ({**layers, "a": layer(), "b": layer()}, MOVED))[1:] == [
        (200, "vanishing", ("c", "d"))
    ]
    assert [kind for _, kind, _ in told(*[(FINE, MOVED)] * 2, ({**FINE, "b": layer(std=1e5)}, MOVED))] == ["exploding"]
    # the answer alone may grow to where the targets are
    assert told(*[(FINE, MOVED)] * 2, ({**FINE, "c": layer(std=1e5)}, MOVED)) == []


def test_the_state_can_be_kept_as_json_and_taken_up():
    rng = np.random.default_rng(0)
    samples = []
    for step in range(60):
        std, grad, ratio = 10.0 ** rng.uniform(-6, 4, 3)
        layers = {**FINE, "b": layer(std, saturated=rng.uniform(0.3, 0.9)), "d": layer(nan=int(step % 17 == 16))}
        samples.append(Sample(step, layers, {**MOVED, "b.weight": weight(grad, ratio, int(rng.integers(30, 65)))}))
    whole, first, second = Findings(), Findings(), Findings()
    for sample in samples:
        whole.look(sample)
    assert len({each.kind for each in whole.all}) >= 4
    for cut in (1, 2, 17, 40):
        first = Findings()
        for sample in samples[:cut]:
            first.look(sample)
        second = Findings()
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        for sample in samples[cut:]:
            second.look(sample)
        assert second.all == whole.all
        assert len(json.dumps(second.state_dict())) < 12_000  # does not grow with the run
    broken, other = ({**FINE, name: layer(nan=1)} for name in "ab")
    first.look(Sample(98, broken, {}))
    second.load_state_dict(first.state_dict())
    assert second.look(Sample(99, other, {})) == []  # what follows from the first
    with pytest.raises(OptionError, match="state must be what state_dict"):
        second.load_state_dict({"found": []})


def test_the_warning_is_one_a_user_can_filter():
    assert issubclass(FindingWarning, UserWarning)
    assert not issubclass(FindingWarning, FeatvizError)


# The share of saturated values


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [(nn.Tanh(), -1, 1), (nn.Sigmoid(), 0, 1), (nn.Hardsigmoid(), 0, 1), (nn.Softsign(), -1, 1), (nn.Hardtanh(), -1, 1),
     (nn.Hardtanh(-2, 2), -2, 2), (nn.Hardtanh(0, 4, inplace=True), 0, 4)],
)  # fmt: skip
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 40.0])
def test_saturated_values_are_those_numpy_counts(activation, low, high, scale):
    net, inputs = nn.Sequential(nn.Linear(5, 40), activation, nn.Linear(40, 2)), scale * torch.randn(50, 5)
    watch = Monitor(net, every=1)
    with watch.step():
        net(inputs)
    with torch.no_grad():
        values = activation(net[0](inputs)).double().numpy()
    edge = (high - low) / 32
    expected = ((values < low + edge) | (values >= high - edge)).mean()
    assert list(watch.history[0].layers) == ["0", "1", "2"]  # looked at without being asked for
    assert watch.history[0].layers["1"].saturated == expected
    assert (scale < 40) or expected > 0
    assert watch.history[0].layers["0"].saturated is None


def test_saturated_is_unknown_where_bins_are_too_wide_and_of_a_relu6():
    net = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.ReLU6())
    watch = Monitor(net, [nn.Tanh, nn.ReLU6], every=1, bins=8)
    with watch.step():
        net(100 * torch.randn(9, 5))
    assert [each.saturated for each in watch.history[0].layers.values()] == [None, None]
    with watch.step():
        net(torch.full((9, 5), torch.nan))
    assert watch.history[1].layers["1"].saturated is None


# Networks


def made_up(n, seed=0):
    """Images of ten kinds, each a blurred pattern in noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=g)
    patterns = torch.randn(10, 3, 8, 8, generator=g)[labels]
    return interpolate(patterns, size=(32, 32), mode="bilinear") + 0.7 * torch.randn(n, 3, 32, 32, generator=g), labels


def learn(net, optimizer, *, steps=12, every=1, batch=32, loss=cross_entropy, change=None, schedule=None, data=None):
    images, labels = data or made_up(256)
    watch = Monitor(net, every=every)
    g = torch.Generator().manual_seed(1)
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=g)
        inputs = images[chosen] if change is None else change(step, images[chosen])
        with watch.step():
            optimizer.zero_grad()
            loss(net(inputs), labels[chosen]).backward()
            optimizer.step()
        if schedule is not None:
            schedule.step()
    return list(watch.findings)


def sgd(net, lr=0.05):
    return torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr)


def convolutions(n=4):
    layers = [part for i in range(n) for part in (nn.Conv2d(8 if i else 3, 8, 3, 2 if i < 2 else 1, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))


def deep(activation, n=8, bias=True, scale=1.0):
    layers = [part for i in range(n) for part in (nn.Linear(32 if i else 3072, 32, bias), activation())]
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, 10, bias))
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(scale)
    return net


def kinds(found):
    return [each.kind for each in found]


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = convolutions()

    def forward(self, x):
        return self.net[3:](self.net[:3](x).detach())


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after)
        self.two, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1, 2)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        return torch.relu(self.norm2(self.two(torch.relu(self.norm1(self.one(x))))) + self.skip(x))


def residual():
    return nn.Sequential(
        Block(3, 8), Block(8, 16), Block(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def test_killed_relus():
    net = convolutions()
    nn.init.constant_(net[2].bias, -10)
    (found,) = learn(net, sgd(net))
    assert (found.kind, found.names[0]) == ("dead", "2.weight")
    assert "2.weight (8 of 8, and the layer returns nothing above 0)" in found.text


@pytest.mark.parametrize(("build", "lr"), [(convolutions, 100.0), (lambda: deep(nn.ReLU, 3), 20.0)])
def test_a_learning_rate_far_too_high(build, lr):
    net = build()
    found = kinds(learn(net, sgd(net, lr)))
    assert found[0] == "exploding"
    assert set(found) <= {"exploding", "dead", "nonfinite", "large_updates"}


def test_weights_far_too_small_or_large():
    net = deep(nn.ReLU, 6, bias=False, scale=1e-3)
    (found,) = learn(net, sgd(net))
    assert (found.kind, found.names[-1]) == ("vanishing", "13")
    net = deep(nn.ReLU, 6, bias=False, scale=1e3)
    found = learn(net, sgd(net, 1e-3))
    assert (found[0].kind, found[0].step, found[0].names[0]) == ("exploding", 0, "13")  # the answer
    assert set(kinds(found)) == {"exploding", "nonfinite"}


def test_sigmoids_one_after_another():
    net = deep(nn.Sigmoid, 10)
    (found,) = learn(net, sgd(net))
    assert found.kind == "vanishing"
    assert {"1.weight", "3.weight", "5.weight"} <= set(found.names)
    assert "21.weight" not in found.names


def test_tanh_of_large_weights():
    net = deep(nn.Tanh, 4)
    with torch.no_grad():
        net[3].weight.mul_(100)
    found = learn(net, sgd(net))
    assert (found[0].kind, found[0].names) == ("saturated", ("4",))
    assert [(each.kind, each.names) for each in found[1:]] in (
        [],
        [("stopped", ("3.weight",))],
    )  # whose weight is large


def test_nan_in_the_input():
    def change(step, images):
        images[0, 0, 0, 0] = torch.nan if step == 6 else 0.0
        return images

    net = convolutions()
    (found,) = learn(net, sgd(net), change=change)
    assert (found.kind, found.step, found.names) == ("nonfinite", 6, ("inputs",))
    assert "The input has 1 NaN and 0 infinite of 98304 values at step 6" in found.text


def test_nan_from_the_loss():
    net = convolutions()
    (found,) = learn(net, sgd(net), loss=lambda out, labels: cross_entropy(out, labels) + (out[0, 0] * 0).sqrt())
    assert (found.kind, found.step, found.names) == ("nonfinite", 0, ("0.weight",))
    assert "all layer outputs are finite" in found.text


def test_a_group_without_a_learning_rate():
    net = convolutions()
    groups = [{"params": net[:4].parameters(), "lr": 1e-12}, {"params": net[4:].parameters()}]
    (found,) = learn(net, torch.optim.SGD(groups, 0.05))
    assert (found.kind, found.names) == ("stopped", ("0.weight", "2.weight"))


def test_a_body_that_is_detached():
    (found,) = learn(net := Detached(), sgd(net))
    assert (found.kind, found.step) == ("untrained", 0)
    assert found.names == ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")
    assert "No gradient reaches these parameters or any layer before them" in found.text


def test_norms_that_never_gathered_statistics():
    (found,) = learn(net := residual().eval(), sgd(net, 0.01))
    assert (found.kind, found.step, len(found.names)) == ("mode", 0, 6)
    gathered = residual()
    for each in gathered.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
    assert learn(gathered.eval(), sgd(gathered, 0.01)) == []


def test_a_weight_decay_far_too_high():
    net = deep(nn.ReLU, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=2)
    found = learn(net, optimizer, steps=23)
    assert [(each.kind, each.step, each.names) for each in found] == [
        ("large_updates", 22, ("1.weight", "3.weight", "5.weight"))
    ]


# Healthy


def dropout_and_an_empty_head():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    nn.init.zeros_(net[4].weight)
    nn.init.zeros_(net[4].bias)
    return net


def frozen():
    net = convolutions()
    net[2].requires_grad_(False).weight.data.pow_(3)  # as no initialisation draws it
    return net


HEALTHY = {
    "convolutions": convolutions,
    "zero-initialised norms": residual,
    "dropout, a zero-initialised head": dropout_and_an_empty_head,
    "a frozen layer": frozen,
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("batch", [2, 32])
def test_nothing_is_said_of_healthy_networks(name, batch):
    net = HEALTHY[name]()
    optimizer = sgd(net, 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 26)  # down to 0
    assert learn(net, optimizer, steps=30, batch=batch, schedule=schedule) == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize("name", ["xo_deep", "cifar_cnn"])
def test_nothing_is_said_of_the_zoos_trainings(name, seed):
    torch.manual_seed(seed)
    net, steps, lr = card(name).build(), 60, 1e-3
    data, change = made_up(500, seed), None
    if name == "xo_deep":
        _begin(net)
        net, lr = pool_first(net.to(memory_format=torch.channels_last)), 4e-3
        drawn = XO("train", seed)
        images, labels = zip(*(drawn[i] for i in torch.randperm(len(drawn))[:200]), strict=True)
        data, change = (torch.stack(images), torch.tensor(labels)), lambda _, images: augment_marks(images)
    optimizer = torch.optim.AdamW(net.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps + 1, pct_start=0.2)
    assert learn(net, optimizer, steps=steps, every=4, batch=20, change=change, schedule=schedule, data=data) == []


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        (["dead"], "ignore must map kinds to globs"),
        ({"deadd": "*"}, "a key of ignore must be a kind of finding .*, got 'deadd'"),
        ({"dead": 5}, r"ignore\['dead'\] must be names or globs"),
        ({"dead": []}, r"ignore\['dead'\] must be names or globs"),
        ({"dead": [5]}, r"ignore\['dead'\] must be names or globs"),
    ],
)
def test_what_cannot_be_ignored(ignore, expected):
    with pytest.raises(OptionError, match=expected):
        Monitor(nn.Linear(2, 2), ignore=ignore)


@pytest.mark.parametrize("optimizer", [5, [5], "sgd"])
def test_what_is_no_optimizer(optimizer):
    with pytest.raises(OptionError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        Monitor(nn.Linear(2, 2), optimizer=optimizer)
