"""How much of a heatmap lies within its box or mask, counted pixel by pixel."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torch_featviz as fv
from torch_featviz.explain import attribute
from torch_featviz.explain.attribution import Attribution
from torch_featviz.explain.within import within_boxes, within_masks
from torch_featviz.model.boxes import Boxes

EDGES = st.floats(-2, 7, width=32)


def of_boxes(heatmaps, corners):
    found = len(corners)
    boxes = Boxes(torch.tensor(corners).view(-1, 4), torch.zeros(found), torch.ones(found), torch.zeros(found).long())
    return Attribution(heatmaps[:, None], heatmaps, None, "layercam", boxes=boxes)


@given(EDGES, EDGES, EDGES, EDGES, st.integers(1, 5), st.integers(1, 5))
def test_a_box_covers_what_points_between_pixels_say(left, top, right, bottom, height, width):
    """Each pixel by 8 × 8 points; edges are rounded to lie between these."""
    left, top, right, bottom = (round(8 * edge) / 8 for edge in (left, top, right, bottom))
    points = [(i + 0.5) / 8 for i in range(8)]
    covered = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            covered[row, column] = sum(
                top < row + down < bottom and left < column + across < right for down in points for across in points
            )
    heat = torch.arange(height * width).view(1, height, width) + 1.0
    share, area = within_boxes(heat, torch.tensor([[left, top, right, bottom]]))
    assert float(share) == pytest.approx(float((covered * heat).sum() / heat.sum() / 64), abs=1e-6)
    assert float(area) == pytest.approx(float(covered.mean()) / 64, abs=1e-6)


def test_the_share_within_a_box():
    heat = torch.tensor([[[1.0, 2.0, -5.0], [3.0, 4.0, 0.0]]]).repeat(3, 1, 1)
    why = of_boxes(heat, [[1.0, 0.0, 3.0, 1.0], [0.5, 0.0, 2.0, 2.0], [-4.0, -4.0, 9.0, 9.0]])
    torch.testing.assert_close(why.within, torch.tensor([2 / 10, 8 / 10, 1.0]))
    torch.testing.assert_close(why.area, torch.tensor([2 / 6, 3 / 6, 1.0]))


def test_where_nothing_speaks_for_a_box_there_is_no_share():
    why = of_boxes(-torch.rand(1, 4, 4), [[0.0, 0.0, 2.0, 2.0]])
    assert math.isnan(why.within)
    assert float(why.area) == 0.25
    heat = torch.ones(3, 4, 4)
    heat[0, 3, 3], heat[1, 0, 0], heat[2, 3, 0] = math.inf, math.nan, -math.inf
    assert of_boxes(heat, [[0.0, 0.0, 2.0, 2.0]] * 3).within.isnan().all()
    assert within_masks(heat, torch.ones(3, 2, 2, dtype=torch.bool)).share.isnan().all()


@pytest.mark.parametrize("sides", [(5, 7), (16, 17), (30, 30)])
def test_of_an_even_heatmap_the_share_is_the_area(sides):
    """Also where the sides are no multiples of the mask's."""
    found = within_masks(torch.ones(4, *sides), torch.rand(4, 4, 6) > 0.6)
    torch.testing.assert_close(found.share, found.area)


def test_no_boxes_no_shares():
    why = of_boxes(torch.zeros(0, 4, 4), [])
    assert why.within.shape == why.area.shape == (0,)


@pytest.mark.parametrize("smaller", [1, 2])
def test_the_share_over_a_mask(smaller):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1), nn.AvgPool2d(smaller))
    why = attribute(net, torch.rand(2, 3, 8, 8), method="input_x_gradient", answer="logits")
    for heat, mask, within, area in zip(why.heatmaps, why.mask, why.within, why.area, strict=True):
        inside = total = 0.0
        for row in range(8):
            for column in range(8):
                value = max(float(heat[row, column]), 0)
                total += value
                inside += value * bool(mask[row // smaller, column // smaller])
        assert float(within) == pytest.approx(inside / total if total else math.nan, nan_ok=True)
        assert float(area) == pytest.approx(float(mask.float().mean()))


def test_a_classifier_has_neither():
    why = fv.attribute(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2), method="saliency")
    assert why.within is None
    assert why.area is None
