"""Where images, channels and places lie: against a network that says it itself, and by moving what is in one place."""

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.explain import attribute
from torch_featviz.model.axes import start, viewed
from torch_featviz.model.layout import Layout, LayoutTracer, layout_of
from torch_featviz.views import feature_maps


def traced(function, *shape):
    images = torch.randn(shape)
    tracer = LayoutTracer(images)
    with torch.no_grad(), tracer:
        output = function(images)
    return output, tracer.layout(output)


MAP = {"images": 0, "channels": 1, "tokens": None, "places": (2, 3)}
LAST = {"images": 0, "channels": 3, "tokens": None, "places": (1, 2)}


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        (nn.Conv2d(3, 4, 3, stride=2), Layout((3, 5), **MAP)),
        (lambda x: nn.Conv2d(3, 4, 3)(x).permute(0, 2, 3, 1), Layout((6, 10), **LAST)),
        (lambda x: nn.Linear(3, 5)(x.permute(0, 2, 3, 1)), Layout((8, 12), **LAST)),
        (lambda x: x.transpose(2, 3), Layout((8, 12), images=0, channels=1, tokens=None, places=(3, 2))),
        (lambda x: x.flatten(2).transpose(1, 2), Layout((8, 12), channels=2)),
        (lambda x: x.permute(2, 0, 3, 1), Layout((8, 12), images=1, channels=3, tokens=None, places=(0, 2))),
        (lambda x: F.pixel_shuffle(torch.cat([x, x, x, x], 1), 2), Layout((16, 24), **MAP)),
        (lambda x: F.max_pool2d(x, 2) + 1, Layout((4, 6), **MAP)),
        (lambda x: x.mean((2, 3)), Layout((), images=0, channels=1, tokens=None)),
        (lambda x: x[:, :, ::2, 1:], Layout((4, 11), **MAP)),
        (lambda x: torch.cat([x, x * 2], 1).chunk(2, 1)[0], Layout((8, 12), **MAP)),
        (lambda x: F.interpolate(x, scale_factor=2), Layout((16, 24), **MAP)),
        (lambda x: x * x.mean((2, 3), keepdim=True), Layout((8, 12), **MAP)),
        (lambda x: (x * 1).unsqueeze_(-2), Layout((8, 12), images=0, channels=1, tokens=None, places=(2, 4))),
    ],
)  # fmt: skip
def test_one_function(function, layout):
    output, found = traced(function, 2, 3, 8, 12)
    assert found == layout, output.shape


MERGED, DEEP = "b c (h p) (w q) -> b h w (p q c)", "b c (h p) (w q) -> b (p q c) h w"
AGAIN = "b (h p) (w q) c -> b h w (p q c)"


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        (lambda x: rearrange(x, MERGED, p=4, q=4), Layout((2, 3), **LAST)),
        (lambda x: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), Layout((2, 3), channels=2)),
        (lambda x: nn.Linear(12, 5)(rearrange(x, MERGED, p=2, q=2)), Layout((4, 6), **LAST)),
        (lambda x: nn.Linear(12, 5)(rearrange(x, MERGED, p=2, q=2)).flatten(1, 2), Layout((4, 6), channels=2)),
        (lambda x: nn.Conv2d(12, 4, 2, 2)(rearrange(x, DEEP, p=2, q=2)), Layout((2, 3), **MAP)),
        (lambda x: rearrange(nn.GELU()(rearrange(x, MERGED, p=2, q=2)), AGAIN, p=2, q=2), Layout((2, 3), **LAST)),
    ],
)  # fmt: skip
def test_patches_whose_entries_are_channels_lie_on_a_grid(function, layout):
    """The first digits of rows and columns are the places of a coarser map."""
    output, found = traced(function, 2, 3, 8, 12)
    assert found == layout, output.shape


@pytest.mark.parametrize(
    "pattern",
    [
        "b c (h p) (w q) -> b h p w q c",
        "b c (h p) (w q) -> (b h w) (p q) c",
        "b c (h p) (w q) -> b (h w) (p q) c",
        "b c (h p) (w q) -> b (p q) (h w c)",
        "b c (h p) (w q) -> b c p q (h w)",
        "b c (h p) (w q) -> b (h w p q) c",
    ],
)
def test_windows_are_no_map(pattern):
    output, layout = traced(lambda x: rearrange(x, pattern, p=4, q=4), 2, 3, 8, 12)
    assert not layout.is_map, output.shape


class Attention(nn.Module):
    """A block with one class token in front of the places and one behind them."""

    def __init__(self, how):
        super().__init__()
        self.embed, self.how = nn.Conv2d(3, 8, 4, 4), how
        self.first, self.last = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.proj, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.whole = nn.MultiheadAttention(8, 2, batch_first=True)
        self.scores = None

    def forward(self, x):
        b = len(x)
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(b, -1, -1), x, self.last.expand(b, -1, -1)], 1)
        x = x + torch.zeros(1, x.shape[1], 8)
        y = self.norm(x)
        if self.how == "module":
            return x + self.whole(y, y, y, need_weights=False)[0]
        q, k, v = self.qkv(y).reshape(b, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            self.scores = (q @ k.transpose(-2, -1)).softmax(-1)
            out = self.scores @ v
        return x + self.proj(out.transpose(1, 2).reshape(b, -1, 8))


@pytest.mark.parametrize("how", ["module", "sdpa", "by hand"])
@pytest.mark.parametrize("images", [1, 3])
def test_tokens_keep_their_places_through_attention(how, images):
    net = Attention(how).eval()
    output, layout = traced(net, images, 3, 8, 12)
    assert layout == Layout((2, 3), prefix=1, suffix=1, channels=2)
    assert layout.maps(output).shape == (images, 8, 2, 3)
    assert torch.equal(layout.maps(output)[0, :, 1, 2], output[0, 6])


@pytest.mark.parametrize("how", ["module", "sdpa", "by hand"])
@pytest.mark.parametrize("images", [1, 2, 7, 8])
def test_layers_within_a_block_have_the_places_of_the_block(how, images):
    """A linear layer lays images and tokens end to end, and takes them apart again; seven images of eight tokens."""
    net, found = Attention(how).eval(), {}
    x = torch.randn(images, 3, 8, 12)
    tracer = LayoutTracer(x)
    layers = {"norm": net.norm, "qkv": net.qkv, "proj": net.proj}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: tracer.layout(output)}))
    with torch.no_grad(), tracer:
        net(x)
    ran = {"norm"} if how == "module" else set(layers)
    assert found == dict.fromkeys(ran, Layout((2, 3), prefix=1, suffix=1, channels=2))


def test_tokens_in_another_order_are_not_taken_for_what_they_were():
    """The same number of entries, but images and tokens are swapped or cut elsewhere."""
    tokens = lambda x: torch.cat([x.new_zeros(len(x), 2, 3), x.flatten(2).transpose(1, 2)], 1)
    assert traced(tokens, 2, 3, 2, 3)[1] == Layout((2, 3), prefix=2, channels=2)
    whole = lambda x: tokens(x).view(16, 3).view(2, 8, 3)
    assert traced(whole, 2, 3, 2, 3)[1] == Layout((2, 3), prefix=2, channels=2)
    halves = lambda x: tokens(x).view(32, 3).view(2, 16, 3).view(4, 8, 3)
    assert traced(halves, 4, 3, 2, 3)[1] == Layout((2, 3), prefix=2, channels=2)
    assert traced(lambda x: tokens(x).view(16, 3).view(2, 2, 4, 3), 2, 3, 2, 3)[1].channels == 3
    for cut in (
        lambda x: tokens(x).view(16, 3).view(8, 2, 3),
        lambda x: tokens(x).view(16, 3).view(4, 4, 3),
        lambda x: tokens(x).view(16, 3).view(2, 2, 4, 3),
        lambda x: tokens(x).transpose(0, 1).reshape(16, 3).view(2, 8, 3),
        lambda x: tokens(x).view(16, 3).roll(1, 0).view(2, 8, 3),
        lambda x: tokens(x).view(16, 3)[1:].view(3, 5, 3),
    ):
        assert not traced(cut, 2, 3, 2, 3)[1].is_map


@pytest.mark.parametrize(
    ("function", "back"),
    [
        (lambda x: x.roll((1, -2), (2, 3)), lambda x: x.roll((-1, 2), (2, 3))),
        (lambda x: x.flip(3), lambda x: x.flip(3)),
        (lambda x: x.flip(2).roll(1, 2), lambda x: x.roll(-1, 2).flip(2)),
    ],
)
def test_what_is_rolled_or_flipped_is_not_where_the_image_has_it(function, back):
    assert traced(function, 2, 3, 8, 12)[1].grid != (8, 12)
    assert traced(lambda x: back(function(x)), 2, 3, 8, 12)[1] == Layout((8, 12), **MAP)


def test_windows_are_put_back():
    """As in Swin: windows of 2 × 2 places, rolled, attended, and put back."""

    def forward(x):
        x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
        windows = x.view(2, 4, 2, 6, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 3)
        seen.append(windows)
        windows = F.softmax(windows @ windows.transpose(1, 2), -1) @ windows
        x = windows.view(2, 4, 6, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 12, 3)
        return torch.roll(x, (1, 1), (1, 2))

    seen = []
    images = torch.randn(2, 3, 8, 12)
    tracer = LayoutTracer(images)
    with tracer:
        output = forward(images)
    assert tracer.layout(output) == Layout((8, 12), **LAST)
    assert not tracer.layout(seen[0]).is_map


@given(st.data())
def test_a_view_and_its_way_back(data):
    """Axes split, moved and put together again, as einops does it, are what they were."""
    sizes = {name: data.draw(st.integers(1, 3), label=name) for name in "abcdefg"}
    shape = [2, sizes["a"] * sizes["b"], sizes["c"] * sizes["d"], sizes["e"] * sizes["f"]]
    axes = start(shape)
    split = viewed(axes, [2, *(sizes[name] for name in "abcdef")])
    order = data.draw(st.permutations(range(7)))
    moved = tuple(split[i] for i in order)
    merged = viewed(viewed(moved, [2 * sizes["a"] * sizes["b"] * shape[2] * shape[3]]), [axis.size for axis in moved])
    back = tuple(merged[order.index(i)] for i in range(7))
    result = layout_of(viewed(back, shape))
    if all(size > 1 for size in shape):
        assert result == layout_of(axes)


def test_a_model_in_place_and_one_of_text():
    class Net(nn.Module):
        def forward(self, x):
            x += 1
            return F.relu_(x)

    assert traced(Net(), 2, 3, 4, 5)[1] == Layout((4, 5), **MAP)
    numbers = torch.randint(0, 9, (2, 5))
    tracer = LayoutTracer(numbers)
    with torch.no_grad(), tracer:
        output = nn.Embedding(9, 4)(numbers)
    assert tracer.layout(output) == Layout((5,), images=0, channels=2, tokens=None, places=(1,))


def test_what_does_not_depend_on_the_images():
    tracer = LayoutTracer(torch.randn(2, 3, 4, 4))
    with tracer:
        assert tracer.layout(torch.ones(2, 3, 4, 4) + 1) is None
    assert tracer.layout("no tensor") is None


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        (Layout((2, 3)), (1, 7, 4), r"7 tokens are not 0 \+ 2 × 3 \+ 0"),
        (Layout(), (1, 7, 4), "have no places"),
        (Layout((2, 3)), (1, 6, 4, 2), "does not fit values of shape"),
        (Layout((2, 3), **MAP), (1, 4, 2, 2), "does not fit values of shape"),
    ],
)
def test_values_that_do_not_fit(layout, shape, message):
    with pytest.raises(ShapeError, match=message):
        layout.maps(torch.zeros(shape))


@pytest.mark.parametrize("options", [{"grid": (0, 3)}, {"grid": (2, 2), "prefix": -1}])
def test_layouts_that_mean_nothing(options):
    with pytest.raises(OptionError, match="grid sizes must be at least 1"):
        Layout(**options)


def test_the_layout_of_what_was_captured_draws_its_tokens():
    net, images = Attention("sdpa").eval(), torch.rand(2, 3, 8, 12)
    with torch.no_grad(), capture(net, ["embed", "norm"]) as acts:
        net(images)
    assert acts.layout("embed") == Layout((2, 3), **MAP)
    layout = acts.layout("norm")
    assert layout == Layout((2, 3), prefix=1, suffix=1, channels=2)
    tokens = acts["norm"][0]
    by_hand = tokens[1:-1].T.reshape(8, 2, 3)
    assert torch.equal(feature_maps(tokens, layout=layout).pixels, feature_maps(by_hand).pixels)
    with pytest.raises(LayerError, match="layer 'nope' was not captured"):
        acts.layout("nope")


def test_no_layers_at_all_are_no_default():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    net(torch.rand(1, 3, 8, 8))
    with pytest.raises(OptionError, match="layer is empty; give a layer, or leave it out"):
        attribute(net, torch.rand(1, 3, 8, 8), layer=[])
