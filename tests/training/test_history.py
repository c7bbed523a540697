"""Samples over a run, thinned and not cut off."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.errors import LayerError, OptionError
from torch_featviz.training import Bins, History, LayerFigures, ParameterFigures, Sample
from torch_featviz.views import curves


def sample(step, **layers):
    bins = Bins(0.0, 1.0, (1, 2))
    found = {name: LayerFigures(mean, 1.0, 0.0, 1.0, 0.5, 0, 4, 0, 0, bins) for name, mean in layers.items()}
    return Sample(step, found, {"conv.weight": ParameterFigures(9, step + 0.5)})


@given(st.integers(2, 9), st.integers(0, 300))
def test_all_of_the_run_evenly_and_the_latest(keep, n):
    history = History(keep)
    for step in range(n):
        history.append(sample(step))
        assert len(history) <= keep
    steps = history.steps
    assert steps == sorted(set(steps))
    if n:
        assert steps[0] == 0
        assert steps[-1] == n - 1
        assert len(steps) >= min(n, keep) / 2
        gaps = np.diff(steps)
        assert len(set(gaps[:-1])) <= 1
        assert all(gaps[-1:] <= (gaps[0] if len(gaps) else 0))
        assert math.log2(gaps[0]).is_integer() if len(gaps) > 1 else True


def test_values_by_name():
    history = History()
    history.append(sample(0, conv=2.0))
    history.append(sample(7))
    history.append(sample(9, conv=4.0, late=1.0))
    np.testing.assert_array_equal(history.values("conv", "mean"), [2.0, np.nan, 4.0])
    np.testing.assert_array_equal(history.values("late", "dead"), [np.nan, np.nan, 0.0])
    np.testing.assert_array_equal(history.values("conv.weight", "norm"), [0.5, 7.5, 9.5])
    assert np.isnan(history.values("conv.weight", "grad_norm")).all()
    assert history.steps == [0, 7, 9]
    assert repr(history) == "History(3 samples, steps 0 to 9)"
    assert history[1].step == 7
    assert [each.step for each in history[1:]] == [7, 9]


def test_what_there_was_not_is_no_nan():
    history = History()
    for step, mean in ((0, 2.0), (5, None), (9, float("nan"))):
        history.append(sample(step) if mean is None else sample(step, conv=mean))
    assert str(history.line("conv", "mean")) == "[2.0, None, nan]"
    assert history.line("conv.weight", "grad_norm") == [None] * 3
    lines = {"mean": history.line("conv", "mean"), "gradient": history.line("conv.weight", "grad_norm")}
    (axes,) = curves({"conv": lines}).figure().axes
    assert [words.get_text() for words in axes.texts] == ["mean NaN"]


def test_what_is_not_there():
    with pytest.raises(LayerError, match="no figures of 'conv' were recorded; recorded: no samples yet"):
        History().values("conv", "mean")
    assert repr(History()) == "History(no samples yet)"
    history = History()
    history.append(sample(0, conv=2.0))
    with pytest.raises(LayerError, match=r"no figures of 'fc' were recorded; recorded: conv, conv\.weight"):
        history.values("fc", "mean")
    for name in ("median", "histogram", "__class__"):
        with pytest.raises(OptionError, match=f"LayerFigures has no figure '{name}'; choose one of mean, std, min"):
            history.values("conv", name)
    with pytest.raises(OptionError, match="keep must be an integer of at least 2, got 1"):
        History(1)
