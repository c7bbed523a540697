"""What layers returned, noted without hooks, held against hooks."""

import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.parallel import DataParallel

from torch_featviz.model.values import tensors
from torch_featviz.prove.bits import same
from torch_featviz.prove.witness import Witness


def hooked(net, *given):
    """What hooks see, by name."""
    calls, hooks = [], []
    for name, module in net.named_modules():
        note = lambda _module, _given, output, name=name: calls.append(
            (name, [t.detach().clone() for t in tensors(output)])
        )
        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        net(*given)
    for hook in hooks:
        hook.remove()
    return calls


def noted(net, *given):
    witness = Witness(net)
    with torch.no_grad(), witness.watching():
        net(*given)
    return witness.calls


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)),
        lambda: nn.Conv2d(3, 4, 3),
        lambda: torchvision.models.googlenet(init_weights=False, num_classes=3),
        lambda: torchvision.models.resnet18(num_classes=3),
    ],
    ids=["in place", "one layer", "googlenet", "resnet18"],
)
def test_it_sees_what_hooks_see(build):
    net, x = build().eval(), torch.rand(1, 3, 64, 64)
    assert same(noted(net, x), hooked(net, x))


def test_it_sees_what_hooks_made_of_an_output():
    net = nn.Sequential(nn.ReLU())
    net[0].register_forward_hook(lambda _module, _given, output: output + 1)
    assert same(noted(net, torch.zeros(2)), [("0", [torch.ones(2)]), ("", [torch.ones(2)])])


def test_each_call_is_noted_as_it_was_before_later_writes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.same = nn.Identity()

        def forward(self, x):
            x = self.same(x)
            return self.relu(self.relu(x).sub_(1)).add_(5)

    calls = noted(Net(), torch.tensor([-1.0, 3.0]))
    assert [(name, value.tolist()) for name, (value,) in calls] == [
        ("same", [-1.0, 3.0]),
        ("relu", [0.0, 3.0]),
        ("relu", [0.0, 2.0]),
        ("", [5.0, 7.0]),
    ]


def test_a_forward_that_is_called_by_itself_counts_once():
    class Base(nn.Module):
        def forward(self, x):
            return x + 1

    class Child(Base):
        def forward(self, x):
            return super().forward(x) * 2

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = Child()

        def forward(self, x):
            return self.child.forward(x)

    calls = noted(Net(), torch.zeros(1))
    assert [(name, value.item()) for name, (value,) in calls] == [("child", 2.0), ("", 2.0)]


def test_what_an_error_ends_is_no_call_and_nothing_is_left_on():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("tired")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.relu = Fails(), nn.ReLU()

        def forward(self, x):
            try:
                self.fails(x)
            except ValueError:
                return self.relu(x)

    before = sys.getprofile()
    assert [name for name, values in noted(Net(), torch.zeros(1)) if values] == ["relu", ""]
    with pytest.raises(ValueError, match="tired"):
        noted(Fails(), torch.zeros(1))
    assert sys.getprofile() is before


def test_wrappers_add_no_names_and_strangers_are_not_noted():
    net = DataParallel(nn.Sequential(nn.ReLU()), device_ids=None)
    stranger = nn.Tanh()
    witness = Witness(net)
    with witness.watching():
        stranger(net(torch.zeros(2)))
    assert [name for name, _ in witness.calls] == ["0", ""]
    assert witness.of("0")[0][0].tolist() == [0.0, 0.0]
