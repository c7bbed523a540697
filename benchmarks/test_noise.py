"""What the noise scale adds to a training step of CifarCNN, batch 128, to the step alone; all within one run.

Its batch normalisation, with which no example has a gradient of its own, is group normalisation here.

pytest benchmarks/test_noise.py --benchmark-enable -s
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.bench import Ratio, paired, peak_memory, settled
from torch_featviz.training import Monitor
from torch_featviz.training.noise import GradientNoise
from torch_featviz.zoo import card

BUDGET = {"look": 1.4, "look at all": 2.2, "memory": 1.15, "every 10": 1.1}  # of the bare step


class Loop:
    """A network with its optimizer and one batch: `step()` is one step."""

    def __init__(self, net):
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-4)
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(128, 3, 32, 32, generator=g), torch.randint(10, (128,), generator=g)

    def step(self):
        F.cross_entropy(self.net(self.x), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seen(self, noise):
        """The same with a look at its noise."""

        def step():
            with noise.block():
                self.step()
            noise.take([float(each) for each in noise.sums()])

        return step


@pytest.fixture
def loops():
    torch.manual_seed(0)
    net = card("cifar_cnn_large").build()
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.GroupNorm(8, module.num_features))
    return [Loop(copy.deepcopy(net)) for _ in range(2)]


def test_a_look(loops):
    bare, looking = loops
    noise = GradientNoise(looking.net)
    seen = looking.seen(noise)
    ratio = settled(lambda: paired(seen, bare.step, rounds=7), lambda ratio: ratio.median <= BUDGET["look"])
    print(f"\na look at 32 of 128 examples: {ratio} of the bare step; {noise.scale}")
    assert len(noise.scale.layers) == 9
    assert ratio.within(BUDGET["look"]), str(ratio)


def test_one_step_in_ten_of_a_monitor(loops):
    """The Monitor with all its layers, and the noise scale."""
    bare, looking = loops
    watch = Monitor(looking.net, every=1, noise=True)

    def step():
        with watch.step():
            looking.step()

    ratio = settled(lambda: paired(step, bare.step, rounds=7), lambda ratio: (ratio.median - 1) / 10 <= 0.1)
    of_all = Ratio(*(1 + (each - 1) / 10 for each in ratio))
    print(f"\na look of a Monitor with it: {ratio} of the bare step; every=10: {of_all} of the bare steps")
    assert watch.noise_scale.looks > 5
    assert of_all.within(BUDGET["every 10"]), str(of_all)


def test_a_look_at_all_examples(loops):
    bare, looking = loops
    noise = GradientNoise(looking.net, examples=None)
    seen = looking.seen(noise)
    ratio = settled(lambda: paired(seen, bare.step, rounds=5), lambda ratio: ratio.median <= BUDGET["look at all"])
    print(f"\na look at all 128 examples: {ratio} of the bare step; {noise.scale}")
    assert ratio.within(BUDGET["look at all"]), str(ratio)


def test_memory(loops):
    bare, looking = loops
    seen = looking.seen(GradientNoise(looking.net))
    for step in (bare.step, seen):
        step()
    ratio = peak_memory(seen) / peak_memory(bare.step)
    print(f"\npeak memory: {ratio:.3f} of the bare step")
    assert ratio <= BUDGET["memory"]
