import matplotlib
import numpy as np
import pytest
import torch

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture import colorize
from torch_featviz.views import confusion


def test_counts_in_cells_shares_as_colours_accuracy_above():
    counts = np.array([[8, 2], [1, 3]])
    sheet = confusion(torch.from_numpy(counts), ["circle", "cross"])
    assert sheet.title == "Accuracy 78.6 % (11 of 14)"
    assert sheet.inside == ("8", "2", "1", "3")
    assert sheet.rows == sheet.columns == ("circle", "cross")
    shares = torch.from_numpy(counts / counts.sum(1, keepdims=True)).reshape(4, 1, 1, 1)
    assert sheet.cells.equal(colorize(shares))


@pytest.mark.parametrize("n", [1, 2, 10, 30, 31, 100, 2001])
def test_readable_at_any_number_of_classes(n):
    names = [f"class number {i}" for i in range(n)]
    sheet = confusion(torch.eye(n, dtype=torch.int64) * 1000, names, title="test set")
    assert sheet.title.startswith("test set: Accuracy 100.0 %")
    page = sheet.numpy()
    assert max(page.shape[:2]) < 2500
    assert (page[:, :16] == 255).all()


def many(n=40):
    counts = torch.diag(torch.full((n,), 10))
    counts[3, 5], counts[5, 3], counts[7, 7], counts[7, 8] = 6, 9, 0, 6
    counts[0, 1:31] = 1
    counts[9] = 0
    return counts, [f"class {i}" for i in range(n)]


def test_of_many_classes_the_matrix_is_an_image_and_the_most_confused_pairs_are_named():
    counts, names = many()
    page = confusion(counts, names)
    matrix, pairs = page.rows[0]
    right, total = int(counts.diagonal().sum()), int(counts.sum())
    assert page.title == f"Accuracy {100 * right / total:.1f} % ({right} of {total})"
    assert pairs.rows[:4] == ("class 5 → class 3", "class 3 → class 5", "class 7 → class 8", "class 0 → class 1")
    assert pairs.inside[:6] == ("9", "47 %", "6", "38 %", "6", "100 %")
    assert len(pairs.rows) == 20
    assert "13 more examples in 13 other pairs" in pairs.legend.notes
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    expected = colorize(shares[None, None])[0]
    expected[:, 9] = 255  # no example
    assert matrix.cells[0].equal(expected)
    assert "no example of: class 9" in matrix.legend.notes


def test_no_class_taken_for_another_is_said():
    page = confusion(torch.eye(31, dtype=torch.int64), many(31)[1])
    assert page.rows[0][1].title == "No class was confused with another"
    assert page.figure().axes[0].images[0].get_array().shape == page.numpy().shape


def test_a_pixel_may_stand_for_several_classes():
    n = 2001
    counts = torch.zeros(n, n, dtype=torch.int64)
    counts[0, 0], counts[1, 1], counts[1, 2], counts[2000, 2000] = 1, 2, 1, 5
    matrix = confusion(counts, [str(i) for i in range(n)]).rows[0][0]
    assert matrix.cells.shape == (1, 3, 1001, 1001)
    assert matrix.cells[0, :, 0, :2].equal(colorize(torch.tensor([[[[0.75, 0.25]]]]))[0, :, 0])
    assert "a pixel is 2 × 2 classes" in matrix.legend.notes
    assert (matrix.cells[0, :, 1] == 255).all(), "no example"


def test_a_class_without_examples_is_bare_and_named():
    sheet = confusion([[2, 1], [0, 0]], ["a", "b"])
    assert sheet.empty == {2, 3}
    assert "no example of: b" in sheet.legend.notes
    assert confusion([[0]], ["a"]).title == "No example counted"


@pytest.mark.parametrize(
    ("counts", "error", "match"),
    [
        (torch.ones(2, 3).long(), ShapeError, r"'n n' for 2 classes, got shape \(2, 3\)"),
        (torch.ones(3, 3).long(), ShapeError, r"got shape \(3, 3\)"),
        (torch.ones(2, 2), DtypeError, "whole numbers, got torch.float32; pass counts, not shares"),
        ([[1, -1], [0, 1]], OptionError, "counts must be at least 0, got -1"),
    ],
)
def test_bad_input_says_what_to_do(counts, error, match):
    with pytest.raises(error, match=match):
        confusion(counts, ["a", "b"])


def test_the_colour_map_is_ones_own_choice():
    table = matplotlib.colormaps["Blues"].resampled(256)([0.0, 1.0], bytes=True)[:, :3].tolist()
    cells = confusion([[4, 0], [0, 4]], ["a", "b"], cmap="Blues").cells[..., 0, 0].tolist()
    assert cells == [table[1], table[0], table[0], table[1]]
    with pytest.raises(OptionError, match="needs a sequential map, got 'RdBu'"):
        confusion([[4, 0], [0, 4]], ["a", "b"], cmap="RdBu")
