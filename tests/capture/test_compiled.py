"""Capture of compiled models: the values are the eager ones, and Dynamo compiles exactly one graph more."""

import itertools
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from torch_featviz.capture import Moments, Ring, ToCPU, capture
from torch_featviz.errors import OptionError
from torch_featviz.model.values import tensors
from torch_featviz.zoo import card

NETS = {
    "alexnet": (torchvision.models.alexnet, (2, 3, 64, 64)),
    "cifar_cnn_large": (card("cifar_cnn_large").build, (2, 3, 32, 32)),
    "resnet18": (torchvision.models.resnet18, (2, 3, 32, 32)),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(image_size=32), (2, 3, 32, 32)),
}
ONE_NET = [name if name == "cifar_cnn_large" else pytest.param(name, marks=pytest.mark.slow) for name in NETS]
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
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # the random numbers of a compiled graph are others than the eager ones
    return net.eval(), torch.randn(size)


def close(captured, eager):
    """Whether the same layers are there, in the same order, with values within 1e-5 and the same strides."""
    assert list(captured) == list(eager)
    for name, value in eager.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(captured[name], value, rtol=1e-5, atol=1e-5)
            assert captured[name].is_contiguous() == value.is_contiguous(), name
            assert not captured[name].requires_grad
    return True


@pytest.mark.parametrize("name", ONE_NET)
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
            torch.testing.assert_close(output, alone, rtol=1e-5, atol=1e-5)
            assert torch.equal(compiled(x), alone)
        close(acts, eager)
    assert counter.frame_count == 2, "one graph without capture, one with it"
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ONE_NET)
def test_each_set_of_layers_is_one_graph(name):
    net, x = net_and_input(name)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        alone = compiled(x)
        for _ in range(3):
            for layers in LAYER_SETS[name]:
                with capture(net, layers) as eager:
                    net(x)
                with capture(compiled, layers) as acts:
                    assert torch.equal(compiled(x), alone)
                close(acts, eager)
                assert torch.equal(compiled(x), alone)
    assert counter.frame_count == 1 + len(LAYER_SETS[name])
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ONE_NET)
def test_compiled_after_the_capture_began(name):
    net, x = net_and_input(name)
    counter = CompileCounterWithBackend("aot_eager")
    with torch.no_grad():
        with capture(net) as eager:
            net(x)
        with capture(net) as acts:
            compiled = torch.compile(net, fullgraph=True, backend=counter)
            captured = compiled(x)
            close(acts, eager)
        assert counter.frame_count == 1
        alone = compiled(x)
        assert counter.frame_count == 2
        assert torch.equal(captured, alone)
        with capture(compiled):
            compiled(x)
        compiled(x)
    assert counter.frame_count == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", ONE_NET)
def test_gradients_in_training_are_those_of_the_compiled_model_alone(name):
    net, x = net_and_input(name)
    net.train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)

    def step():
        net.zero_grad()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        compiled(x).square().mean().backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    alone = step()
    for _ in range(3):
        with capture(compiled) as acts:
            captured = step()
        assert all(map(torch.equal, captured, alone))
        assert acts
        assert not any(tensor.requires_grad for tensor in tensors(list(acts.values())))
        assert all(map(torch.equal, step(), alone))
    assert counter.frame_count == 2
    assert not counters["graph_break"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.relu(y)


class Net(nn.Module):
    """In-place work, a module that runs several times, and blocks to compile one by one."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block(x))
        return self.head(x.mean((2, 3)))


def whole(net, backend):
    return torch.compile(net, fullgraph=True, backend=backend)


def in_place(net, backend):
    net.compile(fullgraph=True, backend=backend)
    return net


def around(net, backend):
    return torch.compile(lambda x: net(x), fullgraph=True, backend=backend)


def blocks_in_place(net, backend):
    for block in net.blocks:
        block.compile(fullgraph=True, backend=backend)
    return net


def blocks_wrapped(net, backend):
    for i, block in enumerate(net.blocks):
        net.blocks[i] = torch.compile(block, fullgraph=True, backend=backend)
    return net


def blocks_by_method(net, backend):
    for block in net.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, backend=backend)
    return net


def by_method(net, backend):
    net.forward = torch.compile(net.forward, fullgraph=True, backend=backend)
    return net


WAYS = [whole, in_place, around, blocks_in_place, blocks_wrapped, blocks_by_method, by_method]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_compile(way, gradients):
    net, x = Net().eval(), torch.randn(2, 3, 12, 12)
    counter = CompileCounterWithBackend("aot_eager")
    with torch.set_grad_enabled(gradients):
        with capture(net) as eager:
            net(x)
        compiled = way(net, counter)
        alone = compiled(x)
        assert counter.frame_count == 1, "the blocks share one graph"
        for _ in range(3):
            with capture(net) as acts:
                assert torch.equal(compiled(x), alone)
            close(acts, eager)
            assert len(acts.calls("relu")) == 4
            assert torch.equal(compiled(x), alone)
    assert counter.frame_count == 2


@pytest.mark.skipif(
    torch.__version__ < (2, 9),
    reason="Dynamo of torch 2.6 compiles nothing that raises",
)
@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_forward_is_a_shorter_graph(way):
    net, x = Net().eval(), torch.randn(2, 3, 12, 12)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = way(net, counter)
    with torch.no_grad():
        alone = compiled(x)
        for _ in range(2):
            with capture(net, ["stem", "blocks.0.norm"], stop=True) as acts:
                output = compiled(x)
            assert list(acts) == ["stem", "blocks.0.norm"]
            assert torch.equal(acts["stem"], net.stem(x))
            assert output is None or way is by_method, "of a compiled forward nothing is left out"
            assert torch.equal(compiled(x), alone)
    if way in (whole, in_place, around):
        assert len(counter.graphs[-1].graph.nodes) < len(counter.graphs[0].graph.nodes) / 2
    assert counter.frame_count == 2


def test_any_number_of_layer_sets_and_models():
    """Dynamo gives up on a code object after eight graphs."""
    counter = CompileCounterWithBackend("eager")
    nets = [Net().eval() for _ in range(3)]
    names = [name for name, _ in nets[0].named_modules() if name not in ("", "blocks", "relu")]
    assert len(names) > 9
    compiled = [whole(net, counter) for net in nets]
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        for net, some in zip(compiled, (names, names[:2], names[:2]), strict=True):
            for name in some:
                with capture(net, name) as acts:
                    net(x)
                assert list(acts) == [name]
    assert counter.frame_count == len(names) + 4


def test_dynamic_shapes():
    net = Net().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for i, size in enumerate([(2, 12), (3, 13), (5, 17), (7, 11)]):
            x = torch.randn(size[0], 3, size[1], size[1])
            with capture(net) as eager:
                net(x)
            with capture(compiled) as acts:
                compiled(x)
            close(acts, eager)
            if i == 1:
                graphs = counter.frame_count
    assert counter.frame_count == graphs


def test_a_part_compiled_in_a_function_keeps_its_latest_call():
    net = Net().eval()
    counter = CompileCounterWithBackend("aot_eager")
    part = torch.compile(lambda x: net.blocks[0](net.stem(x)), fullgraph=True, backend=counter)
    with torch.no_grad(), capture(net) as acts:
        for _ in range(3):
            x = torch.randn(2, 3, 12, 12)
            part(x)
            assert torch.equal(acts["stem"], net.stem(x))
        assert list(acts) == ["stem", "blocks.0.conv", "blocks.0.norm", "blocks.0.relu"] or len(acts) == 4
    assert counter.frame_count == 1


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        x = self.second(x)
        return self.third(x) if float(x.sum()) > -1e9 else x


def test_graph_breaks_keep_the_order():
    net, x = Broken(), torch.randn(2, 4)
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        with capture(net) as eager:
            net(x)
        for _ in range(3):
            with capture(compiled) as acts:
                compiled(x)
            close(acts, eager)


def test_what_is_captured_stays_after_the_next_call():
    net = whole(Net().eval(), "aot_eager")
    with torch.no_grad(), capture(net, "stem") as acts:
        net(torch.zeros(2, 3, 12, 12))
        first = acts["stem"]
        kept = first.clone()
        net(torch.ones(2, 3, 12, 12))
    assert torch.equal(first, kept)
    assert not torch.equal(acts["stem"], kept)


def test_every_nth_call_runs_the_captured_graph():
    net = Net().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = whole(net, counter)
    with torch.no_grad(), capture(compiled, "stem", every=3) as acts:
        for i in range(7):
            x = torch.full((2, 3, 12, 12), float(i))
            compiled(x)
            assert torch.equal(acts["stem"], net.stem(torch.full_like(x, i // 3 * 3)))
    assert counter.frame_count == 2


@pytest.mark.parametrize("options", [{"every": 2}, {"into": Ring(2)}, {"of": "grad", "into": Ring(2)}])
def test_what_needs_the_calls_says_so_where_it_cannot_see_them(options):
    net = Net().eval()
    step = around(net, "aot_eager")
    with capture(net, **options), pytest.raises(Exception, match="give capture\\(\\) the compiled model") as caught:
        step(torch.randn(2, 3, 12, 12))
    assert isinstance(caught.value, (OptionError, torch._dynamo.exc.Unsupported))


def test_into():
    net = Net().eval()
    compiled = whole(net, "aot_eager")
    inputs = [torch.randn(2, 3, 12, 12) for _ in range(4)]
    with torch.no_grad():
        with capture(net, "blocks.0", into=Moments()) as eager:
            for x in inputs:
                net(x)
        with capture(compiled, "blocks.0", into=Moments()) as stats:
            for x in inputs:
                compiled(x)
        torch.testing.assert_close(stats["blocks.0"].mean, eager["blocks.0"].mean)
        torch.testing.assert_close(stats["blocks.0"].std, eager["blocks.0"].std)
        with capture(compiled, "stem", into=Ring(3)) as last:
            for x in inputs:
                compiled(x)
        assert len(last["stem"]) == 3
        assert all(torch.equal(value, net.stem(x)) for value, x in zip(last["stem"], inputs[1:], strict=True))
        with capture(compiled, "stem", into=ToCPU()) as copies:
            compiled(inputs[0])
        assert torch.equal(copies["stem"], net.stem(inputs[0]))
        with capture(compiled, "stem", into=lambda value: value.amax((2, 3))) as largest:
            compiled(inputs[0])
        assert torch.equal(largest["stem"], net.stem(inputs[0]).amax((2, 3)))


@pytest.mark.parametrize("net", [Net().eval(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
def test_where_guards_were_left_out_it_works_or_says_so(net):
    x = torch.randn(2, 3, 12, 12)
    compiled = torch.compile(
        net, backend="aot_eager", options={"guard_filter_fn": lambda guards: [False for _ in guards]}
    )
    with torch.no_grad():
        alone = compiled(x)
        for _ in range(2):
            with capture(compiled) as acts, warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                assert torch.equal(compiled(x), alone)
            assert acts or any("nothing of it could be captured" in str(warning.message) for warning in warned)
        assert torch.equal(compiled(x), alone)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("order", ["".join(each) for each in itertools.product("eg", repeat=4)])
@pytest.mark.parametrize("read", [False, True])
def test_a_compiled_function_around_the_model_beside_eager_forwards(order, read):
    """e: an eager forward, g: one in a compiled function that calls the model. The last one counts."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 2))
    around = torch.compile(lambda x: model(x) * 1, backend="eager")
    with torch.no_grad(), capture(model) as acts:
        for i, what in enumerate(order):
            x = torch.randn(3, 1, 2, 2)
            (model if what == "e" else around)(x)
            if read or i == len(order) - 1:
                before = nn.functional.conv2d(x, model[0].weight, model[0].bias)
                after = before.relu().flatten(1)
                expected = [before, before.relu(), after, nn.functional.linear(after, model[3].weight, model[3].bias)]
                assert list(acts) == ["0", "1", "2", "3"]
                for value, wanted in zip(acts.values(), expected, strict=True):
                    torch.testing.assert_close(value, wanted)
