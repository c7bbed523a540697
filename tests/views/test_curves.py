import re

import numpy as np
import pytest
import torch

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.views import curves

NESTED = {"loss": {"train": [2.0, 1.0], "valid": [2.1, 1.05]}, "accuracy": {"train": [0.5, 0.75]}}


def texts(axes):
    return sorted(t.get_text() for t in axes.texts)


def test_a_panel_each_with_its_lines_and_last_values():
    loss, accuracy = curves(NESTED, title="XO").figure().axes
    assert [a.get_title(loc="left") for a in (loss, accuracy)] == ["loss", "accuracy"]
    assert texts(loss) == ["train 1", "valid 1.05"]
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), [2.1, 1.05])
    np.testing.assert_array_equal(loss.lines[1].get_xdata(), [1, 2])
    assert len({(line.get_linestyle(), line.get_marker()) for line in loss.lines}) == 2, "not by colour alone"


def test_flat_names_are_brought_together():
    axes = curves({"train_loss": [1.0], "val_loss": [2.0], "learning_rate": [0.1]}).figure().axes
    assert [a.get_title(loc="left") for a in axes] == ["loss", "learning_rate"]
    assert texts(axes[0]) == ["train 1", "valid 2"]
    assert texts(axes[1]) == ["0.1"]


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ("train_loss", "valid_loss"),
        ("train/loss", "val/loss"),
        ("training_loss", "validation_loss"),
        ("loss", "val_loss"),
        ("Train loss", "Valid loss"),
        ("loss/train", "loss/validation"),
        ("loss.training", "loss.val"),
    ],
)
def test_what_others_call_their_lines_is_brought_together(train, valid):
    (axes,) = curves({valid: [2.0, 1.5], train: [2.0, 1.0]}).figure().axes
    assert axes.get_title(loc="left") == "loss"
    assert texts(axes) == ["train 1", "valid 1.5"]


def test_names_that_say_nothing_of_data_stay_as_they_are():
    history = {"train_loss_epoch": [1.0], "val_acc": [0.5], "lr": [0.1], "contest_score": [3.0], "valid": [1.0]}
    titles = [a.get_title(loc="left") for a in curves(history).figure().axes]
    assert titles == ["loss_epoch", "acc", "lr", "contest_score", "valid"]
    twice = curves({"val_loss": [1.0], "valid_loss": [2.0]}).figure().axes[0]
    assert texts(twice) == ["valid 1", "valid_loss 2"]
    assert texts(curves({"loss": [1.0], "test_loss": [2.0]}).figure().axes[0]) == ["test 2", "train 1"]


@pytest.mark.parametrize("line", [[3, 2, 1], (3.0, 2.0, 1.0), np.array([3.0, 2.0, 1.0]), torch.tensor([3.0, 2, 1])])
def test_one_line_needs_no_name(line):
    (axes,) = curves(line).figure().axes
    assert axes.get_title(loc="left") == ""
    assert texts(axes) == ["1"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [3, 2, 1])


def test_values_stand_where_x_says_and_the_axis_has_its_name():
    p = np.linspace(0.01, 0.99, 99)
    history = {"loss": {"cross entropy": -np.log(1 - p), "MSE": [*p[:-1] ** 2, None]}}
    axes = curves(history, x=p, xlabel="p").figure().axes[0]
    assert axes.get_xlabel() == "p"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), p)
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), p[:-1])
    assert curves(history, x=p).figure().axes[0].get_xlabel() == ""
    assert curves(history, xlabel="iteration").figure().axes[0].get_xlabel() == "iteration"
    assert curves(history).figure().axes[0].get_xlabel() == "epoch"


@pytest.mark.parametrize(("panels", "shown", "columns"), [(3, 3, 3), (5, 5, 4), (50, 40, 4)])
def test_many_panels_stand_in_rows(panels, shown, columns):
    figure = curves({f"layer {i}": [1.0] for i in range(panels)}).figure()
    assert len(figure.axes) == shown
    assert len({round(a.get_subplotspec().colspan.start) for a in figure.axes}) == columns
    assert (figure.get_supxlabel() == f"{shown} of {panels} panels") == (shown < panels)


def test_of_many_lines_some_are_named_and_all_are_drawn():
    lines = {f"a long name of the layer number {i}": [float(i)] * 2 for i in range(40)}
    axes = curves({"std": lines}).figure().axes[0]
    assert len(axes.lines) == 40
    assert len(axes.texts) == 11
    assert all(0 <= t.xy[1] <= 1 for t in axes.texts)
    assert re.fullmatch(r"a long.*….* 0", axes.texts[0].get_text())
    assert axes.get_title(loc="right") == "29 more lines in grey"


@pytest.mark.parametrize("n", [1, 2, 300])
def test_any_number_of_epochs_and_the_same_bytes(n):
    history = {"loss": {"train": list(np.linspace(2, 1, n)), "valid": list(np.linspace(2, 1.001, n))}}
    assert curves(history).png() == curves(history).png()
    labels = curves(history).figure().axes[0].texts
    assert abs(labels[0].xy[1] - labels[1].xy[1]) >= 0.08, "labels do not touch"
    assert all(0 <= t.xy[1] <= 1 for t in labels)


@pytest.mark.parametrize("values", [[1.0, float("nan")], [float("nan")], [1.0, float("inf")], [float("-inf")] * 30])
def test_training_that_failed_is_drawn_and_named(values):
    picture = curves({"loss": values})
    assert texts(picture.figure().axes[0])[0] in ("NaN", "∞", "−∞")
    assert picture.png()


def test_a_validation_that_was_not_is_no_line():
    axes = curves({"train_loss": [2.0, 1.0], "valid_loss": (), "valid_f1": [None, None]}).figure().axes
    assert [texts(a) for a in axes] == [["train 1"]]
    failed = curves({"train_loss": [2.0, 1.0], "valid_loss": [2.0, float("nan")]}).figure().axes[0]
    assert texts(failed) == ["train 1", "valid NaN"], "a validation that failed is one"


def test_a_validation_now_and_then_is_drawn_where_it_was():
    loss = {"train": [4.0, 3.0, 2.0, 1.0], "valid": [None, 3.5, None, None], "test": [None, 5.0, None, 2.5]}
    axes = curves({"loss": loss}).figure().axes[0]
    assert texts(axes) == ["test 2.5", "train 1", "valid 3.5"]
    drawn = {tuple(line.get_xdata()): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {(1, 2, 3, 4): loss["train"], (2,): [3.5], (2, 4): [5.0, 2.5]}


def test_curves_need_no_pyplot(forks):
    code = (
        "import sys; from torch_featviz.views import curves;"
        "curves({'loss': [1.0]}).png(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = forks.run(code, warn="error")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("history", "error", "match"),
    [
        ({}, ShapeError, "history must hold at least one line, got none"),
        ({"loss": []}, ShapeError, "'loss' must have one length of at least 1, got {'loss': 0}"),
        ({"loss": {"train": [1], "valid": [1, 2]}}, ShapeError, "got {'train': 1, 'valid': 2}"),
        ({"loss": [None]}, ShapeError, "'loss' must have one length of at least 1, got {'loss': 1}"),
        ({"loss": {}}, ShapeError, "the lines of 'loss'"),
        ({"loss": ["high"]}, OptionError, r"'loss' must be a sequence of numbers, got \['high'\]"),
        ({"loss": 3.0}, OptionError, "got 3.0"),
        (3.0, OptionError, "history must be a sequence of numbers, got 3.0"),
        ([{"loss": 1.0}], OptionError, r"history must be a sequence of numbers, got \[{'loss': 1.0}\]"),
        ([], ShapeError, "must have one length of at least 1"),
    ],
)
def test_bad_input_says_what_to_do(history, error, match):
    with pytest.raises(error, match=match):
        curves(history)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([1], ShapeError, "x must be as long as the lines, got 1 for 2 of 'loss'"),
        ([1, None], OptionError, r"x must hold finite numbers, got \[1, None\]"),
        ([1, float("nan")], OptionError, "x must hold finite numbers"),
        ("ab", OptionError, "'x' must be a sequence of numbers, got 'ab'"),
    ],
)
def test_bad_places_say_what_to_do(x, error, match):
    with pytest.raises(error, match=match):
        curves({"loss": [2.0, 1.0]}, x=x)
