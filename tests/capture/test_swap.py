"""Memory that is swapped: what is captured, and what the network computes, is what it would be were each output cloned.

It is done on a GPU only, where it pays; here it is done wherever it may be.
"""

import copy
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torch_featviz.capture import Moments, Ring, ToCPU, capture, inplace, swap
from torch_featviz.errors import LayerError
from torch_featviz.model.values import tensors


@pytest.fixture(autouse=True)
def _wherever_it_may_be(monkeypatch):
    monkeypatch.setattr(swap, "_WORTH", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(swap, "something_is_compiled", lambda: False)  # by other tests of this process, it is


def learnt(model):
    """The layers copied, and those swapped, in the latest circumstances."""
    return [set(names) for names in list(inplace._learnt[model].values())[-1]]


# Programs: a few registers, each a tensor; layers make more of them, and operators write to some


class Twice(nn.Module):
    """Its output holds a tensor beside others."""

    def forward(self, x):
        return x, {"more": x * 2}


VIEWS = [
    lambda t: t.flatten(),
    lambda t: t[:, :1],
    lambda t: t.detach(),
    lambda t: t.data,
    lambda t: t.transpose(0, 1),
    lambda t: t,
]
ARRAYS = [lambda t: t.numpy(), lambda t: np.from_dlpack(t), lambda t: t[..., 1:].numpy(), lambda t: t.detach().numpy()]
ONE = torch.linspace(-1, 1, 4)
WRITES = [
    lambda t, other: F.relu(t, inplace=True),
    lambda t, other: torch.relu_(t),
    lambda t, other: t.relu_(),
    lambda t, other: F.leaky_relu(t, 0.1, inplace=True),
    lambda t, other: F.hardtanh(t, -0.5, 0.5, inplace=True),
    lambda t, other: F.elu(t, inplace=True),
    lambda t, other: F.silu(t, inplace=True),
    lambda t, other: F.hardswish(t, inplace=True),
    lambda t, other: F.dropout(t, 0.5, training=True, inplace=True),
    lambda t, other: t.add_(other) if other.shape == t.shape else t.add_(1),
    lambda t, other: t.__iadd__(other if other.shape == t.shape else 1),
    lambda t, other: t.__imul__(0.5),
    lambda t, other: t.clamp_(-0.25, 0.25),
    lambda t, other: t.mul_(t),
    lambda t, other: t.copy_(other) if other.shape == t.shape else t.zero_(),
    lambda t, other: torch.add(t, 1.0, out=t),
    lambda t, other: t.__setitem__(0, 0.5),
    lambda t, other: t.flatten()[::2].mul_(0.5),
]


class Program(nn.Module):
    """Instructions; each has a kind, and numbers that choose registers and operators."""

    def __init__(self, instructions):
        super().__init__()
        self.instructions = instructions
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.same, self.twice, self.act = nn.Identity(), Twice(), nn.ReLU(inplace=True)
        self.register_buffer("held", torch.ones(3, 4))

    def forward(self, x):
        registers, arrays = [x], []
        for kind, first, second in self.instructions:
            at = first % len(registers)
            here, other = registers[at], registers[second % len(registers)]
            match kind:
                case "layer":
                    registers.append(self.layers[second % 3](here if here.shape[-1:] == (4,) else here.sum() + ONE))
                case "same":
                    registers.append(self.same(here))
                case "twice":
                    registers.append(self.twice(here)[0])
                case "act":
                    registers.append(self.act(here))
                case "view":
                    registers.append(VIEWS[second % len(VIEWS)](here) if here.dim() > 1 else here)
                case "array":
                    arrays.append(ARRAYS[second % len(ARRAYS)](here))
                case "write":
                    WRITES[second % len(WRITES)](here, other)
                case "read":
                    registers.append(here * 2 + other.sum())
                case "held":
                    registers.append(self.same(self.held))
                case "drop" if len(registers) > 1:
                    del registers[at]
        return [*registers, *map(torch.tensor, arrays)]


KINDS = [
    "layer",
    "layer",
    "same",
    "twice",
    "act",
    "act",
    "view",
    "array",
    "write",
    "write",
    "write",
    "read",
    "held",
    "drop",
]
PROGRAMS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 30), st.integers(0, 90)), min_size=2, max_size=14)


@given(PROGRAMS, st.booleans())
def test_random_programs(oracles, instructions, inference):
    hooked, same = oracles
    bare, x = Program(instructions).eval(), torch.randn(3, 4)
    watched, oracle = copy.deepcopy(bare), copy.deepcopy(bare)

    def run(model):
        torch.manual_seed(1)
        given = x.clone()
        return [tensor.clone() for tensor in (*model(given), given, model.held)]

    with torch.inference_mode() if inference else torch.no_grad():
        for _ in range(3):
            expected = run(bare)
            with capture(watched) as acts:
                actual = run(watched)
            _, calls = hooked(oracle, lambda: run(oracle))
            assert same(actual, expected)
            values = [value for key in acts for value in [acts[key]]]
            assert [key.partition("#")[0] for key in acts] == [name for name, _ in calls]
            assert same(values, [kept for _, kept in calls])


# What it is for


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.second(self.act(self.first(x)))
        out += x
        return self.act(out)


def test_nothing_is_copied():
    model, memory = nn.Sequential(Residual(), Residual()).eval(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, out, n=name: memory.setdefault(n, []).append(out.data_ptr()))
    with torch.no_grad(), capture(model) as acts:
        for _ in range(3):
            memory.clear()
            model(torch.randn(1, 2, 4, 4))
            assert {key: acts[key].data_ptr() for key in acts if "act" not in key} == {
                name: addresses[0] for name, addresses in memory.items() if name.endswith(("first", "second"))
            }
            assert acts["1.act#2"].data_ptr() == memory["1.act"][1]
    assert learnt(model) == [set(), {f"{i}.{name}" for i in (0, 1) for name in ("first", "second")}]


def test_the_write_is_counted():
    model = Overwrites(between=lambda out: out._version)
    with torch.no_grad(), capture(model, "layer"):
        for _ in range(2):
            _, out, before = model(torch.randn(2, 4))
            assert out._version == before + 1
    assert learnt(model) == [set(), {"layer"}]


def test_layers_in_layers_that_return_one_tensor():
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(3, 3))), nn.ReLU(inplace=True))
    x = torch.randn(2, 3)
    with torch.no_grad(), capture(model, ["0", "0.0", "0.0.0", "1"]) as acts:
        for _ in range(2):
            model(x)
            expected = model[0](x)
            assert all(torch.equal(acts[name], expected) for name in ("0", "0.0", "0.0.0"))
            assert torch.equal(acts["1"], expected.relu())
    assert learnt(model) == [set(), {"0", "0.0", "0.0.0"}]


def test_it_pays_only_where_much_is_overwritten(monkeypatch):
    overwritten = 8 * 16 * 4  # bytes; two functions are called, and tensors are asked for a few attributes
    for worth, expected in ((overwritten // 20, [set(), {"0"}]), (overwritten, [{"0"}, set()])):
        monkeypatch.setattr(swap, "_WORTH", {"cpu": worth})
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True))
        with torch.no_grad(), capture(model) as acts:
            model(torch.randn(8, 16))
            assert learnt(model) == expected
            assert (acts["0"] < 0).any()


def test_on_a_cpu_it_does_not(monkeypatch):
    monkeypatch.undo()
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(inplace=True))
    with torch.no_grad(), capture(model):
        model(torch.randn(4096, 256))
    assert learnt(model) == [{"0"}, set()]


# What could tell the difference


class Overwrites(nn.Module):
    """`between` is given what the layer returned, before it is overwritten."""

    def __init__(self, between=lambda out: None, write=lambda out: out.relu_(), make=None):
        super().__init__()
        self.layer = nn.Linear(4, 4) if make is None else make
        self.between, self.write = between, write

    def forward(self, x):
        out = self.layer(x)
        kept = self.between(out)
        result = self.write(out)
        return result, out, kept


def check_copied(model, x=None):
    """What is captured is right, and it is a copy."""
    x = torch.randn(2, 4) if x is None else x
    for _ in range(3):
        torch.manual_seed(0)
        expected = model(x.clone())
        with capture(model, "layer") as acts:
            torch.manual_seed(0)
            actual = model(x.clone())
        assert torch.equal(acts["layer"], model.layer(x.clone()))
        for a, b in zip(tensors(actual), tensors(expected), strict=True):
            assert torch.equal(a, b)
    assert learnt(model) == [{"layer"}, set()]


@pytest.mark.parametrize(
    "between",
    [
        lambda out: out.numpy(),
        lambda out: out.view(-1),
        lambda out: out.detach(),
        lambda out: np.from_dlpack(out),
        lambda out: out.share_memory_(),
        lambda out: out.untyped_storage() and [out[0]],
    ],
    ids=["numpy", "view", "detach", "dlpack", "shared with processes", "row"],
)
def test_who_shares_the_memory_sees_the_writes(between):
    with torch.no_grad():
        check_copied(Overwrites(between))


def test_arguments_and_buffers_keep_their_memory():
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()
            self.register_buffer("held", torch.randn(2, 4))

        def forward(self, x):
            self.layer(x).mul_(2)
            return self.layer(self.held).mul_(2)

    model, x = Holds(), torch.randn(2, 4)
    addresses, before = (x.data_ptr(), model.held.data_ptr()), [x.clone(), model.held.clone()]
    with torch.no_grad(), capture(model) as acts:
        model(x)
        assert (x.data_ptr(), model.held.data_ptr()) == addresses
        assert all(torch.equal(acts[f"layer#{i + 1}"], value) for i, value in enumerate(before))
    assert learnt(model) == [{"layer"}, set()]


def test_another_mode_sees_the_operators_as_they_are():
    class Names(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    model, x = Overwrites(), torch.randn(2, 4)
    with torch.no_grad():
        with Names() as bare:
            model(x)
        for _ in range(2):
            with Names() as seen, capture(model, "layer") as acts:
                model(x)
            assert [name for name in seen.names if name in bare.names] != []
            assert torch.equal(acts["layer"], model.layer(x))
        with FlopCounterMode(display=False), capture(model, "layer") as acts:
            result, *_ = model(x)
        assert torch.equal(acts["layer"], model.layer(x))
        assert torch.equal(result, model.layer(x).relu())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_traces_are_those_of_the_network():
    model, x, other = (
        Overwrites(write=lambda out: out.relu_() + out).requires_grad_(False),
        torch.randn(2, 4),
        torch.randn(2, 4),
    )
    with torch.no_grad():
        with capture(model, "layer"):
            model(x)
            graphs = [make_fx(lambda x: model(x)[0])(x), torch.jit.trace(lambda x: model(x)[0], (x,))]
        assert all(torch.equal(graph(other), model(other)[0]) for graph in graphs)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # of duals' own
def test_transforms_and_duals():
    model, x = Overwrites(), torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)[0]
        with capture(model, "layer"):
            model(x)
            assert torch.allclose(torch.vmap(lambda row: model(row)[0])(x), expected)
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(x, torch.ones_like(x))
                tangent = forward_ad.unpack_dual(model(dual)[0]).tangent
        assert torch.allclose(tangent, (expected > 0) * (torch.ones_like(x) @ model.layer.weight.T))


def test_a_graph_that_saved_the_tensor_is_told_of_the_write():
    model, weight = Overwrites(), torch.ones(4, 4, requires_grad=True)

    def product(out):
        with torch.enable_grad():
            return out @ weight

    model.between = product
    for _ in range(3):
        with torch.no_grad(), capture(model, "layer"):
            *_, kept = model(torch.randn(2, 4))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.sum().backward()


def test_another_type_or_shape_than_the_operator_in_place_would_leave():
    double = torch.ones(2, 4, dtype=torch.float64)
    with torch.no_grad():
        check_copied(Overwrites(write=lambda out: out.add_(double)))  # elsewhere it would be float64
        model = Overwrites(write=lambda out: out.add_(torch.ones(3, 4)))
        with capture(model), pytest.raises(RuntimeError, match="output with shape"):
            model(torch.randn(1, 4))
        model = Overwrites(write=lambda out: torch.vmap(lambda row: out.add_(row))(torch.ones(2, 2, 4)))
        with capture(model), pytest.raises(RuntimeError, match=r"output with shape|vmap"):
            model(torch.randn(2, 4))


class Made(nn.Module):
    """A layer made of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_gradients_on_within_the_forward():
    weight = torch.tensor(2.0, requires_grad=True)

    def write(out):
        with torch.enable_grad():
            return out.mul_(weight)

    model, x = Overwrites(write=write), torch.randn(2, 4)
    with torch.no_grad():
        check_copied(model, x)
        with capture(model, "layer"):
            result, *_ = model(x)
    result.sum().backward()
    assert torch.equal(weight.grad, model.layer(x).sum())


def test_a_tensor_of_inference_mode():
    with torch.inference_mode():
        x = torch.randn(2, 4)
    model = Overwrites(make=nn.Identity())
    with torch.no_grad(), capture(model, "layer"):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
                model(x)


def test_memory_that_is_not_pytorch_own():
    array = np.ones((2, 4), np.float32)
    model = Overwrites(write=lambda out: out.mul_(2), make=Made(lambda x: torch.from_numpy(array)))
    with torch.no_grad():
        for doubled in (2, 4, 8):
            with capture(model, "layer") as acts:
                model(torch.randn(2, 4))
            assert (array == doubled).all()
            assert (acts["layer"] == doubled / 2).all()


def test_a_part_of_memory():
    model = Overwrites(write=lambda out: out.relu_().as_strided((2, 8), (8, 1)), make=Made(lambda x: (x * 2)[:1].data))
    x = torch.randn(2, 8)
    with torch.no_grad():
        expected = model(x)[0]
        assert expected.shape == (2, 8)
        check_copied(model, x)


def test_a_mode_within_the_forward_sees_the_write():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    def write(out):
        with Names():
            return out.relu_()

    model = Overwrites(write=write)
    with torch.no_grad():
        for _ in range(2):
            names = []
            with capture(model, "layer") as acts:
                model(x := torch.randn(2, 4))
            assert torch.equal(acts["layer"], model.layer(x))
            assert "aten.relu_.default" in names


def test_captures_within_each_other():
    for kinds in itertools.product([None, Ring(1), ToCPU(), Moments()], repeat=2):
        model, x = Overwrites(), torch.randn(2, 4)
        with torch.no_grad():
            expected = model.layer(x)
            for order in ((0, 1), (1, 0)) * 2:
                with capture(model, into=kinds[order[0]]) as outer:
                    model(x)
                    with capture(model, into=kinds[order[1]]) as inner:
                        for _ in range(3):
                            model(x)
                        check_kept(inner["layer"], expected)
                    check_kept(outer["layer"], expected)


def check_kept(value, expected):
    if isinstance(value, Moments):
        assert torch.allclose(value.min, expected.amin(0).double())
    else:
        assert torch.equal(value[-1] if isinstance(value, list) else value, expected)


def test_a_layout_that_only_the_operator_in_place_keeps():
    model = Overwrites(make=Made(lambda x: (x * 2).as_strided((2, 1, 4), (4, 7, 1)).data))
    with torch.no_grad():
        for _ in range(3):
            with capture(model, "layer") as acts:
                result, *_ = model(x := torch.randn(2, 4))
            assert result.stride() == (4, 7, 1)
            assert torch.equal(acts["layer"], x[:, None] * 2)


def test_gradients_on():
    model, x = Overwrites(write=lambda out: F.silu(out * 1, inplace=True)), torch.randn(2, 4)
    model(x)[0].sum().backward()
    expected = model.layer.weight.grad.clone()
    model.zero_grad()
    with capture(model, "layer"):
        model(x)[0].sum().backward()
    assert torch.equal(model.layer.weight.grad, expected)
    assert learnt(model)[1] == set()


def test_a_view_that_was_not_there_before_is_copied_and_right():
    model, x = Overwrites(), torch.randn(2, 4)
    with torch.no_grad(), capture(model, "layer") as acts:
        model(x)
        assert learnt(model) == [set(), {"layer"}]
        model.between = lambda out: out.view(-1)
        for _ in range(2):
            result, out, view = model(x)
            assert result is out
            assert torch.equal(view, out.view(-1))
            assert torch.equal(acts["layer"], model.layer(x))


def test_a_write_that_was_not_foreseen_is_told_and_copied_from_then_on():
    model, x = Overwrites(), torch.randn(2, 4)
    with torch.no_grad(), capture(model, "layer") as acts:
        model(x)
        model.write = lambda out: out.copy_(torch.ones(2, 4))
        model(x)
        with pytest.raises(LayerError, match="changed in place"):
            acts["layer"]
        model(x)
        assert torch.equal(acts["layer"], model.layer(x))
    assert learnt(model) == [{"layer"}, set()]


def test_not_once_anything_was_compiled(monkeypatch):
    monkeypatch.setattr(swap, "something_is_compiled", lambda: True)
    with torch.no_grad():
        check_copied(Overwrites())
    script = """
import torch
from torch_featviz.torch_private import something_is_compiled
assert not something_is_compiled()
import torch._dynamo
assert not something_is_compiled()
torch.compile(lambda x: x + 1, backend="eager")
assert something_is_compiled()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
