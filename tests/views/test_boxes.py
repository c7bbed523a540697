"""Boxes as they are drawn: a row for each image and method, an outline where the box is, names and scores."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import Attribution, attribute
from torch_featviz.picture.color import Counts
from torch_featviz.views.boxes import _check_named, boxes_sheet, outlined


class Fixed(nn.Module):
    """Answers with so many boxes; the second image has one fewer."""

    def __init__(self, boxes=2):
        super().__init__()
        self.conv, self.boxes = nn.Conv2d(3, 4, 3, 1, 1), boxes

    def forward(self, x):
        maps = self.conv(x)
        scores = (maps.mean((2, 3))[0] - torch.arange(4)).sigmoid()[: self.boxes - int(x.mean() > 0.6)]
        corners = torch.tensor([[2.0, 3, 10, 12], [0, 0, 20, 16], [4, 4, 6, 6], [1, 1, 3, 3]])[: len(scores)]
        return [
            {
                "boxes": corners + 0 * scores[:, None],
                "labels": torch.tensor([1, 2, 0, 7])[: len(scores)],
                "scores": scores,
            }
        ]


IMAGES = (
    torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 0.3
    + torch.tensor([0.1, 0.65])[:, None, None, None]
)


def test_a_row_for_each_image_and_method():
    picture = fv.attributions(Fixed(), IMAGES, methods=["layercam", "saliency"], classes=["sky", "cat", "dog"])
    why = attribute(Fixed().requires_grad_(False), IMAGES)
    assert why.boxes.images.tolist() == [0, 0, 1]
    labels = [picture.labels[row * 3 : row * 3 + 3] for row in range(4)]
    assert [row[0] for row in labels] == [
        "layercam: 2 boxes",
        "saliency: 2 boxes",
        "layercam: 1 box",
        "saliency: 1 box",
    ]
    for row, names in zip(labels, (["cat", "dog"], ["cat", "dog"], ["cat"], ["cat"]), strict=True):
        assert [label.split()[0] for label in row[1:] if label] == names
        assert all(label.endswith(" %") for label in row[1:] if label)
    assert picture.empty == {8, 11}
    assert "layercam looks at layer conv" in picture.legend.notes
    assert "explained: each box's own class logit, before suppression" in picture.legend.notes


def test_below_each_box_is_its_area_and_the_share_of_red_within():
    net = Fixed().eval()
    picture = fv.attributions(net, IMAGES, methods=["saliency"])
    why = attribute(net, IMAGES, method="saliency")
    said = []
    for heat, (left, top, right, bottom) in zip(why.heatmaps, why.boxes.xyxy.round().long().tolist(), strict=True):
        red, area = heat.clamp(min=0), (right - left) * (bottom - top) / heat.numel()
        share = float(red[top:bottom, left:right].sum() / red.sum())
        said.append(f"{100 * share:.0f} % within\n{100 * area:.1f} % of pixels")
    assert picture.captions == ("", *said[:2], "", said[2], "")
    said = "within: share of the red that lies in the box; below it the share of the image's pixels that the box covers"
    assert said in picture.legend.notes


def test_classes_without_names_are_numbered():
    picture = fv.attributions(Fixed(4), IMAGES[:1])
    assert [label.rpartition(" ")[0].rpartition(" ")[0] for label in picture.labels[1:]] == [
        "class 1",
        "class 2",
        "class 0",
        "class 7",
    ]
    assert len(fv.attributions(Fixed(4), IMAGES[:1], top=3).labels) == 4


def test_names_of_a_configuration_and_of_a_card():
    net = Fixed(1)
    net.config = type("Config", (), {"id2label": {0: "sky", 1: "cat"}})()
    assert fv.attributions(net, IMAGES[:1]).labels[1].startswith("cat ")
    card = fv.ModelCard("fixed", lambda: net, (3, 0, 0), classes=("no", "horse"))
    assert fv.attributions(net, IMAGES[:1], card=card).labels[1].startswith("horse ")


def test_a_row_for_each_class_asked_for():
    names = ["sky", "cat", "dog"]
    picture = fv.attributions(Fixed(), IMAGES, targets=["dog", 1], classes=names)
    rows = [picture.labels[row * 2 : row * 2 + 2] for row in range(4)]
    assert [row[0] for row in rows] == [
        "layercam: 1 box of dog",
        "layercam: 1 box of cat",
        "layercam: no box of dog found",
        "layercam: 1 box of cat",
    ]
    assert [row[1].split(" ")[0] for row in rows] == ["dog", "cat", "", "cat"]
    assert picture.legend.notes.count("layercam looks at layer conv") == 1
    assert fv.attributions(Fixed(), IMAGES[:1], targets=1).labels[0] == "layercam: 1 box of class 1"
    with pytest.raises(OptionError, match="'dog' is a name: tell the names of all classes"):
        fv.attributions(Fixed(), IMAGES, targets="dog")


def test_the_legend_says_that_each_box_has_a_range_of_its_own():
    lines = fv.attributions(Fixed(), IMAGES).legend.lines()
    assert lines[0].startswith("symmetric about 0; ±1 is each box's own range, which holds 99.5 % of the values")
    assert not any("one scale" in line for line in lines)


def test_an_image_without_boxes_says_so():
    picture = fv.attributions(Fixed(0), IMAGES[:1])
    assert picture.title == "No boxes found"
    assert picture.labels == ("layercam: no box found",)
    assert picture.legend.scale is None
    assert "no box found" in fv.attributions(Fixed(1), IMAGES).labels[2]


def test_the_outline_is_on_the_edge_of_the_box():
    cell = torch.full((3, 12, 14), 100, dtype=torch.uint8)
    drawn = outlined(cell, torch.tensor([[3.0, 4.0, 9.0, 8.0]]))
    for y in range(12):
        for x in range(14):
            light = 3 <= x <= 8 and 4 <= y <= 7 and (x in (3, 8) or y in (4, 7))
            dark = 2 <= x <= 9 and 3 <= y <= 8 and (x in (2, 9) or y in (3, 8))
            assert drawn[:, y, x].tolist() == [255 if light else 0 if dark else 100] * 3
    assert bool((cell == 100).all())
    outlined(cell, torch.tensor([[-5.0, -5.0, 40.0, 40.0]]))  # beyond the image


def test_top_is_of_boxes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(960, 2))
    with pytest.raises(OptionError, match="top is how many boxes of a detector are drawn; for classes pass targets"):
        fv.attributions(net, IMAGES, top=3)


def test_heatmaps_of_no_boxes_are_refused():
    why = Attribution(torch.zeros(1, 1, 16, 20), torch.zeros(1, 16, 20), None, "gradcam")
    with pytest.raises(ShapeError, match="the heatmaps of gradcam are of no boxes"):
        boxes_sheet(IMAGES[:1], [why], (), (Counts(), ()), "")


def test_a_box_whose_class_has_no_name_is_refused():
    why = SimpleNamespace(boxes=SimpleNamespace(classes=torch.tensor([1, 2])))
    _check_named([why], ["background", "cat", "dog"])
    _check_named([why], [])
    with pytest.raises(ShapeError, match="a box has class 2, but 2 names are given"):
        _check_named([why], ["cat", "dog"])
