"""Models of several inputs and layers that run twice: every method equals the same for each image by itself."""

import pytest
import torch
from torch import nn

from torch_featviz.errors import LayerError, OptionError
from torch_featviz.explain import METHODS, attribute, deconvnet, faithfulness
from torch_featviz.inspect import receptive_field
from torch_featviz.training import Monitor
from torch_featviz.views import overview, tokens

IMAGES, META = torch.rand(5, 3, 9, 9), torch.arange(10.0).view(5, 2) / 10


class Fusion(nn.Module):
    """An image, a row of figures for each image, and weights of these that all images share."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(6, 3)
        nn.init.constant_(self.conv.bias, 1)  # so that some units are above 0, whatever was drawn

    def forward(self, image, meta, scale):
        maps = self.act(self.conv(image)).mean((2, 3)) * (1 + meta.sum(1, keepdim=True))
        return self.head(torch.cat([maps, meta * scale], 1))


class Bound(nn.Module):
    """The same with all but the image fixed."""

    def __init__(self, net, meta, scale):
        super().__init__()
        self.net, self.meta, self.scale = net, meta, scale

    def forward(self, image):
        return self.net(image, self.meta.expand(len(image), -1), self.scale)


SCALE = torch.tensor([2.0, 0.5])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [None, 2])
def test_each_row_goes_with_its_image(method, rows):
    net, images, meta, scale = Fusion().double(), IMAGES.double(), META.double(), SCALE.double()
    layer = {"layer": "conv"} if method in ("layer_activation", "gradcam", "hirescam", "layercam") else {}
    inner = {"layer": "net.conv"} if layer else {}
    together = attribute(
        *(net, images),
        **{"method": method, "target": 1, "internal_batch_size": rows, **layer},
        **{"additional_forward_args": meta, "keywords": {"scale": scale}},
    )
    for i in range(5):
        alone = attribute(Bound(net, meta[i : i + 1], scale), images[i : i + 1], method=method, target=1, **inner)
        torch.testing.assert_close(together.heatmaps[i : i + 1], alone.heatmaps, rtol=1e-5, atol=1e-8)


def test_the_order_of_the_rows_matters_to_this_test():
    net = Fusion()
    right = attribute(net, IMAGES, target=1, method="saliency", additional_forward_args=(META, SCALE))
    wrong = attribute(net, IMAGES, target=1, method="saliency", additional_forward_args=(META.flip(0), SCALE))
    assert not torch.allclose(right.heatmaps, wrong.heatmaps, rtol=1e-2)


def test_faithfulness_gives_the_model_what_the_explanation_was_given():
    net, images, meta, scale = Fusion().double(), IMAGES.double(), META.double(), SCALE.double()
    why = attribute(net, images, method="input_x_gradient", additional_forward_args=(meta, scale))  # has no ties
    together = faithfulness(net, images, why, steps=4, stages=1)
    for i in range(5):
        bound = Bound(net, meta[i : i + 1], scale)
        alone = attribute(bound, images[i : i + 1], method="input_x_gradient")
        found = faithfulness(bound, images[i : i + 1], alone, steps=4, stages=0)
        torch.testing.assert_close(together.deletion[i : i + 1], found.deletion)
        torch.testing.assert_close(together.insertion[i : i + 1], found.insertion)


def test_the_rest_of_the_house_takes_them_too():
    net, more = Fusion(), {"additional_forward_args": META[:1], "keywords": {"scale": SCALE}}
    down = deconvnet(net, IMAGES[:1], "act", [0, 3], **more)
    assert torch.equal(down, deconvnet(Bound(net, META[:1], SCALE), IMAGES[:1], "net.act", [0, 3]))
    assert receptive_field(net, "act", (9, 9), **more).size == (3, 3)
    assert overview(net, IMAGES[:1], **more).captions[0].startswith("7×7")
    assert (
        tokens(net, IMAGES[:1], "act", **more).png()
        == tokens(
            Bound(net, META[:1], SCALE),
            IMAGES[0],
            "net.act",
            title="act: principal components of 7 × 7 places, 4 channels",
        ).png()
    )
    watch = Monitor(net, every=1, probe=(IMAGES, META, SCALE), why="saliency")
    by_name = Monitor(net, every=1, probe={"image": IMAGES, "meta": META, "scale": SCALE}, why="saliency")
    for each in (watch, by_name):
        with each.step():
            pass
        assert torch.equal(each._log.frames["maps/conv"]._held[-1].values, net.conv(IMAGES[:4])[:, :9])


def test_what_is_missing_is_said():
    with pytest.raises(OptionError, match=r"Fusion\.forward\(self, image, meta, scale\).*keywords="):
        attribute(Fusion(), IMAGES, additional_forward_args=META)
    with pytest.raises(OptionError, match=r"Fusion\.forward.*keywords="):
        overview(Fusion(), IMAGES[:1])


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)

    def forward(self, pair):
        one, other = (self.conv(image).relu().mean((2, 3)) for image in pair.chunk(2, 1))
        return self.head((one - other).abs())


PAIRS = torch.rand(3, 6, 9, 9)


@pytest.mark.parametrize("call", [1, 2])
def test_a_call_is_named_as_capture_names_it(call):
    net = Siamese()
    with torch.enable_grad():
        maps = [net.conv(image) for image in PAIRS.chunk(2, 1)]
        one, other = (each.relu().mean((2, 3)) for each in maps)
        (gradient,) = torch.autograd.grad(net.head((one - other).abs()).sum(), maps[call - 1], retain_graph=True)
    expected = (gradient.mean((2, 3), keepdim=True) * maps[call - 1]).sum(1, keepdim=True)
    why = attribute(net, PAIRS, layer=f"conv#{call}")
    assert why.layer == f"conv#{call}"
    torch.testing.assert_close(why.attributions, expected.detach())


def test_the_default_is_of_both_calls_and_a_plain_name_says_which_there_are():
    net = Siamese()
    why = attribute(net, PAIRS)
    assert why.layers == ("conv.relu#1", "conv.relu#2"), "of which none alone is all that the answer sees"
    parts = [attribute(net, PAIRS, layer=layer).attributions for layer in why.layers]
    parts = [part / part.abs().amax((1, 2, 3), keepdim=True) for part in parts]
    parts = [torch.nn.functional.interpolate(part, (9, 9), mode="bilinear") for part in parts]
    torch.testing.assert_close(why.attributions, torch.maximum(*parts))
    with pytest.raises(LayerError, match=r"'conv' ran 2 times .*; choose one call: 'conv#1', 'conv#2'"):
        attribute(net, PAIRS, layer="conv")
    with pytest.raises(LayerError, match="'conv' ran 2 times in one forward; it has no call 3"):
        attribute(net, PAIRS, layer="conv#3")


def test_a_projection_from_one_call_reaches_its_image_only():
    net = Siamese()
    nn.init.constant_(net.conv.bias, 3)  # every unit is above 0, and has a projection
    down = deconvnet(net, PAIRS[:1], "conv#2", [1])
    assert not down[:, :3].any()
    assert down[:, 3:].any()
    with pytest.raises(LayerError, match="choose one call"):
        deconvnet(net, PAIRS[:1], "conv", [1])
