"""The boxes of a detector on the page: a heatmap each, and the box around it."""

import base64
import math
import re
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.atlas import atlas
from torch_featviz.errors import OptionError

CORNERS = [[2.0, 3.0, 12.0, 9.0], [8.0, 8.0, 18.0, 14.0]]  # left, top, right, bottom


class Detector(nn.Module):
    """torchvision's kind of output: two boxes for an image with something bright, none for a dark one."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        maps = self.head(torch.relu(self.conv(x)))
        found = []
        for image, each in zip(x, maps, strict=True):
            scores = torch.stack([each[1, 3:9, 2:12].mean(), each[0, 8:14, 8:18].mean()]).sigmoid()
            boxes, count = torch.tensor(CORNERS), 2 if image.max() > 0.5 else 0
            found.append({"boxes": boxes[:count], "labels": torch.tensor([1, 0])[:count], "scores": scores[:count]})
        return found


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def images():
    images = torch.rand(2, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    images[1] = 0.1
    return images


@pytest.fixture(scope="module")
def page(net, images):
    return atlas(net, images, classes=("disc", "square"), methods=["layercam", "saliency"])


def numbers(page, number):
    """float16 times a power of two: high bytes, then low bytes, deflated."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(page.blobs[number])), np.uint8)
    high, low = raw[: len(raw) // 2].astype(np.uint16), raw[len(raw) // 2 :].astype(np.uint16)
    return (high << 8 | low).view(np.float16).astype(np.float64)


def test_each_box_has_a_heatmap_with_its_name_and_score(net, images, page):
    expected = [fv.attribute(net, images, method=method) for method in ("layercam", "saliency")]
    entries = iter(page.data["why"])
    for why in expected:
        for heatmap, box, label, score in zip(
            why.heatmaps, why.boxes.xyxy.tolist(), why.boxes.classes, why.boxes.scores, strict=True
        ):
            entry = next(entries)
            assert (entry["image"], entry["method"], entry["faithfulness"]) == (0, why.method, None)
            assert entry["name"] == ("disc", "square")[label]
            assert entry["probability"] == pytest.approx(float(score), abs=1e-5)
            drawn = numbers(page, entry["blob"]).reshape(16, 20) * 2.0 ** entry["exponent"]
            assert drawn == pytest.approx(heatmap.numpy(), rel=2e-3, abs=1e-6 * float(heatmap.abs().max()))
            mask = numbers(page, entry["mask"]["blob"]).reshape(16, 20)
            left, top, right, bottom = map(int, box)
            inside = [[left <= x < right and top <= y < bottom for x in range(20)] for y in range(16)]
            assert (mask == np.array(inside)).all()
            red = heatmap.clamp(min=0).double().numpy()
            share = red[np.array(inside)].sum() / red.sum() if red.any() else math.nan
            assert float(entry["within"]) == pytest.approx(share, abs=1e-5, nan_ok=True)
            assert entry["area"] == pytest.approx(np.mean(inside), abs=1e-5)
    assert next(entries, None) is None
    assert "Why: no box in image 2 of 2." in page.left_out
    assert any("boxes" in each and "not compared with chance" in each for each in page.left_out)


def test_by_default_layercam_explains_all_boxes(net, images):
    page = atlas(net, images[:1])
    assert [(each["method"], each["name"]) for each in page.data["why"]] == [
        ("layercam", name) for name in [f"class {k}" for k in fv.attribute(net, images[:1]).boxes.classes.tolist()]
    ]


def test_targets_choose_the_boxes_of_a_class(net, images):
    page = atlas(net, images[:1], classes=("disc", "square"), targets=["square"])
    assert [each["name"] for each in page.data["why"]] == ["square"]


def test_what_boxes_cannot_have_is_refused(net, images):
    with pytest.raises(OptionError, match="occlusion runs changed images"):
        atlas(net, images, methods=["occlusion"])


def test_heatmaps_of_large_images_are_small(net):
    large = torch.rand(1, 1, 300, 600, generator=torch.Generator().manual_seed(0))
    assert {(each["height"], each["width"]) for each in atlas(net, large).data["why"]} == {(128, 256)}


def test_without_methods_nothing_is_explained(net, images):
    assert not atlas(net, images, methods=()).data["why"]


def test_the_box_is_drawn_over_its_heatmap(look, expect, page, tmp_path):
    opened = look("view=why&image=0", page.save(tmp_path / "page.html"))
    expect(opened.locator("#why-grid .edge")).to_have_count(4)
    path = opened.locator("#why-stage .edge path").first.get_attribute("d")
    left, top, right, bottom = map(int, CORNERS[0 if page.data["why"][0]["name"] == "square" else 1])
    around = {f"M{x} {y}h1" for x in range(left, right) for y in (top, bottom)}
    around |= {f"M{x} {y}v1" for x in (left, right) for y in range(top, bottom)}
    assert set(re.findall("M[^M]+", path)) == around
    expect(opened.locator("#why-legend")).to_contain_text("one scale for all boxes and images")
    expect(opened.locator("#why-legend")).to_contain_text("the white line with black rims is the box")
    shares = [float(each["within"]) for each in page.data["why"]]
    said = [
        "– within" if math.isnan(share) else "< 0.1 % within" if 0 < share < 5e-4 else f"{100 * share:.1f} % within"
        for share in shares
    ]
    expect(opened.locator("#why-grid .verdict")).to_have_text(said)
    expect(opened.locator("#why-says dd")).to_contain_text("The box covers")
    second = opened.locator("#why-grid button").nth(1)
    second.click()
    expect(opened.locator("#why-grid button").nth(1)).to_have_attribute("aria-pressed", "true")


def test_an_image_without_boxes_says_so(look, expect, page, tmp_path):
    opened = look("view=why&image=1", page.save(tmp_path / "page.html"))
    expect(opened.locator("#why-grid caption")).to_have_text("No box was found in this image.")
    assert opened.locator("#why-grid caption").bounding_box()["height"] < 40
