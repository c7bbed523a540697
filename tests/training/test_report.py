"""The report: histograms on one grid, a row a layer, and nothing hidden."""

from dataclasses import replace
from itertools import pairwise

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
from torch_featviz.training.history import Finding
from torch_featviz.training.ordinary import ordinary
from torch_featviz.training.report import on_one_grid, report, weight_of
from torch_featviz.training.report.axis import Steps
from torch_featviz.training.report.histograms import FAR, ROWS, shown


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


def panel(picture, label):
    (axes,) = (each for each in picture.figure().axes if each.get_label() == label)
    return axes


def words(picture):
    figure = picture.figure()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    return texts + [axes.get_title(loc="left") for axes in figure.axes] + [text.get_text() for text in figure.texts]


def rows_of(picture):
    return [label.get_text() for label in panel(picture, "values returned").get_yticklabels()]


def lines(axes):
    return [line for line in axes.lines if line.get_color() == "#1f5fa8"]


def crosses(axes):
    return [line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]


def marks(picture):
    return [line for axes in picture.figure().axes for line in crosses(axes)]


SPREAD, DEAD = "spread of values (std)", "channels never above 0, %"
GRADIENT, UPDATE = "norm of the weight's gradient", "update ÷ weight"


def test_figures_are_written():
    history = history_of(
        sample(0, {"conv": (0.5, 0, 0), "fc": (3.0, 1, 0)}), sample(10, {"conv": (0.25, 3, 0), "fc": (7.0, 2, 0)})
    )
    picture = report(history, title="mine")
    said = words(picture)
    for word in ("0.25", "7", "75", "50", "0.5", "0.011", "update ÷ weight", "row: 0.1 to 10, log", "mine"):
        assert word in said, word
    assert rows_of(picture) == ["conv", "fc"]
    assert picture.numpy().std() > 10


def test_lines_are_what_the_history_says():
    steps = (0, 3, 4, 50)
    history = history_of(
        *(sample(step, {"a": (0.1 * (i + 1), i, 0), "b": (10.0, 1, 0)}) for i, step in enumerate(steps))
    )
    picture = report(history)
    for label, name, figure in (
        (SPREAD, "a", "std"),
        (GRADIENT, "a.weight", "grad_norm"),
        (UPDATE, "a.weight", "update_ratio"),
    ):
        axes = panel(picture, label)
        about = next(text.get_text() for text in axes.texts if text.get_text().startswith("row: "))
        low, high = (np.log10(float(word.replace("−", "-"))) for word in about.split(",")[0][5:].split(" to "))
        values = 10 ** (low + (0.92 - lines(axes)[0].get_ydata()) / 0.84 * (high - low))
        np.testing.assert_allclose(values, history.values(name, figure))
        assert list(lines(axes)[0].get_xdata()) == list(steps)
    shares = (0.92 - lines(panel(picture, DEAD))[0].get_ydata()) / 0.84
    np.testing.assert_allclose(shares, history.values("a", "dead") / 4, atol=1e-12)


def test_broken_values_are_marked_where_they_were():
    layers = {"conv": (0.5, 0, 0)}
    history = history_of(sample(0, layers), sample(5, {"conv": (0.5, 0, 7)}), sample(9, layers))
    found = report(history)
    for label in ("values returned", SPREAD, DEAD):
        assert [list(line.get_xdata()) for line in crosses(panel(found, label))] == [[5]]
    assert len(marks(found)) == 3  # gradients were finite
    assert not marks(report(history_of(sample(0, layers))))


def test_a_gradient_that_is_broken_is_marked_and_its_line_ends():
    history = history_of(*(sample(step, {"conv": (0.5, 0, 0)}) for step in range(5)))
    odd = replace(history[2].parameters["conv.weight"], grad_norm=np.inf, update_ratio=np.nan)
    bad = history_of(*history[:2], replace(history[2], parameters={"conv.weight": odd}), *history[3:])
    picture = report(bad)
    for label in (GRADIENT, UPDATE):
        axes = panel(picture, label)
        assert [list(line.get_xdata()) for line in crosses(axes)] == [[2]]
        assert list(np.isnan(lines(axes)[0].get_ydata())) == [False, False, True, False, False]
    assert not crosses(panel(picture, SPREAD))
    new = replace(history[0].parameters["conv.weight"], update_ratio=np.inf)  # it was 0 before
    fresh = report(history_of(replace(history[0], parameters={"conv.weight": new}), *history[1:]))
    assert not marks(fresh)
    assert list(lines(panel(fresh, UPDATE))[0].get_xdata()) == [1, 2, 3, 4]


def test_lines_of_a_column_share_a_scale():
    history = history_of(*(sample(step, {"a": (0.1, 0, 0), "b": (10.0, 0, 0)}) for step in range(3)))
    a, b = (line.get_ydata() for line in lines(panel(report(history), SPREAD)))
    assert (0.5 - a[0]) == pytest.approx(-0.42)  # the bottom of the first row, and the top of the second
    assert (1.5 - b[0]) == pytest.approx(0.42)


def test_one_step_no_weights_and_layers_that_come_late():
    picture = report(history_of(sample(3, {"act": (1.0, 4, 0)}, weights=False)))
    assert GRADIENT not in words(picture)
    assert picture.numpy().ndim == 3
    late = history_of(sample(0, {"a": (1.0, 0, 0)}), sample(1, {"a": (1.0, 0, 0), "b": (2.0, 0, 0)}))
    assert rows_of(report(late)) == ["a", "b"]
    assert [list(line.get_xdata()) for line in lines(panel(report(late), SPREAD))] == [[0, 1], [1]]


def test_columns_of_which_there_is_nothing_are_left_out():
    base = sample(0, {"a": (1.0, 0, 0), "b": (1.0, 0, 0)})
    still = replace(base, parameters={"a.weight": ParameterFigures(9, 1.0), "b.weight": ParameterFigures(9, 1.0)})
    labels = [axes.get_label() for axes in report(history_of(still)).figure().axes]
    assert labels == ["values returned", SPREAD, DEAD, "key"]
    some = replace(base, parameters={"a.weight": ParameterFigures(9, 1.0), "b.weight": base.parameters["b.weight"]})
    axes = panel(report(history_of(some)), GRADIENT)
    assert [text.get_position()[1] for text in axes.texts if text.get_text() == "–"] == [0.5]
    assert len(lines(axes)) == 1
    assert min(lines(axes)[0].get_ydata()) > 1


def test_zeros_are_said_on_a_logarithmic_scale():
    base = sample(0, {"a": (1.0, 0, 0)})
    nothing = replace(base, parameters={"a.weight": ParameterFigures(9, 1.0, 0.0, 0.0)})
    assert words(report(history_of(nothing))).count("all are 0") == 2
    assert "row: 0, 0.1 to 1, log" in words(report(history_of(nothing, replace(base, step=1))))


def test_of_long_names_the_end_is_shown():
    long = "encoder.layers.encoder_layer_11.mlp.linear_2"
    picture = report(history_of(sample(0, {long: (1.0, 0, 0), "": (1.0, 0, 0)})))
    first, second = rows_of(picture)
    assert first.startswith("…")
    assert first.endswith("mlp.linear_2")
    assert second == "(model)"


def test_all_values_broken():
    empty = LayerFigures(*[np.nan] * 4, 0.0, 0, 4, 9, 0, Bins(0.0, 1.0, (0, 0)))
    picture = report(history_of(Sample(0, {"conv": empty}, {})))
    assert len(marks(picture)) == 3
    assert words(picture).count("no finite value") == 2
    assert not [line for axes in picture.figure().axes for line in lines(axes)]
    assert "key" not in [axes.get_label() for axes in picture.figure().axes]  # no histogram has colours


def scalars(*values, step=10):
    return history_of(*(Sample(step * i, {}, {}, each) for i, each in enumerate(values)))


def test_scalars_stand_on_top_in_their_order():
    names = ("accuracy", "gradient_norm", "learning_rate/1", "loss", "learning_rate/0")
    history = scalars(dict.fromkeys(names, 1.0), dict.fromkeys(names, 2.0), {"loss": 0.5})
    picture = report(history, title="only scalars")
    axes = picture.figure().axes
    panels = {**dict.fromkeys(names, (1.0, 2.0)), "loss": (0.5, 2.0)}
    assert [each.get_label() for each in axes] == ["loss", "learning_rate", "gradient_norm", "accuracy"]
    assert axes[1].get_title(loc="left") == "learning_rate (2 groups)"
    for each in axes:
        for line, name in zip(lines(each), [name for name in history.scalars if each.get_label() in name], strict=True):
            known = [value for value in history.line(name) if value is not None]
            low, high = panels[name]
            np.testing.assert_allclose(low + line.get_ydata() * (high - low) if low < high else low, known)
            assert list(line.get_xdata()) == [0, 10, 20][: len(known)]
    assert [text.get_text() for text in axes[0].texts] == ["2", "0.5", "0.5"]


def test_scalars_with_layers_share_the_axis_of_steps():
    layered = [replace(sample(step, {"a": (1.0, 0, 0)}), scalars={"loss": 1.0 + step}) for step in (0, 7, 300)]
    axes = [each for each in report(history_of(*layered)).figure().axes if each.get_label() != "key"]
    assert axes[-1].get_label() == "loss"
    assert len({each.get_xlim() for each in axes}) == 1
    assert len({tuple(each.get_xticks()) for each in axes}) == 1


def test_a_scalar_is_logarithmic_where_that_helps():
    title = lambda *values: (
        report(scalars(*({"loss": value} for value in values))).figure().axes[0].get_title(loc="left")
    )
    assert title(1.0, 31.0) == "loss, log"
    assert title(1.0, 29.0) == "loss"
    assert title(0.0, 1.0, 100.0) == "loss"
    assert title(-1.0, 100.0) == "loss"
    assert title(np.nan) == "loss"
    axes = report(scalars({"loss": 1.0}, {"loss": 10.0}, {"loss": 100.0})).figure().axes[0]
    np.testing.assert_allclose(lines(axes)[0].get_ydata(), [0, 0.5, 1])


def test_scalars_that_are_not_finite_are_marked():
    picture = report(scalars(*({"loss": value} for value in (1.0, np.inf, 2.0, 3.0, np.nan))))
    (axes,) = picture.figure().axes
    assert [list(line.get_xdata()) for line in crosses(axes)] == [[10, 40]]
    np.testing.assert_array_equal(lines(axes)[0].get_ydata(), [0, np.nan, 0.5, 1, np.nan])
    assert "NaN" in words(picture)
    assert "−∞" in words(report(scalars({"loss": -np.inf})))
    assert report(scalars({"loss": 1e308}, {"loss": 1e-308})).numpy().ndim == 3
    assert report(scalars({"loss": 1e300}, {"loss": -1e300}, {"loss": -1.7e308})).numpy().ndim == 3


def test_of_many_scalars_the_first_are_shown():
    picture = report(scalars({f"metric {i}": 1.0 for i in range(20)}))
    assert len(picture.figure().axes) == 6
    assert any(word.startswith("and 14 more in history.scalars: metric 6, metric 7") for word in words(picture))


def flags(axes):
    return {text.get_text(): text.xy[0] for text in axes.texts if text.get_gid() == "flag"}


def ticks(axes):
    found = [line for line in axes.lines if line.get_gid() == "finding"]
    return {(float(line.get_xdata()[0]), int(min(line.get_ydata()))) for line in found}


def test_findings_are_marked_at_their_step():
    layers = {"conv": (0.5, 0, 0), "conv.1": (1.0, 0, 0), "fc": (3.0, 1, 0)}
    history = history_of(
        *(replace(sample(step, layers), scalars={"loss": 1.0, "f1": 2.0}) for step in range(0, 100, 10))
    )
    found = [
        Finding(20, "dead", ("conv.1.weight",), "first"),
        Finding(60, "vanishing", ("conv", "fc.bias"), "second"),
        Finding(80, "loss", ("loss", "f1"), "third"),
        Finding(82, "inputs", ("inputs",), "fourth"),
    ]
    picture = report(history, found)
    rows = panel(picture, "values returned")
    assert ticks(rows) == {(20.0, 1), (60.0, 0), (60.0, 2)}
    assert flags(rows) == {"1": 20, "2": 60}
    for label in (SPREAD, DEAD, GRADIENT, UPDATE):
        assert ticks(panel(picture, label)) == ticks(rows)
    assert flags(panel(picture, "loss")) == {"1": 20, "2": 60, "3, 4": 80}
    assert flags(panel(picture, "f1")) == {"3": 80}
    said = [text.get_text() for text in picture.figure().texts]
    assert said[said.index("Step 20: first") - 1] == "1"
    assert said[-1] == "Step 82: fourth"
    bare = history_of(*(replace(each, scalars={}) for each in history))
    assert {"1", "2", "3, 4"} <= set(flags(panel(report(bare, found), "values returned")))


def test_a_model_that_is_one_layer_has_its_findings_in_its_row():
    history = history_of(*(sample(step, {"": (1.0, 0, 0)}) for step in range(3)))
    found = [Finding(i, "dead", (name,), "said") for i, name in enumerate(("weight", "inputs", "loss"))]
    assert ticks(panel(report(history, found), "values returned")) == {(0.0, 0)}


def test_of_many_findings_the_first_are_listed_and_marked():
    history = scalars(*({"loss": 1.0} for _ in range(30)))
    found = [Finding(10 * i, "loss", ("loss",), f"number {i} costs $1 or $2. " * 20) for i in range(20)]
    picture = report(history, found)
    assert "... and 9 more in Monitor.findings" in words(picture)
    assert "20 findings, each at its step" in words(picture)
    assert len(ticks(picture.figure().axes[0])) == 11
    assert picture.png() == report(history, found).png()


def test_cells_do_not_reach_into_steps_that_nobody_looked_at():
    steps = Steps.of([0, 10, 20, 30, 500, 510])
    edges, samples = steps.cells()
    assert edges.tolist() == [-5, 5, 15, 25, 40, 490, 505, 515]
    assert samples == [0, 1, 2, 3, -1, 4, 5]
    assert Steps.of([7]).limits == (6.5, 7.5)
    history = history_of(*(sample(step, {"a": (1.0, 0, 0)}) for step in (0, 10, 20, 30, 500, 510)))
    (mesh,) = (
        each for each in panel(report(history), "values returned").collections if hasattr(each, "get_coordinates")
    )
    cells = np.ma.filled(mesh.get_array().astype(float), np.nan)
    assert np.isnan(cells[:, 4]).all()
    np.testing.assert_allclose(np.nansum(cells, axis=0), [1, 1, 1, 1, 0, 1, 1])


def test_large_steps_are_written_short():
    axes = report(scalars(*({"loss": 1.0} for _ in range(4)), step=500_000)).figure().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "500k", "1M", "1.5M"]


@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=20), min_size=3, max_size=5), st.floats(1e3, 1e30))
def test_a_blow_up_leaves_room_for_the_other_steps(calm, far):
    steps = [*([0.5, *values] for values in calm), [far, -far]]
    bins = [binned(values) for values in steps]
    found = shown(bins)
    assert found.plain is not None
    usual = ordinary(max(abs(b.start + i * b.width) for i in (0, len(b.counts))) for b in bins[:-1])
    assert found.high <= FAR * 2 * usual
    assert len(found.shares) == ROWS
    np.testing.assert_allclose(np.nansum(found.shares[:, :-1], axis=0), 1)
    for i, values in enumerate(steps[:-1]):  # every value is in a row that is drawn
        for value in values:
            row = min(int(found.place(value) * ROWS), ROWS - 1)
            assert found.shares[max(row - 1, 0) : row + 2, i].max() > 0
    assert found.place(0.5) - found.place(0.0) > 0.05
    if far > FAR * 4:
        assert found.above == found.below == (len(steps) - 1,)


def test_what_is_beyond_a_row_is_said():
    layers = [{"a": (1.0, 0, 0)}] * 5
    calm = [sample(i, each) for i, each in enumerate(layers)]
    wild = LayerFigures(0.0, 1e30, -2e30, 2e30, 0.0, 0, 4, 0, 0, binned([-2e30, 2e30]))
    picture = report(history_of(*calm, Sample(5, {"a": wild}, {})))
    said = words(picture)
    assert any(word.endswith(" ▲2e30") for word in said)
    assert any(word.endswith(" ▼−2e30") for word in said)
    assert {"log", "▲▼  values beyond the row", "a histogram a step, its range beside it; log: linear near 0"} <= set(
        said
    )
    rows = panel(picture, "values returned")
    assert [list(line.get_xdata()) for line in rows.lines if line.get_marker() in ("^", "v")] == [[5], [5]]
    assert "log" not in words(report(history_of(*calm)))


def test_growth_is_drawn_on_a_plain_axis():
    assert shown([binned([-size, size]) for size in (1.0, 2.0, 5.0, 9.0)]).plain is None
    assert shown([None]).shares.size == 0


def test_names_are_plain_words():
    found = [Finding(0, "loss", ("cost_$a$",), "costs $1$")]
    layered = replace(sample(0, {"$x_1$": (1.0, 0, 0)}), scalars={"cost_$a$": 1.0})
    picture = report(history_of(layered), found, title="for $2 or $3")
    assert picture.numpy().ndim == 3
    assert {"cost_$a$", "for $2 or $3"} <= set(words(picture))


@pytest.mark.parametrize("layers", [3, 30, 107])
def test_nothing_is_clipped(layers):
    names = [f"stage{i // 9}.block{i % 9}.convolution_with_a_long_name" for i in range(layers)]
    samples = [sample(step, dict.fromkeys(names, (1e-7 * (step + 1), 1, 0))) for step in range(3)]
    history = history_of(*(replace(each, scalars={"loss": 1.0, "learning_rate": 1e-5}) for each in samples))
    found = [Finding(2, "dead", tuple(names), "All are dead. " * 40)]
    page = report(history, found, title="a title of many words " * 5)
    pixels = page.numpy()
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()
    assert len(page.png()) < 1_500_000
    figure, canvas = page.figure(), page.figure().canvas
    boxes = [label.get_window_extent() for label in panel(page, "values returned").get_yticklabels()]
    assert all(box.x0 >= 0 for box in boxes)
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert all(above[0] >= below[1] - 4 for below, above in pairwise(tops))
    assert canvas is not None
    assert figure.get_figheight() < 32


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
