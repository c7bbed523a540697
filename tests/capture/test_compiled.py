"""Capture of compiled models: the values are the eager ones, and Dynamo compiles exactly one graph more."""

from contextlib import ExitStack

import pytest
import torch
import torchvision
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from torch_featviz.capture import capture
from torch_featviz.zoo import card

NETS = {
    "alexnet": (torchvision.models.alexnet, (2, 3, 64, 64)),
    "cifar_cnn_large": (card("cifar_cnn_large").build, (2, 3, 32, 32)),
    "resnet18": (torchvision.models.resnet18, (2, 3, 32, 32)),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(image_size=32), (2, 3, 32, 32)),
}
LAYER_SETS = {
    "alexnet": [["features.0"], ["features.*"], [nn.Linear]],
    "cifar_cnn_large": [["features.0"], ["features.*"], [nn.Linear]],
    "resnet18": [["layer1"], ["layer1", "layer4"], [nn.Conv2d]],
    "vit_b_16": [["conv_proj"], ["encoder.layers.*"], [nn.LayerNorm]],
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def net_and_input(name):
    torch.manual_seed(0)
    build, size = NETS[name]
    net = build()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the random numbers of a compiled graph are others than the eager ones
    return net.eval(), torch.randn(size)


def close(captured, eager):
    """Whether the same layers are there, in the same order, with values within 1e-5 and the same strides."""
    assert list(captured) == list(eager)
    for name, value in eager.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(captured[name], value, rtol=1e-5, atol=1e-5)
            assert captured[name].stride() == value.stride(), name
            assert not captured[name].requires_grad
    return True


@pytest.mark.filterwarnings("ignore:.*lru_cache")
@pytest.mark.parametrize("name", NETS)
def test_one_more_graph_and_the_eager_values(name):
    net, x = net_and_input(name)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        with capture(net) as eager:
            net(x)
        alone = compiled(x)
        assert counter.frame_count == 1
        for _ in range(10):
            with capture(compiled) as acts:
                output = compiled(x)
            assert torch.equal(output, alone) or torch.allclose(output, alone, rtol=1e-5, atol=1e-5)
            assert torch.equal(compiled(x), alone)
        assert close(acts, eager)
    assert counter.frame_count == 2, "one graph without capture, one with it"
    assert not counters["graph_break"]
