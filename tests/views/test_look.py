"""The page of a first look: what it says, what it costs, and what it does without."""

import importlib
import re
import warnings

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import torch_featviz as fv
from torch_featviz.errors import FileError, OptionError, ShapeError
from torch_featviz.explain import Faithfulness, Reason, Verdict, reasons
from torch_featviz.picture import Sheet
from torch_featviz.views import look
from torch_featviz.zoo import ModelCard, card, from_pil

module = importlib.import_module("torch_featviz.views.look")


def net_of(classes=5):
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, 8), (8, 16), (16, 24)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, classes)).eval()


IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
CARD = ModelCard("tiny", net_of, (3, 32, 32), classes=("ant", "bee", "cat", "dog", "elk"))


def parts(page):
    """The titles of its pictures."""
    return [picture.title for row in page.rows for picture in row]


def test_what_stands_on_it():
    net = net_of()
    page = look(net, IMAGE, card=CARD)
    with torch.no_grad():
        chances = net(CARD.normalize(IMAGE)[None]).softmax(1)[0]
    order = chances.argsort(descending=True).tolist()
    assert page.title == f"tiny says: {CARD.classes[order[0]]}, {100 * float(chances[order[0]]):.1f} %"
    left, heat = page.rows[0]
    (photo,), (bars,) = left.rows
    assert photo.title == "What it is shown"
    assert torch.equal(photo.cells[0], (IMAGE * 255).round().byte())
    assert bars.labels == tuple(f"{CARD.classes[k]}  {100 * float(chances[k]):.1f} %" for k in order)
    for bar, k in zip(bars.cells, order, strict=True):
        inked = (bar[0, 7] == bar[0, 7, 0]).float().mean()
        assert float(inked) == pytest.approx(float(chances[k]), abs=0.01)
    ways = {"integrated_gradients": {"n_steps": module._WAY}}
    best = reasons(net, CARD.normalize(IMAGE)[None], module.METHODS, options=ways, steps=module._STEPS).ranked[0]
    assert heat.captions[0].startswith(str(best.verdict))
    stages = [row[0] for row in page.rows[1:]]
    words = [title.split(":")[0] for title in parts(page)[2:]]
    assert words == ["Early", "Middle", "Late"]
    for stage, (layer, side, channels) in zip(stages, (("1", 32, 8), ("4", 16, 16), ("8", 4, 24)), strict=True):
        assert f"of {channels} maps of {layer}, {side} × {side}, each value sees" in stage.title
    assert page.head == "Where to go on"
    assert f"targets={order[:2]}" in page.words[0]
    assert 'top_patches(model, loader, "4")' in page.words[1]


def test_what_it_says_to_do_can_be_done():
    net, x = net_of(), CARD.normalize(IMAGE)[None]
    names = {"fv": fv, "model": net, "x": x, "card": CARD, "loader": [torch.rand(4, 3, 32, 32)]}
    for line in look(net, x, card=CARD).words[:2]:
        assert isinstance(eval(line.partition("  ")[2], names), fv.Picture)


class Counted(nn.Module):
    """Counts the images that go through it, through its copies too."""

    rows = 0

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        Counted.rows += len(x)
        return self.net(x)


@pytest.mark.parametrize("build", [net_of, lambda: torchvision.models.mobilenet_v3_small(weights=None).eval()])
def test_it_takes_at_most_80_forwards(build):
    Counted.rows = 0
    look(Counted(build()), torch.rand(3, 32, 32), answer="logits")
    assert 0 < Counted.rows <= 100


def test_a_network_with_random_weights_ends_in_none():
    from skimage import data

    photo = from_pil(Image.fromarray(data.chelsea()).crop((60, 0, 360, 300)).resize((96, 96)))
    torch.manual_seed(0)
    page = look(torchvision.models.resnet18(weights=None).eval(), photo)
    assert page.rows[0][1].title == "Why: no heatmap is better than chance"
    assert "✓" not in " ".join((*page.rows[0][1].captions, *page.rows[0][1].legend.notes))


def test_a_network_that_has_learnt_has_a_better_one():
    from skimage import data

    known = card("efficientnet_lite0")
    page = look(known.load(), Image.fromarray(data.chelsea()), card=known)
    assert page.title.startswith("efficientnet_lite0 says: Egyptian cat, 7")
    assert page.rows[0][1].title == "Why: ✓ better than chance"
    assert max(page.numpy().shape) <= 4000


def test_a_file_an_image_and_a_tensor_are_the_same(tmp_path):
    image = Image.fromarray((IMAGE * 255).byte().permute(1, 2, 0).numpy())
    image.save(tmp_path / "a.png")
    x = CARD.preprocess(image)
    pages = [
        look(net_of(), given, card=CARD).png()
        for given in (tmp_path / "a.png", str(tmp_path / "a.png"), image, x, x[0])
    ]
    assert len(set(pages)) == 1


def test_without_maps_the_rest_is_shown():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.ReLU(), nn.Linear(16, 3))
    page = look(net, torch.rand(3, 8, 8), classes=["a", "b", "c"])
    assert len(page.rows) == 1
    assert len(page.rows[0]) == 2
    assert "Grad-CAM is left out: the answer depends on no map" in page.subtitle
    assert "Maps are left out: no layer of this model returns any" in page.subtitle
    assert "gradcam" not in page.words[0]


def test_without_a_gradient_there_is_no_heatmap():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).detach().mean((2, 3))

    page = look(Steps(), torch.rand(3, 8, 8))
    assert [picture.title for picture in page.rows[0]] == ["What it is shown", "What it answers"]
    assert "Heatmaps are left out: " in page.subtitle


def test_figures_are_no_probabilities():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1))
    page = look(net, torch.rand(3, 8, 8))
    assert page.rows[0][0].rows[1][0].title == "What it returns"
    assert "%" not in page.title


def test_tokens_are_maps_too():
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=4).eval()
    nn.init.normal_(net.heads[0].weight)
    x = torch.rand(3, 32, 32)
    page = look(net, x)
    assert "tokens as 4 × 4" in " ".join(page.rows[0][1].legend.notes)
    assert len(page.rows) == 4
    titles = [row[0].title for row in page.rows[1:]]
    assert [title.endswith("; 1 class token: not drawn") for title in titles] == [False, True, True]
    names = {"fv": fv, "model": net, "x": x}
    assert (
        eval(page.words[1].removeprefix("What is alike to it?  "), names).legend.notes[-1] == "1 class token: not drawn"
    )


def test_large_images_stay_small():
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)
    )
    page = look(net, torch.rand(3, 700, 900))
    assert max(page.numpy().shape) <= 2400
    assert isinstance(page.rows[0][0].rows[0][0], Sheet)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        ("cat.png", {}, OptionError, "a file 'cat.png' needs card=, which says how the model takes it"),
        (Image.new("RGB", (9, 9)), {}, OptionError, "a Pillow image needs card=.* or give a tensor"),
        ("nothing.png", {"card": CARD}, FileError, "no image file 'nothing.png'"),
        (
            torch.rand(2, 3, 32, 32),
            {},
            ShapeError,
            r"image must be one, .* got shape \(2, 3, 32, 32\)",
        ),
        (torch.rand(32, 32), {}, ShapeError, "images must be 'b c h w' and not empty"),
        (IMAGE, {"classes": ["a", "b"]}, ShapeError, "classes must name 5"),
        (IMAGE, {"value_range": "small"}, OptionError, "value_range must be one of"),
    ],
)
def test_bad_input(image, options, error, message):
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        look(net_of(), image, **options)


def test_the_rows_of_maps_share_one_legend():
    page = look(net_of(), CARD.normalize(IMAGE), card=CARD)
    rows = [row[0] for row in page.rows[1:]]
    assert [row.legend.cmap for row in rows] == [None, None, "viridis"]
    assert rows[-1].legend.total == sum(row.cells[:, 0].numel() for row in rows)
    assert rows[0].labels[0].startswith("channel ")
    assert "below each map: the ends of its scale" in rows[-1].legend.lines()


@pytest.mark.parametrize(
    ("areas", "says"),  # deletion, insertion, and the same at other places
    [
        (
            (0.1, 0.6, 0.4, 0.2),
            "brings the answer back sooner than the same heatmap at 6 other .* takes the answer away sooner",
        ),
        (
            (0.4, 0.6, 0.1, 0.2),
            "brings the answer back sooner than the same heatmap .* takes the answer away no soon",
        ),
        (
            (0.1, 0.2, 0.4, 0.3),
            "^Hiding what is red first takes the answer away sooner .* brings the answer back no soon",
        ),
    ],
)
def test_it_says_what_the_figures_bear_out(areas, says):
    values = [torch.tensor([value]) for value in areas]
    worth = Faithfulness(*values, torch.zeros(1, 1))
    reason = Reason("saliency", "", "", torch.zeros(1, 1, 2, 2), (worth,))
    assert reason.verdict is Verdict.BETTER
    assert re.search(says, module._says(reason, Verdict.BETTER))


def test_verdicts_have_words():
    assert {Verdict.BETTER, *module._CHANCE} == set(Verdict)


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (0.2, r"as much \(gain 0.20, needs 0.50\): do"),
        (-0.2, r"as much \(gain −0.20, worse from −0.50\): do"),
        (0, "much: do"),
    ],
)
def test_it_says_what_gain_a_heatmap_lacks(gain, says):
    figures = [torch.tensor([value]) for value in (0.3, 0.4 + 2 * gain, 0.3, 0.4)]
    worth = Faithfulness(*figures, torch.zeros(1, 1), deviation=torch.tensor([0.25]))
    reason = Reason("gradcam", "", "", torch.rand(1, 1, 4, 4), (worth,))
    assert re.search(says, module._says(reason, Verdict.NO_BETTER))
