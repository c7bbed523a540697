"""Functional calls as layers: against the same nets written with modules, and against clones made by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_featviz.capture import Moments, Ring, capture
from torch_featviz.capture.ops import op_name
from torch_featviz.errors import LayerError, OptionError

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


class Functional(nn.Module):
    """LeNet as it is written in tutorials."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        return F.log_softmax(self.fc2(self.fc1(x).relu_()), dim=1)


NAMES = [
    "conv1", "conv1.tanh", "conv1.max_pool2d", "conv2", "conv2.relu", "conv2.max_pool2d", "conv2.flatten", "fc1",
    "fc1.relu_", "fc2", "fc2.log_softmax",
]  # fmt: skip


def written_with_modules(net):
    return nn.Sequential(
        net.conv1, nn.Tanh(), nn.MaxPool2d(2), net.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        net.fc1, nn.ReLU(inplace=True), net.fc2, nn.LogSoftmax(dim=1),
    )  # fmt: skip


class Plain(nn.Module):
    """`body(self, x)` as a forward."""

    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.body(self, x)


def names_in(body, x=None, **layers):
    with capture(Plain(body, **layers), ops=True) as acts:
        acts._recorder.model()(torch.ones(2, 3) if x is None else x)
    return list(acts)


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_what_modules_would_be(mode, oracles):
    hooked, same = oracles
    torch.manual_seed(0)
    net = Functional()
    x = torch.randn(2, 1, 14, 14)
    with mode():
        expected, calls = hooked(modules := written_with_modules(net), lambda: modules(x))
        for _ in range(3):
            with capture(net, ops=True) as acts:
                output = net(x)
            assert torch.equal(output, expected)
            assert list(acts) == NAMES
            assert all(same(value, kept) for value, (_, kept) in zip(acts.values(), calls, strict=True))


def test_only_what_is_asked_for():
    net, x = Functional(), torch.randn(1, 1, 14, 14)
    for asked, names in {
        ("conv1.tanh", "conv1.max_pool2d"): NAMES[1:3],
        ("conv1.*",): NAMES[1:3],
        ("*.relu", "fc2", "*.relu_"): ["conv2.relu", "fc1.relu_", "fc2"],
        (nn.Conv2d, "conv2.[rf]*"): ["conv1", "conv2", "conv2.relu", "conv2.flatten"],
        ("module.conv2.flatten",): ["conv2.flatten"],
    }.items():
        with capture(net, asked, ops=True) as acts:
            net(x)
        assert list(acts) == names
        assert acts.not_run == []
    assert "module.conv2.flatten" in acts
    with capture(net) as acts:
        net(x)
    assert list(acts) == ["conv1", "conv2", "fc1", "fc2"]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gamma = nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, x):
        out = self.conv(x)
        out += x
        return F.relu(out, inplace=True) * 2 + self.gamma * x


@pytest.mark.parametrize("mode", MODES)
def test_what_is_overwritten_was_copied_in_time(mode):
    net = nn.Sequential(Residual(), Residual())
    x = torch.randn(2, 3, 4, 4)
    with mode():
        kept, at = {}, x
        for i, block in enumerate(net):
            conv = F.conv2d(at, block.conv.weight, block.conv.bias, padding=1)
            kept[f"{i}.conv"], kept[f"{i}.conv.add_"] = conv.clone(), conv + at
            kept[f"{i}.conv.relu"] = (conv + at).relu()
            kept[f"{i}.conv.mul"] = kept[f"{i}.conv.relu"] * 2
            kept[f"{i}.mul"] = block.gamma * at
            at = kept[f"{i}.conv.add"] = kept[f"{i}.conv.mul"] + kept[f"{i}.mul"]
        for _ in range(3):
            with capture(net, ops=True) as acts:
                net(x)
            assert list(acts) == list(kept)
            assert all(torch.equal(acts[name], kept[name]) for name in kept)


def test_a_forward_that_changes_its_ways_is_followed():
    def body(self, x):
        out = torch.tanh(self.fc(x))
        return out.zero_() if self.overwrite else out + 1

    net, x = Plain(body, fc=nn.Linear(3, 3)), torch.ones(1, 3)
    with torch.no_grad():
        for net.overwrite in (False, True, False, True):
            with capture(net, "fc.tanh", ops=True) as acts:
                net(x)
            assert torch.equal(acts["fc.tanh"], net.fc(x).tanh())


def test_every_operator_goes_by_its_word():
    def body(self, x):
        x = self.fc(x)
        _ = [x + 1, 1 + x, x - 1, 1 - x, x * 2, x / 2, 1 / x, x // 2, x % 2, x**2, 2**x, -x, x @ x.T, x[0], abs(x)]
        _ = [x > 0, x == x, ~(x > 0)]
        y = x.clone()
        y -= 1
        y *= 2
        y /= 2
        y **= 2
        y[0] = 3
        return y

    words = [name.removeprefix("fc.").partition("#")[0] for name in names_in(body, fc=nn.Linear(3, 3))]
    assert words == [
        "fc", "add", "add", "sub", "sub", "mul", "div", "div", "floor_divide", "remainder", "pow", "pow", "neg",
        "matmul", "getitem", "abs", "gt", "eq", "gt", "bitwise_not", "clone", "sub_", "mul_", "div_", "pow_",
    ]  # fmt: skip


def test_the_first_tensor_names_the_call():
    def body(self, x):
        one, two = self.one(x), self.two(x)
        sums = [x + one, one + x, torch.cat([two, one]), torch.add(input=two, other=one), self.scale * two]
        halves = one.split(1)
        return torch.cat([self.scale.view(1, 3), halves[0].T.T.exp(), self.two(sums[1] * 2).data.abs()])

    layers = {"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)}
    net = Plain(body, **layers)
    net.scale = nn.Parameter(torch.ones(3))
    with capture(net, ops=True) as acts:
        net(torch.ones(2, 3))
    assert list(acts) == [
        "one", "two#1", "add", "one.add", "two.cat", "two.add", "two.mul", "one.split", "view", "one.exp",
        "one.mul", "two#2", "two.abs", "cat",
    ]  # fmt: skip
    assert torch.equal(acts["one.split"][1], acts["one"][1:])


def test_a_freed_tensors_place_is_not_taken_for_it():
    def body(self, x):
        for _ in range(50):
            self.fc(x)
            x = torch.Tensor._make_subclass(torch.Tensor, ones) * 1  # one that nobody sees being made
        out = torch.add(x, 1, out=self.fc(x).detach())
        return out.exp()

    ones = torch.ones(2, 3)
    net = Plain(body, fc=nn.Linear(3, 3))
    with torch.no_grad(), capture(net, ["mul", "fc.mul", "exp"], ops=True) as acts:  # outputs of fc are freed
        net(ones)
    assert [name.partition("#")[0] for name in acts] == ["mul"] * 50 + ["exp"]


def test_a_block_that_runs_twice_and_containers():
    block = Plain(lambda self, x: torch.tanh(self.fc(x)) + x.sin(), fc=nn.Linear(3, 3))
    inner = nn.Sequential(block, nn.Sequential(block, nn.ReLU()))
    once = ["fc", "fc.tanh", "sin", "fc.add"]
    names = names_in(lambda self, x: F.relu(self.inner(x)), inner=inner)
    assert names == [
        *(f"inner.0.{name}#1" for name in once), *(f"inner.0.{name}#2" for name in once), "inner.1.1", "inner.relu"
    ]  # fmt: skip


def test_a_layer_of_that_very_name_keeps_it():
    names = names_in(lambda self, x: self.relu(F.relu(x)), relu=nn.ReLU())
    assert names == ["relu()", "relu"]
    with capture(net := Plain(lambda self, x: self.relu(F.relu(x)), relu=nn.ReLU()), "relu()", ops=True) as acts:
        net(-torch.ones(1))
    assert list(acts) == ["relu()"]


def test_no_call_of_the_layers_of_torch_and_none_without_a_tensor():
    class Own(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight * 2)

    def body(self, x):
        _ = x.size(0), x.shape, x.dim(), x.is_contiguous(), x.requires_grad, len(x), x.sum().item()
        x = nn.ReLU()(x)  # of no name, and so a call
        return self.norm(self.own(self.conv(x)))

    layers = {"conv": nn.Conv2d(1, 1, 1), "own": Own(1, 1, 1), "norm": nn.BatchNorm2d(1)}
    names = names_in(body, torch.ones(2, 1, 2, 2), **layers)
    assert names == ["sum", "relu", "conv", "own.mul", "own.conv2d", "own", "norm"]


def test_hooks_belong_to_their_layer():
    net = nn.Sequential(nn.Linear(3, 3), Plain(lambda self, x: self.same(x + 1), same=nn.Identity()))
    net[0].register_forward_hook(lambda _m, _i, out: out * 0 + 7)
    net[0].register_forward_pre_hook(lambda _m, args: args[0] * 2)
    net.register_forward_hook(lambda _m, _i, out: out * 3)
    with capture(net, ops=True) as acts:
        output = net(torch.ones(1, 3))
    assert list(acts) == ["0", "1.add", "1.same"]
    assert torch.equal(acts["0"], torch.full((1, 3), 7.0))
    assert torch.equal(output, torch.full((1, 3), 24.0))


def test_a_tensor_of_numbers():
    names = names_in(lambda self, x: x + torch.tensor([1.0]) + torch.from_numpy(np.ones(3, np.float32)))
    assert names == ["tensor", "add#1", "add#2", ""]


def test_what_recording_does_is_no_call():
    net = nn.Sequential(Plain(lambda self, x: self.fc(x + 1), fc=nn.Linear(3, 3)), nn.Linear(3, 3))
    net[0].fc.register_forward_pre_hook(lambda _m, args: args[0] * 2)
    with capture(net, ["0", "*"], ops=True, into=torch.exp) as acts:
        net(torch.ones(1, 3))
    assert list(acts) == ["0.add", "0.fc", "0", "1"]
    assert torch.equal(acts["0"], acts["0.fc"])


def test_names_that_cannot_be_are_refused_and_others_reported(instance_state):
    net, x = Functional(), torch.randn(1, 1, 14, 14)
    for name in ("conv9.tanh", "conv1.3", "conv9.*", "conv1.tanh#2", "bogus.conv1.tanh"):
        with pytest.raises(LayerError, match=rf"no layer '{name[:4]}.*' in Functional; (close|it has conv1, conv2)"):
            capture(net, name, ops=True)
    with pytest.raises(LayerError, match=r"no layer 'conv1\.tanh' in Functional"):
        capture(net, "conv1.tanh")
    with capture(net, ["conv1.tahn", "conv1.tanh", "*.gelu"], ops=True) as acts:
        net(x)
    assert list(acts) == ["conv1.tanh"]
    assert acts.not_run == ["conv1.tahn", "*.gelu"]
    with pytest.raises(LayerError, match=r"layer 'conv1.tahn' did not run; .* close: 'conv1.tanh'"):
        acts["conv1.tahn"]
    with pytest.raises(LayerError, match=r"layer 'conv1.relu' was not captured; close: 'conv1.tanh', 'conv1.tahn'"):
        acts["conv1.relu"]
    with capture(net, ["conv1.tahn", "conv1.tanh", "*.gelu"], ops=True, into=Moments()) as stats:
        net(x)
    assert stats.not_run == ["conv1.tahn", "*.gelu"]
    with pytest.raises(LayerError, match=r"layer 'conv1.tahn' did not run; close: 'conv1.tanh'"):
        stats["conv1.tahn"]


def test_statistics_rings_functions_and_every():
    net, x = Functional(), torch.randn(3, 1, 14, 14)
    with torch.no_grad(), capture(net, ops=True) as acts:
        net(x)
    with torch.no_grad(), capture(net, ["*.tanh", "fc1"], ops=True, into=Moments()) as stats:
        net(x)
        net(x)
    assert list(stats) == ["fc1", "conv1.tanh"]
    assert torch.allclose(stats["conv1.tanh"].mean, acts["conv1.tanh"].double().mean((0, 2, 3)), atol=1e-6)
    with torch.no_grad(), capture(net, "conv1.tanh", ops=True, into=lambda t: t.relu().sum()) as sums:
        net(x)
    assert torch.equal(sums["conv1.tanh"], acts["conv1.tanh"].relu().sum())
    with torch.no_grad(), capture(net, "conv1.tanh", ops=True, into=Ring(2), every=2) as last:
        for factor in (1, 2, 3, 4, 5):
            net(x * factor)
    assert len(last["conv1.tanh"]) == 2
    assert torch.equal(last["conv1.tanh"][1], torch.tanh(net.conv1(x * 5)))


def test_statistics_of_all_pass_over_what_has_none():
    net = Plain(lambda self, x: (x > 0, x.split(1), x * 2))
    with capture(net, "*", ops=True, into=Moments()) as stats:
        net(torch.ones(2, 3))
    assert list(stats) == ["mul"]


@pytest.mark.parametrize("into", [None, Moments()])
def test_gradients(into):
    net, x = Functional(), torch.randn(2, 1, 14, 14)
    tanh = torch.tanh(net.conv1(x)).detach().requires_grad_()
    rest = nn.Sequential(*list(written_with_modules(net))[2:])
    (expected,) = torch.autograd.grad(rest(tanh).sum(), tanh)
    with capture(net, ["conv1.tanh", "fc1*"], ops=True, of="grad", into=into) as grads:
        net(x).sum().backward()
    if into is None:
        assert list(grads) == ["conv1.tanh", "fc1", "fc1.relu_"]
        assert torch.equal(grads["conv1.tanh"], expected)
    else:
        assert torch.allclose(grads["conv1.tanh"].mean, expected.double().mean((0, 2, 3)), atol=1e-7)


def test_stop():
    def late(*_):
        raise AssertionError("the forward goes on")

    net, x = Functional(), torch.randn(1, 1, 14, 14)
    net.fc1.forward = late
    with capture(net, ["conv2.relu", "conv1.tanh"], ops=True, stop=True) as acts:
        assert net(x) is None
    assert list(acts) == ["conv1.tanh", "conv2.relu"]
    with pytest.raises(OptionError, match="stop=True with ops=True needs exact names"):
        capture(net, ["conv1.*"], ops=True, stop=True)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_nothing_is_left_behind(error, instance_state):
    def body(self, x):
        x = torch.tanh(self.fc(x))
        if self.boom:
            raise error
        return x + 1

    net = nn.Sequential(Plain(body, fc=nn.Linear(3, 3)))
    net[0].boom = False
    before, depth = instance_state(net), torch._C._len_torch_function_stack()
    with capture(net, ops=True) as acts:
        for net[0].boom in (True, False):
            if net[0].boom:
                with pytest.raises(type(error)):
                    net(torch.ones(1, 3))
                assert list(acts) == ["0.fc", "0.fc.tanh"]
            else:
                net(torch.ones(1, 3))
            assert torch._C._len_torch_function_stack() == depth
        assert list(acts) == ["0.fc", "0.fc.tanh", "0.fc.add"]
    assert instance_state(net) == before


def test_a_part_called_alone_and_a_copy_made_meanwhile():
    net, x = Functional(), torch.randn(1, 1, 14, 14)
    with torch.no_grad(), capture(net, ops=True) as acts:
        copy.deepcopy(net)(x)
        assert list(acts) == []
        net.conv1(x)
        assert list(acts) == ["conv1"]
        net(x)
    assert list(acts) == NAMES


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_run_uncompiled(whole):
    net, x = Functional().eval(), torch.randn(2, 1, 14, 14)
    with torch.no_grad(), capture(net, ops=True) as plain:
        net(x)
    outer = nn.Sequential(net)
    if whole:
        outer = torch.compile(outer, backend="eager")
    else:
        net.compile(backend="eager")
    with torch.no_grad():
        outer(x)
        for _ in range(2):
            with capture(outer, ops=True) as acts:
                outer(x)
    assert list(acts) == [f"0.{name}" for name in NAMES]
    assert all(torch.equal(acts[f"0.{name}"], plain[name]) for name in NAMES)
    if whole:
        for full in (True, False):
            torch.compiler.reset()
            function = torch.compile(lambda x: net(x), backend="eager", fullgraph=full)
            with capture(net, ops=True), pytest.raises(Exception, match=r"compiled code around it hides|set_stance"):
                function(x)


def test_resnet():
    net = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), capture(net, ["layer1.*", "layer2.0.*", "avgpool.flatten"], ops=True) as acts:
        net(x)
    assert torch.equal(acts["layer1.0.bn2.add_"], acts["layer1.0.bn2"] + _before(net, x))
    assert torch.equal(acts["layer2.0.bn2.add_"], acts["layer2.0.bn2"] + acts["layer2.0.downsample"])
    assert torch.equal(acts["layer1.0.relu#2"], acts["layer1.0.bn2.add_"].relu())
    assert "layer1.0.add_" not in acts


def _before(net, x):
    return net.maxpool(net.relu(net.bn1(net.conv1(x))))


def test_densenet():
    net = torchvision.models.DenseNet(8, (2, 2), 8).eval()
    with torch.no_grad(), capture(net, ["*.cat", "features.denseblock1.*", "features.relu"], ops=True) as acts:
        net(torch.randn(1, 3, 64, 64))
    block = "features.denseblock1."
    layers = [acts[f"{block}denselayer1.conv2"], acts[f"{block}denselayer2.conv2"]]
    pooled = acts[f"{block}denselayer1.cat"]
    assert torch.equal(acts[f"{block}denselayer2.cat"], torch.cat([pooled, layers[0]], 1))
    assert torch.equal(acts[f"{block}cat"], torch.cat([pooled, *layers], 1))
    assert acts["features.relu"].min() == 0


class Operators(TorchDispatchMode):
    """Lists each operator that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
def test_vision_transformer(mode):
    net = torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64).eval()
    x = torch.randn(1, 3, 32, 32)
    # of an outer mode inference mode hides how operators are made up of others
    with torch.no_grad() if mode is torch.inference_mode else mode(), Operators() as bare:
        net(x)
    with mode():
        expected = net(x)
        with capture(net, ["*add", "cat", "*getitem", "encoder.layers", "*attention"], ops=True) as acts:
            with Operators() as operators:
                output = net(x)
            assert torch.equal(output, expected)
    # With gradients or without: the fused attention, too. Torch 2.6 saves its output for the backward in two ways.
    assert [name for name in operators.names if "detach" not in name] == [n for n in bare.names if "detach" not in n]
    assert acts["encoder.add"].shape == (1, 5, 32)
    assert torch.equal(acts["encoder.add"], acts["cat"] + net.encoder.pos_embedding)
    first = "encoder.layers.encoder_layer_0."
    assert torch.equal(acts[f"{first}dropout.add#1"], acts[f"{first}self_attention"][0] + acts["encoder.add"])
    assert acts["encoder.getitem"].shape == (1, 32)


class Chain(nn.Module):
    """Steps that are functional calls, or the modules that do the same."""

    STEPS = (
        ("tanh", torch.tanh, nn.Tanh()),
        ("relu", F.relu, nn.ReLU()),
        ("relu_", torch.relu_, nn.ReLU(inplace=True)),
        ("leaky_relu", lambda x: F.leaky_relu(x, 0.1, inplace=True), nn.LeakyReLU(0.1, inplace=True)),
        ("max_pool2d", lambda x: F.max_pool2d(x, 3, 1, 1), nn.MaxPool2d(3, 1, 1)),
        ("hardswish", F.hardswish, nn.Hardswish()),
        ("softmax", lambda x: F.softmax(x, 1), nn.Softmax(1)),
        ("conv", None, nn.Conv2d(2, 2, 3, padding=1)),
    )

    def __init__(self, steps, functional):
        super().__init__()
        self.steps, self.functional = [self.STEPS[i] for i in steps], functional
        self.layers = nn.ModuleList(copy.deepcopy(module) for _, _, module in self.steps)

    def forward(self, x):
        for (_, function, _), layer in zip(self.steps, self.layers, strict=True):
            x = function(x) if self.functional and function else layer(x)
        return x

    def names(self):
        feeds = ""
        for i, (name, function, _) in enumerate(self.steps):
            if function is None:
                feeds = f"layers.{i}."
            yield feeds.rstrip(".") if function is None else f"{feeds}{name}"


@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.sampled_from(MODES), st.randoms())
def test_random_chains(oracles, steps, mode, random):
    hooked, same = oracles
    functional, modules = Chain(steps, True), Chain(steps, False)
    modules.load_state_dict(functional.state_dict())
    x = torch.randn(2, 2, 4, 4)
    with mode():
        expected, calls = hooked(modules, lambda: modules(x + 0))
        for _ in range(2):
            with capture(functional, [*dict.fromkeys(functional.names())], ops=True) as acts:
                output = functional(x + 0)
            assert same(output, expected)
            assert [name.partition("#")[0] for name in acts] == list(functional.names())
            assert all(same(value, kept) for value, (_, kept) in zip(acts.values(), calls, strict=True))


def test_names_of_functions():
    functions = (
        torch.ops.aten.relu.default,
        torch.Tensor.__iand__,
        torch.Tensor.__rshift__,
        torch.Tensor.shape.__get__,
    )
    assert [op_name(f) for f in functions] == ["relu", "bitwise_and_", "bitwise_right_shift", None]
