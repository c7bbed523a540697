"""Small networks of twelve families learn the colour of a spot; the default heatmap lies on it."""

import pytest

from benchmarks.spots import FAMILIES, REACH, hits, learn, spots
from torch_featviz.explain import attribute


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_heat_is_on_the_spot(family):
    net, right = learn(family)
    assert right >= 0.98
    new = spots(200, 10**7)
    found = attribute(net, new.images)
    assert hits(found, new, REACH.get(family, 1)).double().mean() >= 0.95, found.where
