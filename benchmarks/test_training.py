"""What watching costs a training step of CifarCNN, batch 128, to the step alone; all within one run.

pytest benchmarks/test_training.py --benchmark-enable -s
"""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.bench import paired, settled
from torch_featviz.training import Monitor
from torch_featviz.zoo import card

BUDGET = {"every step": 1.25, "steps between": 1.005, "hooks": 1}


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


@pytest.fixture
def loops():
    """The same training three times: bare, watched, and by hooks."""
    torch.manual_seed(0)
    net = card("cifar_cnn_large").build()
    return [Loop(copy.deepcopy(net)) for _ in range(3)]


def by_hooks(loop, layers):
    """What a Monitor gives, as fastai's ActivationStats does it: by `.item()`, and each histogram to the CPU."""
    net, seen = loop.net, []

    def look(_module, _args, output):
        each = output.detach().transpose(0, 1).flatten(1)
        seen.append([each.mean().item(), each.std().item(), each.min().item(), each.max().item()])
        seen.append([(each == 0).float().mean().item(), (each.amax(1) <= 0).sum().item(), each.isfinite().all().item()])
        seen.append(each.histc(64, -10, 10).cpu())

    with ExitStack() as stack:
        for name in layers:
            handle = net.get_submodule(name).register_forward_hook(look)
            stack.callback(handle.remove)
        F.cross_entropy(net(loop.x), loop.y).backward()
        parameters = [p for name in layers for p in net.get_submodule(name).parameters()]
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            seen.append([p.grad.norm().item(), p.grad.histc(64).cpu()])
        loop.optimizer.step()
        for p, old in zip(parameters, before, strict=True):
            seen.append([((p.detach() - old).norm() / old.norm()).item(), p.detach().norm().item()])
        loop.optimizer.zero_grad()
    return seen


def test_every_step(loops):
    bare, watched, hooked = loops
    watch = Monitor(watched.net, nn.Conv2d, every=1)

    def seen():
        with watch.step():
            watched.step()

    ratio = settled(lambda: paired(seen, bare.step, rounds=9), lambda ratio: ratio.median <= BUDGET["every step"])
    print(f"\nevery step watched: {ratio} of the bare step")
    layers = list(watch.history[0].layers)
    hooks = settled(lambda: paired(seen, lambda: by_hooks(hooked, layers), rounds=9), lambda ratio: ratio.median <= 1)
    print(f"every step watched: {hooks} of hooks that give as much")
    assert len(layers) == 6
    assert ratio.within(BUDGET["every step"]), str(ratio)
    assert hooks.within(BUDGET["hooks"]), str(hooks)


def test_steps_between(loops):
    bare, watched, _ = loops
    watch = Monitor(watched.net, nn.Conv2d, every=10**9)
    with watch.step():
        pass

    def between():
        with watch.step():
            watched.step()

    ratio = settled(lambda: paired(between, bare.step, rounds=9), lambda ratio: ratio.median <= BUDGET["steps between"])
    print(f"\nsteps between: {ratio} of the bare step")
    assert ratio.within(BUDGET["steps between"]), str(ratio)
