from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture import enlarge, reserved
from torch_featviz.views import predictions, segments
from torch_featviz.views.segments import PALETTE

NAMES = ["sky", "road", "car"]
IMAGE = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))


def shown(sheet):
    """Share by name, in the order of the legend."""
    entries = [words.removesuffix(" %").rpartition(" ") for _, words in sheet.legend.swatches]
    return {name: float(share) for name, _, share in entries}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.integers(1, 3))
def test_each_pixel_has_the_colour_of_its_class(h, w, seed, b):
    logits = torch.randn(b, 4, h, w, generator=torch.Generator().manual_seed(seed))
    labels = np.array(
        [[[max(range(4), key=lambda k: logits[i, k, y, x]) for x in range(w)] for y in range(h)] for i in range(b)]
    )
    sheet = segments(logits, "abcd")
    zoom = sheet.cells.shape[2] // h
    assert sheet.cells.shape[2:] == (zoom * h, zoom * w)
    middle = sheet.cells[:, :, ::zoom, ::zoom].permute(0, 2, 3, 1)  # lines are at the other side of a square
    assert zoom >= 2
    for place in np.ndindex(labels.shape):
        assert tuple(middle[place].tolist()) == PALETTE[labels[place]]
    counted = Counter("abcd"[k] for k in labels.ravel())
    assert shown(sheet) == pytest.approx({name: 100 * n / labels.size for name, n in counted.items()}, abs=0.051)
    assert list(shown(sheet).values()) == sorted(shown(sheet).values(), reverse=True)
    for given_ in (
        torch.from_numpy(labels),
        torch.from_numpy(labels).to(torch.uint8),
        {"out": logits},
        {"logits": logits},
    ):
        same = segments(given_, "abcd")
        assert torch.equal(same.cells, sheet.cells)
        assert same.legend.swatches == sheet.legend.swatches


def test_black_lines_part_segments():
    labels = torch.tensor([[0, 1], [0, 0]])
    cell = segments(labels, "ab").cells[0]
    black = (cell == 0).all(0)
    zoom = cell.shape[1] // 2
    expected = torch.zeros_like(black)
    expected[:zoom, zoom - 1] = True  # left of the 1
    expected[zoom - 1, zoom:] = True  # and below it
    assert torch.equal(black, expected)


@pytest.mark.parametrize("size", [(8, 8), (24, 32), (60, 70)])
def test_labels_are_brought_to_the_image_by_the_nearest(size):
    labels = torch.randint(0, 3, size, generator=torch.Generator().manual_seed(0))
    sheet = segments(labels, NAMES, IMAGE, alpha=1)
    assert sheet.columns == ("image", "segments")
    zoom = sheet.cells.shape[2] // 24
    cell = sheet.cells[1].permute(1, 2, 0)[::zoom, ::zoom]
    for y in range(24):
        for x in range(32):
            near = int(labels[int((y + 0.5) * size[0] / 24), int((x + 0.5) * size[1] / 32)])
            assert tuple(cell[y, x].tolist()) == PALETTE[near]
    assert torch.equal(sheet.cells[0], enlarge((IMAGE * 255).round().to(torch.uint8), zoom))


def test_alpha_mixes_colours_with_grey():
    gray = torch.full((3, 4, 4), 0.5)
    sheet = segments(torch.zeros(4, 4, dtype=torch.long), NAMES, gray, alpha=0.4)
    lifted = 255 * (0.3 + 0.7 * 0.5)
    expected = tuple(round(0.4 * value + 0.6 * lifted) for value in PALETTE[0])
    assert set(map(tuple, sheet.cells[1].flatten(1).T.tolist())) == {expected}
    assert sheet.legend.swatches == ((expected, "sky 100.0 %"),), "the legend has the colour that is seen"


def test_only_classes_that_occur_are_listed_with_ignored_and_broken_pixels():
    labels = torch.tensor([[0, 0, 2, 255]])
    assert shown(segments(labels, NAMES)) == {"sky": 50, "car": 25, "no class": 25}
    assert segments(labels, NAMES).title == "Class of each pixel: 2 of 3 occur"
    assert shown(segments(labels.where(labels < 255, 9), NAMES, ignore=9)) == {"sky": 50, "car": 25, "no class": 25}
    logits = torch.tensor([[[0.0, 1]], [[1, torch.nan]]])
    sheet = segments(logits, "ab")
    assert [words for _, words in sheet.legend.marks()] == ["b 50.0 %", "1 px NaN"]
    assert sheet.legend.counts.nan == 1
    assert reserved()["nan"] in set(map(tuple, sheet.cells[0].flatten(1).T.tolist()))


def test_a_figure_has_the_same_legend():
    sheet = segments(torch.tensor([[0, 0, 2, 255]]), NAMES)
    legend = sheet.figure().axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [words for _, words in sheet.legend.swatches]
    colors = [tuple(round(255 * v) for v in patch.get_facecolor()[:3]) for patch in legend.get_patches()]
    assert colors == [color for color, _ in sheet.legend.swatches]


def test_background_keeps_the_image():
    labels = torch.tensor([[0, 1]])
    sheet = segments(labels, ["__background__", "cat"], torch.full((3, 1, 2), 0.2))
    assert sheet.cells[1, :, 0, 0].tolist() == [51] * 3
    assert "__background__ has no colour" in sheet.legend.notes
    assert segments(labels, ["background", "cat"]).cells[0, :, 0, 0].tolist() == [225] * 3
    cat = [color for color, words in segments(labels, ["background", "cat"]).legend.swatches if "cat" in words]
    assert cat == [PALETTE[0]]


def test_a_class_has_its_colour_in_every_picture_and_of_many_the_most_frequent_have_one():
    few = [segments(torch.tensor([[k]]), [str(i) for i in range(20)]).legend.swatches[0][0] for k in range(20)]
    assert tuple(few) == PALETTE
    labels = torch.cat([torch.arange(30), torch.arange(5, 28)])[None]  # 5 to 27 twice
    swatches = segments(labels, [f"class {i}" for i in range(30)]).legend.swatches
    assert [words.split(" ")[1] for _, words in swatches[:20]] == [str(k) for k in range(5, 25)]
    assert swatches[20] == ((96, 96, 96), f"10 other classes {100 * 13 / 53:.1f} %")


def test_a_single_channel_is_of_two_classes():
    logits = torch.tensor([[[-3.0, 2.0, -1.0, 0.5]]])
    for given_, answer in ((logits, None), (logits.sigmoid(), "probabilities")):
        assert shown(segments(given_, ["cat"], answer=answer)) == {"not cat": 50, "cat": 50}
        assert shown(segments(given_, ["no", "yes"], answer=answer)) == {"no": 50, "yes": 50}
    with pytest.raises(OptionError, match="logits or probabilities"):
        segments(logits.sigmoid(), ["cat"])


def test_pixels_beyond_the_images_range_are_counted():
    words = segments(torch.zeros(24, 32).long(), NAMES, IMAGE * 3).legend
    assert words.counts.over == int((IMAGE * 3 > 1).any(0).sum())
    assert "pass card=" in " ".join(words.notes)


def linear(color):
    values = np.array(color) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(values):
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]) @ values
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / [0.9505, 1, 1.0888])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado et al. 2009, severity 1.
SEEN = {
    "all": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


@pytest.mark.parametrize("eyes", SEEN)
def test_colours_are_told_apart_by_all_eyes(eyes):
    other = [(0, 0, 0), (255, 255, 255), (96, 96, 96), reserved()["nan"]]
    points = [lab(np.clip(SEEN[eyes] @ linear(color), 0, 1)) for color in (*PALETTE, *other)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(points, 2)) >= 16


@pytest.mark.parametrize(("b", "side"), [(1, 3000), (32, 200), (32, 3)])
def test_no_sheet_is_wider_or_higher_than_4000(b, side):
    names = [f"a rather long name of a class, {'x' * 300} {i}" for i in range(60)]
    sheet = segments(torch.randint(0, 60, (b, 16, 16)), names, torch.rand(b, 1, side, side))
    assert max(sheet.numpy().shape[:2]) <= 4000


def test_predictions_points_here():
    with pytest.raises(ShapeError, match=r"segments\(\) draws a class for each pixel"):
        predictions(torch.rand(1, 3, 8, 8), torch.randn(1, 3, 8, 8), NAMES)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"logits": [1]}, DtypeError, "logits must be a tensor 'n h w' .* got list"),
        ({"logits": {"aux": 1}}, DtypeError, "got NoneType"),
        ({"logits": torch.rand(3, 4, 4).to(torch.cfloat)}, DtypeError, "got torch.complex64"),
        ({"logits": torch.rand(4, 4)}, ShapeError, r"logits must be 'n h w' or 'b n h w', .* got shape \(4, 4\)"),
        ({"logits": torch.rand(33, 3, 2, 2)}, ShapeError, "with b at most 32"),
        ({"logits": torch.zeros(2, 2, 2, 2).long()}, ShapeError, "labels must be 'h w' or 'b h w'"),
        ({"logits": torch.zeros(0, 2).long()}, ShapeError, "not empty"),
        ({"logits": torch.rand(4, 2, 2)}, ShapeError, r"have 4 classes, got 3 names"),
        ({"logits": torch.tensor([[3]])}, OptionError, r"labels must be from 0 to 2, one for each name, .* got 3"),
        ({"logits": torch.tensor([[-1]])}, OptionError, "got -1"),
        ({"image": torch.rand(2, 3, 4, 4)}, ShapeError, r"one image per class map \(1\), got 2"),
        ({"image": torch.rand(2, 4, 4)}, ShapeError, "an image must be 'h w', '1 h w' or '3 h w'"),
        ({"classes": None}, DtypeError, "classes must be the names of all classes, got None"),
        ({"alpha": 2}, OptionError, "alpha must be an opacity from 0 to 1, got 2"),
        ({"value_range": "float"}, OptionError, "value_range must be one of"),
    ],
)
def test_bad_input_says_what_to_do(change, error, match):
    with pytest.raises(error, match=match):
        segments(**{"logits": torch.rand(3, 4, 4), "classes": NAMES, "image": IMAGE, **change})
