"""Histograms against NumPy with the same edges, and edges against their definition."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from torch_featviz.capture.reduce import histogram as histogram_module
from torch_featviz.capture.reduce import reducer
from torch_featviz.capture.reduce.histogram import Histogram
from torch_featviz.errors import LayerError, OptionError


def check(histogram, values):
    finite = values[np.isfinite(values)]
    edges = histogram.edges.numpy()
    assert histogram.counts.numpy().tolist() == np.histogram(finite, edges)[0].tolist()
    assert int(histogram.counts.sum()) == finite.size
    assert (histogram.nan, histogram.inf, histogram.neg_inf) == (
        np.isnan(values).sum(),
        np.isposinf(values).sum(),
        np.isneginf(values).sum(),
    )
    if not finite.size:
        return
    low, high = finite.min(), finite.max()
    assert edges[0] <= low <= high < edges[-1]
    assert (edges[0], edges[-1]) == expected_range(low, high, histogram.bins, histogram.symmetric)


def expected_range(low, high, bins, symmetric):
    """Try every width from the narrowest allowed, in exact integers."""
    magnitude = max(abs(low), abs(high))
    exponent = max(-126, math.frexp(magnitude)[1] - 1 - 50 if magnitude else -126)
    while True:
        first, last = (math.floor(_ratio(value, exponent)) for value in (low, high))
        start = -bins // 2 if symmetric else first
        if start <= first and last < start + bins:
            return math.ldexp(start, exponent), math.ldexp(start + bins, exponent)
        exponent += 1


def _ratio(value, exponent):
    return Fraction(value) / Fraction(2) ** exponent


@given(data=st.data(), bins=st.sampled_from([2, 4, 6, 10, 64]), symmetric=st.booleans())
def test_equals_numpy_however_split(streams, data, bins, symmetric):
    outputs = data.draw(streams.batches(1, 5))
    cut = data.draw(st.integers(0, len(outputs)))
    together = streams.as_float(outputs).reshape(-1)
    prototype = Histogram(bins, symmetric)
    many, first, second = (streams.fed(prototype, part) for part in (outputs, outputs[:cut], outputs[cut:]))
    first.merge(second)
    if not together.size:
        with pytest.raises(LayerError, match="nothing seen yet"):
            _ = many.counts
        return
    check(many, together)
    streams.agree(many, streams.fed(prototype, [torch.cat(outputs)]))
    streams.agree(many, first)


@given(
    values=st.lists(st.floats(-(2.0**999), 2.0**999), min_size=1, max_size=20),
    bins=st.sampled_from([2, 8, 100]),
    symmetric=st.booleans(),
)
def test_any_float64(streams, values, bins, symmetric):
    outputs = list(torch.tensor(values, dtype=torch.float64).split(3))
    check(streams.fed(Histogram(bins, symmetric), outputs), np.array(values))


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    offset=st.sampled_from([0.0, 1.0, 1e7, 1e30]),
    bins=st.sampled_from([2, 8, 100, 40000]),
    symmetric=st.booleans(),
)
@example(values=[-1e-45, 2.0], offset=0.0, bins=2, symmetric=False)  # -0 when scaled down
@example(values=[16777216.0, 16777218.0], offset=0.0, bins=8, symmetric=False)  # bins beyond what float32 can number
def test_any_float32(streams, values, offset, bins, symmetric):
    together = (np.array(values, np.float32) + np.float32(offset)).clip(-3e38, 3e38)
    outputs = list(torch.from_numpy(together).split(3))
    check(streams.fed(Histogram(bins, symmetric), outputs), together.astype(float))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_larger_than_a_block(layout, streams):
    output = (torch.randn(40, 16, 24, 32) * 3).contiguous(memory_format=layout)
    check(
        streams.fed(Histogram(), [output, output + 100]), torch.cat([output, output + 100]).double().flatten().numpy()
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e-45, 3e38])
def test_a_constant_fills_one_bin(value, streams):
    for symmetric in (False, True):
        histogram = streams.fed(Histogram(8, symmetric), [torch.full((5,), value)])
        assert sorted(histogram.counts.tolist()) == [0] * 7 + [5]
        check(histogram, np.full(5, np.float32(value), dtype=np.float64))


def test_only_broken_values_have_edges_and_no_counts(streams):
    histogram = streams.fed(Histogram(4), [torch.tensor([torch.nan, torch.inf])])
    assert histogram.counts.tolist() == [0] * 4
    assert histogram.edges.isfinite().all()
    assert (histogram.nan, histogram.inf, histogram.neg_inf) == (1, 1, 0)
    histogram.update(torch.tensor([3.0, 5.0]))
    check(histogram, np.array([np.nan, np.inf, 3.0, 5.0]))


def test_beyond_the_limit_counts_as_infinite(streams):
    values = torch.tensor([2.0**1000, -(2.0**1001), 1.0], dtype=torch.float64)
    histogram = streams.fed(Histogram(4), [values])
    assert (histogram.inf, histogram.neg_inf, int(histogram.counts.sum())) == (1, 1, 1)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compiled_equals_eager_in_two_graphs(symmetric, backend, streams):
    outputs = [torch.randn(4, 3, 6, 5) * 1.7**i + i for i in range(10)]
    outputs[3].view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    histogram, graphs = streams.compiled(Histogram(16, symmetric), outputs, backend)
    assert graphs == 2
    check(histogram, (torch.cat(outputs) * 2).double().flatten().numpy())
    streams.agree(histogram, streams.fed(Histogram(16, symmetric), [output * 2 for output in outputs]))


def test_a_device_without_float64(monkeypatch, streams):
    for module in (histogram_module, reducer):
        monkeypatch.setattr(module, "wide", lambda device: torch.float32)
    outputs = [torch.randn(50) * 3.0**i for i in range(5)]
    histogram = streams.fed(Histogram(8), outputs)
    assert histogram._state[0].dtype == torch.float32
    check(histogram, torch.cat(outputs).double().numpy())


@pytest.mark.parametrize("bins", [0, 1, 7, -2, 2.0, True])
def test_what_is_refused(bins):
    with pytest.raises(OptionError, match=f"bins must be an even number from 2 to 1,048,576, got {bins}"):
        Histogram(bins)
    with pytest.raises(LayerError, match=r"Histogram\(bins=64, symmetric=False, nothing seen yet\)"):
        _ = Histogram().counts
