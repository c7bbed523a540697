# mypy: ignore-errors
# ruff: noqa: PLR0915, PLR0917, PLR0124, SIM108 - what Triton compiles is a small part of Python
"""Triton kernels that read many outputs once and keep figures of all of them.

An output is seen as `images channels places`, by three strides. It is read in tiles of `BC` channels and `BM` places of
one image; every tile leaves partial figures, and further kernels add these to the states, in an order that does not
depend on the device. `TRITON_INTERPRET=1` runs all of it on a CPU.

Tables are rows of int64 numbers, made by `together`:
    items   kind of numbers, whether channels are nearest in memory, channels, places, strides of images, channels and
            places, row of its first image in `best`
    tiles   item, image, block of channels, block of places; in the order of layers, blocks of channels, images
    folds   first tile, end of tiles, first channel in the state, channels; for each block of channels of each layer
    owners  the layer of each tile
"""

from __future__ import annotations

import triton
import triton.language as tl

BC: tl.constexpr = tl.constexpr(32)
BM: tl.constexpr = tl.constexpr(128)
ITEM: tl.constexpr = tl.constexpr(8)
FLOATS: tl.constexpr = tl.constexpr(6)  # pivot, unit, sum, sum of squares, min, max
NO_KEY: tl.constexpr = tl.constexpr(-(2**63))
NOWHERE: tl.constexpr = tl.constexpr(2**62)
_INF: tl.constexpr = tl.constexpr(float("inf"))
_DIGITS: tl.constexpr = tl.constexpr(50)
_NARROWEST: tl.constexpr = tl.constexpr(-126)


@triton.jit
def probe(out):
    """Whether a kernel is compiled and run at all."""
    tl.store(out, 1)


@triton.jit
def _value_at(address, kind, offset, mask):
    """Values of up to 32 bits, as float32."""
    if kind == 0:
        value = tl.load(address.to(tl.pointer_type(tl.float32)) + offset, mask=mask, other=0.0)
    elif kind == 1:
        value = tl.load(address.to(tl.pointer_type(tl.float16)) + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        value = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + offset, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _exponent(value):
    """The exact `floor(log2(|value|))` of float64; of zero and denormals one below the smallest normal one."""
    return ((value.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023


@triton.jit
def _power_of_two(exponent):
    """The exact `2.0 ** exponent`, float64."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _number(value, exponent):
    """`floor(value / 2**exponent)` as int64; of a tiny negative value -1."""
    number = tl.floor(value * _power_of_two(-exponent))
    return tl.where(value < 0, tl.minimum(number, -1.0), number).to(tl.int64)


@triton.jit
def _place(low, high, bins, SYMMETRIC: tl.constexpr):
    """Exponent of the width, and number of the first, of the bins that hold `low` to `high`; see Histogram."""
    low = tl.where(low < _INF, low, 0.0)
    high = tl.where(high > -_INF, high, 0.0)
    magnitude = tl.maximum(tl.abs(low), tl.abs(high))
    half = bins // 2
    if SYMMETRIC:
        share = magnitude / half
    else:
        share = high / bins - low / bins
    least = tl.maximum(_exponent(magnitude) - _DIGITS, _NARROWEST)
    chosen = tl.maximum(_exponent(share) + 3, least)
    for step in tl.static_range(4):
        tried = tl.maximum(_exponent(share) + 2 - step, least)
        start = _number(low, tried)
        end = _number(high, tried)
        if SYMMETRIC:
            fits = (start >= -half) & (end < half)
        else:
            fits = end - start < bins
        chosen = tl.where(fits, tried, chosen)
    first = _number(low, chosen)
    if SYMMETRIC:
        first = first * 0 - half
    return chosen, first


@triton.jit
def _ordered(value):
    """float32 as int64 numbers in the same order, of 32 bits."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _unordered(key):
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _ordered_wide(value):
    """float64 as int64 numbers in the same order."""
    bits = value.to(tl.int64, bitcast=True)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit
def _unordered_wide(key):
    return (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["bins"])
def read(
    pointers,
    items,
    tiles,
    floats,
    counts,
    ends,
    local,
    best,
    where,
    bins,
    NB: tl.constexpr,
    CHANNELS: tl.constexpr,
    HISTOGRAM: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The figures of one tile: of channels (`floats`, `counts`), of all (`ends`, `local`), and maxima (`best`).

    With `TOP` 2 only where the maxima of float64 values are, which are known by then.
    """
    i = tl.program_id(0).to(tl.int64)
    j = tl.load(tiles + 4 * i)
    image = tl.load(tiles + 4 * i + 1)
    item = items + ITEM * j
    channels = tl.load(item + 2)
    places = tl.load(item + 3)
    by_channel = tl.load(item + 5)
    by_place = tl.load(item + 6)
    c = tl.load(tiles + 4 * i + 2) * BC + tl.arange(0, BC)
    p = tl.load(tiles + 4 * i + 3) * BM + tl.arange(0, BM)
    start = image * tl.load(item + 4)
    address = tl.load(pointers + j)
    inside = (c < channels)[:, None] & (p < places)[None, :]
    if WIDE:
        offset = start + c[:, None] * by_channel + p[None, :] * by_place
        v = tl.load(address.to(tl.pointer_type(tl.float64)) + offset, mask=inside, other=0.0)
    elif tl.load(item + 1) != 0:
        turned = start + p[:, None] * by_place + c[None, :] * by_channel
        mask = (p < places)[:, None] & (c < channels)[None, :]
        v = tl.trans(_value_at(address, tl.load(item), turned, mask))
    else:
        offset = start + c[:, None] * by_channel + p[None, :] * by_place
        v = _value_at(address, tl.load(item), offset, inside)
    finite = (tl.abs(v) < _INF) & inside
    low = tl.min(tl.where(finite, v, _INF), 1)
    high = tl.max(tl.where(finite, v, -_INF), 1)
    if CHANNELS:
        number = tl.sum(finite.to(tl.int32), 1)
        zero = tl.sum(((v == 0) & inside).to(tl.int32), 1)
        nan = tl.sum(((v != v) & inside).to(tl.int32), 1)
        infinite = tl.sum(((tl.abs(v) == _INF) & inside).to(tl.int32), 1)
        pivot = tl.where(number > 0, low * 0.5 + high * 0.5, 0.0)
        spread = tl.where(number > 0, high.to(tl.float64) - low.to(tl.float64), 0.0)
        scale = tl.minimum(tl.maximum(_exponent(spread), -40), 100)
        unit = tl.where(spread > 0, _power_of_two(-scale), 1.0).to(v.dtype)
        distance = tl.where(finite, v * unit[:, None] - (pivot * unit)[:, None], 0.0)
        out = floats + i * FLOATS * BC + tl.arange(0, BC)
        tl.store(out, pivot)
        tl.store(out + BC, unit)
        tl.store(out + 2 * BC, tl.sum(distance, 1))
        tl.store(out + 3 * BC, tl.sum(distance * distance, 1))
        tl.store(out + 4 * BC, low)
        tl.store(out + 5 * BC, high)
        tl.store(counts + i * BC + tl.arange(0, BC), number | (zero << 8) | (nan << 16) | (infinite << 24))
    if HISTOGRAM:
        if WIDE:  # from there on values count as infinite
            finite = finite & (tl.abs(v) < 2.0**1000)
            low = tl.min(tl.where(finite, v, _INF), 1)
            high = tl.max(tl.where(finite, v, -_INF), 1)
        lowest = tl.min(low, 0)
        highest = tl.max(high, 0)
        width, first = _place(lowest.to(tl.float64), highest.to(tl.float64), bins, SYMMETRIC)
        quotient = tl.floor(tl.where(finite, v, 0.0) * _power_of_two(-width).to(v.dtype))
        quotient = tl.where(finite & (v < 0), tl.minimum(quotient, -1.0), quotient)
        slot = (quotient.to(tl.int64) - first).to(tl.int32)
        broken = tl.where(v > 0, bins + 1, tl.where(v < 0, bins + 2, bins))
        slot = tl.where(inside, tl.where(finite, slot, broken), NB - 1)
        tl.store(local + i * NB + tl.arange(0, NB), tl.histogram(tl.reshape(slot, [BC * BM]), NB))
        tl.store(ends + 2 * i, lowest)
        tl.store(ends + 2 * i + 1, highest)
    if TOP:
        largest = tl.where(inside & (v == v), v, -_INF)
        peak = tl.max(largest, 1)
        place = tl.min(tl.where((largest == peak[:, None]) & inside, p[None, :], 0x7FFFFFFF), 1)
        peak = tl.where(peak == 0, 0.0, peak)  # of -0 too
        row = tl.load(item + 7) + image * channels + c
        if WIDE:
            key = _ordered_wide(peak)
            if TOP == 2:
                found = tl.load(best + row, mask=c < channels, other=NO_KEY)
                tl.atomic_min(where + row, place.to(tl.int64), mask=(c < channels) & (key == found))
            else:
                tl.atomic_max(best + row, key, mask=c < channels)
        else:
            tl.atomic_max(best + row, (_ordered(peak) << 32) | (0x7FFFFFFF - place), mask=c < channels)


@triton.jit(do_not_specialize=["width"])
def fold_channels(folds, floats, counts, sums, totals, width, G: tl.constexpr):
    """Add the figures of tiles to those of their channels: `sums` is `5 width`, `totals` `4 width`."""
    f = folds + 4 * tl.program_id(0)
    start = tl.load(f)
    end = tl.load(f + 1)
    lane = tl.arange(0, BC)
    here = lane < tl.load(f + 3)
    c = tl.load(f + 2) + lane
    pivot = tl.load(sums + c, mask=here, other=0.0)
    total = tl.load(sums + width + c, mask=here, other=0.0)
    squares = tl.load(sums + 2 * width + c, mask=here, other=0.0)
    low = tl.load(sums + 3 * width + c, mask=here, other=_INF)
    high = tl.load(sums + 4 * width + c, mask=here, other=-_INF)
    number = tl.load(totals + c, mask=here, other=0)
    zero = tl.load(totals + width + c, mask=here, other=0)
    nan = tl.load(totals + 2 * width + c, mask=here, other=0)
    infinite = tl.load(totals + 3 * width + c, mask=here, other=0)
    for t in range(start, end, G):
        tile = t + tl.arange(0, G)
        mask = (tile < end)[:, None] & here[None, :]
        at = floats + tile[:, None] * FLOATS * BC + lane[None, :]
        packed = tl.load(counts + tile[:, None] * BC + lane[None, :], mask=mask, other=0)
        n = (packed & 255).to(tl.int64)
        some = n > 0
        centre = tl.load(at, mask=mask, other=0.0).to(tl.float64)
        unit = tl.load(at + BC, mask=mask, other=1.0).to(tl.float64)
        first = tl.load(at + 2 * BC, mask=mask, other=0.0).to(tl.float64) / unit
        second = tl.load(at + 3 * BC, mask=mask, other=0.0).to(tl.float64) / unit / unit
        share = tl.maximum(tl.sum(some.to(tl.int64), 0), 1).to(tl.float64)
        pivot = tl.where(number > 0, pivot, tl.sum(tl.where(some, centre / share[None, :], 0.0), 0))
        step = tl.where(some, centre - pivot[None, :], 0.0)
        shifted = first + n.to(tl.float64) * step
        total += tl.sum(shifted, 0)
        squares += tl.sum(second + step * (first + shifted), 0)
        low = tl.minimum(low, tl.min(tl.load(at + 4 * BC, mask=mask, other=_INF).to(tl.float64), 0))
        high = tl.maximum(high, tl.max(tl.load(at + 5 * BC, mask=mask, other=-_INF).to(tl.float64), 0))
        number += tl.sum(n, 0)
        zero += tl.sum(((packed >> 8) & 255).to(tl.int64), 0)
        nan += tl.sum(((packed >> 16) & 255).to(tl.int64), 0)
        infinite += tl.sum(((packed >> 24) & 255).to(tl.int64), 0)
    tl.store(sums + c, pivot, mask=here)
    tl.store(sums + width + c, total, mask=here)
    tl.store(sums + 2 * width + c, squares, mask=here)
    tl.store(sums + 3 * width + c, low, mask=here)
    tl.store(sums + 4 * width + c, high, mask=here)
    tl.store(totals + c, number, mask=here)
    tl.store(totals + width + c, zero, mask=here)
    tl.store(totals + 2 * width + c, nan, mask=here)
    tl.store(totals + 3 * width + c, infinite, mask=here)


@triton.jit(do_not_specialize=["bins"])
def place_bins(
    spans,
    ends,
    extremes,
    new_extremes,
    new_place,
    new_counts,
    bins,
    NB: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    G: tl.constexpr,
):
    """Extremes of one layer with those of its tiles, the bins that hold them, and counts of 0; `spans`: its tiles."""
    layer = tl.program_id(0)
    low = tl.load(extremes + 2 * layer)
    high = -tl.load(extremes + 2 * layer + 1)
    start = tl.load(spans + 2 * layer)
    end = tl.load(spans + 2 * layer + 1)
    for t in range(start, end, G):
        tile = t + tl.arange(0, G)
        low = tl.minimum(low, tl.min(tl.load(ends + 2 * tile, mask=tile < end, other=_INF).to(tl.float64), 0))
        high = tl.maximum(high, tl.max(tl.load(ends + 2 * tile + 1, mask=tile < end, other=-_INF).to(tl.float64), 0))
    width, first = _place(low, high, bins, SYMMETRIC)
    tl.store(new_extremes + 2 * layer, low)
    tl.store(new_extremes + 2 * layer + 1, -high)
    tl.store(new_place + 2 * layer, width)
    tl.store(new_place + 2 * layer + 1, first)
    tl.store(new_counts + layer * NB + tl.arange(0, NB), tl.zeros([NB], tl.int64))


@triton.jit(do_not_specialize=["bins", "number"])
def add_counts(
    owners,
    number,
    ends,
    local,
    place,
    counts,
    new_place,
    new_counts,
    bins,
    NB: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Add the counts of one of `number` tiles, or beyond them those of one layer so far, to the new bins."""
    i = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, NB)
    if i < number:
        layer = tl.load(owners + i)
        low = tl.load(ends + 2 * i).to(tl.float64)
        width, first = _place(low, tl.load(ends + 2 * i + 1).to(tl.float64), bins, SYMMETRIC)
        many = tl.load(local + i * NB + slot).to(tl.int64)
    else:
        layer = i - number
        width = tl.load(place + 2 * layer)
        first = tl.load(place + 2 * layer + 1)
        many = tl.load(counts + layer * NB + slot)
    wider = tl.minimum(tl.maximum(tl.load(new_place + 2 * layer) - width, 0), 63)
    moved = ((first + slot) >> wider) - tl.load(new_place + 2 * layer + 1)
    moved = tl.where(slot < bins, tl.minimum(tl.maximum(moved, 0), bins - 1), slot)
    tl.atomic_add(new_counts + layer * NB + moved, many, mask=(many > 0) & (slot < bins + 3))


@triton.jit(do_not_specialize=["k", "width"])
def select(
    chosen,
    seen,
    best,
    where,
    values,
    images,
    positions,
    k,
    width,
    KP: tl.constexpr,
    N: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The `k` largest of those so far and of up to `N` images, for some channels; `best` is emptied.

    `chosen` is rows of: row in `best` of the first image, channels of the layer, first channel, first channel in the
    state, images, item, first image of these in the item.
    """
    s = chosen + 7 * tl.program_id(0)
    row = tl.load(s)
    channels = tl.load(s + 1)
    lane = tl.load(s + 2) + tl.arange(0, LANES)
    here = lane < channels
    c = tl.load(s + 3) + tl.arange(0, LANES)
    images_here = tl.load(s + 4)
    first = tl.load(seen + tl.load(s + 5)) + tl.load(s + 6)
    old_row = tl.arange(0, KP)
    new_row = tl.arange(0, N)
    old_at = old_row[:, None] * width + c[None, :]
    old_mask = (old_row < k)[:, None] & here[None, :]
    old_image = tl.load(images + old_at, mask=old_mask, other=-1)
    old_position = tl.load(positions + old_at, mask=old_mask, other=-1)
    old = tl.where(old_image >= 0, _ordered_wide(tl.load(values + old_at, mask=old_mask, other=0.0)), NO_KEY)
    new_mask = (new_row < images_here)[:, None] & here[None, :]
    new_at = row + new_row[:, None] * channels + lane[None, :]
    packed = tl.load(best + new_at, mask=new_mask, other=NO_KEY)
    tl.store(best + new_at, tl.zeros([N, LANES], tl.int64) + NO_KEY, mask=new_mask)
    if WIDE:
        new = packed
        new_position = tl.load(where + new_at, mask=new_mask, other=0)
        tl.store(where + new_at, tl.zeros([N, LANES], tl.int64) + NOWHERE, mask=new_mask)
    else:
        new = _ordered_wide(_unordered(packed >> 32).to(tl.float64))
        new_position = 0x7FFFFFFF - (packed & 0x7FFFFFFF)
    new = tl.where(new_mask, new, NO_KEY)
    for r in range(k):
        of_old = tl.max(old, 0)
        of_new = tl.max(new, 0)
        stays = (of_old >= of_new) & (of_old > NO_KEY)
        comes = (of_new > of_old) & (of_new > NO_KEY)
        at_old = tl.min(tl.where(old == of_old[None, :], old_row[:, None], KP), 0)
        at_new = tl.min(tl.where(new == of_new[None, :], new_row[:, None], N), 0)
        is_old = (old_row[:, None] == at_old[None, :]) & stays[None, :]
        is_new = (new_row[:, None] == at_new[None, :]) & comes[None, :]
        place = tl.sum(tl.where(is_new, new_position, 0), 0)
        place += tl.sum(tl.where(is_old, old_position, 0), 0)
        image = tl.where(comes, first + at_new, tl.sum(tl.where(is_old, old_image, 0), 0))
        value = tl.where(stays | comes, _unordered_wide(tl.maximum(of_old, of_new)), -_INF)
        out = r * width + c
        tl.store(values + out, value, mask=here)
        tl.store(images + out, tl.where(stays | comes, image, -1), mask=here)
        tl.store(positions + out, tl.where(stays | comes, place, -1), mask=here)
        old = tl.where(is_old, NO_KEY, old)
        new = tl.where(is_new, NO_KEY, new)
