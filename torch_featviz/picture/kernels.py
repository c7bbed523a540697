# mypy: ignore-errors
# ruff: noqa: PLR0917, PLR0124 - what Triton compiles is a small part of Python
"""Triton kernels that draw."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK: tl.constexpr = tl.constexpr(512)
_INF: tl.constexpr = tl.constexpr(float("inf"))
_MAX: tl.constexpr = tl.constexpr(3.4028234663852886e38)
_TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _reason(value):
    """Why a value is not within 0 and 1, by its place in REASONS; 5 where it is."""
    off = tl.where(value > 1, tl.where(value == _INF, 1, 3), tl.where(value < 0, tl.where(value == -_INF, 2, 4), 5))
    return tl.where(value != value, 0, off)


@triton.jit
def _unit(image, at, inside, factor, shift, rounded):
    """One colour of an image, on the unit range."""
    value = tl.load(image + at, mask=inside, other=0.0).to(tl.float32) * factor + shift
    near = tl.minimum(tl.maximum(value, 0.0), 1.0)
    return tl.where(tl.abs(value - near) < rounded, near, value)


@triton.jit
def _share(value, share):
    """What is left of a colour below a heatmap, as a byte."""
    value = tl.where(value != value, 0.0, tl.minimum(tl.maximum(value, 0.0), 1.0))
    return (value * share + 0.5).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        *("classes", "pixels", "width", "last"),
        *("image_by_batch", "image_by_color", "image_by_row", "image_by_column"),
        *("by_batch", "by_class", "by_row", "by_column"),
    ]
)
def overlay(
    image,
    heatmap,
    words,
    table,
    lows,
    highs,
    classes,
    pixels,
    width,
    image_by_batch,
    image_by_color,
    image_by_row,
    image_by_column,
    by_batch,
    by_class,
    by_row,
    by_column,
    low,
    high,
    share,
    last,
    rounded,
    red_factor,
    green_factor,
    blue_factor,
    red_shift,
    green_shift,
    blue_shift,
    OWN: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    GRAY: tl.constexpr,
):
    """`BLOCK` pixels of one heatmap over its image, a word each; factor and shift bring colours to the unit range."""
    i = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(pixels, BLOCK)
    map_number = i // blocks
    p = (i % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    row, column = p // width, p % width
    batch = map_number // classes
    start = batch * image_by_batch + row * image_by_row + column * image_by_column
    red = _unit(image, start, inside, red_factor, red_shift, rounded)
    green = _unit(image, start + image_by_color, inside, green_factor, green_shift, rounded)
    blue = _unit(image, start + 2 * image_by_color, inside, blue_factor, blue_shift, rounded)
    if GRAY:
        under = _share(red * 0.299 + green * 0.587 + blue * 0.114, share) * 0x10101
    else:
        under = _share(red, share) + _share(green, share) * 0x100 + _share(blue, share) * 0x10000

    at = batch * by_batch + (map_number % classes) * by_class + row * by_row + column * by_column
    x = tl.load(heatmap + at, mask=inside, other=0.0)
    if OWN:
        low = tl.load(lows + map_number)
        high = tl.load(highs + map_number)
    else:
        low = low + tl.zeros([1], tl.float32)
        high = high + tl.zeros([1], tl.float32)
    size = tl.maximum(tl.abs(low), tl.abs(high))
    factor = tl.where(size > 2.0**60, 2.0**-64, tl.where((size < 2.0**-60) & (size > 0), 2.0**64, 1.0))
    low = low * factor
    span = high * factor - low
    unit = tl.math.div_rn(x * factor - low, tl.where(span == 0, _TINY, span) + tl.zeros_like(x))  # "/" is a bit off
    if SYMMETRIC:
        unit = unit + tl.where(span == 0, 0.5, 0.0)
    unit = tl.where((x == x) & (tl.abs(x) < _INF), tl.minimum(tl.maximum(unit, -_MAX), _MAX), x)
    scaled = tl.minimum(tl.maximum(unit, 0.0), 1.0) * last
    floor = tl.floor(scaled)
    rest = scaled - floor
    index = floor.to(tl.int32)
    index = index + tl.where((rest > 0.5) | ((rest == 0.5) & (index % 2 == 1)), 1, 0)
    reason = _reason(unit)
    below = tl.minimum(tl.minimum(_reason(red), _reason(green)), _reason(blue))
    reason = tl.where(reason == 5, below, reason)
    index = tl.where(reason == 5, index, last + 1 + reason)
    word = tl.load(table + index, mask=inside, other=0) + tl.where(reason == 5, under, 0)
    tl.store(words + map_number * pixels + p, word, mask=inside)
