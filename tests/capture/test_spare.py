"""Activations in place that spare what was captured: networks and values are what they would be with clones."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import Moments, Ring, ToCPU, capture, inplace
from torch_featviz.capture.spare import _MAKES_NEW, _OUT_OF_PLACE

ACTIVATIONS = [
    nn.ReLU(True), nn.ReLU6(True), nn.Hardtanh(-0.5, 0.25, inplace=True), nn.LeakyReLU(0.2, True), nn.SiLU(True),
    nn.Mish(True), nn.Hardswish(True), nn.Hardsigmoid(True),
]  # fmt: skip
ONE_D = [nn.Conv1d(3, 3, 1), nn.ConvTranspose1d(3, 3, 1), nn.BatchNorm1d(3)]
LAYERS = [
    nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(1, 3), *ONE_D,
    nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3),
    nn.Conv3d(3, 3, 1), nn.ConvTranspose3d(3, 3, 1), nn.BatchNorm3d(3),
]  # fmt: skip


def overwritten(model):
    """The layers whose outputs are copied in the latest circumstances."""
    return set(list(inplace._learnt[model].values())[-1])


def input_for(layer, dtype=torch.float32):
    axes = 2 if "2d" in type(layer).__name__ else 3 if "3d" in type(layer).__name__ else 1
    return torch.randn(2, 3, *[4] * axes, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: type(act).__name__)
def test_every_activation_is_the_same_to_the_bit(act, dtype):
    bare = nn.Sequential(nn.Conv1d(3, 3, 1), act, nn.Conv1d(3, 3, 1)).to(dtype)
    model, x = copy.deepcopy(bare), input_for(bare[0], dtype)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            expected = bare(x)
            with capture(model) as acts:
                for _ in range(2):
                    assert torch.equal(model(x), expected)
                    assert torch.equal(acts["0"], bare[0](x))
                    assert torch.equal(acts["1"], bare[:2](x))
            assert overwritten(model) == set()
    expected.sum().backward()
    with capture(model):
        model(x).sum().backward()
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_every_kind_is_tried():
    assert {type(act) for act in ACTIVATIONS} == set(_OUT_OF_PLACE)
    assert {type(layer) for layer in LAYERS} == set(_MAKES_NEW)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [False, True])
def test_what_a_layer_returns_is_nobodys(layer, training):
    model, x = nn.Sequential(layer, nn.ReLU(inplace=True)).train(training), input_for(layer)
    expected = copy.deepcopy(layer)(x)
    with torch.no_grad(), capture(copy.deepcopy(model)) as acts:
        acts.capture._model(x)
        assert torch.equal(acts["0"], expected)
        assert torch.equal(acts["1"], expected.relu())
        assert acts["0"].data_ptr() not in (x.data_ptr(), acts["1"].data_ptr())


# Programs: what code does around and with Sequentials


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


class Program(nn.Module):
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


@given(PROGRAMS, st.booleans(), st.sampled_from([torch.no_grad, torch.inference_mode]))
def test_random_programs(oracles, instructions, training, mode):
    hooked, same = oracles
    bare, x = Program(instructions).train(training), torch.randn(3, 4)
    watched, oracle = copy.deepcopy(bare), copy.deepcopy(bare)

    def run(model):
        torch.manual_seed(1)
        given = x.clone()
        return [tensor.clone() for tensor in (*model(given), given)]

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


# What it is for, and what could tell the difference


def test_nothing_is_copied():
    model, memory = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(2), nn.SiLU(True)), []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), capture(model) as acts:
            for _ in range(2):
                memory.clear()
                made = nn.functional.conv2d

                def seen(*args, made=made):
                    memory.append(made(*args))
                    return memory[-1]

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(nn.functional, "conv2d", seen)
                    model(torch.randn(1, 1, 3, 3))
                assert acts["0"].data_ptr() == memory[0].data_ptr()
        assert overwritten(model) == set()


def test_an_activation_that_several_layers_share():
    act, x = nn.ReLU(inplace=True), torch.randn(2, 4)
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    with torch.no_grad(), capture(model, ["0", "2"]) as acts:
        for _ in range(2):
            model(x)
            assert torch.equal(acts["0"], model[0](x))
            assert torch.equal(acts["2"], model[2](model[0](x).relu()))
    assert overwritten(model) == set()


def test_where_more_than_the_sequential_holds_it():
    keeps, act, linear, x = Keeps(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), torch.randn(2, 4)
    model = nn.Sequential(keeps, act, linear, act)

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))

        def forward(self, x):
            out = self.parts[0](x)
            self.parts[1:](out)
            return out

    parts = Parts()
    with torch.no_grad():
        first, second = keeps(x).clone(), parts.parts[0](x)
        with capture(model) as acts, capture(parts) as others:
            for _ in range(2):
                model(x)
                assert torch.equal(keeps.last, first.relu())
                assert torch.equal(acts["0"], first)
                assert torch.equal(parts(x), second.relu())
                assert torch.equal(others["parts.0"], second)


@pytest.mark.parametrize("into", [None, Ring(2), ToCPU(), Moments()])
def test_reading_in_between(into):
    held = []

    class Reads(nn.Identity):
        def forward(self, x):
            held.append(acts["0"])
            return x

    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), Reads()), torch.randn(2, 4)
    with torch.no_grad(), capture(model, "0", into=into) as acts:
        for _ in range(3):
            model(x)
        expected = model[0](x)
    for value in held:
        last = value[-1] if isinstance(value, list) else value
        assert torch.allclose(last.min, expected.amin(0).double()) if isinstance(last, Moments) else True
        assert isinstance(last, Moments) or torch.equal(last, expected)


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


def test_captures_within_each_other():
    for kinds in [(None, None), (Ring(1), None), (None, ToCPU()), (ToCPU(), Ring(1))]:
        model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), torch.randn(2, 4)
        with torch.no_grad():
            expected = model[0](x)
            for outer_kind, inner_kind in (kinds, kinds[::-1]) * 2:
                with capture(model, into=outer_kind) as outer:
                    model(x)
                    with capture(model, "0", into=inner_kind) as inner:
                        for _ in range(3):
                            assert torch.equal(model(x), expected.relu())
                    for acts in (inner, outer):
                        for name, wanted in zip(acts, (expected, expected.relu()), strict=False):
                            value = acts[name]
                            assert torch.equal(value[-1] if isinstance(value, list) else value, wanted)
                    assert list(outer) == ["0", "1"]


@pytest.mark.parametrize("order", ["0011", "0101", "0110", "0122"])
def test_captures_that_end_in_any_order(order):
    """What one learnt while another spared it an overwritten output does not hold once that has ended."""
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
