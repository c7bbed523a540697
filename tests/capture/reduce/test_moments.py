"""Moments against NumPy over all the data at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import capture
from torch_featviz.capture.reduce import moment_sums, reducer
from torch_featviz.capture.reduce import moments as moments_module
from torch_featviz.capture.reduce.moments import Moments
from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError


def check_whole(moments, values):
    """`values`: one float64 array of all channels."""
    finite, whole = values[np.isfinite(values)], moments.whole
    assert whole[:1] + whole[6:] == (finite.size, np.isnan(values).sum(), np.isinf(values).sum())
    if not finite.size:
        assert np.isnan(whole[1:5]).all()
        return
    assert whole[3:5] == (finite.min(), finite.max())
    assert whole.zero_share == pytest.approx((values == 0).mean(), rel=1e-12)
    peak = np.abs(finite).max() or 1.0
    std = (finite / peak).std() * peak if np.ptp(finite) else 0.0
    assert whole.std == pytest.approx(std, rel=1e-5, abs=1e-6 * peak)
    assert whole.mean == pytest.approx(finite.mean(), rel=1e-9, abs=1e-6 * std)


def test_all_channels_together():
    generator = torch.Generator().manual_seed(0)
    scales, shifts = torch.tensor([1.0, 1e-3, 50.0, 1.0]), torch.tensor([0.0, 5.0, -100.0, 0.0])
    outputs = torch.randn(3, 7, 4, generator=generator) * scales + shifts
    outputs[0, :3, 1], outputs[1, 2, 0], outputs[2, 0, 2], outputs[..., 3] = 0, torch.nan, torch.inf, torch.nan
    moments = Moments(dim=-1)
    for output in outputs:
        moments.update(output)
    check_whole(moments, outputs.double().numpy().ravel())
    assert moments.whole.nan == 22
    broken = Moments()
    broken.update(torch.full((2, 3), torch.nan))
    check_whole(broken, np.full(6, np.nan))
    assert broken.whole.zero_share == 0.0


def test_many_layers_at_once():
    several = []
    for channels in (3, 1, 64, 2):
        moments = Moments()
        moments.update(torch.randn(5, channels) * channels)
        several.append(moments)
    several[1].update(torch.full((2, 1), torch.nan))
    several[3] = Moments()
    several[3].update(torch.full((4, 2), torch.inf))
    states = [tuple(tensor.numpy() for tensor in moments._read()) for moments in several]
    for whole, moments in zip(moments_module.wholes(states), several, strict=True):
        np.testing.assert_array_equal(whole, moments.whole)
    assert moments_module.wholes([]) == []


@given(data=st.data())
def test_in_float64_equals_numpy(streams, data):
    """What is compiled for a GPU."""
    outputs = data.draw(streams.batches(2, 4))
    moments = Moments(1)
    for output in map(reducer.real, outputs):
        if output.numel() and output.dtype == torch.float32:
            new = moment_sums.in_float64(moments._state, moments._arrange(output, 1))
            moments._state = new if moments._state is None else moment_sums.added(moments._state, new)
    if not moments.empty:
        values = streams.as_float(outputs)
        streams.check_moments(moments, np.moveaxis(values, 1, 0).reshape(values.shape[1], -1))


@given(data=st.data())
def test_equals_numpy_over_all_data(streams, data):
    axes = data.draw(st.integers(2, 5))
    outputs = data.draw(streams.batches(axes, axes))
    dim = data.draw(st.integers(1, axes - 1)) - data.draw(st.sampled_from([0, axes]))
    moments = streams.fed(Moments(dim), outputs)
    together = streams.as_float(outputs)
    if not together.size:
        with pytest.raises(LayerError, match="nothing seen yet"):
            _ = moments.mean
        return
    streams.check_moments(moments, np.moveaxis(together, dim, 0).reshape(together.shape[dim], -1))


@given(data=st.data())
def test_any_split_and_any_merge_give_the_same(streams, data):
    outputs = data.draw(streams.batches(2, 4))
    cut = data.draw(st.integers(0, len(outputs)))
    one = streams.fed(Moments(), [torch.cat(outputs)])
    many, first, second = (streams.fed(Moments(), part) for part in (outputs, outputs[:cut], outputs[cut:]))
    first.merge(second)
    if torch.cat(outputs).numel():
        columns = np.moveaxis(streams.as_float(outputs), 1, 0).reshape(outputs[0].shape[1], -1)
        for moments in (one, many, first):
            streams.check_moments(moments, columns)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(40, 3, 4, 4), (1, 3, 20, 20), (2, 5, 3, 100), (1, 60, 1, 2)])
@pytest.mark.parametrize("odd", [False, True])
def test_outputs_larger_than_a_block(layout, shape, odd, streams, monkeypatch):
    monkeypatch.setattr(moment_sums, "BLOCK", 50)
    output = (torch.randn(shape) * 1e-2 + 1e4).contiguous(memory_format=layout)
    if odd:
        output[0, 1, 0, 0] = torch.nan
    streams.check_moments(streams.fed(Moments(), [output, output + 1]), _columns(torch.cat([output, output + 1])))


def _columns(output):
    return output.double().transpose(0, 1).flatten(1).numpy()


@pytest.mark.parametrize("value", [0.0, 0.1, -7e30, 1e-40, 65504.0])
def test_a_constant_has_no_spread(value, streams):
    moments = streams.fed(Moments(), [torch.full((3, 2, 5, 5), value), torch.full((9, 2, 7, 3), value)])
    assert moments.std.tolist() == [0.0, 0.0]
    assert moments.mean.tolist() == moments.min.tolist() == moments.max.tolist() == [float(np.float32(value))] * 2
    assert moments.dead.tolist() == [value <= 0] * 2


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([1e30, -1e30], "huge"),
        ([3e38, -3e38], "the whole range of float32"),
        ([1e-25, 2e-25, 4e-25], "tiny"),
        ([float("nan")] * 500 + [1e4, 1e4 + 2**-9], "nothing finite where the pivot is looked for"),
        ([0.0] * 500 + [1e-12], "nothing but zeros there"),
    ],
)
def test_hard_numbers(outputs, message, streams):
    output = torch.tensor(outputs)[None, None]
    streams.check_moments(streams.fed(Moments(), [output]), output[0].double().numpy())
    parts = list(output.split(100, dim=2))
    streams.check_moments(streams.fed(Moments(), parts), output[0].double().numpy())


def test_a_leap_too_far_for_float32(monkeypatch, streams):
    """Found where looking is free; where it is not, the spread is said to be infinite, never something else."""
    parts = [torch.randn(1, 1, 90), torch.randn(1, 1, 90)]
    parts[1][0, 0, 80] = 1e30
    streams.check_moments(streams.fed(Moments(), parts), torch.cat(parts, 2)[0].double().numpy())
    streams.check_moments(
        streams.compiled(Moments(), parts, "aot_eager")[0], torch.cat(parts, 2)[0].double().numpy() * 2
    )
    for module in (moments_module, moment_sums):
        monkeypatch.setattr(module, "eager_on_cpu", lambda values: False)
    assert streams.fed(Moments(), parts).std.tolist() == [torch.inf]


def test_one_channel_where_there_is_no_axis(streams):
    streams.check_moments(
        streams.fed(Moments(), [torch.tensor(3.0), torch.tensor([5.0, -1.0])]), np.array([[3.0, 5.0, -1.0]])
    )
    tokens = torch.randn(2, 7, 3)
    streams.check_moments(streams.fed(Moments(dim=-1), [tokens]), tokens.double().numpy().reshape(-1, 3).T)
    streams.check_moments(streams.fed(Moments(dim=0), [tokens]), tokens.double().numpy().reshape(2, -1))


def test_counts_are_exact_beyond_float32(streams):
    moments = streams.fed(Moments(), [torch.zeros(1, 1, 3)])
    for _ in range(25):
        moments.merge(moments)
    moments.update(torch.tensor([[0.0], [torch.nan]]))
    assert moments.count.tolist() == [3 * 2**25 + 1]
    assert moments.zero_share.tolist() == [(3 * 2**25 + 1) / (3 * 2**25 + 2)]


@pytest.mark.parametrize(
    ("shape", "odd", "backend"),
    [
        pytest.param((4, 3, 6, 50), False, "inductor", marks=pytest.mark.slow),
        ((4, 3, 5, 5), True, "inductor"),
        ((6, 3), True, "eager"),
        ((2, 3, 5000), True, "eager"),
        ((2, 3, 2, 3, 4), False, "eager"),
    ],
)
def test_compiled_equals_eager_in_two_graphs(shape, odd, backend, streams):
    outputs = [torch.randn(shape) * 3 + i for i in range(10)]
    if odd:
        for i, value in enumerate([torch.nan, torch.inf, -torch.inf, 0.0]):
            outputs[2 * i].view(-1)[i::7] = value
    moments, graphs = streams.compiled(Moments(), outputs, backend)
    assert graphs == 2
    streams.check_moments(moments, _columns(torch.cat(outputs) * 2))
    streams.agree(moments, streams.fed(Moments(), [output * 2 for output in outputs]), rtol=1e-5, atol=1e-5)


def test_the_masked_figures_equal_the_unmasked(monkeypatch, streams):
    outputs = [torch.randn(5, 3, 9, 40).relu() for _ in range(2)]
    fast = streams.fed(Moments(), outputs)
    for module in (moments_module, moment_sums):
        monkeypatch.setattr(module, "eager_on_cpu", lambda values: False)
    streams.agree(fast, streams.fed(Moments(), outputs), rtol=1e-5, atol=1e-6)


def test_a_device_without_float64(monkeypatch, streams):
    for module in (moment_sums, reducer):
        monkeypatch.setattr(module, "wide", lambda device: torch.float32)
    outputs = [torch.randn(5, 3, 9, 4) for _ in range(3)]
    moments = streams.fed(Moments(), outputs)
    assert moments._state[0].dtype == torch.float32
    columns = _columns(torch.cat(outputs))
    assert moments.mean.numpy() == pytest.approx(columns.mean(1), abs=1e-5)
    assert moments.std.numpy() == pytest.approx(columns.std(1), rel=1e-5)


def test_what_is_refused():
    with pytest.raises(OptionError, match=r"dim must be an integer, the channel axis, got 1\.5\."):
        Moments(1.5)
    moments = Moments()
    with pytest.raises(
        LayerError, match=r"Moments\(dim=None, nothing seen yet\) has seen no output yet; run the model"
    ):
        _ = moments.mean
    with pytest.raises(DtypeError, match="statistics need a tensor, got tuple"):
        moments.update((torch.zeros(2),))
    with pytest.raises(DtypeError, match=r"dense tensors of real numbers, got torch\.complex64"):
        moments.update(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(DtypeError, match=r"got torch\.sparse_coo"):
        moments.update(torch.eye(2).to_sparse())
    with pytest.raises(ShapeError, match=r"an output of shape \(2, 2\) has no such axis"):
        Moments(3).update(torch.zeros(2, 2))
    moments.update(torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="must have the same number of channels, got 5 after 4"):
        moments.update(torch.zeros(2, 5))
    assert repr(moments) == "Moments(dim=None, 4 channels)"


@pytest.mark.parametrize(("first", "then"), [(1e-20, 1e20), (1e20, 1e-20), (1e-3, 1e6), (1.0, 3e38), (1e-30, 1e-5)])
def test_blocks_of_very_different_size(first, then):
    """The unit of the first block serves the second as long as its squares do."""
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(4, 3, 8, 8, generator=g) * size for size in (first, then)]
    moments = Moments()
    for part in parts:
        moments.update(part)
    values = torch.cat(parts).double().clamp(-3.4e38, 3.4e38).transpose(0, 1).flatten(1).numpy()
    kept = np.where(np.isfinite(torch.cat(parts).transpose(0, 1).flatten(1).numpy()), values, np.nan)
    np.testing.assert_allclose(moments.std.numpy(), np.nanstd(kept, axis=1), rtol=1e-5)
    np.testing.assert_allclose(moments.mean.numpy(), np.nanmean(kept, axis=1), rtol=1e-4, atol=1e-6 * then)


class Mixed(nn.Module):
    """Maps, maps with their channels last, and tokens."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act, self.flat = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.flat(self.act(x.flatten(1, 2)))


def test_channels_are_found_from_where_the_images_went():
    net, images = Mixed(), torch.randn(2, 3, 8, 12)
    with torch.no_grad(), capture(net, into=Moments()) as stats, capture(net) as acts:
        net(images)
        net(images)
    for name, axis in {"conv": 1, "norm": 3, "act": 2, "flat": 2}.items():
        expected = acts[name].movedim(axis, 0).flatten(1).double().mean(1)
        assert torch.allclose(stats[name].mean, expected, atol=1e-6), name


def test_a_forward_that_raised_told_nothing_of_channels():
    class Late(Mixed):
        fail = True

        def forward(self, x):
            if self.fail:
                raise ValueError
            return super().forward(x)

    net, images = Late(), torch.randn(2, 3, 8, 12)
    with torch.no_grad(), capture(net, into=Moments()) as stats, capture(net) as acts:
        with pytest.raises(ValueError, match=r"^$"):
            net(images)
        net.fail = False
        net(images)
    assert torch.allclose(stats["act"].mean, acts["act"].movedim(2, 0).flatten(1).double().mean(1), atol=1e-6)


def test_what_has_no_figures_is_named_and_stops_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.mix = nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.cfloat)
            self.lstm, self.named = nn.LSTM(3, 4), Named()

        def forward(self, x):
            y = self.mix(self.a(x).to(torch.cfloat)).abs()
            return self.named(self.lstm(y)[0])["out"]

    class Named(nn.Module):
        def forward(self, x):
            return {"out": x}

    net = Net()
    with capture(net, into=Moments()) as stats:
        net(torch.randn(5, 2, 3)).sum().backward()
    assert list(stats) == ["a", "lstm"]
    assert stats["lstm"].mean.shape == (4,)
    assert stats.not_run == []
    assert stats.left_out == {
        "mix": "statistics need dense tensors of real numbers, got torch.complex64.",
        "named": "it returned a dict",
    }
    assert "mix is left out: " in str(stats)
    with pytest.raises(LayerError, match="layer 'mix' has no statistics: statistics need dense tensors"):
        stats["mix"]
