from importlib import import_module

import pytest
import torch
from torch import nn

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.explain import Faithfulness, Verdict, attribute
from torch_featviz.picture import Scale, overlay, rgb
from torch_featviz.views import attributions


def net_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


IMAGES = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_cells_are_images_then_overlays_on_one_scale_for_each_method():
    net = net_of()
    picture = attributions(net, IMAGES, methods=["gradcam", "saliency"], targets=[2, 0], faithful=False)
    cells = picture.cells.unflatten(0, (2, 5))
    assert torch.equal(cells[:, 0], rgb(IMAGES.expand(-1, 3, -1, -1)))
    for m, method in enumerate(("gradcam", "saliency")):
        maps = torch.stack([attribute(net, IMAGES, method=method, target=t).heatmaps for t in (2, 0)], dim=1)
        reach = maps.abs().flatten().kthvalue(int(-(-maps.numel() * 0.995 // 1))).values  # 99.5 % of them, rounded up
        scale = Scale(symmetric=True, vmin=-1, vmax=1)
        expected = overlay(IMAGES, (maps / reach).clamp(-1, 1), scale=scale)
        assert torch.equal(cells[:, 1 + 2 * m : 3 + 2 * m], expected)
    assert picture.columns == ("", "gradcam: class 2", "gradcam: class 0", "saliency: class 2", "saliency: class 0")
    assert set(picture.captions) == {""}


def test_says_what_was_predicted_and_what_each_map_is_worth():
    net = net_of()
    picture = attributions(net, IMAGES, classes=["ant", "bee", "cat"])
    with torch.no_grad():
        best = net(IMAGES).softmax(1).max(1)
    for i in range(2):
        name = ["ant", "bee", "cat"][int(best.indices[i])]
        assert picture.labels[2 * i] == f"{name} {100 * float(best.values[i]):.0f} %"
        assert picture.captions[2 * i] == ""
        verdict, figures = picture.captions[2 * i + 1].split("\n")
        assert verdict in [str(each) for each in Verdict]
        assert figures.startswith("ins 0.")
    notes = " ".join(picture.legend.lines())
    assert "explained: the predicted class" in notes
    assert "top pixels go in, out (chance)" in notes
    assert "hardly changes with random weights; do not" not in notes


def test_a_method_deaf_to_weights_is_marked():
    net = nn.Sequential(nn.Identity(), *net_of())
    options = {"layer_activation": {"layer": "0"}}
    picture = attributions(net, IMAGES, methods=["layer_activation", "gradcam"], options=options)
    assert picture.columns[1][2:] in ("gradcam", "layer_activation")
    assert "✓ layer_activation" not in picture.columns
    assert "layer_activation: hardly changes with random weights" in " ".join(picture.legend.lines())


def test_all_zero_maps_draw_neutral():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    nn.init.zeros_(net[2].weight)
    picture = attributions(net, IMAGES, methods=["saliency"], targets=0, faithful=False)
    assert torch.equal(picture.cells[1], overlay(IMAGES[:1], torch.zeros(1, 6, 6))[0])


def test_images_are_drawn_in_their_range():
    net = net_of()
    normalised = (IMAGES - 0.5) / 0.25
    sheet = attributions(net, normalised, faithful=False, value_range=lambda images: images * 0.25 + 0.5)
    maps = attribute(net, normalised).heatmaps
    cells = sheet.cells.unflatten(0, (2, 2))
    assert torch.equal(cells[:, 0], rgb(IMAGES.expand(-1, 3, -1, -1)))
    shares = (maps / maps.abs().flatten().kthvalue(int(-(-maps.numel() * 0.995 // 1))).values).clamp(-1, 1)
    assert torch.equal(cells[:, 1], overlay(IMAGES, shares, scale=Scale(symmetric=True, vmin=-1, vmax=1)))


class Masked(nn.Module):
    """Takes a mask for each image beside it."""

    def __init__(self):
        super().__init__()
        self.net = net_of()

    def forward(self, images, mask, *, gain=1.0):
        return gain * self.net(images * mask)


def test_a_network_of_two_inputs():
    masks = torch.zeros(2, 1, 6, 6)
    masks[0, :, :3], masks[1, :, 3:] = 1, 1
    more = {"additional_forward_args": masks, "keywords": {"gain": 3.0}}
    sheet = attributions(Masked(), IMAGES, methods=["saliency"], **more)
    with torch.no_grad():
        best = (3 * net_of()(IMAGES * masks)).softmax(1).max(1)
    assert sheet.labels[::2] == tuple(
        f"class {int(k)} {100 * float(p):.0f} %" for k, p in zip(best.indices, best.values, strict=True)
    )
    blank = overlay(IMAGES, torch.zeros(2, 6, 6))
    for i, hidden in enumerate((slice(3, 6), slice(0, 3))):
        assert torch.equal(sheet.cells[2 * i + 1][:, hidden], blank[i][:, hidden]), "what is masked says nothing"
        assert not torch.equal(sheet.cells[2 * i + 1], blank[i])


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (IMAGES[0, 0], {}, ShapeError, r"images must be 'b c h w' and not empty, got shape \(6, 6\)"),
        ([1], {}, DtypeError, r"images must be a tensor, got \[1\]"),
        (IMAGES, {"methods": []}, OptionError, "must not be empty"),
        (IMAGES, {"methods": "gradcam"}, OptionError, r"write methods=\['gradcam'\]"),
        (
            IMAGES,
            {"methods": ["saliency"], "layer": "0"},
            OptionError,
            "none of saliency uses a layer; leave layer=",
        ),
        (IMAGES, {"targets": []}, OptionError, "must not be empty"),
        (IMAGES, {"options": {"occlusion": {}}}, OptionError, "options are for occlusion, but the methods are"),
        (IMAGES.repeat(33, 1, 1, 1), {}, ShapeError, "66 heatmaps are too many, a sheet shows 64"),
        (IMAGES, {"targets": range(40)}, ShapeError, "80 heatmaps are too many, a sheet shows 64"),
    ],
)
def test_bad_input(images, options, error, message):
    with pytest.raises(error, match=message):
        attributions(net_of(), images, **options)


def test_one_image_without_a_batch_axis():
    net = net_of()
    assert attributions(net, IMAGES[0], faithful=False).png() == attributions(net, IMAGES[:1], faithful=False).png()


def pictured(verdicts, similarity=0.0):
    """A `faithfulness` that finds these verdicts, method by method, where similarity does not hold them back."""
    found = iter(verdicts)

    def measure(model, images, why, **options):
        far = {Verdict.BETTER: 0.6, Verdict.NO_BETTER: 0.3, Verdict.WORSE: 0.0}[next(found)]
        figures = [torch.full((len(images),), value) for value in (0.3, far, 0.3, 0.3)]
        return Faithfulness(*figures, torch.full((1, len(images)), similarity))

    return measure


def test_methods_stand_in_the_order_of_their_verdicts(monkeypatch):
    methods = ["saliency", "gradcam", "input_x_gradient"]
    verdicts = [Verdict.WORSE, Verdict.NO_BETTER, Verdict.BETTER]
    monkeypatch.setattr(import_module("torch_featviz.explain.reasons"), "faithfulness", pictured(verdicts))
    sheet = attributions(net_of(), IMAGES, methods=methods)
    assert sheet.columns == ("", "✓ input_x_gradient", "= gradcam", "✗ saliency")
    assert [words.partition("\n")[0] for words in sheet.captions] == [
        *("", "✓ better than chance", "= no better than chance", "✗ worse than chance")
    ] * 2
    assert "no heatmap is" not in " ".join(sheet.legend.lines())


def test_a_sheet_without_a_better_one_says_so(monkeypatch):
    methods, verdicts = ["saliency", "gradcam"], [Verdict.WORSE, Verdict.NO_BETTER]
    for title in ("", "Mine"):
        monkeypatch.setattr(import_module("torch_featviz.explain.reasons"), "faithfulness", pictured(verdicts))
        sheet = attributions(net_of(), IMAGES, methods=methods, title=title)
        assert sheet.columns == ("", "= gradcam", "✗ saliency")
        assert sheet.legend.notes[0] == "no heatmap is better than chance"
        assert sheet.title == title or sheet.title.endswith("no heatmap is better than chance")


def test_a_sheet_says_what_holds_better_ones_back(monkeypatch):
    methods, verdicts = ["saliency", "gradcam"], [Verdict.NO_BETTER, Verdict.BETTER]
    module = import_module("torch_featviz.explain.reasons")
    monkeypatch.setattr(module, "faithfulness", pictured(verdicts, similarity=0.9))
    sheet = attributions(net_of(), IMAGES, methods=methods)
    assert sheet.columns == ("", "= gradcam", "= saliency")
    assert sheet.title.endswith(": no heatmap is a reason: alike with random weights, no better than chance")
    assert [words.partition("\n")[0] for words in sheet.captions] == [
        *("", "= alike with random weights", "= no better than chance")
    ] * len(IMAGES)


class Wide(nn.Module):
    """So many classes, of images of any size."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))[:, None]
        return mean * torch.arange(1, 65, device=x.device)


@pytest.mark.parametrize(
    ("images", "targets", "side"),
    [(64, None, 32), (64, None, 240), (1, 64, 240), (8, 8, 240), (7, 9, 240), (5, 12, 240), (3, 21, 200), (16, 4, 640)],
)
def test_64_heatmaps_are_no_longer_than_4000_pixels(images, targets, side, monkeypatch):
    monkeypatch.setattr(import_module("torch_featviz.explain.reasons"), "faithfulness", pictured([Verdict.WORSE] * 64))
    classes = [f"a class with quite a long name, number {i}" for i in range(64)]
    targets = None if targets is None else range(targets)
    x = torch.rand(images, 1, side, side)
    sheet = attributions(Wide(), x, methods=["saliency"], targets=targets, classes=classes)
    assert max(sheet.numpy().shape) <= 4000
    marked = [words for words in sheet.captions if words]
    assert len(marked) == images * (len(targets) if targets else 1)


def test_large_images_are_drawn_as_means():
    x = torch.rand(16, 1, 640, 640)
    sheet = attributions(Wide(), x, methods=["saliency"], targets=range(4), faithful=False)
    side = sheet.cells.shape[-1]
    assert 300 < side < 400
    assert f"images of 640 × 640 pixels are drawn at {side} × {side}" in sheet.legend.notes
    for i in range(0, side, 50):
        area = slice(i * 640 // side, -(-(i + 1) * 640 // side))
        expected = rgb(x[:, :, area, area].mean((2, 3), keepdim=True).expand(-1, 3, -1, -1))[..., 0, 0]
        torch.testing.assert_close(sheet.cells[::5, :, i, i].int(), expected.int(), atol=1, rtol=0)
