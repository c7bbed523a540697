"""A small network, and what a Monitor tells of its training."""

import torch
from torch import nn

from torch_featviz.training import Monitor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mid, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        self.detached = False

    def forward(self, x):
        x = torch.relu(self.body(x))
        x = torch.relu(self.mid(x.detach() if self.detached else x))
        return self.head(x)


BODY, MID, HEAD = (tuple(f"{name}.{own}" for own in ("weight", "bias")) for name in ("body", "mid", "head"))
ALL = (*BODY, *MID, *HEAD)


def fresh():
    torch.manual_seed(0)
    return Net()


def sgd(parameters, lr=0.05):
    return torch.optim.SGD(parameters, lr)


def batch(i):
    g = torch.Generator().manual_seed(i)
    x = torch.randn(32, 24, generator=g)
    return x, x[:, :5].argmax(1)


def backward(net, i):
    x, y = batch(i)
    nn.functional.cross_entropy(net(x), y).backward()


def train(net, moves, *, steps=12, every=1, amid=None, before=None, after=None, **options):
    """What was told; `amid` is called between backward and step, `before` and `after` a block."""
    watch = Monitor(net, every=every, **options)
    for i in range(steps):
        if before:
            before(i)
        with watch.step():
            moves.zero_grad()
            backward(net, i)
            if amid:
                amid(i)
            moves.step()
        if after:
            after(i)
    watch.close()
    return [(each.step, each.kind, each.names) for each in watch.findings], watch
