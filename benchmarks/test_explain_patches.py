"""What the first pass of top_patches costs, against a bare pass over the same loader, to the end of the network.

pytest benchmarks/test_explain_patches.py --benchmark-enable -s
"""

import pytest
import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset

from torch_featviz.bench import paired, settled
from torch_featviz.survey import top_patches

BUDGET = 1.10

NETS = {
    "alexnet": (torchvision.models.alexnet, 224, 64, "features.11"),
    "resnet18": (torchvision.models.resnet18, 224, 32, "layer4"),
}


@pytest.mark.parametrize("name", NETS)
def test_a_pass_costs_hardly_more_than_the_bare_pass(benchmark, name):
    build, size, images, layer = NETS[name]
    net = build().eval()
    loader = DataLoader(TensorDataset(torch.randn(images, 3, size, size)), batch_size=16)

    def bare():
        with torch.no_grad():
            for (batch,) in loader:
                net(batch)

    benchmark.pedantic(lambda: top_patches(net, loader, layer), rounds=1)
    ratio = settled(
        lambda: paired(lambda: top_patches(net, loader, layer), bare, rounds=5), lambda ratio: ratio.median <= BUDGET
    )
    print(f"\ntop_patches at {layer} of {name}: {ratio} of the bare pass")
    benchmark.extra_info["of bare"] = str(ratio)
    assert ratio.within(BUDGET), str(ratio)
