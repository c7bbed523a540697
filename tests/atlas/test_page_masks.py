"""The edge of a segmenter's mask on the page, in a real browser."""

import re

import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.atlas import atlas

IMAGES = torch.full((2, 1, 16, 20), 0.1)
IMAGES[0, :, 3:9, 4:14] = IMAGES[1, :, 6:14, 2:9] = 1
BOXES = ((4, 14, 3, 9), (2, 9, 6, 14))  # left, right, top, bottom of what is bright


class Bright(nn.Module):
    """Each pixel is bright or not."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1)
            self.conv.bias.zero_()
            self.head.weight[:, 0, 0, 0] = torch.tensor([-8.0, 8.0])
            self.head.bias.copy_(torch.tensor([4.0, -4.0]))

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)))


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    card = fv.ModelCard("bright", Bright, (1, 16, 20), classes=("background", "bright"))
    page = atlas(Bright().eval(), IMAGES, card=card, methods=["gradcam", "saliency"])
    return page.save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.parametrize("image", [0, 1])
def test_the_edge_of_the_mask_is_over_each_heatmap(look, expect, segmented, image):
    page = look(f"view=why&image={image}&class=1", segmented)
    edges = page.locator("#why-stage .edge, #why-grid .edge")
    expect(edges).to_have_count(1 + 4)  # the large one; two methods and two classes
    edge = page.locator("#why-stage .edge")
    assert edge.get_attribute("viewBox") == "0 0 20 16"
    expect(edge.locator("path")).to_have_count(2)  # white within black: seen on any colour
    path, (left, right, top, bottom) = edge.locator("path").first.get_attribute("d"), BOXES[image]
    around = {f"M{x} {y}h1" for x in range(left, right) for y in (top, bottom)}
    around |= {f"M{x} {y}v1" for x in (left, right) for y in range(top, bottom)}
    assert set(re.findall("M[^M]+", path)) == around
    for path, ink in zip(edge.locator("path").all(), ("rgb(0, 0, 0)", "rgb(255, 255, 255)"), strict=True):
        assert path.evaluate("each => [getComputedStyle(each).stroke, getComputedStyle(each).opacity]") == [ink, "1"]
    box, frame = edge.bounding_box(), page.locator("#why-stage .frame canvas").bounding_box()
    assert box == frame
    expect(page.locator("#why-legend")).to_contain_text("the white line with black rims is the edge of the mask")
    area = 100 * (right - left) * (bottom - top) / 320
    expect(page.locator("#why-says dd").first).to_contain_text(f"The mask covers {area:.1f} % of the image")
    expect(page.locator("#why-grid .verdict", has_text="within")).not_to_have_count(0)


def test_without_masks_there_is_no_edge(look, expect):
    page = look("view=why")
    expect(page.locator("#why-stage canvas")).to_be_visible()
    expect(page.locator(".edge")).to_have_count(0)
    assert "edge of the mask" not in page.inner_text("#why-legend")
