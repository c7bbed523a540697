"""The top images against a loop over all of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.capture.reduce.topk import TopK
from torch_featviz.errors import LayerError, OptionError, ShapeError


def check(top, output, k):
    for channel in range(output.shape[1]):
        found, nan = [], 0
        for image in range(output.shape[0]):
            best, where = -math.inf, 0
            for position, value in enumerate(output[image, channel].double().flatten().tolist()):
                nan += math.isnan(value)
                if value > best:  # never where NaN
                    best, where = value, position
            found.append((-best, image, where))
        found.sort()
        rows = [(-negative, image, where) for negative, image, where in found[:k]]
        n = len(rows)
        got = zip(
            top.values[channel].tolist(), top.images[channel].tolist(), top.positions[channel].tolist(), strict=True
        )
        assert list(got)[:n] == rows
        assert top.images[channel, n:].tolist() == top.positions[channel, n:].tolist() == [-1] * (k - n)
        assert top.values[channel, n:].isnan().all()
        assert top.nan[channel] == nan
    assert top.seen == output.shape[0]
    assert top.values.shape == top.images.shape == top.positions.shape == (output.shape[1], k)


@given(data=st.data(), k=st.integers(1, 9))
def test_equals_a_loop_however_split(streams, data, k):
    outputs = data.draw(streams.batches(2, 5))
    if data.draw(st.booleans()):  # many ties
        outputs = [output.clamp(0, 1).round() if output.dtype != torch.bool else output for output in outputs]
    cut = data.draw(st.integers(0, len(outputs)))
    together = torch.cat(outputs)
    many, first, second = (streams.fed(TopK(k), part) for part in (outputs, outputs[:cut], outputs[cut:]))
    first.merge(second)
    if not together.numel():
        with pytest.raises(LayerError, match="nothing seen yet"):
            _ = many.values
        return
    for top in (many, first, streams.fed(TopK(k), [together])):
        check(top, together, k)


def test_what_is_not_there_comes_after_minus_infinity(streams):
    outputs = [torch.full((1, 2, 3), value) for value in (-torch.inf, torch.nan, -torch.inf)]
    check(streams.fed(TopK(5), outputs), torch.cat(outputs), 5)
    assert streams.fed(TopK(5), outputs).images.tolist() == [[0, 1, 2, -1, -1]] * 2


def test_channels_last(streams):
    output = torch.randn(20, 6, 5, 7).round().contiguous(memory_format=torch.channels_last)
    check(streams.fed(TopK(4), list(output.split(6))), output, 4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_equals_eager_in_two_graphs(backend, streams):
    outputs = [torch.randn(4, 3, 6, 5).round() for i in range(10)]
    outputs[3][:, 1] = torch.nan
    top, graphs = streams.compiled(TopK(6), outputs, backend)
    assert graphs == 2
    check(top, torch.cat(outputs) * 2, 6)


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_a_given_axis_of_channels(dim):
    values, top = torch.randn(4, 3, 5), TopK(2, dim)
    top.update(values, 1)
    expected = values.movedim(dim, 1).amax(2).sort(0, descending=True)
    assert torch.equal(top.values, expected.values[:2].t().double())
    assert torch.equal(top.images, expected.indices[:2].t())


@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_what_is_refused(k):
    with pytest.raises(OptionError, match=f"k must be an integer from 1 to 1,048,576, got {k}"):
        TopK(k)
    with pytest.raises(LayerError, match=r"TopK\(k=9, dim=None, nothing seen yet\)"):
        _ = TopK().values
    with pytest.raises(ShapeError, match=r"outputs must be 'b c \.\.\.', got shape \(3,\)"):
        TopK().update(torch.zeros(3))
    for dim in (0, 3, -3):
        with pytest.raises(ShapeError, match=rf"TopK\(dim={dim}\): an output of shape"):
            TopK(dim=dim).update(torch.zeros(2, 3, 4))
    with pytest.raises(OptionError, match="dim must be an integer"):
        TopK(dim="channels")
    top = TopK()
    top.update(torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError, match="must have the same number of channels, got 2 after 3"):
        top.update(torch.zeros(2, 2, 4))
    assert repr(top) == "TopK(k=9, dim=None, 3 channels)"
