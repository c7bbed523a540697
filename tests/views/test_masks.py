"""The edges of masks over heatmaps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.atlas import atlas
from torch_featviz.errors import OptionError
from torch_featviz.explain import attribute, reasons
from torch_featviz.picture import enlarge
from torch_featviz.views import attributions, look
from torch_featviz.views.masks import outlined
from torch_featviz.zoo import ModelCard

IMAGES = torch.full((2, 1, 16, 20), 0.1)
IMAGES[0, :, 3:9, 4:14] = IMAGES[1, :, 6:14, 2:9] = 1
NAMES = ["background", "bright"]


class Bright(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 9)
            self.conv.bias.zero_()
            self.head.weight[:, 0, 0, 0] = torch.tensor([-8.0, 8.0])
            self.head.bias.copy_(torch.tensor([4.0, -4.0]))

    def forward(self, x):
        return {"out": self.head(torch.relu(self.conv(x)))}


class Rows(Bright):
    """With a figure of its own for each image, by which its scores are multiplied."""

    def forward(self, x, row):
        return {"out": super().forward(x)["out"] * row[:, :, None, None]}


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_edges_equal_loops(h, w, zoom, seed):
    generator = torch.Generator().manual_seed(seed)
    overlays = torch.randint(1, 250, (2, 2, 3, h, w), generator=generator, dtype=torch.uint8)
    masks = torch.rand(2, 2, h, w, generator=generator) > 0.4
    found = outlined(overlays, masks, zoom)
    large, within = enlarge(overlays, zoom), enlarge(masks, zoom)
    for b in range(2):
        for k in range(2):
            for y in range(h * zoom):
                for x in range(w * zoom):
                    around = within[b, k, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                    here = bool(within[b, k, y, x])
                    expected = large[b, k, :, y, x].tolist()
                    if here and not bool(around.all()):
                        expected = [0, 0, 0]
                    elif not here and bool(around.any()):
                        expected = [255, 255, 255]
                    assert found[b, k, :, y, x].tolist() == expected


def test_a_sheet_of_a_segmenter():
    net = Bright().eval()
    sheet = attributions(net, IMAGES, classes=NAMES)
    within = attribute(net, IMAGES).within
    with torch.no_grad():
        masks = net(IMAGES)["out"].argmax(1).bool()
    cells = sheet.cells.unflatten(0, (2, 2))
    zoom = cells.shape[3] // 16
    assert zoom > 1
    inner, outer = ((cells[:, 1] == value).all(1) for value in (0, 255))
    large = enlarge(masks, zoom)
    assert bool((large | ~inner).all()), "black lines are within the mask"
    assert bool((~large | ~outer).all()), "white ones around it"
    for i in range(2):
        assert sheet.labels[2 * i] == "bright"
        shares = f"{100 * float(masks[i].float().mean()):.1f} % of pixels, {100 * float(within[i]):.0f} % within"
        assert sheet.captions[2 * i + 1].startswith(f"{shares}\n✓ better")
    notes = " ".join(sheet.legend.lines())
    assert "explained: the class with the most pixels, the background last" in notes
    assert "a class is explained over its mask, whose edge is the black and white line" in notes
    assert "within: share of the red that lies in the mask" in notes
    assert "mean probability over the mask while top pixels go in, out" in notes


def test_the_classes_asked_for_are_named_with_their_shares():
    sheet = attributions(Bright().eval(), IMAGES[:1], classes=NAMES, targets=["background", "bright"], faithful=False)
    assert sheet.columns == ("", "gradcam: background", "gradcam: bright")
    shares = [float(words.partition(" % of pixels, ")[0]) for words in sheet.captions[1:]]
    assert shares == pytest.approx([100 - shares[1], shares[1]], abs=0.11)
    assert 10 < shares[1] < 30


DARK = torch.cat([IMAGES[:1], torch.full((1, 1, 16, 20), 0.1), IMAGES[1:]])  # nothing bright in the second


def test_an_image_without_a_pixel_of_the_class_says_so_and_the_others_are_drawn():
    net = Bright().eval()
    sheet = attributions(net, DARK, classes=NAMES, targets=["bright"])
    alone = attributions(net, IMAGES, classes=NAMES, targets=["bright"])
    assert sheet.captions[3] == "no pixel of 'bright'"
    assert [sheet.captions[1], sheet.captions[5]] == [alone.captions[1], alone.captions[3]]
    assert torch.equal(sheet.cells[[0, 1, 4, 5]], alone.cells), "as if the image were not there"
    assert torch.equal(sheet.cells[3], sheet.cells[2]), "the image itself"
    assert sheet.columns == alone.columns, "nor does it change the verdict"
    both = attributions(net, DARK[1:2], classes=NAMES, targets=["background", "bright"], faithful=False)
    assert both.captions == ("", "100.0 % of pixels, 100 % within", "no pixel of 'bright'")
    with pytest.raises(OptionError, match="class 'bright' has no pixel in image 0; there are 'background'"):
        attributions(net, DARK[1:2], classes=NAMES, targets=["bright"])


def test_heatmaps_of_the_images_that_have_the_class():
    net, row = Rows().eval(), torch.tensor([[1.0], [5.0], [3.0]])
    given = {"additional_forward_args": row, "baselines": DARK * 0.5}
    why = reasons(net, DARK, ["integrated_gradients"], [1, 0], **given)
    (reason,) = why.methods
    assert reason.explained.tolist() == [[True, True], [False, True], [True, True]]
    assert not reason.heatmaps[1, 0].any()
    alone = reasons(
        net, IMAGES, ["integrated_gradients"], [1], additional_forward_args=row[::2], baselines=IMAGES * 0.5
    )
    torch.testing.assert_close(reason.heatmaps[::2, 0], alone.methods[0].heatmaps[:, 0])
    found, expected = reason.worth[0], alone.methods[0].worth[0]
    for name in ("insertion", "deletion", "random_insertion", "deviation"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert reason.worth_of(1, 0) is None
    assert [reason.worth_of(i, 0) for i in (0, 2)] == [(found, 0), (found, 1)]
    gains = [*found.gain.tolist(), *reason.worth[1].gain.tolist()]
    assert reason.gain == pytest.approx(sum(gains) / 5)
    nowhere = reasons(net, DARK[1:2], ["saliency"], [1, 0], additional_forward_args=row[1:2]).methods[0]
    assert nowhere.gain == pytest.approx(float(nowhere.worth[1].gain))
    assert nowhere.spread == pytest.approx(float(nowhere.worth[1].spread))
    with pytest.raises(OptionError, match="target must be from 0 to 1, got"):
        reasons(net, DARK, ["saliency"], [0, 2], additional_forward_args=row)


def test_the_page_says_which_image_has_no_pixel_of_a_class():
    card = ModelCard("bright", Bright, (1, 16, 20), classes=tuple(NAMES))
    data = atlas(Bright().eval(), DARK, card=card, targets=["bright"]).data
    assert [each["image"] for each in data["why"]] == [0, 2]
    assert "Why: no pixel of 'bright' in image 2 of 3." in data["left_out"]
    assert [each["name"] for each in data["images"]] == ["image 1 of 3", "image 2 of 3", "image 3 of 3"]
    assert data["title"] == "bright on 3 images"
    named = atlas(Bright().eval(), DARK, card=card, targets=["bright"], names=["a.png", "b.png", "c.png"]).data
    assert "Why: no pixel of 'bright' in b.png." in named["left_out"]


def test_a_first_look_at_a_segmenter():
    page = look(Bright().eval(), IMAGES[0], classes=NAMES)
    share = 100 * float(Bright()(IMAGES[:1])["out"].argmax(1).float().mean())
    assert page.title == f"Bright finds: bright, {share:.1f} % of the pixels"
    words = " ".join(page.words)
    assert "targets=[1, 0]" in words, "both occur, and the background comes last"


def test_the_page_of_a_segmenter():
    card = ModelCard("bright", Bright, (1, 16, 20), classes=tuple(NAMES))
    data = atlas(Bright().eval(), IMAGES, card=card).data
    assert (data["answer"], data["pixels"], data["softmax"], data["left_out"]) == ("probability", True, False, [])
    masks = Bright()(IMAGES)["out"].argmax(1)
    for i, image in enumerate(data["images"]):
        shares = {"bright": float(masks[i].float().mean()), "background": float((masks[i] == 0).float().mean())}
        assert {each["name"]: each["probability"] for each in image["top"]} == pytest.approx(shares)
    assert [(each["image"], each["name"], each["probability"]) for each in data["why"]] == [
        (i, name, None) for i in range(2) for name in ("bright", "background")
    ]
    picture = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1))
    data = atlas(picture, IMAGES).data
    assert data["why"] == []
    assert "is it a picture or a depth, or are these scores of classes?" in " ".join(data["left_out"])
