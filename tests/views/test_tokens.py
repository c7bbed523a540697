"""Tokens as maps: their components, their norms, and what is apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.inspect.components import principal
from torch_featviz.model.layout import Layout
from torch_featviz.picture import colorize, reserved
from torch_featviz.views import tokens

IMAGES = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Vit(nn.Module):
    """Patches of 4 × 4 pixels, a class token and two registers; `given` stands in for what the block returns."""

    def __init__(self, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.block = nn.Conv2d(3, channels, 4, 4), nn.LayerNorm(channels, elementwise_affine=False)
        self.cls_token, self.reg_token = (
            nn.Parameter(torch.ones(1, 1, channels)),
            nn.Parameter(torch.full((1, 2, channels), 1e3)),
        )
        self.scale = None

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], 1)
        return self.last(x)

    def last(self, x):
        return self.block(x).mean(1)


class Planted(Vit):
    """Some tokens are much longer than others."""

    def __init__(self, factors):
        super().__init__()
        self.block = nn.Identity()
        self.factors = factors  # b n

    def last(self, x):
        return self.block(x * self.factors[: len(x), :, None]).mean(1)


def patches(net, images=IMAGES):
    return net.embed(images).detach()


def places(sheet, number, grid=(4, 6)):
    """One pixel of each place of a map, of its middle, where no outline is."""
    cell = sheet.cells[2 * number + 1]
    step = cell.shape[1] // grid[0]
    return cell[:, step // 2 :: step, step // 2 :: step]


def percent(share):
    return f"{100 * share:.2g} %"


def shown(values, low, high):
    return np.clip(np.round(255 * (values - low) / (high - low)), 0, 255)


@pytest.mark.parametrize("images", [IMAGES, IMAGES[0]])
def test_colours_are_the_components_each_on_its_own_scale(images):
    net = Vit()
    sheet = tokens(net, images, "embed")
    batch = images if images.dim() == 4 else images[None]
    maps = patches(net, batch)
    values = principal(maps).of(maps).double().numpy()
    assert sheet.cells.shape[0] == 2 * len(batch)
    for i in range(len(batch)):
        for channel in range(3):
            reach = np.abs(values[:, channel]).max()
            drawn = places(sheet, i)[channel].numpy().astype(int)
            assert np.abs(drawn - shown(values[i, channel], -reach, reach)).max() <= 1
    shares = principal(maps).shares
    for (color, words), share, name in zip(sheet.legend.swatches, shares, ("red", "green", "blue"), strict=True):
        assert words.startswith(f"{name}: {percent(share)} of the variance, ±")
        assert max(color) == color[("red", "green", "blue").index(name)]
    count = 24 * len(batch)
    of = f"{count} places" + (" of 3 images" if len(batch) > 1 else "")
    assert f"together {percent(sum(shares))} of the variance of {of}" in sheet.legend.lines()
    assert not any("artefact" in line or "token" in line for line in sheet.legend.lines()), "maps have no tokens"


@given(st.integers(0, 1000))
def test_a_colour_is_monotonic_in_each_component(seed):
    images = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    net = Vit()
    maps = patches(net, images)
    values = principal(maps).of(maps)[0].flatten(1)
    drawn = places(tokens(net, images, "embed"), 0).flatten(1)
    for component, color in zip(values, drawn, strict=True):
        assert (color[component.argsort()].int().diff() >= 0).all()


def test_one_basis_for_all_images():
    net, flat = Vit(), torch.full((1, 3, 16, 24), 0.5)
    both = tokens(net, torch.cat([IMAGES[:1], flat]), "embed")
    assert len(places(both, 1).flatten(1).unique(dim=1).T) == 1
    twice = tokens(net, torch.cat([IMAGES[:1], IMAGES[:1]]), "embed")
    assert twice.cells[1].equal(twice.cells[3])


def test_tokens_without_a_place_are_named_and_have_no_part():
    net = Vit()
    sheet = tokens(net, IMAGES, "block")
    maps = net.block(patches(net).movedim(1, -1)).movedim(-1, 1)
    expected = principal(maps)
    values = expected.of(maps)[0, 0].double().numpy()
    reach = expected.of(maps)[:, 0].abs().max().item()
    assert np.abs(places(sheet, 0)[0].numpy().astype(int) - shown(values, -reach, reach)).max() <= 1
    lines = sheet.legend.lines()
    assert "1 class token and 2 registers: not drawn" in lines
    assert any(line.startswith("artefact tokens (norm above ") and line.endswith("): none") for line in lines)
    assert sheet.title == "block: principal components of 4 × 6 tokens, 8 channels"


def factors(*artefacts):
    """Of tokens that are all about as long, but for these."""
    found = torch.ones(3, 27)
    for image, place in artefacts:
        found[image, 3 + place] = 40.0
    return found


def test_artefacts_are_outlined_counted_and_have_no_part():
    net = Planted(factors((0, 8), (2, 23)))
    sheet = tokens(net, IMAGES, "block")
    norms = (patches(net) * net.factors[:, 3:].view(3, 1, 4, 6)).norm(dim=1)
    median = np.sort(norms.numpy().ravel())[35]
    least = max(2 * median, median + 6 * 1.4826 * np.sort(np.abs(norms.numpy().ravel() - median))[35])
    line = next(line for line in sheet.legend.lines() if line.startswith("artefact"))
    assert line.startswith(f"artefact tokens (norm above {least:.3g}, {least / median:.1f} × the median {median:.3g})")
    longest = norms.max().item()
    assert line.endswith(f"): 2 of 72, up to {longest:.3g}, outlined")
    step = sheet.cells.shape[2] // 4
    cell = sheet.cells[1]
    top, left = step, 2 * step  # of place 8
    for edge in (cell[:, top, left : left + step], cell[:, top : top + step, left + step - 1]):
        assert not edge.any(), "black within"
    for edge in (cell[:, top - 1, left : left + step], cell[:, top : top + step, left + step]):
        assert (edge == 255).all(), "white around"
    maps = patches(net)
    where = torch.zeros(3, 4, 6, dtype=torch.bool)
    where[0, 1, 2] = where[2, 3, 5] = True
    share = principal(maps, without=where).shares[0]
    assert sheet.legend.swatches[0][1].startswith(f"red: {percent(share)}")
    assert "beyond a scale, drawn as its end: 2.8 %" in sheet.legend.lines()
    assert "variance of 70 tokens of 3 images" in " ".join(sheet.legend.lines())


def test_norms_have_one_scale_from_0():
    net = Planted(factors((1, 4)))
    sheet = tokens(net, IMAGES, "block", by="norm")
    norms = (patches(net) * net.factors[:, 3:].view(3, 1, 4, 6)).norm(dim=1)
    longest, (image, row, column) = norms.max(), [int(i[0]) for i in (norms == norms.max()).nonzero(as_tuple=True)]
    rest = norms.clone()
    rest[image, row, column] = 0
    assert (sheet.legend.scale.vmin, sheet.legend.scale.vmax) == (0, pytest.approx(rest.max().item()))
    expected = colorize((norms / rest.max())[:, None], "viridis")
    for i in range(3):
        assert (places(sheet, i).int() - expected[i].int()).abs().max() <= 2
    assert tuple(places(sheet, image)[:, row, column].tolist()) == reserved("viridis")["over"]
    assert sheet.legend.counts.over == 1
    assert any(line.endswith(f"): 1 of 72, up to {longest:.3g}, outlined") for line in sheet.legend.lines())
    assert sheet.title == "block: norm of 4 × 6 tokens, 8 channels"


def test_the_cosine_with_one_token_of_the_first_image():
    net = Planted(factors((1, 4)))
    sheet = tokens(net, IMAGES, "block", by="similarity", query=(2, 3))
    maps = patches(net).double().numpy()
    asked = maps[0, :, 2, 3]
    scale = sheet.legend.scale
    for i, image in enumerate(maps):
        expected = np.empty((4, 6))
        for row in range(4):
            for column in range(6):
                token = image[:, row, column]
                expected[row, column] = token @ asked / np.sqrt((token @ token) * (asked @ asked))
        values = scale(torch.from_numpy(expected).float())[None, None].clamp(0, 1)
        assert (places(sheet, i).int() - colorize(values, sheet.legend.cmap)[0].int()).abs().max() <= 2
    assert "cosine with the outlined token of the first image, at row 2, column 3" in sheet.legend.lines()
    step = sheet.cells.shape[2] // 4
    assert not sheet.cells[1][:, 2 * step, 3 * step : 4 * step].any(), "the query has the outline"
    assert sheet.title == "block: similarity of 4 × 6 tokens, 8 channels"
    alone = tokens(net, IMAGES[0], "embed", by="similarity", query=(0, 0))
    assert "cosine with the outlined place of the image, at row 0, column 0" in alone.legend.lines()


@pytest.mark.parametrize("by", ["pca", "norm"])
def test_what_is_not_finite_is_marked_and_counted(by):
    given = factors()
    given[1, 3 + 7] = torch.nan
    sheet = tokens(Planted(given), IMAGES, "block", by=by)
    nan = reserved("viridis")["nan"]
    assert [tuple(p) for p in places(sheet, 1).flatten(1).T.tolist()].count(nan) == 1
    assert sheet.legend.counts.nan == 1
    everywhere = tokens(Planted(torch.full((3, 27), torch.nan)), IMAGES, "block", by=by)
    assert everywhere.legend.counts.nan == 72


def test_what_is_beyond_the_range_of_images_and_the_scale_are_counted_apart():
    images = IMAGES.clone()
    images[0, :, 3, 3] = 1.5
    sheet = tokens(Planted(factors((1, 4))), images, "block", by="norm")
    assert [words for _, words in sheet.legend.marks()] == ["1 px above the scale"]
    assert [words for _, words in sheet.legend.also.marks()] == ["1 px above the images' range"]
    assert tokens(Vit(), IMAGES, "block").legend.also is None


def test_what_does_not_vary_is_mid_grey():
    sheet = tokens(Vit(), torch.full((1, 3, 16, 24), 0.5), "embed")
    assert places(sheet, 0).unique().tolist() == [128]
    assert [words for _, words in sheet.legend.swatches] == [
        f"{name}: 0 % of the variance, ±0" for name in ("red", "green", "blue")
    ]


def test_the_same_bytes_again_and_few_channels():
    assert tokens(Vit(), IMAGES, "embed").png() == tokens(Vit(), IMAGES, "embed").png()
    assert tokens(Vit(1), IMAGES, "embed").legend.swatches[1][1].startswith("green: 0 %")


def test_a_layout_of_ones_own():
    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            return self.layer(torch.from_numpy(x.numpy().reshape(len(x), 3, -1).transpose(0, 2, 1).copy()))

    with pytest.raises(ShapeError, match=r"layer 'layer' returns shape \(3, 384, 3\), whose places are not known"):
        tokens(Lost(), IMAGES, "layer")
    sheet = tokens(Lost(), IMAGES, "layer", layout=Layout((16, 24)))
    assert sheet.title == "layer: principal components of 16 × 24 tokens, 3 channels"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: tokens(Vit(), IMAGES, "block", by="tsne"),
            OptionError,
            "by must be one of 'pca', 'norm', 'similarity', got",
        ),
        (
            lambda: tokens(Vit(), IMAGES, "block", by="similarity"),
            OptionError,
            "goes with by='similarity', got query=None",
        ),
        (lambda: tokens(Vit(), IMAGES, "block", query=(0, 0)), OptionError, r"got query=\(0, 0\) and by='pca'"),
        (
            lambda: tokens(Vit(), IMAGES, "block", by="similarity", query=(4, 0)),
            OptionError,
            r"query must be a row from 0 to 3 and a column to 5, got \(4, 0\)",
        ),
        (lambda: tokens(Vit(), IMAGES, "block", by="similarity", query=(0, -1)), OptionError, r"got \(0, -1\)"),
        (
            lambda: tokens(Vit(), IMAGES, "block", by="similarity", query=(0, 1, 2)),
            OptionError,
            r"\(row, column\), got",
        ),
        (lambda: tokens(Vit(), IMAGES, "blocks"), LayerError, "no layer 'blocks' in Vit"),
        (lambda: tokens(Vit(), IMAGES, ""), ShapeError, r"layer '' returns shape \(3, 8\), whose places are not known"),
        (lambda: tokens(Vit(), IMAGES[None], "block"), ShapeError, "images must be 'b c h w' and not empty"),
        (lambda: tokens(Vit(), IMAGES[:, :2], "block"), ShapeError, r"must be 'b 1 h w' or 'b 3 h w'"),
        (lambda: tokens(Vit(), IMAGES[:1].expand(65, -1, -1, -1), "block"), ShapeError, "65 images are too many"),
        (lambda: tokens(Vit(), IMAGES, "block", layout=Layout((3, 3))), ShapeError, "27 tokens are not 0 \\+ 3 × 3"),
        (lambda: tokens(Vit(), IMAGES, "block", value_range="no"), OptionError, "value_range must be one of"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
