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


@pytest.mark.parametrize(
    "make",
    [lambda x: x, lambda x: x[:, None], lambda x: list(x), lambda x: tuple(each[None] for each in x)],
    ids=["n h w", "n 1 h w", "list", "1 h w"],
)
def test_several_images_stand_side_by_side(make):
    images = torch.arange(4 * 2 * 3).reshape(4, 2, 3)
    sheet = pixels(make(images))
    assert sheet.heads == ("0", "1", "2", "3")
    assert (sheet.ncols, sheet.group) == (12, 3)
    assert sheet.inside[:12] == tuple(str(images[i, 0, x].item()) for i in range(4) for x in range(3))
    assert (sheet.rows, sheet.columns) == (("0", "1"), ("0", "1", "2"))
    assert (sheet.legend.scale.vmin, sheet.legend.scale.vmax) == (0, 23), "one scale for all"
    stack = pixels(make(images), ncols=3, labels=["a", "b", "c", "d"])
    assert [part.heads for part in stack.parts] == [("a", "b", "c"), ("d",)]
    assert stack.parts[1].inside[5] == str(images[3, 1, 2].item())
    assert stack.pixels.shape == (3, 7, 17)
    assert stack.figure().axes


def test_three_planes_are_one_colour_image_unless_they_are_said_to_be_several():
    planes = torch.rand(3, 4, 4)
    assert pixels(planes).heads == ()
    assert pixels(planes[:, None]).heads == pixels(list(planes)).heads == ("0", "1", "2")
    colours = pixels(torch.stack([planes, planes / 2]))
    assert colours.heads == ("0", "1")
    assert colours.inside[4] == "\n".join(f"{value:.2f}" for value in planes[:, 0, 0] / 2)


def test_too_many_images_are_bounded_and_it_is_said():
    sheet = pixels(torch.rand(600, 1, 7, 7))
    assert max(sheet.numpy().shape) <= 4000
    assert "of 600 images shown" in sheet.legend.notes[0]
    per = pixels(torch.rand(600, 1, 7, 7), scale=Scale(per="kernel"))
    assert per.legend.scale.vmax.shape[0] == int(per.legend.notes[0].split()[0])


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
            lambda: pixels(torch.ones(2, 2, 3, 3)),
            ShapeError,
            r"'h w', '1 h w' or '3 h w' and not empty, or several .* got shape \(2, 2, 3, 3\)",
        ),
        (
            lambda: pixels([torch.ones(2, 2), torch.ones(3, 2)]),
            ShapeError,
            r"must have one shape, got \(2, 2\), \(3, 2\)",
        ),
        (lambda: pixels([torch.ones(2)]), ShapeError, r"got shape 1 of \(2,\)"),
        (lambda: pixels([]), DtypeError, "or a list of tensors, got list"),
        (
            lambda: pixels(torch.ones(2, 1, 3, 3), labels=["a"]),
            ShapeError,
            "labels must have 2 entries, one per image, got 1",
        ),
        (lambda: pixels(torch.ones(2, 1, 3, 3), ncols=0), OptionError, "ncols must be at least 1, got 0"),
        (lambda: pixels(torch.ones(0, 3)), ShapeError, r"got shape \(0, 3\)"),
        (lambda: pixels([[1]]), DtypeError, "image must be a tensor, or a list of tensors, got list"),
        (lambda: pixels(torch.ones(2, 2, dtype=torch.cfloat)), DtypeError, "expected real values"),
        (lambda: pixels(torch.ones(2, 2), decimals=-1), OptionError, "decimals must be at least 0, got -1"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
