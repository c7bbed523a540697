"""Capture in long runs: the process does not grow, and nothing is held that is not in the mapping."""

import gc
import os
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn

from torch_featviz.capture import Moments, capture, inplace
from torch_featviz.capture import compiled as compiled_room


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def training():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 4)
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x, y = torch.randn(16, 1, 16, 16), torch.randint(0, 4, (16,))

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return net, step


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="looks at /proc")
@pytest.mark.parametrize("way", ["one block", "a block a step", "Moments"])
def test_a_thousand_training_steps_do_not_grow_the_process(way):
    net, step = training()

    def steps(n):
        if way == "a block a step":
            for _ in range(n):
                with capture(net):
                    step()
        else:
            with capture(net, into=Moments() if way == "Moments" else None):
                for _ in range(n):
                    step()

    steps(200)
    gc.collect()
    sizes, objects = [resident()], len(gc.get_objects())
    for _ in range(4):
        steps(250)
        gc.collect()
        sizes.append(resident())
    grown = min(after - before for before, after in pairwise(sizes))  # one small output a step would be 8 MB
    assert grown < 2**19, f"{sizes} bytes"
    assert len(gc.get_objects()) - objects < 100


def test_outputs_of_earlier_forwards_and_after_the_mapping_are_let_go():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4)
    with torch.no_grad(), capture(net) as acts:
        net(x)
        net(x)
        first = weakref.ref(acts["0"])
        net(x)
        assert first() is None
        last = weakref.ref(acts["0"])
    assert last() is not None
    del acts
    gc.collect()
    assert last() is None


def test_what_was_learnt_goes_with_the_model():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    learnt, codes = len(inplace._learnt), len(compiled_room._codes)
    for _ in range(20):
        with capture(net) as acts:
            net(torch.randn(2, 4))
    assert len(inplace._learnt[net]) == 1
    assert len(compiled_room._codes[net]) == 1
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None, "the mapping does not keep the model"
    assert acts["1"].shape == (2, 4)
    assert (len(inplace._learnt), len(compiled_room._codes)) == (learnt, codes)
