"""Figures of many layers from few launches, by interpreted kernels: against NumPy, and reducers one by one."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import capture
from torch_featviz.capture.reduce import Histogram, Moments, Several, TopK
from torch_featviz.capture.reduce.tables import Figures, Tables, geometry
from torch_featviz.capture.reduce.together import Together
from torch_featviz.errors import FeatvizWarning, LayerError, ShapeError
from torch_featviz.launching import Gpu, gpu

triton = pytest.importorskip("triton")


@triton.jit
def loop(out):
    for i in range(triton.language.load(out), 2):
        triton.language.store(out, i)


def interprets():
    """Whether this release's interpreter knows NumPy as it is here: up to 3.6 it cannot loop with 2.4."""
    try:
        loop[1,](torch.zeros(1, dtype=torch.int64))
    except Exception:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available() and not interprets(), reason="this Triton interprets no loop"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, and not interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy's, in the interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
CPU = torch.device("cpu")


def few(examples):
    """An interpreted kernel takes milliseconds a tile."""
    return settings(max_examples=max(examples, settings().max_examples // 10), deadline=None)


def kept(into, outputs, *, at_once=False, channels=1):
    """Reducers by layer name that have seen `outputs`, by layer name."""
    reducers, figures = {name: into.fresh() for name in outputs}, Together(Tables(into, CPU))
    for i in range(max(map(len, outputs.values()))):
        for name, several in outputs.items():
            if i < len(several):
                figures.add(name, several[i], channels)
        if not at_once:
            figures.flush()
    figures.settle(reducers)
    return reducers


@st.composite
def layouts(draw, outputs):
    """The same values, otherwise in memory: channels last, every second value of a larger tensor, or turned round."""
    how = draw(st.sampled_from(["as they are", "channels last", "strided", "turned"]))
    if how == "channels last":
        return [output.movedim(1, -1).contiguous().movedim(-1, 1) if output.dim() > 2 else output for output in outputs]
    if how == "strided":
        return [torch.stack([output, output], -1)[..., 0] for output in outputs]
    if how == "turned":
        return [output.transpose(0, -1).contiguous().transpose(0, -1) for output in outputs]
    return outputs


@few(6)
@given(data=st.data(), at_once=st.booleans())
def test_moments_equal_numpy(streams, data, at_once):
    outputs = data.draw(layouts(data.draw(streams.batches(2, 5))))
    dim = data.draw(st.integers(1, outputs[0].dim() - 1))
    figures = kept(Moments(dim), {"a": outputs}, at_once=at_once)["a"]
    values = streams.as_float(outputs)
    if values.size:
        streams.check_moments(figures, np.moveaxis(values, dim, 0).reshape(values.shape[dim], -1))
    else:
        assert figures.empty


@few(6)
@given(data=st.data(), bins=st.sampled_from([2, 10, 64]), symmetric=st.booleans(), at_once=st.booleans())
def test_histograms_equal_those_of_one_output_after_the_other(streams, data, bins, symmetric, at_once):
    outputs = data.draw(layouts(data.draw(streams.batches(2, 5))))
    into = Histogram(bins, symmetric)
    figures = kept(into, {"a": outputs}, at_once=at_once)["a"]
    assert figures.empty is not any(output.numel() for output in outputs)
    if not figures.empty:
        streams.agree(figures, streams.fed(into, outputs))


@few(6)
@given(data=st.data(), k=st.sampled_from([1, 3, 9]), at_once=st.booleans())
def test_top_images_equal_those_of_one_output_after_the_other(streams, data, k, at_once):
    outputs = data.draw(streams.batches(2, 5))
    if data.draw(st.booleans()):  # many ties
        outputs = [output.clamp(0, 1).round() if output.dtype != torch.bool else output for output in outputs]
    outputs = data.draw(layouts(outputs))
    figures = kept(TopK(k), {"a": outputs}, at_once=at_once)["a"]
    if any(output.numel() for output in outputs):
        streams.agree(figures, streams.fed(TopK(k), outputs))


@few(3)
@given(data=st.data())
def test_several_layers_at_once(streams, data):
    into = Several(Moments(), Histogram(8), TopK(2))
    outputs = {name: data.draw(layouts(data.draw(streams.batches(2, 4)))) for name in "abc"}
    got = kept(into, outputs, at_once=True)
    for name, several in outputs.items():
        if any(output.numel() for output in several):
            streams.agree(got[name], streams.fed(into, several), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("into", [Several(Moments(), Histogram(8), TopK(2)), Moments(), Histogram(8), TopK(1)])
@pytest.mark.parametrize("shape", [(2, 1), (5, 1), (2, 1, 3, 4)])
def test_one_channel_of_a_larger_tensor(streams, into, shape):
    """Its values lie apart, as those of `layer(x)[:, :1]`."""
    wide = torch.randn(*shape, 3)
    outputs = [wide[..., 1], wide[..., 2]]
    streams.agree(kept(into, {"a": outputs})["a"], streams.fed(into, outputs), rtol=2e-6, atol=1e-6)


def test_more_than_one_tile_of_everything(streams):
    into = Several(Moments(), Histogram(), TopK(9))
    shapes = {"wide": (3, 70, 5, 7), "high": (2, 3, 15, 20), "many": (70, 2, 3, 3), "vectors": (66, 40)}
    outputs = {name: [torch.randn(shape) * 3 + 100 for _ in range(2)] for name, shape in shapes.items()}
    outputs["last"] = [each.to(memory_format=torch.channels_last) for each in outputs["wide"]]
    for name, reducer in kept(into, outputs).items():
        streams.agree(reducer, streams.fed(into, outputs[name]), rtol=2e-6, atol=2e-6)


def test_the_same_bits_each_time(streams):
    outputs = {"a": [torch.randn(3, 40, 12, 12) for _ in range(2)]}
    streams.agree(*(kept(Several(Moments(), Histogram()), outputs)["a"] for _ in range(2)))


@pytest.mark.parametrize("mean", [1e4, 1e-20, -3e30])
def test_a_mean_far_from_zero_costs_no_digits(streams, mean):
    outputs = [(torch.randn(4, 33, 12, 12).double() * 1e-3 * abs(mean) + mean).float() for _ in range(3)]
    values = streams.as_float(outputs)
    streams.check_moments(kept(Moments(), {"a": outputs})["a"], np.moveaxis(values, 1, 0).reshape(33, -1))


def test_a_tiny_negative_value_is_left_of_0(streams):
    outputs = [torch.tensor([[-1e-45, 100.0, 3.0]]), torch.tensor([[-1e-45, 1.0, 0.0]])]
    for symmetric in (False, True):
        into = Histogram(4, symmetric)
        streams.agree(kept(into, {"a": outputs})["a"], streams.fed(into, outputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_of_either_sign_are_equal(streams, dtype):
    outputs = [torch.tensor([[[-1.0, -0.0]], [[0.0, -2.0]], [[-0.0, 0.0]]], dtype=dtype)]
    top = kept(TopK(3), {"a": outputs})["a"]
    assert top.images.tolist() == [[0, 1, 2]]
    assert top.positions.tolist() == [[1, 0, 0]]


def test_maps_of_nothing_but_nan(streams):
    """A program reads the end of one image and the beginning of the next."""
    output = torch.randn(3, 2, 300)
    output[2], output[1, 0] = torch.nan, -torch.inf
    top = kept(TopK(3), {"a": [output]})["a"]
    streams.agree(top, streams.fed(TopK(3), [output]))
    assert top.positions[0, 1:].tolist() == [0, 0]


def test_channels_on_another_axis(streams):
    output = torch.randn(3, 7, 5)
    into = Several(Moments(), TopK(2))
    tokens = kept(into, {"a": [output]}, channels=2)["a"]
    streams.agree(tokens, streams.fed(into, [output.movedim(2, 1)]), rtol=2e-6, atol=1e-7)
    alone = kept(Moments(), {"a": [torch.randn(9)], "b": [torch.tensor(2.0)]})
    assert [reducer.mean.shape for reducer in alone.values()] == [(1,), (1,)]


def test_layers_that_come_later(streams):
    into, figures = (
        Several(Moments(), Histogram(8), TopK(2)),
        Together(Tables(Several(Moments(), Histogram(8), TopK(2)), CPU)),
    )
    outputs = {name: torch.randn(2, i + 1, 3) for i, name in enumerate("abcd")}
    for names in ("a", "ba", "cab", "d"):
        for name in names:
            figures.add(name, outputs[name])
        figures.flush()
    reducers = {name: into.fresh() for name in "abcd"}
    figures.settle(reducers)
    for name, times in zip("abcd", (3, 2, 1, 1), strict=True):
        streams.agree(reducers[name], streams.fed(into, [outputs[name]] * times), rtol=2e-6, atol=1e-7)


def test_what_was_given_out_does_not_change():
    figures, reducers = Together(Tables(Moments(), CPU)), {"a": Moments()}
    figures.add("a", torch.ones(2, 3))
    figures.settle(reducers)
    state = reducers["a"]._state
    figures.add("a", torch.zeros(2, 3))
    figures.flush()
    assert state[1][0].tolist() == [2, 2, 2]


def test_which_figures_it_takes():
    class Other(Moments):
        pass

    for into in (Moments(), Histogram(252), TopK(), Several(Moments(-1), Histogram(), TopK(3, -1))):
        assert Figures.takes(into)
    for into in (Other(), Histogram(254), Several(Moments(1), TopK(3, 2)), Several(Moments(), Moments())):
        assert not Figures.takes(into)


@pytest.mark.parametrize(
    ("into", "shapes"),
    [(Moments(), [(2, 3), (2, 4)]), (TopK(), [(2, 3), (2, 4)]), (TopK(), [(3,)]), (Moments(4), [(2, 3)])],
)
def test_shapes_that_do_not_fit(into, shapes):
    figures, reducer = Together(Tables(into, CPU)), into.fresh()
    for shape in shapes[:-1]:
        figures.add("a", torch.zeros(shape))
        reducer.update(torch.zeros(shape))
    with pytest.raises(ShapeError) as expected:
        reducer.update(torch.zeros(shapes[-1]))
    with pytest.raises(ShapeError) as got:
        figures.add("a", torch.zeros(shapes[-1]))
    assert str(got.value) == str(expected.value)


@given(data=st.data())
def test_geometry_reaches_every_value(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    axis = data.draw(st.one_of(st.none(), st.integers(0, len(shape) - 1)))
    order = data.draw(st.permutations(range(len(shape))))
    output = torch.arange(np.prod(shape)).reshape([shape[i] for i in order]).permute(*np.argsort(order).tolist())
    images = data.draw(st.booleans()) and axis not in (None, 0)
    seen = geometry(output.shape, output.stride(), axis, images=images)
    if seen is None:
        return
    strides = (seen.by_image, seen.by_channel, seen.by_place)
    got = torch.as_strided(output, seen[:3], strides)
    if axis is None:
        assert got.flatten().sort().values.tolist() == list(range(output.numel()))
        return
    expected = output.movedim(axis, 0).reshape(shape[axis], -1)
    assert got.movedim(1, 0).flatten(1).sort().values.equal(expected.sort().values)
    if images:
        assert got.equal(output.movedim(axis, 1).flatten(2) if output.dim() > 2 else output.unsqueeze(2))


# In a capture


@pytest.fixture
def _waiting(monkeypatch):
    """As on a GPU: outputs wait."""
    monkeypatch.setattr(gpu, "available", lambda _device: True)


class Overwrites(nn.Module):
    """Layers that are overwritten in place, one called twice, one not at all, one that changes its mind."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.twice, self.never, self.last = nn.Conv2d(4, 4, 1), nn.Linear(2, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x = self.twice(x)
        x += 1
        x = self.twice(x).mean((2, 3))
        return self.last(x)


MODES, BUDGETS, SMALL = (torch.enable_grad, torch.no_grad, torch.inference_mode), (0, 2**26), (0, 2**20)
# Each pair of two of these is in every run, all three with each other in the slow ones.
EACH = [
    pytest.param(mode, budget, small, marks=[pytest.mark.slow] * ((i + j + k) % 2))
    for (i, mode), (j, budget), (k, small) in itertools.product(*map(enumerate, (MODES, BUDGETS, SMALL)))
]


@pytest.mark.usefixtures("_waiting")
@pytest.mark.parametrize(("mode", "budget", "small"), EACH)
def test_captured_figures_are_those_of_what_layers_returned(streams, hooked, monkeypatch, small, budget, mode):
    monkeypatch.setattr("torch_featviz.capture.reduction._COPIED", small)
    monkeypatch.setattr(gpu, "budget", lambda _device: budget)
    model, into = Overwrites().eval(), [Moments(), Histogram(8), TopK(2)]
    inputs = [torch.randn(2, 3, 6, 6) for _ in range(3)]
    with mode():
        _, seen = hooked(model, lambda: [model(x.clone()) for x in inputs])
        with capture(model, into=into) as stats:
            for x in inputs:
                model(x.clone())
    assert stats.not_run == ["never"]
    assert stats.left_out == {}
    for name, got in stats.items():
        expected = streams.fed(Several(*into), [output for layer, output in seen if layer == name])
        streams.agree(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_waiting")
def test_reading_within_the_block_and_after_a_forward_that_raised():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    with capture(model, into=Moments()) as stats:
        model(torch.randn(3, 1, 2, 2))
        figures = stats["0"]
        assert figures.count.tolist() == [12, 12]
        model(torch.randn(3, 1, 2, 2))
        assert figures.count.tolist() == [24, 24]
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 1, 3, 3))
        assert figures.count.tolist() == [51, 51]
        model[0](torch.randn(1, 1, 2, 2))
        assert stats["0"].count.tolist() == [55, 55]
    assert stats["2"].count.tolist() == [6, 6]


@pytest.mark.usefixtures("_waiting")
@pytest.mark.parametrize("into", [Moments(), TopK(3)])
def test_a_model_that_goes_to_another_device_meanwhile(streams, into):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    inputs = [torch.randn(2, 3) for _ in range(4)]
    with torch.no_grad(), capture(model, "0", into=into) as stats:
        for i, x in enumerate(inputs):
            if i == 2:
                stats._recorder._device["0"] = torch.device("meta")  # as if it had been there
            model(x)
    with torch.no_grad():
        streams.agree(stats["0"], streams.fed(into, [model[0](x) for x in inputs]), rtol=1e-5, atol=1e-6)


class Changes(nn.Module):
    """Overwrites what a layer returned, but not in its first forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(1, 2, 1), 0

    def forward(self, x):
        x = self.conv(x)
        self.calls += 1
        return x.mul_(2) if self.calls > 1 else x


@pytest.mark.usefixtures("_waiting")
def test_an_output_that_was_overwritten_unseen_is_left_out():
    model, x = Changes(), torch.randn(1, 1, 2, 2)
    with torch.no_grad():
        with capture(model, "conv", into=Moments()) as stats:
            model(x)
            model(x)
        assert "was overwritten" in stats.left_out["conv"]
        with pytest.raises(
            LayerError,
            match="layer 'conv' has no statistics: an output was overwritten, which the first forward did not do;",
        ):
            stats["conv"]
        with capture(model, "conv", into=Moments()) as stats:
            model(x)
        assert torch.allclose(stats["conv"].mean, model.conv(x).mean((0, 2, 3)).double(), atol=1e-6)


@pytest.mark.usefixtures("_waiting")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("part", [False, True])
def test_compiled_code_adds_to_the_figures_itself(streams, part):
    model, x = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten()), torch.randn(3, 1, 2, 2)
    fast = nn.Sequential(model[0], torch.compile(model[1], backend="eager"), model[2]) if part else model
    if not part:
        fast = torch.compile(model, backend="eager")
    with torch.no_grad(), capture(fast, into=Moments()) as stats:
        fast(x)
        model(x)
        fast(x)
    for name, output in (("0", model[0](x)), ("2", model(x))):
        streams.agree(stats[name], streams.fed(Moments(), [output] * 3), rtol=1e-5, atol=1e-6)


MORE_ORDERS = ["ergeg", "egere", "gergre", "eregge", "erpgr", "eprgr", "erpger", "gprer", "erpgpr"]


@pytest.mark.usefixtures("_waiting")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("order", [*itertools.product("egr", repeat=3), *MORE_ORDERS])
def test_compiled_code_around_the_model_beside_eager_forwards(streams, order):
    """e: an eager forward, p: of its first layer, g: one in a compiled function that calls it, r: figures are read."""
    model, into = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)), [Moments(), Histogram(8)]
    around = torch.compile(lambda x: model(x) * 1, backend="eager")
    calls = {"e": model, "g": around, "p": model[0]}
    given, whole = [], []
    with torch.no_grad():
        with capture(model, into=into) as stats:
            for what in order:
                if what != "r":
                    given.append(torch.randn(3, 1, 2, 2))
                    whole += [] if what == "p" else given[-1:]
                    calls[what](given[-1])
                elif given:
                    assert stats["0"][0].count.tolist() == [12 * len(given)] * 2
                    assert not whole or stats["2"][1].counts.sum() == 6 * len(whole)
        for name, several in (("0", [model[0](x) for x in given]), ("2", [model(x) for x in whole])):
            if several:
                streams.agree(stats[name], streams.fed(Several(*into), several), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_waiting")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("read", [False, True])
def test_a_layer_that_compiled_code_and_the_forward_call_at_once(read):
    """What came at once cannot be told apart from what was given out before: that is said, and not counted wrongly."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.runs_fast = nn.Linear(4, 4), False
            self.fast = torch.compile(lambda x: self.layer(x) * 1, backend="eager")

        def forward(self, x):
            x = self.layer(x)
            return self.fast(x) if self.runs_fast else x

    net = Net()
    with torch.no_grad(), capture(net, into=Moments()) as stats:
        net(torch.randn(3, 4))
        if read:
            assert stats["layer"].count.tolist() == [3] * 4
        net.runs_fast = True
        net(torch.randn(3, 4))
    if read:
        assert "compiled code added to its figures amid other calls" in stats.left_out["layer"]
    else:
        assert stats["layer"].count.tolist() == [9] * 4


def test_where_no_kernel_runs_it_is_said_once(monkeypatch):
    def fail(*_arguments, **_constants):
        raise RuntimeError("no C compiler")

    other = Gpu()
    monkeypatch.setattr(other, "launch", fail)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    with pytest.warns(FeatvizWarning, match="Triton runs no kernel here: no C compiler"):
        assert not other.available(torch.device("cuda"))
    assert not other.available(torch.device("cuda"))


@pytest.mark.slow
def test_compiles():
    """For an H100, without one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "30 variants" in done.stderr


def test_importing_the_package_imports_no_triton():
    code = "import sys, torch_featviz; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
