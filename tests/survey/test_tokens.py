"""Top patches of a transformer's layers: tokens are maps on the grid of the patches; prefix tokens have no place."""

import pytest
import torch
from torch import nn

from torch_featviz.explain.deconvnet import project
from torch_featviz.model.layout import Layout
from torch_featviz.survey import top_patches
from torch_featviz.views import exemplars, projection


class Transformer(nn.Module):
    """Patches of 4 × 2 pixels, a class token, and one block."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 8, (4, 2), (4, 2)), nn.Parameter(torch.randn(1, 1, 8))
        self.first = nn.LayerNorm(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(self.embed(x).flatten(2).transpose(1, 2))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.block(x)[:, 0])


def build():
    torch.manual_seed(0)
    return Transformer().eval(), torch.rand(7, 1, 12, 8)


def tokens_of(net, images, layer):
    kept = []
    hook = net.get_submodule(layer).register_forward_hook(lambda _module, _given, output: kept.append(output))
    net(images)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize(("layer", "prefix"), [("first", 0), ("block", 1)])
def test_against_every_token_sorted_by_hand(layer, prefix):
    net, images = build()
    best = top_patches(net, [images[:4], images[4:]], layer, k=3)
    values = tokens_of(net, images, layer).detach().numpy()[:, prefix:]
    for channel in range(8):
        order = sorted(range(7), key=lambda i: -values[i, :, channel].max())[:3]
        assert best.images[channel].tolist() == order
        for rank, image in enumerate(order):
            place = int(values[image, :, channel].argmax())
            assert best.places[channel, rank].tolist() == [place // 4, place % 4], "three rows of four patches"
            assert float(best.values[channel, rank]) == pytest.approx(float(values[image, place, channel]), abs=1e-6)


def test_a_patch_of_a_token_is_its_own_and_behind_an_attention_the_whole_image():
    net, images = build()
    found = top_patches(net, [images], ["first", "block"], k=2)
    own, whole = (best.patches(3) for best in found.values())
    for i, (number, (row, column)) in enumerate(zip(found["first"].images[3], found["first"].places[3], strict=True)):
        expected = images[number, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
        assert torch.equal(own.images.flatten(0, -4)[i], expected)
    assert own.images.shape[2:] == (1, 4, 2)
    assert whole.images.shape[2:] == (1, 12, 8)
    assert own.projections.any()
    assert whole.projections.any()


def test_a_token_is_projected_by_its_gradient():
    """Without rectifiers guided backpropagation is the gradient times the unit's value."""
    net, images = build()
    found = project(net, images[:2], "first", [(2, 1, 3), (5, 2, 0)])
    leaf = images[:2].clone().requires_grad_()
    tokens = tokens_of(net, leaf, "first")
    for n, (channel, row, column) in enumerate([(2, 1, 3), (5, 2, 0)]):
        value = tokens[n, 4 * row + column, channel]
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
        torch.testing.assert_close(found.values[n], gradient[n] * value.detach().clamp(min=0))
        assert float(found.activations[n]) == pytest.approx(float(value.detach()), abs=1e-6)


def test_what_has_no_place_is_named_and_a_unit_is_drawn_in_its_image():
    net, images = build()
    best = top_patches(net, [images], ["first", "block"], k=2)
    assert "1 token without a place: left out" in exemplars(best["block"]).legend.notes
    assert best["first"].patches(0).unplaced == ""
    assert projection(net, images[0], "block", (2, 1, 3)).title.startswith("Channel 2 of block at row 1, column 3")


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(grid=(2, 3), prefix=1), (4, 7, 5)),
        (Layout(grid=(2, 3), suffix=2), (4, 8, 5)),
        (Layout(grid=(2, 3), prefix=1, suffix=1, tokens=0, images=1, channels=2), (8, 4, 5)),
        (Layout(grid=(3,), channels=1, tokens=2), (4, 5, 3)),
    ],
)
def test_maps_are_put_back_among_the_tokens(layout, shape):
    values = torch.randn(shape)
    maps = layout.maps(values)
    assert torch.equal(layout.put_back(maps, values), values)
    changed = layout.put_back(2 * maps, values)
    assert torch.equal(layout.maps(changed), 2 * maps)
    count = layout.prefix + layout.suffix
    assert int((changed == values).sum()) == values.numel() * count // (count + maps[0, 0].numel())
