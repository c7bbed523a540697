"""A segmenter's class over its own mask, against formulas written out."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_featviz as fv
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.explain import METHODS, attribute, faithfulness, reasons
from torch_featviz.explain.faithfulness import blur

IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
NAMES = ["background", "dark", "bright"]


class UNet(nn.Module):
    """Two levels; the classes are told apart by brightness, and the bias makes all three occur."""

    def __init__(self, n=3, wrap=lambda scores: scores, scale=1):
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh())
        self.mid = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.dec = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
        self.head = nn.Conv2d(4, n, 1)
        self.wrap, self.scale = wrap, scale
        with torch.no_grad():
            self.head.bias -= self.raw(IMAGES).mean((0, 2, 3))

    def raw(self, x):
        first = self.enc(x)
        return self.head(self.dec(torch.cat([self.up(self.mid(F.max_pool2d(first, 2))), first], 1)))

    def forward(self, x):
        return self.wrap(F.avg_pool2d(self.raw(x), self.scale))


def figures_of(net, images, classes):
    """The mean logit of each image's class over the pixels where it is the highest, with its graph."""
    scores = net.raw(images)
    labels = scores.argmax(1)
    return torch.stack([scores[i, k][labels[i] == k].mean() for i, k in enumerate(classes)])


def gradient_of(net, classes):
    images = IMAGES.clone().requires_grad_()
    return torch.autograd.grad(figures_of(net, images, classes).sum(), images)[0]


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"out": s, "aux": -s}, lambda s: {"logits": s}],
    ids=["tensor", "torchvision", "transformers"],
)
def test_the_target_is_the_mean_over_the_class_s_own_mask(wrap):
    net = UNet(wrap=wrap).eval()
    for target, classes in ((1, [1, 1, 1]), ([2, 0, 1], [2, 0, 1]), (["bright", "dark", 1], [2, 1, 1])):
        found = attribute(net, IMAGES, target=target, method="saliency", abs=False, classes=NAMES)
        assert found.classes.tolist() == classes
        assert found.target == target if not isinstance(target, list) else True
        torch.testing.assert_close(found.attributions, gradient_of(net, classes), atol=1e-7, rtol=1e-4)
        labels = net.raw(IMAGES).argmax(1)
        assert torch.equal(found.mask, labels == torch.tensor(classes)[:, None, None])


def test_the_default_is_the_largest_class_besides_the_background():
    net = UNet().eval()
    counts = [[int((row == k).sum()) for k in range(3)] for row in net.raw(IMAGES).argmax(1)]
    assert attribute(net, IMAGES).classes.tolist() == [max(range(3), key=row.__getitem__) for row in counts]
    named = attribute(net, IMAGES, classes=NAMES).classes.tolist()
    assert named == [max((1, 2), key=row.__getitem__) for row in counts]


def test_gradcam_of_the_bottleneck_and_what_passes_beside_it():
    net = UNet().eval()
    found = attribute(net, IMAGES, target=1)
    assert found.layers == ("enc", "mid"), "the map that is handed on, and the end of the encoder"
    first = net.enc(IMAGES).detach().requires_grad_()
    deep = net.mid(F.max_pool2d(first, 2))
    scores = net.head(net.dec(torch.cat([net.up(deep), first], 1)))
    masks = scores.argmax(1) == 1
    figure = torch.stack([scores[i, 1][masks[i]].mean() for i in range(3)]).sum()
    heat = []
    for maps, gradient in zip((first, deep), torch.autograd.grad(figure, (first, deep)), strict=True):
        cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).detach()
        heat.append(F.interpolate(cam / cam.abs().amax((1, 2, 3), keepdim=True), (16, 16), mode="bilinear")[:, 0])
    torch.testing.assert_close(found.heatmaps, torch.maximum(*heat), atol=1e-5, rtol=1e-4)
    alone = attribute(net, IMAGES, target=1, layer="mid.1")
    assert alone.layers == ("mid.1",)
    assert alone.heatmaps.any()


def test_one_channel():
    net = UNet(1).eval()
    chosen = net.raw(IMAGES)[:, 0] > 0
    for target, sign, mask in ((1, 1, chosen), (0, -1, ~chosen), ("leaf", 1, chosen)):
        given = {"classes": ["leaf"]} if isinstance(target, str) else {}
        found = attribute(net, IMAGES, target=target, method="saliency", abs=False, **given)
        images = IMAGES.clone().requires_grad_()
        scores = sign * net.raw(images)[:, 0]
        figure = torch.stack([scores[i][mask[i]].mean() for i in range(3)]).sum()
        torch.testing.assert_close(found.attributions, torch.autograd.grad(figure, images)[0], atol=1e-7, rtol=1e-4)
        assert torch.equal(found.mask, mask)
    assert attribute(net, IMAGES, answer="logits").classes.tolist() == [1, 1, 1], "the background is class 0"


@pytest.mark.parametrize("scale", [2, 4])
def test_scores_may_be_smaller_than_the_image(scale):
    found = attribute(UNet(scale=scale).eval(), IMAGES, target=1)
    assert found.mask.shape == (3, 16 // scale, 16 // scale)
    assert found.heatmaps.shape == (3, 16, 16)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"deep_lift", "lrp"}))
def test_every_method_and_any_size_of_batch(method):
    net = UNet().eval()
    layer = {"layer": "mid.3"} if method == "layer_activation" else {}
    whole = attribute(net, IMAGES, target=[2, 1, 1], method=method, **layer)
    assert whole.heatmaps.any()
    small = attribute(net, IMAGES, target=[2, 1, 1], method=method, internal_batch_size=2, **layer)
    torch.testing.assert_close(small.heatmaps, whole.heatmaps, atol=1e-5, rtol=1e-3)
    last = attribute(net, IMAGES[2:], target=1, method=method, **layer)
    torch.testing.assert_close(last.heatmaps, whole.heatmaps[2:], atol=1e-5, rtol=1e-3)


def test_a_callable_sees_the_output_itself():
    net = UNet(wrap=lambda s: {"out": s}).eval()
    found = attribute(net, IMAGES, target=lambda output: output["out"][:, 1].mean((1, 2)), method="saliency")
    assert found.classes is None
    assert found.mask is None


def area_by_hand(net, start, end, heat, k, mask, steps=4):
    """One image: the mean probability of a class over a fixed mask, while pixels go from start to end."""
    order = sorted(range(256), key=lambda i: (-float(heat.flatten()[i]), i))
    values = []
    for step in range(steps + 1):
        image = start.clone()
        for i in [i for place, i in enumerate(order) if (place + 0.5) / 256 < step / steps]:
            image[:, i // 16, i % 16] = end[:, i // 16, i % 16]
        with torch.no_grad():
            chances = net.raw(image[None])[0].double().softmax(0)[k]
        values.append(float(chances[mask].mean()))
    return sum((a + b) / 2 / steps for a, b in pairwise(values))


def test_faithfulness_is_of_the_probability_over_the_mask_of_the_image_itself():
    net = UNet().eval()
    why = attribute(net, IMAGES, target=[2, 1, 1], method="input_x_gradient")
    found = faithfulness(net, IMAGES, why, steps=4, stages=2, internal_batch_size=5)
    chances, blurred = net.raw(IMAGES).softmax(1).detach(), blur(IMAGES)
    for i, k in enumerate([2, 1, 1]):
        mask = net.raw(IMAGES)[i].argmax(0) == k
        assert float(found.whole[i]) == pytest.approx(float(chances[i, k][mask].mean()), abs=1e-5)
        deletion = area_by_hand(net, IMAGES[i], torch.zeros(1, 16, 16), why.heatmaps[i], k, mask)
        insertion = area_by_hand(net, blurred[i], IMAGES[i], why.heatmaps[i], k, mask)
        assert float(found.deletion[i]) == pytest.approx(deletion, abs=1e-5)
        assert float(found.insertion[i]) == pytest.approx(insertion, abs=1e-5)
    assert found.span is None
    assert found.similarity.shape == (2, 3)


def test_a_mask_that_rests_on_its_own_pixels_is_found_faithful():
    class Bright(nn.Module):
        """Each pixel by its own brightness and that of its neighbours."""

        def forward(self, x):
            scores = 8 * (F.avg_pool2d(x, 3, 1, 1) - 0.5)
            return {"out": torch.cat([-scores, scores], 1)}

    images = torch.full((2, 1, 24, 24), 0.1)
    images[0, :, 3:12, 4:13] = images[1, :, 12:22, 9:20] = 1
    why = attribute(Bright(), images, method="input_x_gradient", classes=["background", "bright"])
    assert why.classes.tolist() == [1, 1]
    inside = (why.heatmaps.clamp(min=0) * (images[:, 0] > 0.5)).sum((1, 2)) / why.heatmaps.clamp(min=0).sum((1, 2))
    assert bool((inside > 0.9).all())
    worth = faithfulness(Bright(), images, why, stages=0)
    assert [str(verdict) for verdict in worth.verdict] == ["✓ better than chance"] * 2


def test_reasons_of_several_classes():
    net = UNet().eval()
    why = reasons(net, IMAGES, ["saliency"], ["bright", 1], classes=NAMES, faithful=False)
    assert why.classes.tolist() == [[2, 1]] * 3
    labels = net.raw(IMAGES).argmax(1)
    assert torch.equal(why.methods[0].masks, torch.stack([labels == 2, labels == 1], 1))
    shares = torch.stack([(labels == k).float().mean((1, 2)) for k in range(3)], 1)
    torch.testing.assert_close(why.probabilities, shares)
    both = reasons(net, IMAGES, ["saliency"], likeliest=2, classes=NAMES, faithful=False)
    assert both.classes.tolist() == [sorted((1, 2), key=lambda k: -row[k]) for row in shares.tolist()]
    alone = attribute(net, IMAGES, target=2, method="saliency")
    torch.testing.assert_close(why.methods[0].heatmaps[:, 0], alone.heatmaps)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"target": 3}, OptionError, "target must be from 0 to 2, got"),
        ({"target": [1, 2]}, ShapeError, "target must be one class, or 3 classes, one per image"),
        ({"target": "sofa", "classes": NAMES}, OptionError, "no class 'sofa'; close: none"),
        ({"target": 1, "classes": ["a", "b"]}, ShapeError, "classes must name 3, as the model returns, got 2"),
        ({"answer": "probabilities"}, OptionError, "answer='probabilities', but the scores lie from"),
        ({"layer": "head"}, LayerError, "no layer 'dec.9'"),
    ],
)
def test_bad_input_says_what_to_do(given, error, match):
    if given.get("layer"):
        given = {"layer": "dec.9"}
    with pytest.raises(error, match=match):
        attribute(UNet().eval(), IMAGES, **given)


def test_a_class_without_a_pixel_says_so():
    net = UNet().eval()
    net.head.bias.data[2] -= 100
    with pytest.raises(OptionError, match=r"class 'bright' has no pixel in image 0; there are '.*', '.*'\."):
        attribute(net, IMAGES, target="bright", classes=NAMES)
    with pytest.raises(OptionError, match="class 'class 2' has no pixel in image 0"):
        attribute(net, IMAGES, target=2)


def test_what_may_be_a_picture_is_asked_about():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))
    with torch.no_grad():
        net[2].bias -= net(IMAGES).mean((0, 2, 3))  # both classes have pixels
    for call in (attribute, fv.attributions):
        with pytest.raises(OptionError, match=r"the model returns shape \(3, 1, 16, 16\): is it a picture"):
            call(net, IMAGES)
    assert attribute(net, IMAGES, target=1).mask.any()
    features = nn.Conv2d(1, 8, 9, 9)
    with pytest.raises(ShapeError, match=r"returns shape \(1, 8, 1, 1\); pass target= a callable"):
        attribute(features, IMAGES)


def test_one_channel_and_channels_like_the_image_are_asked_about():
    images = torch.rand(2, 3, 8, 8)
    larger = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Upsample(scale_factor=2)).eval()
    depth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 3)).eval()
    for net in (larger, depth):
        with pytest.raises(OptionError, match="is it a picture or a depth, or are these scores of classes"):
            attribute(net, images)
    assert attribute(depth, images, classes=["road"]).classes is not None
