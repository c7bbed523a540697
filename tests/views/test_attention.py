"""Pictures of attention: which weights are drawn, where, in which colours, and what stands below them."""

import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.nn import functional as F

from torch_featviz import views
from torch_featviz.errors import DeviceError, DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.explain.rollout import rollout
from torch_featviz.picture import Scale
from torch_featviz.picture.overlay import laid

GRID = (3, 4)
IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))


class Attend(nn.Module):
    """Heads whose weights are given, for images of every kind: those of the second are turned about."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x):
        b, n, c = x.shape
        heads = len(self.weights)
        value = x.reshape(b, n, heads, c // heads).transpose(1, 2)
        mask = self.weights.log().expand(b, -1, -1, -1)
        mask = torch.cat([mask[:1], mask[1:].roll(1, -1)])
        made = F.scaled_dot_product_attention(value * 0, value, value, attn_mask=mask)
        return made.transpose(1, 2).reshape(b, n, c)


class Net(nn.Module):
    """Patches of 8 x 8 pixels after tokens of its own."""

    def __init__(self, layers, prefix=0, registers=0):
        super().__init__()
        heads = max(len(weights) for weights in layers)
        self.embed = nn.Conv2d(3, 12 * heads, 8, 8)
        if prefix > registers:
            self.cls_token = nn.Parameter(torch.rand(1, 1, 12 * heads))
        self.reg_token = nn.Parameter(torch.rand(1, registers, 12 * heads))
        self.blocks = nn.ModuleList(map(Attend, layers))

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        tokens = [getattr(self, "cls_token", self.reg_token[:, :0]), self.reg_token]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in tokens), x], 1)
        for block in self.blocks:
            x = x + block(x)
        return x.mean(1)


def weights(seed, heads, count):
    scores = torch.randn(heads, count, count, generator=torch.Generator().manual_seed(seed))
    return (2 * scores).softmax(-1)


def tiles(picture, row, heads):
    """Of a row of a sheet, without the image."""
    return picture.cells[row * (heads + 1) + 1 : (row + 1) * (heads + 1)]


def expected(picture, image, maps, scale):
    """Tiles of `heads h w` over an image, by loops over places."""
    high, wide = picture.cells.shape[2:]
    large = torch.zeros(len(maps), high, wide)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            y, x = (slice(a * s // n, (a + 1) * s // n) for a, s, n in ((row, high, GRID[0]), (column, wide, GRID[1])))
            large[:, y, x] = maps[:, row, column, None, None]
    unit = F.interpolate(image[None], (high, wide), mode="nearest")
    return laid(unit, large[None], scale=scale, cmap="viridis", alpha=0.65)[0]


def per_head(maps):
    return Scale(vmin=0.0, vmax=maps.amax((1, 2))[None, :, None, None])


ONE = weights(0, 3, 13)


def test_the_row_of_the_class_token():
    picture = views.attention(Net([ONE], prefix=1), IMAGES[:1])
    maps = ONE[:, 0, 1:].reshape(3, *GRID)
    assert picture.labels == ("image", "head 0", "head 1", "head 2")
    assert picture.title == "Attention of the class token in blocks.0"
    assert torch.equal(tiles(picture, 0, 3), expected(picture, IMAGES[0], maps, per_head(maps)))
    for head in range(3):
        row = ONE[head, 0].tolist()
        places = [p / sum(row[1:]) for p in row[1:]]
        spread = math.exp(-sum(p * math.log(p) for p in places))
        said = picture.captions[1 + head].split("\n")
        assert said == [f"up to {max(row[1:]):.3g}", f"over {spread:.0f} places", f"class {100 * row[0]:.0f} %"]
    assert "a token's weights sum to 1" in picture.legend.notes[0]
    assert "share of the token without a place" in picture.legend.notes[1]
    assert picture.legend.ticks() == [(0.0, "0"), (1.0, "max")]


def test_registers_stand_apart():
    given = weights(3, 2, 17)
    picture = views.attention(Net([given], prefix=5, registers=4), IMAGES[0])
    maps = given[:, 0, 5:].reshape(2, *GRID)
    assert torch.equal(tiles(picture, 0, 2), expected(picture, IMAGES[0], maps, per_head(maps)))
    for head in range(2):
        row = given[head, 0]
        shares = f"class {100 * row[0]:.0f} %, registers {100 * row[1:5].sum():.0f} %"
        assert picture.captions[1 + head].endswith(shares)
    assert "share of the 5 tokens without a place" in picture.legend.notes[1]


@pytest.mark.parametrize("registers", [0, 4])
def test_without_a_class_token_the_mean_over_all(registers):
    given = weights(2, 2, 12 + registers)
    picture = views.attention(Net([given], registers, registers), IMAGES[:1])
    maps = given.mean(1)[:, registers:].reshape(2, *GRID)
    assert (tiles(picture, 0, 2).int() - expected(picture, IMAGES[0], maps, per_head(maps)).int()).abs().max() <= 1
    assert picture.title == "Attention of all tokens in blocks.0"
    assert picture.legend.notes[0].startswith("colour: the mean of the weights that all tokens give to each place")
    assert ("registers" in picture.captions[1]) is bool(registers)


def test_rows_are_images_tokens_and_layers():
    layers = [weights(k, 2, 13) for k in range(2)]
    picture = views.attention(Net(layers, prefix=1), IMAGES, queries=[0, (1, 2)])
    assert picture.rows == (
        *("image 0, class token, blocks.0", "image 0, class token, blocks.1"),
        *("image 0, place (1, 2), blocks.0", "image 0, place (1, 2), blocks.1"),
        *("image 1, class token, blocks.0", "image 1, class token, blocks.1"),
        *("image 1, place (1, 2), blocks.0", "image 1, place (1, 2), blocks.1"),
    )
    assert picture.columns == ("image", "head 0", "head 1")
    assert picture.empty == {3, 9, 15, 21}, "an image stands above its other layers"
    assert picture.title == "Attention of 2 tokens"
    for image in range(2):
        for layer in range(2):
            row = layers[layer].roll(image, -1)[:, 0, 1:].reshape(2, *GRID)
            drawn = tiles(picture, 4 * image + layer, 2)
            assert (drawn.int() - expected(picture, IMAGES[image], row, per_head(row)).int()).abs().max() <= 1


def test_a_place_is_outlined_and_its_distance_told():
    picture = views.attention(Net([ONE], prefix=1), IMAGES[:1], queries=(1, 2))
    number = 1 + 1 * GRID[1] + 2
    same = views.attention(Net([ONE], prefix=1), IMAGES[:1], queries=[number])
    assert torch.equal(picture.cells, same.cells)
    assert picture.title == same.title == "Attention of place (1, 2) in blocks.0"
    maps = ONE[:, number, 1:].reshape(3, *GRID)
    plain = expected(picture, IMAGES[0], maps, per_head(maps))
    changed = (tiles(picture, 0, 3) != plain).any(1).any(0)
    high, wide = (side // places for side, places in zip(changed.shape, GRID, strict=True))
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (high - 2, 2 * high + 1)
    assert (columns[0], columns[-1]) == (2 * wide - 2, 3 * wide + 1)
    assert not changed[high : 2 * high, 2 * wide : 3 * wide].any(), "what is in it is to be seen"
    for head in range(3):
        far = sum(
            float(maps[head, row, column]) * 8 * math.hypot(row - 1, column - 2)
            for row in range(GRID[0])
            for column in range(GRID[1])
        )
        assert f"\n{far / float(maps[head].sum()):.0f} px away\n" in picture.captions[1 + head]


def test_a_head_that_looks_at_no_place():
    only_class = torch.zeros(1, 13, 13)
    only_class[..., 0] = 1
    net = Net([only_class], prefix=1)
    assert views.attention(net, IMAGES[:1]).captions[1] == "up to 0\nover 0 places\nclass 100 %"
    assert views.attention(net, IMAGES[:1], queries=(0, 0)).captions[1] == "up to 0\nover 0 places\nclass 100 %"
    found = views.attention_distance(net, IMAGES[:1])
    assert found.distances["blocks.0"].isnan().all()
    assert found.numpy().size


def test_half_precision_is_drawn_as_float():
    layers = [weights(k, 2, 13) for k in range(3)]
    exact = views.attention(Net(layers, prefix=1), IMAGES[:1], rollout=True)
    half = views.attention(Net(layers, prefix=1).bfloat16(), IMAGES[:1].bfloat16(), rollout=True)
    assert (tiles(half, 0, 1).int() - tiles(exact, 0, 1).int()).abs().float().mean() < 4
    assert half.captions[1].split("\n")[1:] == exact.captions[1].split("\n")[1:]


def test_one_scale_for_a_sheet_and_a_scale_of_ones_own():
    layers = [weights(k, 2, 13) for k in range(2)]
    net = Net(layers, prefix=1)
    picture = views.attention(net, IMAGES[:1], per="sheet")
    maps = [layer[:, 0, 1:].reshape(2, *GRID) for layer in layers]
    scale = Scale(vmin=0, vmax=max(float(each.max()) for each in maps))
    for layer in range(2):
        drawn = tiles(picture, layer, 2)
        assert (drawn.int() - expected(picture, IMAGES[0], maps[layer], scale).int()).abs().max() <= 1
    assert picture.legend.ticks()[1][1] == f"{scale.vmax:.3g}"
    assert not any("up to" in words for words in picture.captions)
    assert "highest weight" not in picture.legend.notes[1]
    narrow = views.attention(net, IMAGES[:1], scale=Scale(vmin=0, vmax=0.05))
    above = sum(int((each > 0.05).sum()) for each in maps)
    places = narrow.cells.shape[2] * narrow.cells.shape[3] // (GRID[0] * GRID[1])
    assert narrow.legend.counts.over == above * places
    assert narrow.legend.marks()[0][1].endswith("px above the scale")


def test_rollout_is_one_map_for_an_image():
    layers = [weights(k, 2, 13) for k in range(3)]
    picture = views.attention(Net(layers, prefix=1), IMAGES, rollout=True)
    product = rollout([torch.stack([layer, layer.roll(1, -1)]) for layer in layers])
    for image in range(2):
        maps = product[image, 0, 1:].reshape(1, *GRID)
        drawn = tiles(picture, image, 1)
        assert (drawn.int() - expected(picture, IMAGES[image], maps, per_head(maps)).int()).abs().max() <= 1
        assert picture.captions[2 * image + 1].endswith(f"class {100 * product[image, 0, 0]:.0f} %")
    assert picture.columns == ("image", "rollout")
    assert picture.title == "Attention rollout of the class token"
    said = " ".join(picture.legend.notes)
    assert "mean over heads, plus the identity, rows to 1, product over 3 layers" in said
    assert "it knows neither the values that the weights multiply, nor the class" in said
    of_all = views.attention(Net([layer[:, 1:, 1:].softmax(-1) for layer in layers]), IMAGES[:1], rollout=True)
    assert of_all.title == "Attention rollout of all tokens"


class Reads(nn.Module):
    """One query, which gives the tokens these weights."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights)
        self.query = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        values = x[:, None].expand(-1, len(self.weights), -1, -1)
        query = self.query.expand(*values.shape[:2], 1, values.shape[3])
        mask = self.weights.log().expand(len(x), -1, -1, -1)
        return F.scaled_dot_product_attention(query, values, values, attn_mask=mask).mean((1, 2))


class ReadOut(Net):
    def __init__(self, layers, weights, prefix=0):
        super().__init__(layers, prefix)
        self.pool = Reads(weights)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        if hasattr(self, "cls_token"):
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = x + block(x)
        return self.pool(x)


def test_a_rollout_ends_with_the_weights_of_a_query_that_reads_the_tokens_out():
    layers, last = [weights(k, 2, 12) for k in range(2)], weights(5, 3, 12)[:, :1]
    picture = views.attention(ReadOut(layers, last), IMAGES[:1], rollout=True)
    row = last.mean(0)[0]
    for layer in layers[::-1]:
        mean = layer.mean(0)
        row = torch.stack([sum(row[q] * (mean[q, k] + (q == k)) / 2 for q in range(12)) for k in range(12)])
    maps = row.reshape(1, *GRID)
    assert (tiles(picture, 0, 1).int() - expected(picture, IMAGES[0], maps, per_head(maps)).int()).abs().max() <= 1
    assert picture.title == "Attention rollout of the query of pool"
    said = picture.legend.notes
    assert any("product over 2 layers" in words for words in said)
    assert "last come the weights of pool, whose one query is no token of the image and has no identity" in said
    assert "the weight that the token gives" in said[0]
    without = views.attention(ReadOut(layers, last), IMAGES[:1], ["blocks.*"], rollout=True)
    assert without.title == "Attention rollout of all tokens"


def test_a_readout_whose_class_token_is_among_its_keys_is_left_out_of_a_rollout():
    layers, last = [weights(k, 2, 13) for k in range(2)], weights(5, 3, 13)[:, :1]
    picture = views.attention(ReadOut(layers, last, prefix=1), IMAGES[:1], rollout=True)
    plain = views.attention(Net(layers, prefix=1), IMAGES[:1], rollout=True)
    assert torch.equal(picture.cells, plain.cells)
    assert picture.title == plain.title == "Attention rollout of the class token"
    assert "without pool: its queries are not the tokens that it attends to" in picture.legend.notes
    with pytest.raises(LayerError, match=r"as many queries as keys: pool has 1 for 13\."):
        views.attention(ReadOut(layers, last, prefix=1), IMAGES[:1], "pool", rollout=True)


class Talking(Attend):
    """Its heads are mixed after the softmax."""

    def __init__(self, weights):
        super().__init__(weights)
        self.mixes = nn.Linear(len(weights), len(weights))

    def forward(self, x):
        value = x.unflatten(-1, (len(self.weights), -1)).transpose(1, 2)
        weights = self.weights.log().expand(len(x), -1, -1, -1).softmax(-1)
        mixed = self.mixes(weights.movedim(1, -1)).movedim(-1, 1)
        return (mixed @ value).transpose(1, 2).flatten(2)


def test_what_is_left_out_is_said_with_its_reason():
    net = Net([weights(k, 2, 12) for k in range(4)])
    for k in (0, 2):
        net.blocks[k] = Talking(weights(k, 2, 12))
    reason = "its heads are mixed after the softmax (talking heads), before it meets values"
    picture = views.attention(net, IMAGES[:1])
    assert picture.rows == ("blocks.1", "blocks.3")
    assert f"without blocks.0, blocks.2: {reason}" in picture.legend.notes
    assert f"without blocks.0, blocks.2: {reason}" in views.attention(net, IMAGES[:1], rollout=True).legend.notes
    figure = views.attention_distance(net, IMAGES[:1]).figure()
    assert reason in figure.get_supxlabel().replace("\n", " ")
    FigureCanvasAgg(figure).draw()
    left, _, right, _ = figure._supxlabel.get_window_extent().extents
    assert 0 <= left < right <= figure.bbox.width, "no line is cut off"
    with pytest.raises(
        LayerError, match=r"attention of 'blocks.2' cannot be shown: its heads are mixed after the soft"
    ):
        views.attention(net, IMAGES[:1], "blocks.2")


def test_layers_with_other_numbers_of_heads():
    layers = [weights(0, 1, 12), weights(1, 3, 12)]
    picture = views.attention(Net(layers), IMAGES[:1])
    assert picture.empty == {2, 3, 4}
    assert [bool(words) for words in picture.captions] == [False, True, False, False, False, True, True, True]


def test_many_layers_are_thinned_and_that_is_said():
    net = Net([weights(k, 1, 12) for k in range(30)])
    picture = views.attention(net, IMAGES[:1])
    assert len(picture.rows) == 24
    assert (picture.rows[0], picture.rows[-1]) == ("blocks.0", "blocks.29")
    assert "24 of 30 layers; layers=[...] chooses others" in picture.legend.notes
    assert len(views.attention(net, IMAGES[:1], ["blocks.4", "blocks.2*"]).rows) == 12
    alone = views.attention(net, IMAGES[:1].expand(20, -1, -1, -1))
    assert alone.title == "Attention of all tokens in blocks.29"


NET = Net([ONE], prefix=1)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (1, {"per": "kernel"}, OptionError, "per must be one of 'head', 'sheet', got 'kernel'"),
        (1, {"per": "sheet", "scale": Scale()}, OptionError, r"pass per, or a scale .* got per='sheet' and a scale"),
        (1, {"scale": Scale(symmetric=True)}, OptionError, r"never below 0.* got Scale\(symmetric=True\)"),
        (1, {"queries": (3, 0)}, OptionError, r"no place \(3, 0\): the grid has 3 rows and 4 columns"),
        (1, {"queries": [(0, -1)]}, OptionError, r"no place \(0, -1\)"),
        (1, {"queries": 13}, OptionError, "no token 13: there are 13, from 0"),
        (1, {"queries": "class"}, OptionError, "a place .* or the number of a token, got 'class'"),
        (1, {"queries": [True]}, OptionError, "got True"),
        (1, {"queries": []}, OptionError, "queries is empty"),
        (25, {}, ShapeError, "25 images × 1 tokens are too many, a sheet shows 24 rows"),
        (1, {"layers": "embed"}, LayerError, "no attention is computed in 'embed'"),
    ],
)
def test_what_is_refused(images, options, error, message):
    with pytest.raises(error, match=message):
        views.attention(NET, IMAGES[:1].expand(images, -1, -1, -1), **options)


@pytest.mark.parametrize("view", [views.attention, views.attention_distance])
@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (torch.zeros(24, 32), {}, ShapeError, r"images must be 'b c h w' .* got shape \(24, 32\)"),
        (torch.zeros(1, 2, 24, 32), {}, ShapeError, r"Net does not accept inputs of shape \(1, 2, 24, 32\)"),
        (torch.zeros(1, 3, 24, 32, dtype=torch.uint8), {}, DtypeError, "tensor of floats .* got torch.uint8"),
        (IMAGES.double(), {}, DtypeError, "images are torch.float64, but the weights of Net are torch.float32"),
        (IMAGES, {"layers": "block"}, LayerError, "no layer 'block' in Net; close: 'blocks'"),
        (IMAGES, {"layers": []}, OptionError, "layers is empty"),
        (IMAGES, {"keywords": {"mask": 1}}, OptionError, "takes other arguments"),
        (IMAGES.to("meta"), {}, DeviceError, "images: expected values, got a tensor on the meta device"),
    ],
)
def test_what_no_model_takes(view, images, options, error, message):
    with pytest.raises(error, match=message):
        view(NET, images, **options)


class Guided(Net):
    def forward(self, x, shift, *, scale):
        return super().forward((x + shift) * scale)


def test_further_arguments_are_given_to_the_model():
    net = Guided([ONE], prefix=1)
    more = {"additional_forward_args": torch.zeros(2, 1, 1, 1), "keywords": {"scale": 1.0}}
    plain = views.attention(Net([ONE], prefix=1), IMAGES)
    assert torch.equal(views.attention(net, IMAGES, **more).cells, plain.cells)
    found = views.attention_distance(net, IMAGES, **more).distances["blocks.0"]
    assert torch.equal(found, views.attention_distance(Net([ONE], prefix=1), IMAGES).distances["blocks.0"])


class Shrinking(Net):
    """The places of its second layer are those of the first, two by two."""

    def forward(self, x):
        x = self.embed(x)
        x = x + self.blocks[0](x.flatten(2).mT).mT.reshape(x.shape)
        x = F.avg_pool2d(x, (1, 2))
        return self.blocks[1](x.flatten(2).mT).mean(1)


def test_layers_of_several_grids():
    net = Shrinking([weights(0, 2, 12), weights(1, 2, 6)])
    assert len(views.attention(net, IMAGES[:1]).rows) == 2
    with pytest.raises(OptionError, match=r"layers have several \(3 × 2, 3 × 4\); choose layers of one grid"):
        views.attention(net, IMAGES[:1], queries=(0, 0))
    with pytest.raises(ShapeError, match="layer 1 has 6, those before it 12"):
        views.attention(net, IMAGES[:1], rollout=True)


class Across(nn.Module):
    """Places attend to fewer places, all of them alike."""

    def forward(self, x, keys):
        x, keys = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (x, keys))
        return F.scaled_dot_product_attention(x * 0, keys, keys).mean(1)


class Crossed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.across = nn.Conv2d(3, 24, 8, 8), Across()

    def forward(self, x):
        x = self.embed(x)
        return self.across(x.flatten(2).mT, F.avg_pool2d(x, (1, 2)).flatten(2).mT)


def test_queries_that_are_other_tokens():
    picture = views.attention(Crossed(), IMAGES[:1], queries=[11])
    assert picture.title == "Attention of query 11 in across"
    assert picture.captions[1] == "up to 0.167\nover 6 places"
    assert views.attention(Crossed(), IMAGES[:1]).title == "Attention of all tokens in across"
    with pytest.raises(OptionError, match=r"queries .* have no place on the image; give a number, not \(0, 0\)"):
        views.attention(Crossed(), IMAGES[:1], queries=(0, 0))
    with pytest.raises(OptionError, match="no query 12 in the attention of 'across': it has 12"):
        views.attention(Crossed(), IMAGES[:1], queries=12)
    with pytest.raises(LayerError, match=r"rollout needs layers with as many queries as keys: across has 12 for 6\."):
        views.attention(Crossed(), IMAGES[:1], rollout=True)
    with pytest.raises(LayerError, match="no place attends to places in across; choose self-attention"):
        views.attention_distance(Crossed(), IMAGES)


class Bare(nn.Module):
    """Attention in the model's own forward, and no layer returns its tokens."""

    def forward(self, x):
        x = F.avg_pool2d(x, 8).flatten(2).mT[:, None]
        return F.scaled_dot_product_attention(x, x, x).mean((1, 2))


class Whole(Bare):
    def forward(self, x):
        x = F.avg_pool2d(x, 8).flatten(2).mT[:, None]
        return F.scaled_dot_product_attention(x, x, x)[:, 0]


def test_attention_of_the_model_itself():
    assert views.attention(Whole(), IMAGES[:1]).title == "Attention of all tokens in Whole"
    with pytest.raises(
        LayerError, match="of the model cannot be shown: it is unknown where on the image the 12 keys are"
    ):
        views.attention(Bare(), IMAGES[:1])


def test_distances_are_those_of_each_head():
    layers = [weights(k, 2, 13) for k in range(2)]
    found = views.attention_distance(Net(layers, prefix=1), IMAGES)
    assert list(found.distances) == ["blocks.0", "blocks.1"]
    for layer, heads in zip(layers, found.distances.values(), strict=True):
        for head in range(2):
            total = far = 0.0
            for image in range(2):
                rows = layer[head].roll(image, -1)
                for q in range(12):
                    for k in range(12):
                        total += float(rows[1 + q, 1 + k])
                        far += float(rows[1 + q, 1 + k]) * 8 * math.hypot(q // 4 - k // 4, q % 4 - k % 4)
            assert float(heads[head]) == pytest.approx(far / total, rel=1e-5)
    even = [8 * math.hypot(q // 4 - k // 4, q % 4 - k % 4) for q in range(12) for k in range(12)]
    assert found.even["blocks.1"] == pytest.approx(sum(even) / 144)
    assert repr(found) == "AttentionDistance('How far each attention head looks')"


def test_distances_of_weights_that_are_not_numbers_are_refused():
    broken = weights(1, 3, 13)
    broken[1, 4, 5] = torch.nan
    net = Net([weights(0, 3, 13), broken], prefix=1)
    with pytest.raises(LayerError, match=r"attention of 'blocks\.1' has weights that are NaN, in head 1, so that no"):
        views.attention_distance(net, IMAGES)
    assert list(views.attention_distance(net, IMAGES, "blocks.0").distances) == ["blocks.0"]


def test_distances_are_drawn_a_point_for_each_head():
    found = views.attention_distance(Net([weights(k, 3, 13) for k in range(2)], prefix=1), IMAGES, title="how far")
    figure = found.figure()
    (axes,) = figure.axes
    assert figure.get_suptitle() == "how far"
    points = np.concatenate([each.get_offsets() for each in axes.collections if len(each.get_offsets()) == 3])
    assert points[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(points[:, 1], torch.cat(list(found.distances.values())))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    assert axes.get_xlabel() == "blocks.*"
    assert axes.get_ylim()[1] > max(points[:, 1].max(), *found.even.values())
    assert axes.get_ylabel() == "mean attention distance (pixels)"
    assert "mean over 2 images of 24 × 32 pixels" in figure.get_supxlabel()
    assert found.numpy().shape[2] == 3
