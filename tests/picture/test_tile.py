"""tile against nested loops, untile as its inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import GridTiler, enlarge, tile, untile
from torch_featviz.picture.tile import grid_columns

small = st.integers(1, 5)
grids = st.tuples(st.integers(1, 12), small, small, small, st.integers(1, 14), st.integers(0, 3))


def tile_by_loops(maps, ncols, pad, fill):
    n, c, h, w = maps.shape
    rows = (n + ncols - 1) // ncols
    sheet = torch.full((c, rows * h + (rows - 1) * pad, ncols * w + (ncols - 1) * pad), fill, dtype=maps.dtype)
    for i in range(n):
        for k in range(c):
            for y in range(h):
                for x in range(w):
                    sheet[k, i // ncols * (h + pad) + y, i % ncols * (w + pad) + x] = maps[i, k, y, x]
    return sheet


@given(grids)
def test_tile_is_the_nested_loops(grid):
    n, c, h, w, ncols, pad = grid
    maps = torch.randn(n, c, h, w)
    sheet = tile(maps, ncols=ncols, pad=pad, fill=7.0)
    assert sheet.equal(tile_by_loops(maps, ncols, pad, 7.0))
    assert untile(sheet, n=n, ncols=ncols, pad=pad).equal(maps)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 64, 512])
def test_default_columns_make_a_square_and_one_map_obeys_the_same_law(n):
    maps = torch.randn(n, 1, 3, 3)
    cols = grid_columns(n)
    assert cols == {1: 1, 2: 2, 5: 3, 9: 3, 64: 8, 512: 23}[n]
    rows = -(-n // cols)
    assert tile(maps).shape == (1, rows * 3 + rows - 1, cols * 3 + cols - 1)
    assert untile(tile(maps), n=n).equal(maps)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
)
def test_dtype_is_kept_and_inputs_are_not_changed(dtype):
    maps = torch.ones(3, 1, 2, 2).to(dtype)
    before = maps.clone()
    assert tile(maps).dtype == dtype
    assert maps.equal(before)


def test_empty_places_hold_the_fill_which_may_be_nan():
    sheet = tile(torch.zeros(3, 1, 2, 2), ncols=2, fill=float("nan"))
    assert sheet.isnan().sum() == 25 - 12


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_enlarge_repeats_every_pixel(h, w, factor):
    x = torch.randn(2, h, w)
    expected = x.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    assert enlarge(x, factor).equal(expected)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: tile(torch.ones(3, 5, 5)),
            ShapeError,
            r"maps must be 'n c h w', got shape \(3, 5, 5\); .* maps\[None\]",
        ),
        (lambda: tile(torch.ones(5)), ShapeError, r"got shape \(5,\)\."),
        (lambda: tile(torch.ones(0, 3, 5, 5)), ShapeError, r"at least one value, got shape \(0, 3, 5, 5\)"),
        (lambda: tile(torch.ones(1, 1, 2, 2), ncols=0), OptionError, "ncols must be at least 1, got 0"),
        (lambda: tile(torch.ones(1, 1, 2, 2), pad=-1), OptionError, "pad must be at least 0, got -1"),
        (
            lambda: tile(torch.ones(1, 1, 2, 2, dtype=torch.uint8), fill=300),
            OptionError,
            "fill must be a value of torch.uint8, got 300",
        ),
        (lambda: untile(torch.ones(1, 5, 5), n=0), OptionError, "n must be at least 1, got 0"),
        (
            lambda: untile(torch.ones(1, 6, 5), n=4),
            ShapeError,
            "does not hold 4 maps as 2 x 2 tiles with gaps of 1",
        ),
        (lambda: untile(torch.ones(5, 5), n=4), ShapeError, "sheet must be 'c H W'"),
        (lambda: enlarge(torch.ones(5), 2), ShapeError, "x must be '... h w'"),
        (lambda: enlarge(torch.ones(5, 5), 1.5), OptionError, "whole number of at least 1, got 1.5"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_the_module_is_the_function():
    maps = torch.randn(5, 3, 4, 4)
    module = GridTiler(ncols=2, pad=0, fill=-1)
    assert module(maps).equal(tile(maps, ncols=2, pad=0, fill=-1))
    assert repr(module) == "GridTiler(ncols=2, pad=0, fill=-1)"
