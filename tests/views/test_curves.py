import numpy as np
import pytest

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
    assert texts(axes[0]) == ["train 1", "val 2"]
    assert texts(axes[1]) == ["0.1"]


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
    ],
)
def test_bad_input_says_what_to_do(history, error, match):
    with pytest.raises(error, match=match):
        curves(history)
