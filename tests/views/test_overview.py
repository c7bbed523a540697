import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.picture import Scale, number
from torch_featviz.views import overview


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )


X = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cmap", [None, "gray", "RdBu"])
def test_each_cell_is_the_mean_over_channels_on_a_scale_of_its_own(cmap):
    model = net().eval()
    sheet = overview(model, X, cmap=cmap)
    with torch.no_grad(), capture(model) as acts:
        model(X)
    for cell, name, caption in zip(sheet.cells, "0123", sheet.captions, strict=True):
        mean = acts[name][0].mean(0)
        low, high = mean.min().item(), mean.max().item()
        both = {"gray": False, "RdBu": True}.get(cmap, low < 0 < high)
        if both:
            low, high = -mean.abs().max().item(), mean.abs().max().item()
        elif 0 < low < high / 4:
            low = 0.0
        used = cmap or ("RdBu_r" if both else "viridis")
        table = torch.from_numpy(
            matplotlib.colormaps[used].resampled(255 + (not both))(range(255 + (not both)), bytes=True)
        )
        index = ((mean - low) / (high - low) * (254 + (not both))).round().long()
        factor = 6 // len(mean)
        big = index.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        assert (cell.int() - table[big][..., :3].permute(2, 0, 1).int()).abs().max() <= 3, "one step of the table"
        ends = f"±{number(high)}" if both else f"{number(low)}…{number(high)}"
        assert caption == f"{len(mean)}×{len(mean)}  {ends}"


def test_labels_and_legend_say_what_is_shown_and_what_is_not():
    sheet = overview(net(), X)
    assert sheet.labels == ("0  Conv2d", "1  BatchNorm2d", "2  ReLU", "3  MaxPool2d")
    assert [caption.split("  ")[0] for caption in sheet.captions] == ["6×6", "6×6", "6×6", "3×3"]
    assert "each map on its own scale" in sheet.legend.lines()[0]
    assert "clipped 0 %" in sheet.legend.lines()
    assert "return no maps: 5" in sheet.legend.lines()
    assert "only pass values on: 4" in sheet.legend.lines()
    assert sheet.title == "Sequential, layer by layer: mean over channels"


def test_a_given_scale_is_for_all_where_its_ends_are_given_and_else_fitted_to_each():
    one = overview(net(), X, scale=Scale(symmetric=True, vmax=2.0))
    assert {caption.split("  ")[1] for caption in one.captions} == {"±2"}
    assert one.legend.scale.vmax == 2
    each = overview(net(), X, scale=Scale(symmetric=True), cmap="gray")
    assert len({caption.split("  ")[1] for caption in each.captions}) > 2
    assert each.legend.cmap == "gray"
    assert each.legend.also is None


def drawn_sides(sheet):
    """How many pixels each cell's map takes: what is not white paper."""
    return [int((cell != 255).any(0).any(0).sum()) for cell in sheet.cells]


def sized(*sizes):
    """A network whose layers return maps of these sizes."""
    return nn.Sequential(*(nn.AdaptiveAvgPool2d(size) for size in sizes))


@pytest.mark.parametrize(
    "sizes", [(225, 112, 113), (224, 112, 56, 28, 14, 7), (299, 149, 147, 73, 35, 17, 8), (150, 100)]
)
def test_maps_of_any_size_are_drawn_about_equally_large(sizes):
    sides = drawn_sides(overview(sized(*sizes), torch.rand(1, 1, 300, 300)))
    assert max(sides) <= 1.15 * min(sides)
    assert all(side % size == 0 for side, size in zip(sides, sizes, strict=True)), "by whole factors"


@given(st.lists(st.integers(2, 300), min_size=1, max_size=5, unique=True))
@settings(deadline=None, max_examples=15)
def test_no_map_is_less_than_half_as_large_as_another_and_none_is_cut(sizes):
    sides = drawn_sides(overview(sized(*sizes), torch.rand(1, 1, 300, 300)))
    assert max(sides) < 2.01 * min(sides)


class Registers(nn.Module):
    """Tokens behind a class token and two registers, of which the first is taken off."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.scale = nn.Conv2d(1, 4, 2, 2), nn.LayerNorm(4), nn.LayerNorm(4)
        self.cls_token, self.reg_token = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 2, 4))

    def forward(self, x):
        x = torch.cat([self.cls_token, self.reg_token, self.embed(x).flatten(2).transpose(1, 2)], 1)
        return self.scale(self.norm(x)[:, 1:]).mean(1)


def test_tokens_without_a_place_are_named():
    lines = overview(Registers(), X).legend.lines()
    assert "1 class token and 2 registers: not drawn" in lines
    assert "2 tokens without a place: not drawn" in lines
    assert not any("not drawn" in line for line in overview(net(), X).legend.lines())


def test_padding_is_left_out_and_named():
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3), nn.ReflectionPad2d(1))
    sheet = overview(model, X)
    assert sheet.labels == ("1  Conv2d",)
    assert "only pass values on: 0, 2" in sheet.legend.lines()


def deep(blocks):
    block = lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU())
    halves = [nn.Sequential(*[block() for _ in range(blocks // 2)]) for _ in range(2)]
    return nn.Sequential(halves[0], nn.MaxPool2d(2), halves[1])


def test_of_many_layers_the_ends_of_blocks_and_sizes_are_shown_and_all_on_request():
    model = deep(10)
    sheet = overview(model, X)
    ends = [f"0.{i}.2  ReLU" for i in range(5)] + ["1  MaxPool2d"] + [f"2.{i}.2  ReLU" for i in range(5)]
    assert list(sheet.labels) == ends, "without what a norm or an activation follows"
    assert "11 of 31 layers: ends of blocks, last of each size; limit=None draws all" in sheet.legend.lines()
    assert len(overview(model, X, limit=None).labels) == 31
    assert overview(model, X, limit=10).labels == ("0.4.2  ReLU", "1  MaxPool2d", "2.4.2  ReLU")
    assert overview(model, X, limit=2).labels == ("0.4.2  ReLU", "2.4.2  ReLU")
    assert len(overview(model, X, limit=1).labels) == 1
    assert len(overview(model, X, ["*.0", "*.1"]).labels) > 0


@pytest.mark.parametrize("size", [8, 64, 500])
def test_200_layers_stay_within_4000_pixels(size):
    sheet = overview(deep(66), torch.rand(1, 1, size, size))
    assert len(sheet.labels) <= 24
    assert max(sheet.numpy().shape) <= 4000


def test_a_mean_that_is_0_but_for_rounding_is_0():
    sheet = overview(nn.Sequential(nn.Conv2d(1, 8, 1), nn.GroupNorm(1, 8), Normed()), X)
    assert sheet.captions[-1] == "8×8  0"


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_the_model_stays_as_it_was():
    model = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model[1].eval()
    overview(model, X)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_maps_that_are_not_finite_are_counted():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity())
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = float("nan")
    assert overview(model, x, ["0"]).legend.counts.nan == 1


def test_layers_that_did_not_run_are_named():
    class First(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    assert any(line.startswith("did not run: 1, 2, 3") for line in overview(First(*net()), X).legend.lines())


@pytest.mark.parametrize(
    ("images", "layers", "error", "match"),
    [
        (torch.rand(2, 1, 8, 8), None, ShapeError, r"one image '1 c h w', got shape \(2, 1, 8, 8\); pass images\[:1\]"),
        (torch.rand(8, 8), None, ShapeError, r"got shape \(8, 8\)"),
        (X, ["4"], LayerError, "none of '4' returned maps"),
        (X, ["44"], LayerError, "no layer '44' in Sequential"),
    ],
)
def test_bad_input(images, layers, error, match):
    with pytest.raises(error, match=match):
        overview(net(), images, layers)


def test_one_image_without_a_batch_axis_is_taken():
    assert overview(net().eval(), X[0]).png() == overview(net().eval(), X).png()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit": 0}, "limit must be at least 1, or None, got 0"),
        ({"cmap": "jet"}, "not ordered by lightness"),
        ({"cmap": "RdBu", "scale": Scale(vmin=0)}, "needs a sequential map, got 'RdBu'"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(OptionError, match=match):
        overview(net(), X, **options)


class Attentive(nn.Module):
    """Maps by functions, and a matrix of tokens by tokens, which has four axes and is no map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        tokens = x.flatten(2)[:, None]
        scores = (tokens.transpose(2, 3) @ tokens).softmax(3)
        return (scores @ tokens.transpose(2, 3)).mean((1, 2))


def test_functional_calls_have_cells_if_they_are_maps():
    sheet = overview(Attentive(), X)
    assert sheet.labels == ("conv  Conv2d", "conv.relu  relu()")
    assert overview(Attentive(), X, ops=False).labels == ("conv  Conv2d",)
    assert any(line.startswith("return no maps: conv.matmul#1, conv.softmax") for line in sheet.legend.lines())
