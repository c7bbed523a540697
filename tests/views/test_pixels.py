import pytest
import torch

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture import Scale
from torch_featviz.picture.sheet import _Grid
from torch_featviz.picture.text import width
from torch_featviz.views import pixels


def test_every_value_stands_in_its_cell():
    image = torch.tensor([[0, 7], [200, 255]], dtype=torch.uint8)
    sheet = pixels(image)
    assert sheet.inside == ("0", "7", "200", "255")
    assert sheet.rows == sheet.columns == ("0", "1")
    assert (sheet.legend.scale.vmin, sheet.legend.scale.vmax) == (0, 255)
    assert sheet.cells[:, 0, 0, 0].tolist() == [0, 7, 200, 255]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "0"), (-0.0, "0"), (0.125, "0.12"), (-1.5, "−1.50"),
        (12345.6, "1.23e4"), (1000.0, "1e3"), (-999.0, "−999.00"),
        (float("nan"), "NaN"), (float("inf"), "∞"), (float("-inf"), "−∞"),
    ],
)  # fmt: skip
def test_floats_are_short(value, word):
    assert pixels(torch.tensor([[value, 1.0]])).inside[0] == word


def test_decimals_integers_and_truth_values():
    assert pixels(torch.tensor([[0.125]]), decimals=3).inside == ("0.125",)
    assert pixels(torch.tensor([[-3]])).inside == ("−3",)
    assert pixels(torch.tensor([[True, False]])).inside == ("1", "0")


def test_red_green_and_blue_stand_below_each_other():
    image = torch.tensor([255, 0, 7], dtype=torch.uint8).reshape(3, 1, 1)
    sheet = pixels(image)
    assert sheet.inside == ("255\n0\n7",)
    assert sheet.cells.flatten().tolist() == [255, 0, 7]
    assert pixels(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1)).cells.flatten().tolist() == [0, 128, 255]


def test_a_symmetric_scale_has_signed_colours():
    sheet = pixels(torch.tensor([[-1.0, 0.0, 1.0]]), scale=Scale(symmetric=True))
    assert sheet.cells[1].flatten().tolist() == [247, 247, 247]
    assert sheet.legend.cmap == "RdBu_r"


@pytest.mark.parametrize("side", [1, 12, 28, 64])
def test_cells_hold_their_text(side):
    sheet = pixels(torch.randn(side, side))
    wide = max(width(word, 11) for word in sheet.inside)
    assert _Grid(sheet).cell[1] >= wide + 4
    assert sheet.numpy().shape[1] < 3000


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: pixels(torch.ones(65, 3)),
            ShapeError,
            r"at most 64 × 64 .*, got 65 × 3; crop it with image\[..., :64",
        ),
        (
            lambda: pixels(torch.ones(2, 3, 3)),
            ShapeError,
            r"'h w', '1 h w' or '3 h w' and not empty, got shape \(2, 3, 3\)",
        ),
        (lambda: pixels(torch.ones(0, 3)), ShapeError, r"got shape \(0, 3\)"),
        (lambda: pixels([[1]]), DtypeError, "image must be a tensor, got list"),
        (lambda: pixels(torch.ones(2, 2, dtype=torch.cfloat)), DtypeError, "expected real values"),
        (lambda: pixels(torch.ones(2, 2), decimals=-1), OptionError, "decimals must be at least 0, got -1"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
