"""How many launches a GPU would get from us, counted on tensors that only say they are on one."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from torch_featviz import bench
from torch_featviz.bench import Launches, launches
from torch_featviz.capture import Histogram, Moments, TopK
from torch_featviz.errors import LayerError, OptionError
from torch_featviz.explain import attribute
from torch_featviz.launching import gpu
from torch_featviz.picture import Scale, overlay
from torch_featviz.training import Monitor
from torch_featviz.zoo import card

KINDS = [nn.Conv2d, nn.Linear]


@pytest.fixture(scope="module")
def resnet50():
    return torchvision.models.resnet50().eval()


@pytest.mark.parametrize(
    ("into", "most"), [(Moments(), 3), (Histogram(), 4), (TopK(), 5), ([Moments(), Histogram(), TopK()], 7)]
)
def test_figures_of_all_layers_of_resnet50(resnet50, into, most):
    with torch.no_grad():
        counted = launches(resnet50, torch.zeros(1, 3, 224, 224), KINDS, into=into)
    assert counted.bare > 150
    assert counted.added <= most
    assert counted.waits == 0


@pytest.mark.parametrize(
    ("into", "most"), [(Moments(), 48), (Histogram(), 112), (TopK(), 60), ([Moments(), Histogram(), TopK()], 185)]
)
def test_where_no_kernel_runs(resnet50, monkeypatch, into, most):
    """Without Triton or a C compiler: layer by layer `Moments` alone would be over 4,000."""
    monkeypatch.setattr(gpu, "available", lambda _device: False)
    with torch.no_grad():
        counted = launches(resnet50, torch.zeros(1, 3, 224, 224), KINDS, into=into)
    assert counted.added <= most
    assert counted.waits == 0


@pytest.mark.parametrize("into", [Moments(), Histogram(), [Moments(), Histogram(), TopK()]])
def test_two_more_for_each_layer_beyond_the_budget(resnet50, into):
    x = torch.zeros(8, 3, 224, 224)  # 56 MB of the first layer alone would do
    with torch.no_grad():
        within = launches(resnet50, x[:1], KINDS, into=into).added
        beyond = launches(resnet50, x, KINDS, into=into).added
    assert within < beyond <= within + 2 * 53


def test_by_reference_nothing_is_launched_but_copies_of_what_is_overwritten():
    with torch.no_grad():
        for net, copies in ((torchvision.models.alexnet(), 7), (torchvision.models.resnet18(), 17)):
            assert launches(net.eval(), torch.zeros(1, 3, 224, 224)).added == copies  # before each write in place
    assert launches(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)) == Launches(2, 0, 0)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="its autograd asks for a GPU that is there")
@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")  # there is no backward: gradients are 0
@pytest.mark.parametrize(("every", "most", "waits"), [(1, 40, 1), (100, 1, 0)])
def test_a_step_of_the_monitor(every, most, waits):
    """The backward is left out of both: autograd asks for a device that is there.

    Between two looks one kernel adds up the squares of all gradients.
    """
    images, labels = torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)
    net = card("cifar_cnn_large").build().train()
    with bench._on_fake_gpu(net, (images, labels)) as (net, (images, labels), counted):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

        def step():
            loss = nn.functional.cross_entropy(net(images), labels)
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        watch = Monitor(net, every=every)

        def watched():
            with watch.step() as seen:
                seen.log(loss=step())

        counted(step)
        bare = counted(step)
        counted(watched)
        counted(watched)
        inside = counted(watched)
    assert inside.launches - bare.launches <= most
    assert inside.waits - bare.waits == waits


def test_an_overlay():
    given = torch.zeros(16, 3, 224, 224), torch.zeros(16, 224, 224)
    with bench._on_fake_gpu(nn.Identity(), given) as (_, (images, heatmaps), counted):
        for value_range, most in ((None, 2), ("imagenet", 1), ("byte", 1)):  # a table of colours once, and the kernel
            scale = Scale(symmetric=True, vmax=1.0)
            found = counted(lambda: overlay(images, heatmaps, scale=scale, value_range=value_range))  # noqa: B023
            assert found == (most, 0)


def test_gradcam(monkeypatch):
    """The backward is left out of both: autograd asks for a device that is there."""
    net = torchvision.models.resnet18().eval()
    with bench._on_fake_gpu(net, (torch.zeros(16, 3, 224, 224),)) as (net, (images,), counted):
        monkeypatch.setattr(torch.autograd, "grad", lambda _, maps, *_a, **__: [torch.empty_like(maps)])
        counted(lambda: attribute(net, images, target=3, layer="layer4"))
        bare = counted(lambda: net(images))
        inside = counted(lambda: attribute(net, images, target=3, layer="layer4"))
    assert inside.launches - bare.launches <= 8  # two copy all buffers, floats and counters
    assert inside.waits == 0


def test_what_is_counted():
    class Odd(nn.Module):
        def forward(self, x):
            y = x.t().view(-1)[1:]  # views
            z = torch.empty_like(y)  # and memory
            z.copy_(y)
            return (
                z.sum().item() + z.cpu().sum().item()
            )  # copy, sum, item, to the CPU; there two more, which do not count

    class Several(nn.Module):
        def forward(self, x):
            torch._foreach_abs([x, x])
            torch._foreach_abs([x, x.long(), x])  # of several dtypes, one by one

    with bench._on_fake_gpu(Several(), (torch.zeros(3),)) as (net, given, counted):
        assert counted(lambda: net(*given)) == (1 + 1 + 3, 0)
    counter = bench._Counter()
    with bench._on_fake_gpu(Odd(), (torch.zeros(3, 3).t().contiguous().t(),)) as (net, given, counted):
        assert counted(lambda: net(*given)) == (4, 2)
        assert counter.launches == 0
        with gpu.counting(counter.launched):
            gpu.upload(np.zeros(2, dtype=np.int64), torch.device("cuda"))
        assert counter.launches == 1
    assert not gpu._counts


def test_errors():
    with pytest.raises(LayerError, match="no layer 'x'"):
        launches(nn.Sequential(nn.ReLU()), torch.zeros(1), "x")

    class Picks(nn.Module):
        def forward(self, x):
            return x[x > 0]

    with pytest.raises(
        OptionError, match="this forward depends on tensor values, so its launches can be counted only on a GPU"
    ):
        launches(Picks(), torch.zeros(3))


def test_the_model_stays_as_it_was(resnet50, instance_state):
    before, values = instance_state(resnet50), [tensor.clone() for tensor in resnet50.state_dict().values()]
    launches(resnet50.train(), torch.zeros(2, 3, 64, 64), KINDS, into=Moments())
    resnet50.eval()
    assert instance_state(resnet50) == before
    assert all(map(torch.equal, values, resnet50.state_dict().values()))
