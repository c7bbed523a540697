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


@pytest.mark.parametrize("n", [1, 2, 10, 30, 31, 100])
def test_readable_at_any_number_of_classes(n):
    names = [f"class number {i}" for i in range(n)]
    sheet = confusion(torch.eye(n, dtype=torch.int64) * 1000, names, title="test set")
    assert sheet.title.startswith("test set: Accuracy 100.0 %")
    page = sheet.numpy()
    assert max(page.shape[:2]) < 2500
    assert (page[:, :16] == 255).all()


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
        (torch.ones(2, 2), DtypeError, "whole numbers, got torch.float32; shares are worked out here"),
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
