"""Tensors that are shared, viewed, overwritten and read again: networks and values are what they are with clones.

Two ways to keep what is overwritten without a copy were tried and given up: to give the network's tensor other memory,
and to run an activation in place out of it. Some of what told the difference is held here.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from torch_featviz.capture import capture

MODES = st.sampled_from([torch.no_grad, torch.inference_mode])


def check(oracles, bare, mode):
    """Three forwards: what the network makes, its input and buffers are the same to the bit, and so is each output."""
    hooked, same = oracles
    watched, oracle, x = copy.deepcopy(bare), copy.deepcopy(bare), torch.randn(3, 4)

    def run(model):
        torch.manual_seed(1)
        given = x.clone()
        return [tensor.clone() for tensor in (*model(given), given, *model.buffers())]

    with mode():
        for _ in range(3):
            expected = run(bare)
            with capture(watched) as acts:
                actual = run(watched)
            _, calls = hooked(oracle, lambda: run(oracle))
            assert same(actual, expected)
            assert [key.partition("#")[0] for key in acts] == [name for name, _ in calls]
            assert same(list(acts.values()), [kept for _, kept in calls])
    assert all("forward" not in vars(module) for module in watched.modules())


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


class Writes(nn.Module):
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


STEPS = [
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
WRITTEN = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 90)), min_size=2, max_size=14)


@given(WRITTEN, MODES)
def test_random_writes(oracles, instructions, mode):
    check(oracles, Writes(instructions).eval(), mode)


# What code does around and with Sequentials


class Keeps(nn.Linear):
    """A layer that holds what it returned."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Own(nn.Sequential):
    """Goes on with what it gave, and not with what came back."""

    def forward(self, x):
        for module in self:
            out = module(x)
            if isinstance(module, nn.Linear):
                x = out
        return x


class Sequences(nn.Module):
    """Instructions; each has a kind, and numbers that choose registers and parts."""

    def __init__(self, instructions):
        super().__init__()
        self.instructions = instructions
        torch.manual_seed(0)
        act, linear = nn.ReLU(inplace=True), nn.Linear(4, 4)
        self.parts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)),
                nn.Sequential(nn.Linear(4, 4), act, nn.LayerNorm(4), act, linear, nn.SiLU(inplace=True)),
                nn.Sequential(nn.Sequential(linear, nn.LayerNorm(4)), nn.ReLU(inplace=True)),
                nn.Sequential(act, linear, nn.Identity(), act),
                nn.Sequential(Keeps(4, 4), nn.ReLU(inplace=True)),
                nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)),
                nn.Sequential(linear, nn.Sequential(nn.Hardtanh(-0.3, 0.3, inplace=True)), linear, act, act),
                nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5, inplace=True), nn.ELU(inplace=True)),
                Own(nn.Linear(4, 4), nn.ReLU(inplace=True), linear, act),
            ]
        )

    def forward(self, x):
        registers = [x]
        for kind, first, second in self.instructions:
            here, part = registers[first % len(registers)], self.parts[second % len(self.parts)]
            match kind:
                case "whole":
                    registers.append(part(here))
                case "by hand":  # and all is kept, as for a perceptual loss
                    for module in part:
                        here = module(here)
                        registers.append(here)
                case "rest":
                    registers.append(part[1:](here))
                case "first":
                    registers.append(part[0](here))
                case "last":
                    part[-1](here)
                case "view":
                    registers.append(here[:1])
                case "write":
                    here.mul_(0.5)
        return registers


KINDS = ["whole", "whole", "whole", "by hand", "rest", "first", "last", "view", "write"]
PROGRAMS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 20), st.integers(0, 90)), min_size=1, max_size=8)


@given(PROGRAMS, st.booleans(), MODES)
def test_random_sequences(oracles, instructions, training, mode):
    check(oracles, Sequences(instructions).train(training), mode)


# What told the difference


class Between(nn.Module):
    """`between` is given what the layer returned, before it is overwritten; what that returns is seen afterwards."""

    def __init__(self, between):
        super().__init__()
        self.layer, self.between = nn.Linear(4, 4), between

    def forward(self, x):
        out = self.layer(x)
        held = self.between(out)
        return out.relu_(), out, held()


def storage_of(out):
    memory = out.untyped_storage()
    return lambda: torch.tensor([]).set_(memory, 0, out.shape)


@pytest.mark.parametrize(
    "between",
    [
        lambda out: partial(torch.tensor, out.numpy()),
        lambda out: partial(torch.tensor, np.from_dlpack(out)),
        lambda out: partial(torch.clone, out.view(-1)),
        storage_of,
    ],
    ids=["numpy", "dlpack", "view", "storage"],
)
def test_who_holds_the_memory_sees_the_write(between):
    model, x = Between(between), torch.randn(2, 4)
    with torch.no_grad():
        expected = [tensor.clone() for tensor in model(x)]
        for _ in range(3):
            with capture(model, "layer") as acts:
                actual = model(x)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
            assert torch.equal(acts["layer"], model.layer(x))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("inside", [False, True])
def test_a_hook_that_holds_the_output_sees_the_write(which, inside):
    held, model, x = [], nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4)

    def hold(_module, args, output):
        held.append(args[0] if which else output)

    with torch.no_grad():
        expected = model[0](x)
        if not inside:
            model[which].register_forward_hook(hold)
        with capture(model) as acts:
            if inside:
                model[which].register_forward_hook(hold)
            for _ in range(2):
                model(x)
                assert torch.equal(held[-1], expected.relu())
        assert torch.equal(acts["1"], expected.relu())


def test_a_transformer_behind_takes_its_fast_path():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True))
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x, mask):
            return self.encoder(self.first(x), src_key_padding_mask=mask)

    model, x, mask = Net().eval(), torch.randn(2, 5, 8), torch.arange(5)[None] > torch.tensor([[2], [3]])
    with torch.no_grad():
        expected = model(x, mask)
        with capture(model, "first.0") as acts:
            for _ in range(2):
                assert torch.equal(model(x, mask), expected)
                assert torch.equal(acts["first.0"], model.first[0](x))


def test_operators_that_are_counted_when_they_run_again():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))

        def forward(self, x):
            def save(_context, operator, *_args, **_kwargs):
                saves = operator is torch.ops.aten.mm.default
                return CheckpointPolicy.MUST_SAVE if saves else CheckpointPolicy.PREFER_RECOMPUTE

            contexts = partial(create_selective_checkpoint_contexts, save)
            return checkpoint(self.parts, x, use_reentrant=False, context_fn=contexts)

    net, x = Net(), torch.randn(2, 4)
    net(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    for _ in range(2):
        net.zero_grad()
        with capture(net, "parts.0") as acts:
            net(x).square().sum().backward()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), expected, strict=True))
        assert torch.equal(acts["parts.0"], net.parts[0](x))


def test_strides_are_those_of_the_operator_in_place():
    gate = nn.Sequential(nn.Conv2d(8, 1, 1), nn.ReLU(inplace=True))
    model = nn.Sequential(gate, nn.Conv2d(1, 16, 3, padding=1)).eval()
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, strides = model(x), gate(x).stride()
        for _ in range(2):
            with capture(model) as acts:
                assert torch.equal(model(x), expected)
            assert acts["0.1"].stride() == strides


def test_an_activation_that_was_patched(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, input: F.gelu(input))
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4)
    with torch.no_grad():
        expected = model(x)
        with capture(model, "0") as acts:
            assert torch.equal(model(x), expected)
        assert torch.equal(F.gelu(acts["0"]), expected)


@pytest.mark.parametrize("order", ["0011", "0101", "0110", "0122"])
def test_captures_that_end_in_any_order(order):
    """Each has its own values, whichever of them is open."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.randn(2, 4)
    first = model[0](x).detach()
    expected = {"0": first, "1": first.relu(), "2": model[2](first.relu()).detach()}
    open_now, acts = {}, {}
    with torch.no_grad():
        for number in order + order[::-1]:
            if number in open_now:
                open_now.pop(number).__exit__(None, None, None)
            else:
                open_now[number] = capture(model)
                acts[number] = open_now[number].__enter__()
            for _ in range(2):
                assert torch.equal(model(x), expected["2"])
                for each in open_now:
                    assert list(acts[each]) == ["0", "1", "2"]
                    assert all(torch.equal(acts[each][name], wanted) for name, wanted in expected.items())
    assert all("forward" not in vars(module) for module in model.modules())
