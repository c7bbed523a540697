"""What prove claims of maps, kernels, figures and sums: that it holds, and that each lie about it is caught."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import torch_featviz as fv
from torch_featviz.capture import Moments
from torch_featviz.prove import conservation, figures, kernels, maps, statistics
from torch_featviz.prove.conservation import claims_of_conservation
from torch_featviz.prove.counted import counted
from torch_featviz.prove.figures import claims_of_figures
from torch_featviz.prove.judged import Unknown, by_other_means, judged
from torch_featviz.prove.kernels import claims_of_kernels
from torch_featviz.prove.maps import claims_of_maps
from torch_featviz.prove.statistics import claims_of_statistics
from torch_featviz.prove.subject import Subject

IMAGES = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """One layer runs twice, and one is shared under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, (3, 1), 1, (1, 0))
        self.again, self.relu = self.b, nn.ReLU(inplace=True)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.again(self.relu(self.b(self.relu(self.a(x))))))
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def proven(claims, model, images=IMAGES):
    return {claim.name: claim for claim in claims(Subject(model, images))}


ALL = (claims_of_maps, claims_of_kernels, claims_of_figures, claims_of_statistics, claims_of_conservation)


@pytest.mark.parametrize("claims", ALL)
def test_all_holds_of_an_ordinary_model_and_costs_what_was_allowed(net, claims):
    subject = Subject(net, IMAGES)
    assert all(claim.holds for claim in claims(subject))
    assert subject.forwards <= 4
    assert subject.backwards <= 2
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_models_that_have_nothing_of_the_kind_are_told_so():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(576, 3))
    assert proven(claims_of_kernels, plain)["kernels"].holds is None
    assert "no convolution" in proven(claims_of_kernels, plain)["kernels"].found
    assert proven(claims_of_maps, plain)["default map"].holds is None
    picture = nn.Conv2d(3, 3, 3, padding=1)
    assert [proven(claims_of_maps, picture)["default map"].holds] == [None]
    assert proven(claims_of_conservation, picture)["conservation"].holds is None
    wide = nn.Sequential(nn.Flatten(), nn.Linear(576, 3)).bfloat16()
    found = proven(claims_of_conservation, wide, IMAGES.bfloat16())["conservation"]
    assert (found.holds, "too coarse" in found.found) == (None, True)


def test_a_model_that_does_not_run_is_told_so(net):
    found = [claim for claims in ALL[2:4] for claim in claims(Subject(net, torch.rand(1, 2, 8, 8)))]
    assert [claim.holds for claim in found] == [None] * 3


# Maps


@pytest.mark.parametrize(
    ("layer", "why"),
    [("relu#1", "is later"), ("relu#2", "is later"), ("pool", "one place"), ("b#1", "is later")],
)
def test_a_map_that_is_too_early_or_too_late_is_seen(net, monkeypatch, layer, why):
    attribute = maps.attribute
    monkeypatch.setattr(maps, "attribute", lambda *args, **options: attribute(*args, **options, layer=layer))
    claim = proven(claims_of_maps, net)["default map"]
    assert claim.holds is False
    assert why in claim.found


class Residual(nn.Module):
    """What the last block adds is no cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(6, 4)
        self.sum = nn.Identity()

    def forward(self, x):
        x = self.stem(x).tanh()
        return self.head(self.sum(x + self.block(x)).mean((2, 3)))


def test_a_branch_beside_which_the_score_passes_is_seen(monkeypatch):
    torch.manual_seed(0)
    net, attribute = Residual(), maps.attribute
    assert proven(claims_of_maps, net)["default map"].found.startswith("sum;")
    for layer, why in [("block", "passes beside it"), ("stem", "sum (1, 6, 6, 8) is later")]:
        chosen = lambda *args, layer=layer, **options: attribute(*args, **options, layer=layer)
        monkeypatch.setattr(maps, "attribute", chosen)
        claim = proven(claims_of_maps, net)["default map"]
        assert (claim.holds, why in claim.found) == (False, True)


def test_another_class_is_seen(net, monkeypatch):
    attribute = maps.attribute
    lowest = int(net.eval()(IMAGES)[0].argmin())

    def other(*args, **options):
        return replace(attribute(*args, **options), classes=torch.tensor([lowest]))

    monkeypatch.setattr(maps, "attribute", other)
    assert "has the highest score" in proven(claims_of_maps, net)["default map"].found


# Kernels

LIES = {
    "flipped": lambda weight: weight.flip(-1, -2),
    "transposed": lambda weight: weight.mT,
    "of channels in another order": lambda weight: weight.roll(1, 1),
    "of filters in another order": lambda weight: weight.roll(1, 0),
    "twice as large": lambda weight: 2 * weight,
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_kernels_that_are_not_those_are_seen(monkeypatch, lie, kind):
    torch.manual_seed(0)
    net = nn.Sequential(kind(4, 4, 3), kind(4, 6, 3, groups=2))
    assert proven(claims_of_kernels, net)["kernels"].holds
    drawn = kernels._drawn
    for at in "01":  # the first of its kind, and another
        lied = lambda net, name, at=at: LIES[lie](drawn(net, name)) if name == at else drawn(net, name)
        monkeypatch.setattr(kernels, "_drawn", lied)
        claim = proven(claims_of_kernels, net)["kernels"]
        assert claim.holds is False
        assert claim.found.startswith(f"{at}: ")


def test_a_stale_kernel_is_seen(net, monkeypatch):
    before = {name: kernels._drawn(net, name).clone() for name in ("a", "b")}
    monkeypatch.setattr(kernels, "_drawn", lambda _, name: before[name])
    assert proven(claims_of_kernels, net)["kernels"].holds
    with torch.no_grad():
        net.b.weight[3, 2, 1, 0] += 0.1
    claim = proven(claims_of_kernels, net)["kernels"]
    assert (claim.holds, claim.found[:3]) == (False, "b: ")


def test_a_weight_that_is_made_at_each_call_is_followed():
    torch.manual_seed(0)
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with torch.no_grad():
        net[0].parametrizations.weight.original0.mul_(3)
    assert proven(claims_of_kernels, net)["kernels"].holds


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_kernels_of_all_kinds_of_convolutions_hold(data):
    some = lambda *values: data.draw(st.sampled_from(values))
    kind, groups = some(nn.Conv2d, nn.ConvTranspose2d), some(1, 2)
    mode = some("zeros", "reflect", "circular") if kind is nn.Conv2d else "zeros"
    torch.manual_seed(0)
    layer = kind(
        *(4, 6, (some(1, 2, 3), some(1, 3))),
        stride=some(1, 2),
        padding=some(0, 1),
        dilation=some(1, 2),
        groups=groups,
        bias=some(True, False),
        padding_mode=mode,
    )
    found = proven(claims_of_kernels, nn.Sequential(layer))["kernels"]
    assert found.holds, found.found


# Figures


def test_shapes_of_a_neighbour_are_seen(net, monkeypatch):
    shapes = figures.shapes

    def swapped(*args, **options):
        found = shapes(*args, **options)
        return {**found, "a": found["head"], "head": found["a"]}

    monkeypatch.setattr(figures, "shapes", swapped)
    claim = proven(claims_of_figures, net)["shapes"]
    assert (claim.holds, "a returns (2, 6, 6, 8), not (2, 4)" in claim.found) == (False, True)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (lambda found, layers: replace(found, parameters=found.parameters + 114), "parameters of"),
        (lambda found, layers: replace(found, layers=(*layers, replace(layers[1], name="again"))), "again"),
        (lambda found, layers: replace(found, layers=(layers[0], *layers)), "and hold"),
        (lambda found, layers: replace(found, layers=[replace(layers[0], calls=2)]), "is called 1 times"),
        (lambda found, layers: replace(found, layers=[replace(layers[0], shape=(2, 6))]), "returns (2, 6, 6, 8)"),
    ],
)
def test_a_summary_that_counts_twice_is_seen(net, monkeypatch, lie, why):
    summary = figures.summary

    def lied(*args, **options):
        found = summary(*args, **options)
        return lie(found, found.layers)

    monkeypatch.setattr(figures, "summary", lied)
    claim = proven(claims_of_figures, net)["summary"]
    assert claim.holds is False
    assert why in claim.found


class Cancelling(Moments):
    """The mean of squares less the square of the mean, in float32."""

    def _add(self, values):
        self.values = values.detach().float()
        return super()._add(values)

    @property
    def std(self):
        mean = self.values.mean((0, 2, 3))
        return (self.values.square().mean((0, 2, 3)) - mean.square()).clamp(min=0).sqrt().double()


class Shifted(nn.Module):
    """Values of mean 1e4 and standard deviation 1e-2."""

    def __init__(self):
        super().__init__()
        self.a, self.shift = nn.Conv2d(3, 4, 1, bias=False), Shift()

    def forward(self, x):
        return self.shift(self.a(x))


class Shift(nn.Module):
    def forward(self, x):
        return 1e4 + 1e-2 * (x - x.mean()) / x.std()


def test_statistics_that_cancel_are_seen(monkeypatch):
    torch.manual_seed(0)
    assert proven(claims_of_statistics, Shifted())["statistics"].holds
    monkeypatch.setattr(statistics, "Moments", Cancelling)
    claim = proven(claims_of_statistics, Shifted())["statistics"]
    assert (claim.holds, claim.found) == (False, "shift: not those of its values")


@pytest.mark.parametrize("name", ["mean", "min", "max", "zero_share", "count", "nan"])
def test_each_statistic_is_looked_at(net, monkeypatch, name):
    lied = type("Lied", (Moments,), {name: property(lambda self: getattr(super(Lied, self), name) + 1)})
    Lied = lied
    monkeypatch.setattr(statistics, "Moments", lied)
    assert proven(claims_of_statistics, net)["statistics"].holds is False


def test_statistics_of_broken_values_hold():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.cat([x / x, x / 0, torch.nan * x, 0 * x], 1)

    assert proven(claims_of_statistics, nn.Sequential(Broken()))["statistics"].holds


# What heatmaps sum to


def test_a_heatmap_that_lost_a_factor_of_two_is_seen(net, monkeypatch):
    attribute = conservation.attribute

    def half(*args, **options):
        found = attribute(*args, **options)
        return replace(found, heatmaps=found.heatmaps / 2)

    monkeypatch.setattr(conservation, "attribute", half)
    claim = proven(claims_of_conservation, net)["conservation"]
    assert (claim.holds, "slopes" in claim.found) == (False, True)


@pytest.mark.parametrize(
    "end", [nn.Softmax(1), nn.Sigmoid(), nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))]
)
def test_sums_of_other_scores_hold(net, end):
    claim = proven(claims_of_conservation, nn.Sequential(net, end))["conservation"]
    assert claim.holds, claim.found


# How checks become claims, and what they cost


def test_what_a_check_ends_in():
    def failing(error):
        def check():
            raise error

        return judged("a", "A", check)

    assert failing(ZeroDivisionError("by 0")).holds is False
    assert failing(fv.errors.OptionError("no.")).holds is None
    assert failing(torch.OutOfMemoryError("full")).holds is None
    with pytest.raises(Unknown, match="the check itself failed: ValueError: odd"), by_other_means():
        raise ValueError("odd")


def test_forwards_and_backwards_of_copies_are_counted(net):
    subject = Subject(nn.Sequential(nn.Sequential(net)), IMAGES)
    with counted(subject):
        fv.attribute(subject.model, IMAGES[:1], method="saliency")
    assert (subject.forwards, subject.backwards) == (2, 1)
    with counted(subject):
        fv.shapes(subject.model, IMAGES)
    assert (subject.forwards, subject.backwards) == (2, 1)
