"""Figures of many small outputs at once, against NumPy and the reducers one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import capture, reduction
from torch_featviz.capture.reduce import Histogram, Moments, Several, TopK, few
from torch_featviz.capture.reduce.few import Few
from torch_featviz.errors import ShapeError


def kept(into, outputs, *, at_once=False, channels=1, looks=True):
    """Reducers by layer name that have seen `outputs`, by layer name: what `Few` refuses by themselves."""
    reducers, figures = {name: into.fresh() for name in outputs}, Few(into)
    figures._looks = looks  # not on a GPU
    for i in range(max(map(len, outputs.values()))):
        for name, several in outputs.items():
            if i < len(several):
                if figures.takes_output(several[i]):
                    figures.add(name, several[i], channels)
                else:
                    reducers[name].update(several[i], channels)
        if not at_once:
            figures.flush()
    figures.settle(reducers)
    return reducers


@given(data=st.data(), at_once=st.booleans(), widths=st.sampled_from([(1,), (2, 5), (4, 1024)]), looks=st.booleans())
def test_moments_equal_numpy(streams, data, at_once, widths, looks):
    outputs = data.draw(streams.batches(1, 5))
    axes = outputs[0].dim()
    dim = data.draw(st.integers(0, axes - 1) if axes > 1 else st.just(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "_WIDTHS", widths)
        figures = kept(Moments(dim), {"a": outputs if dim else outputs[:1]}, at_once=at_once, looks=looks)["a"]
    values = streams.as_float(outputs if dim else outputs[:1])
    if values.size:
        streams.check_moments(figures, np.moveaxis(values, dim, 0).reshape(values.shape[dim], -1))


@given(st.data(), st.sampled_from([2, 10, 64]), st.booleans(), st.booleans(), st.booleans())
def test_histograms_equal_those_of_one_output_after_the_other(streams, data, bins, symmetric, at_once, looks):
    outputs, into = data.draw(streams.batches(1, 5)), Histogram(bins, symmetric)
    figures = kept(into, {"a": outputs}, at_once=at_once, looks=looks)["a"]
    if not figures.empty:
        streams.agree(figures, streams.fed(into, outputs))


@given(data=st.data(), k=st.sampled_from([1, 3, 9]), at_once=st.booleans(), widths=st.sampled_from([(2,), (4, 1024)]))
def test_top_images_equal_those_of_one_output_after_the_other(streams, data, k, at_once, widths):
    outputs = data.draw(streams.batches(2, 5))
    if data.draw(st.booleans()):  # many ties, also of -0 and 0
        outputs = [output.clamp(0, 1).round() * -1 if output.is_floating_point() else output for output in outputs]
    dim = data.draw(st.integers(1, outputs[0].dim() - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "_WIDTHS", widths)
        figures = kept(TopK(k, dim), {"a": outputs}, at_once=at_once, looks=False)["a"]
    if not figures.empty:
        streams.agree(figures, streams.fed(TopK(k, dim), outputs))


def test_a_layer_called_twice_with_other_numbers_of_images(streams):
    into, outputs = Several(Moments(), TopK(3)), {"a": [torch.randn(n, 3, 2) for n in (2, 5, 1)], "b": []}
    outputs["b"] = [torch.randn(4, 7)]
    got, figures = {name: into.fresh() for name in "ab"}, Few(into)
    figures._looks = False
    for name in "aba":
        figures.add(name, outputs[name][0])
    figures.add("a", outputs["a"][1])
    figures.flush()
    figures.add("a", outputs["a"][2])
    figures.settle(got)
    outputs["a"].insert(0, outputs["a"][0])
    for name, reducer in got.items():
        streams.agree(reducer, streams.fed(into, outputs[name]), rtol=1e-5, atol=1e-6)


@given(data=st.data(), widths=st.sampled_from([(3,), (4, 16, 1024)]))
def test_several_layers_at_once_and_one_after_the_other(streams, data, widths):
    into = Several(Moments(), Histogram(8))
    outputs = {name: data.draw(streams.batches(2, 4)) for name in "abc"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "_WIDTHS", widths)
        both = [kept(into, outputs, at_once=at_once) for at_once in (True, False)]
    for name, several in outputs.items():
        if any(output.numel() for output in several):
            for got in both:
                streams.agree(got[name], streams.fed(into, several), rtol=2e-6, atol=1e-6)


def test_settled_in_between_and_layers_that_come_later(streams):
    into, outputs = Several(Moments(), Histogram(8)), {name: torch.randn(3, i + 1, 2) for i, name in enumerate("abc")}
    figures, reducers = Few(into), {name: into.fresh() for name in "abc"}
    for names in ("a", "ba", "", "cab"):
        for name in names:
            figures.add(name, outputs[name])
        figures.settle(reducers)
    for name, times in zip("abc", (3, 2, 1), strict=True):
        streams.agree(reducers[name], streams.fed(into, [outputs[name]] * times), rtol=1e-5, atol=1e-6)


def test_what_it_takes():
    assert all(map(Few.takes, (Moments(), Histogram(252), Several(Moments(-1), Histogram()))))
    assert not any(
        map(Few.takes, (TopK(), Histogram(254), Several(Moments(), TopK()), Several(Moments(0), Moments(1))))
    )
    gpu = torch.device("cuda")
    assert all(Few.takes(into, gpu) for into in (TopK(), Several(Moments(), TopK(), Histogram())))
    assert not any(Few.takes(into, gpu) for into in (Several(Moments(1), TopK(dim=2)), Several(TopK(1), TopK(2))))
    assert Few(Moments()).takes_output(torch.zeros(3, 2).bfloat16())
    refused = torch.zeros(0), torch.zeros(3).double(), torch.zeros(3).long(), torch.zeros(2**15)
    refused = *refused, torch.eye(3).to_sparse()
    assert not any(map(Few(Moments()).takes_output, (*refused, torch.zeros(3, device="meta"))))


def test_shapes_that_do_not_fit_and_another_block():
    figures = Few(Moments())
    figures.add("a", torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"must have the same number of channels, got 4 after 3\."):
        figures.add("a", torch.zeros(2, 4))
    figures.settle({"a": Moments()})
    figures.end_block()
    figures.add("a", torch.ones(2, 4))
    figures.settle(now := {"a": Moments()})
    assert now["a"].mean.tolist() == [1.0] * 4


def test_in_a_capture_what_is_overwritten_is_right_and_large_outputs_are_mixed_with_small_ones(streams, hooked):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(2), nn.Flatten())
    inputs = [torch.randn(2, 1, size, size) for size in (4, 200, 4, 130)]
    _, seen = hooked(model, lambda: [model[:3](x) for x in inputs])
    model[2].reset_running_stats()
    for _ in range(2):
        with capture(model[:3], into=[Moments(), Histogram(8)]) as stats:
            for x in inputs[:2]:
                model[:3](x)
            first = stats["0"][0]
            count = first.count.tolist()
            for x in inputs[2:]:
                model[:3](x)
            assert first is not stats["0"][0]
            assert stats["0"][0].count[0] > count[0]
        for name in "02":
            outputs = [output for layer, output in seen if layer == name]
            streams.agree(stats[name], streams.fed(Several(Moments(), Histogram(8)), outputs), rtol=1e-5, atol=1e-6)


def test_a_layer_may_have_other_channels_in_the_next_block():
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    for size in (2, 3, 2):
        with capture(model, into=Moments()) as stats:
            model(torch.ones(4, size))
            model(torch.ones(4, size))
        assert stats["1"].count.tolist() == [8] * size


def test_channels_that_change_with_the_size_leave_a_layer_out():
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.shape[-1] < 9 else x[:, :2]

    model = nn.Sequential(Odd(), nn.ReLU())
    with capture(model, into=Moments()) as stats:
        model(torch.ones(2, 3, 4, 4))
        model(torch.ones(2, 3, 200, 200))
    assert set(stats.left_out) == {"0", "1"}
    assert "must have the same number of channels" in stats.left_out["0"]


def test_inference_mode_and_then_without_it():
    model = nn.Sequential(nn.Linear(2, 2))
    with capture(model, into=[Moments(), Histogram(4)]) as stats:
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                model(torch.ones(3, 2))
    assert stats["0"][0].count.tolist() == [12, 12]
    assert int(stats["0"][1].counts.sum()) == 24


def test_what_is_read_is_no_part_of_the_state():
    model = nn.Sequential(nn.Linear(2, 2))
    with capture(model, into=Moments()) as stats:
        model(torch.ones(3, 2))
        stats["0"].count.zero_()
        model(torch.ones(3, 2))
    assert stats["0"].count.tolist() == [6, 6]
    assert all(state.untyped_storage().nbytes() == state.nbytes for state in stats["0"]._state)


class Overwrites(nn.Module):
    """Layers that are overwritten in place, one called twice, one not at all, one that returns much."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.twice, self.never, self.last = nn.Conv2d(4, 4, 1), nn.Linear(2, 2), nn.Linear(4, 2)
        self.much = nn.Upsample(scale_factor=20)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x = self.twice(x)
        x += 1
        x = self.twice(x)
        self.much(x)
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("many", [100, 2**22])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_where_there_is_no_triton_they_wait_as_they_are(streams, hooked, monkeypatch, many, mode):
    """As on a GPU, but on a CPU."""
    monkeypatch.setattr(reduction, "_PLAIN", ("cpu",))
    begin = Few.__init__

    def as_on_gpu(self, into, device):
        begin(self, into, device)
        self._looks, self._small, self._many = False, 2000, many

    monkeypatch.setattr(Few, "__init__", as_on_gpu)
    monkeypatch.setattr(reduction.Reduction, "_spare", lambda self: None)
    model, into = Overwrites().eval(), [Moments(), Histogram(8), TopK(2)]
    takes = Few.takes
    monkeypatch.setattr(Few, "takes", lambda into, _device=None: takes(into, torch.device("cuda")))
    inputs = [torch.randn(2, 3, 6, 6) for _ in range(3)]
    with mode():
        _, seen = hooked(model, lambda: [model(x.clone()) for x in inputs])
        with capture(model, into=into) as stats:
            for i, x in enumerate(inputs):
                model(x.clone())
                if i == 1:
                    assert stats["last"][0].count.tolist() == [4, 4]
    assert stats.not_run == ["never"]
    assert stats.left_out == {}
    for name, got in stats.items():
        expected = streams.fed(Several(*into), [output for layer, output in seen if layer == name])
        streams.agree(got, expected, rtol=1e-5, atol=1e-6)
