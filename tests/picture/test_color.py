"""Colours against matplotlib's tables, and the reserved ones against a model of colour vision."""

import itertools

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab

from torch_featviz.choices import DIVERGING, SEQUENTIAL
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import Counts, colorize, count, reserved, rgb
from torch_featviz.picture.color import REASONS, lut

MAPS = (*SEQUENTIAL, *DIVERGING)
ODD = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.5, -0.5])
# Machado et al. 2009, deuteranopia, on linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def lab(colors, *, deuteranope):
    x = np.atleast_2d(np.asarray(colors, float)) / 255
    if deuteranope:
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        linear = np.clip(linear @ DEUTERANOPIA.T, 0, 1)
        x = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(x)


@pytest.mark.parametrize("cmap", MAPS)
def test_tables_are_matplotlibs(cmap):
    n = 255 if cmap in DIVERGING else 256
    unit = torch.linspace(0, 1, n)[:, None, None, None]
    expected = matplotlib.colormaps[cmap].resampled(n)(np.arange(n), bytes=True)[:, :3]
    np.testing.assert_array_equal(colorize(unit, cmap)[:, :, 0, 0].numpy(), expected)


@pytest.mark.parametrize("cmap", DIVERGING)
def test_zero_is_the_neutral_colour(cmap):
    color = colorize(torch.full((1, 1, 1, 1), 0.5), cmap).flatten().tolist()
    assert len(set(color)) == 1, "red, green and blue are equal"
    lightness = lab(lut(cmap), deuteranope=False)[:, 0]
    assert lightness.argmax() == 127


@pytest.mark.parametrize("cmap", SEQUENTIAL)
def test_sequential_maps_are_perceptually_ordered(cmap):
    lightness = lab(lut(cmap), deuteranope=False)[:, 0]
    steps = np.diff(lightness) * np.sign(lightness[-1] - lightness[0])
    assert (steps > -0.05).all()
    assert abs(lightness[-1] - lightness[0]) > 70


@pytest.mark.parametrize("cmap", DIVERGING)
def test_diverging_maps_get_darker_to_both_ends(cmap):
    lightness = lab(lut(cmap), deuteranope=False)[:, 0]
    assert (np.diff(lightness[:128]) > -0.05).all()
    assert (np.diff(lightness[127:]) < 0.05).all()


@pytest.mark.parametrize("cmap", ["viridis", "RdBu_r"])
@given(values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_a_colour_is_monotonic_in_the_value_it_shows(cmap, values):
    unit = torch.tensor(sorted(values))[:, None, None, None]
    table = [tuple(c) for c in lut(cmap).tolist()]
    places = [table.index(tuple(c)) for c in colorize(unit, cmap)[:, :, 0, 0].tolist()]
    first = [table.index(table[p]) for p in places]
    assert first == sorted(first)


@pytest.mark.parametrize("cmap", MAPS)
def test_reserved_colours_are_what_marks_odd_values(cmap):
    colors = colorize(ODD[:, None, None, None], cmap)[:, :, 0, 0].tolist()
    assert [tuple(c) for c in colors] == list(reserved(cmap).values())


@pytest.mark.parametrize("deuteranope", [False, True])
@pytest.mark.parametrize("cmap", MAPS)
def test_reserved_colours_are_clear_of_the_map_of_white_and_of_each_other(cmap, deuteranope):
    marks = lab(list(reserved(cmap).values()), deuteranope=deuteranope)
    others = lab([*lut(cmap).tolist(), (255, 255, 255)], deuteranope=deuteranope)
    assert np.linalg.norm(marks[:, None] - others[None], axis=-1).min() > 23
    for a, b in itertools.combinations(marks, 2):
        assert np.linalg.norm(a - b) > 23


@given(st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=30))
def test_counts_agree_with_numpy(values):
    a = np.array([*values, np.inf, -np.inf, np.nan], np.float32)
    expected = Counts(
        int(np.isnan(a).sum()),
        1,
        1,
        int(((a > 1) & np.isfinite(a)).sum()),
        int(((a < 0) & np.isfinite(a)).sum()),
    )
    assert count(torch.from_numpy(a)[None, None, None]) == expected


def test_a_pixel_of_three_channels_counts_once_in_the_order_of_reasons():
    unit = torch.rand(1, 3, 2, 3)
    unit[0, 0, 0, 0], unit[0, 1, 0, 0], unit[0, 2, 0, 0] = float("nan"), float("inf"), 2.0
    unit[0, 0, 1, 1], unit[0, 1, 1, 1] = 2.0, -1.0
    unit[0, 2, 1, 2] = -1.0
    assert count(unit) == Counts(nan=1, over=1, under=1)
    colors = rgb(unit)[0].permute(1, 2, 0)
    assert tuple(colors[0, 0].tolist()) == reserved()["nan"]
    assert tuple(colors[1, 1].tolist()) == reserved()["over"]
    assert tuple(colors[1, 2].tolist()) == reserved()["under"]


@given(st.floats(0, 1, width=32))
def test_rgb_rounds_once_and_mid_grey_is_zero(value):
    unit = torch.full((1, 3, 1, 1), value)
    assert (rgb(unit) == round(float(np.float32(value) * np.float32(255)))).all()
    assert (rgb(torch.full((1, 3, 1, 1), 0.5)) == 128).all()


def test_nothing_odd_is_counted_when_all_is_well_and_inputs_stay():
    unit = torch.rand(2, 3, 4, 4)
    before = unit.clone()
    assert count(unit) == Counts()
    rgb(unit)
    colorize(unit[:, :1])
    assert unit.equal(before)
    assert list(reserved()) == list(REASONS)


@pytest.mark.parametrize("name", ["jet", "rainbow", "jet_r", "turbo", "hsv"])
def test_rainbows_are_refused_with_the_reason(name):
    with pytest.raises(OptionError, match=r"not ordered by lightness.*choose viridis"):
        colorize(torch.zeros(1, 1, 1, 1), name)


@pytest.mark.parametrize(("name", "near"), [("blues", "'Blues'"), ("grays", "'Greys'"), ("RdBl", "'RdBu'")])
def test_an_unknown_map_is_answered_with_close_names(name, near):
    with pytest.raises(OptionError, match=rf"no colour map '{name}' here: close: .*{near}.*; choose viridis"):
        reserved(name)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: reserved("no-map"), OptionError, "no colour map 'no-map' here: choose viridis"),
        (lambda: colorize(torch.zeros(2, 2)), ShapeError, r"unit must be 'n 1 h w', got shape \(2, 2\)"),
        (lambda: colorize(torch.zeros(1, 3, 2, 2)), ShapeError, "rgb"),
        (lambda: rgb(torch.zeros(1, 1, 2, 2)), ShapeError, "unit must be 'n 3 h w'"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
