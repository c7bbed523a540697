"""The report: histograms on one grid, a row a layer, and nothing hidden."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.capture import Histogram
from torch_featviz.errors import ShapeError
from torch_featviz.training import Bins, History, LayerFigures, Monitor, ParameterFigures, Sample
from torch_featviz.training.figures import bins_of
from torch_featviz.training.report import on_one_grid, report, weight_of


def binned(values, bins=8):
    histogram = Histogram(bins)
    histogram.update(torch.tensor(values, dtype=torch.float64))
    return bins_of([each.numpy() for each in histogram._read()])


@given(
    st.lists(
        st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
        min_size=1,
        max_size=5,
    )
)
def test_one_grid_counts_what_numpy_counts(samples):
    shares, low, high = on_one_grid([binned(values) for values in samples])
    edges = np.linspace(low, high, len(shares) + 1)
    for i, values in enumerate(samples):
        expected, _ = np.histogram(values, edges)
        np.testing.assert_allclose(shares[:, i], expected[: len(shares)] / len(values))
        np.testing.assert_allclose(shares[:, i].sum(), 1)
    assert len(shares) <= 8
    assert shares[0].any()
    assert shares[-1].any()


def test_steps_without_values_are_gaps():
    shares, low, high = on_one_grid([None, binned([1.0, 2.0]), Bins(0.0, 1.0, (0, 0))])
    assert np.isnan(shares[:, [0, 2]]).all()
    assert shares[:, 1].sum() == 1
    assert (low, high) == (1.0, 2.25)
    assert on_one_grid([None])[0].shape == (0, 1)


def sample(step, layers, weights=True):
    found = {
        name: LayerFigures(0.0, spread, -1.0, 1.0, 0.0, dead, 4, nan, 0, binned([-spread, spread]))
        for name, (spread, dead, nan) in layers.items()
    }
    parameters = {f"{name}.weight": ParameterFigures(9, 1.0, 0.5, 1e-3 * (step + 1)) for name in layers if weights}
    return Sample(step, found, parameters)


def history_of(*samples):
    history = History()
    for each in samples:
        history.append(each)
    return history


def words(picture):
    figure = picture.figure()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    return texts + [axes.get_title(loc="left") for axes in figure.axes] + [axes.get_xlabel() for axes in figure.axes]


def test_figures_are_written():
    history = history_of(
        sample(0, {"conv": (0.5, 0, 0), "fc": (3.0, 1, 0)}), sample(10, {"conv": (0.25, 3, 0), "fc": (7.0, 2, 0)})
    )
    picture = report(history, title="mine")
    said = words(picture)
    for word in ("0.25", "7", "75", "50", "0.5", "0.011", "update ÷ weight", "row: 0.1 (bottom) to 10"):
        assert word in said, word
    assert [label.get_text() for label in picture.figure().axes[0].get_yticklabels()] == ["conv", "fc"]
    assert picture.figure().texts[0].get_text() == "mine"
    assert picture.numpy().std() > 10


def marks(picture):
    return [
        line
        for axes in picture.figure().axes
        for line in axes.lines
        if line.get_marker() == "x" and len(line.get_xdata())
    ]


def test_broken_values_are_marked_where_they_were():
    layers = {"conv": (0.5, 0, 0)}
    history = history_of(sample(0, layers), sample(5, {"conv": (0.5, 0, 7)}), sample(9, layers))
    lines = marks(report(history))
    assert len(lines) == 4  # in each of the columns of lines
    assert all(list(line.get_xdata()) == [5] for line in lines)
    assert not marks(report(history_of(sample(0, layers))))


def test_lines_of_a_column_share_a_scale():
    history = history_of(*(sample(step, {"a": (0.1, 0, 0), "b": (10.0, 0, 0)}) for step in range(3)))
    axes = report(history).figure().axes[1]
    a, b = (line.get_ydata() for line in axes.lines if line.get_color() == "#1f5fa8")
    assert (0.5 - a[0]) == pytest.approx(-0.42)  # the bottom of the first row, and the top of the second
    assert (1.5 - b[0]) == pytest.approx(0.42)


def test_one_step_no_weights_and_layers_that_come_late():
    picture = report(history_of(sample(3, {"act": (1.0, 4, 0)}, weights=False)))
    assert "norm of the weight's gradient" not in words(picture)
    assert picture.numpy().ndim == 3
    late = history_of(sample(0, {"a": (1.0, 0, 0)}), sample(1, {"a": (1.0, 0, 0), "b": (2.0, 0, 0)}))
    assert [label.get_text() for label in report(late).figure().axes[0].get_yticklabels()] == ["a", "b"]


def test_of_long_names_the_end_is_shown():
    long = "encoder.layers.encoder_layer_11.mlp.linear_2"
    picture = report(history_of(sample(0, {long: (1.0, 0, 0), "": (1.0, 0, 0)})))
    first, second = (label.get_text() for label in picture.figure().axes[0].get_yticklabels())
    assert first.startswith("…")
    assert first.endswith("mlp.linear_2")
    assert second == "(model)"


def test_all_values_broken():
    empty = LayerFigures(*[np.nan] * 4, 0.0, 0, 4, 9, 0, Bins(0.0, 1.0, (0, 0)))
    picture = report(history_of(Sample(0, {"conv": empty}, {})))
    assert len(marks(picture)) == 2


def test_nothing_to_report():
    with pytest.raises(ShapeError, match="there is nothing to report"):
        report(History())
    with pytest.raises(ShapeError, match="there is nothing to report"):
        Monitor(torch.nn.Linear(2, 2)).report()


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_the_weights_gradient_is_not_the_biases(wrap):
    net = wrap(nn.Conv2d(1, 2, 3))
    watch, optimizer = Monitor(net, every=1), torch.optim.SGD(net.parameters(), 0.1)
    with watch.step():
        net(torch.ones(1, 1, 4, 4)).sum().backward()
        optimizer.step()
    name = weight_of(watch.history, "")
    assert "weight" in name
    assert watch.history[0].parameters[name].size == 18


def test_a_layer_without_a_weight_has_no_row_of_gradients():
    history = history_of(sample(0, {"conv": (1.0, 0, 0)}, weights=False))
    assert weight_of(history, "conv") is None
