"""Figures side by side are those that each reducer would have had alone."""

import pytest
import torch
from torch import nn

from torch_featviz.capture import Histogram, Moments, Ring, TopK, capture
from torch_featviz.capture.reduce import Several
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import attribute


def nets():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    return net, [torch.randn(3, 1, 8, 8) for _ in range(3)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("of", ["output", "grad"])
def test_capture_keeps_all_that_is_listed(compiled, of, streams):
    net, batches = nets()
    kinds = [Moments(), Histogram(8), TopK(2)]
    model = torch.compile(net, backend="aot_eager") if compiled else net
    alone = []
    for into in (*kinds, kinds):
        with capture(model, nn.Conv2d, into=into, of=of) as stats:
            for images in batches:
                model(images).square().sum().backward()
        alone.append(stats)
    assert list(alone[3]) == ["0", "2"]
    for layer in alone[3]:
        assert len(alone[3][layer]) == 3
        for i, part in enumerate(alone[3][layer]):
            streams.agree(part, alone[i][layer], rtol=1e-6, atol=1e-7)


def test_parts_are_told():
    assert repr(Several(Moments(), Histogram(8))).count("nothing seen yet") == 2
    several = Several(Moments(), Histogram(8))
    several.update(torch.zeros(1, 3))
    assert repr(several) == "Several(Moments(dim=None, 3 channels), Histogram(bins=8, symmetric=False))"


def test_what_is_refused():
    net, _ = nets()
    for into in ([], [Moments(), Ring(2)], [Moments]):
        with pytest.raises(OptionError, match=r"a list for into= must hold statistics such as Moments\(\) and Hist"):
            capture(net, into=into)
    a, b = Several(Histogram(8), Moments()), Several(Histogram(8), Moments())
    a.update(torch.zeros(1, 3))
    b.update(torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="must have the same number of channels, got 4 after 3"):
        a.merge(b)
    with pytest.raises(OptionError, match="only statistics of the same kind and settings can be merged"):
        a.merge(Several(Histogram(4), Moments()))


def test_a_model_that_is_captured_can_be_explained():
    net, batches = nets()
    with capture(net, into=[Moments(), Histogram()]) as stats:
        assert attribute(net, batches[0], target=0, layer="2").heatmaps.any()
    assert not list(stats)
