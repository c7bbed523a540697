"""What 64 projections cost, against the one forward and backward of 64 rows that they cannot do without.

pytest benchmarks/test_explain_deconvnet.py --benchmark-enable -s
"""

import pytest
import torch
import torchvision

from torch_featviz.bench import paired, settled
from torch_featviz.explain.deconvnet import deconvnet

UNITS = 64
BUDGET = 1.3  # at most, of the bare forward and backward


@pytest.mark.parametrize("pooling", ["sum", "overwrite"])
@pytest.mark.parametrize(("layer", "size"), [("features.10", 224)])
def test_projections_cost_little_more_than_a_backward(benchmark, layer, size, pooling):
    net = torchvision.models.alexnet().eval().requires_grad_(False)
    parts = net.features[: int(layer.split(".")[1]) + 1]
    image = torch.randn(1, 3, size, size)
    rows = image.repeat(UNITS, 1, 1, 1).requires_grad_()

    def bare():
        maps = parts(rows)
        return torch.autograd.grad(maps, rows, torch.ones_like(maps))

    def projected():
        return deconvnet(net, image, layer, range(UNITS), pooling=pooling)

    benchmark.pedantic(projected, rounds=1)
    ratio = settled(lambda: paired(projected, bare, rounds=3), lambda ratio: ratio.median <= BUDGET)
    print(f"\n{layer} at {size}, {pooling}: {ratio} of a forward and backward")
    benchmark.extra_info["ratio"] = ratio.median
    assert ratio.within(BUDGET), str(ratio)
