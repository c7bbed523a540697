# mypy: ignore-errors
# ruff: noqa: PLR0912, PLR0915, PLR0917, PLR0124, SIM108 - what Triton compiles is a small part of Python
"""Triton kernels that read many outputs once or twice and keep figures of all of them.

An output is seen as `images channels places`, by three strides, of which that of channels or that of places is 1: where
Triton does not see it written down that the lanes of a warp lie side by side, it lays them across. Rows are blocks of
`BM` places, image after image.

A program reads some rows of `BC` channels and leaves partial figures; others add these to the states, in an order that
does not depend on the device. `TRITON_INTERPRET=1` runs all of it on a CPU.

Tables are rows of int64 numbers, made by `tables`:
    items     images, channels, places, strides of images, channels and places, row of its first image in `best`,
              whether channels lie side by side and not places, whether each place is an image
    programs  item, block of channels, first row, end of rows, layer, first program of the layer and end; in the order
              of layers, blocks of channels, rows
    folds     first program, end of programs, first channel in the state, channels, first channel in the block
    spans     layer, first program, end of programs
"""

from __future__ import annotations

import triton
import triton.language as tl

BC: tl.constexpr = tl.constexpr(32)
BM: tl.constexpr = tl.constexpr(128)
_STEP: tl.constexpr = tl.constexpr(32)  # places that are added up apart: more would not fit in registers
ITEM: tl.constexpr = tl.constexpr(9)
PROGRAM: tl.constexpr = tl.constexpr(7)
FLOATS: tl.constexpr = tl.constexpr(5)  # pivot, sum, sum of squares, min, max
COUNTS: tl.constexpr = tl.constexpr(4)  # finite values, zeros, NaN, infinities
ENDS: tl.constexpr = tl.constexpr(6)  # min, max, values between them; NaN, inf, -inf
NO_KEY: tl.constexpr = tl.constexpr(-(2**63))
NOWHERE: tl.constexpr = tl.constexpr(2**62)
_INF: tl.constexpr = tl.constexpr(float("inf"))
_ASKS: tl.constexpr = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9))  # for any order
_LAST: tl.constexpr = tl.constexpr(0x7FFFFFFF)
_DIGITS: tl.constexpr = tl.constexpr(50)
_NARROWEST: tl.constexpr = tl.constexpr(-126)
_LARGEST: tl.constexpr = tl.constexpr(2.0**1000)  # of float64; from there on a histogram counts values as infinite


@triton.jit
def probe(out):
    """Whether a kernel is compiled and run at all."""
    tl.store(out, 1)


@triton.jit
def _pointer(address, KIND: tl.constexpr):
    if KIND == 0:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif KIND == 1:
        pointer = address.to(tl.pointer_type(tl.float16))
    elif KIND == 2:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    else:
        pointer = address.to(tl.pointer_type(tl.float64))
    return pointer


@triton.jit
def _address(outputs, j, ONE: tl.constexpr):
    """Of output `j`: `outputs` is a table of addresses, or the only one itself."""
    if ONE:
        address = outputs.to(tl.int64)
    else:
        address = tl.load(outputs + j)
    return address


@triton.jit
def _addresses(item, address, c, lane, by_place, KIND: tl.constexpr, NEAREST: tl.constexpr):
    """Of values of channels `c` and places `lane`, as `channels places`; turned where channels lie side by side."""
    if NEAREST:
        at = _pointer(address, KIND) + (c[None, :] + (lane * by_place)[:, None])
    else:
        at = _pointer(address, KIND) + ((c * tl.load(item + 4))[:, None] + lane[None, :])
    return at


@triton.jit
def _loaded(at, inside, KIND: tl.constexpr):
    """Values as float32, or float64 where they are; outside -inf, which is no finite value and no maximum."""
    value = tl.load(at, mask=inside, other=-_INF)
    if KIND != 3:
        value = value.to(tl.float32)
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


@triton.jit
def _key(peak, place, WIDE: tl.constexpr):
    """A number by which maxima are told apart: the larger value first, then the earlier place."""
    peak = tl.where(peak == 0, 0.0, peak)  # of -0 too
    if WIDE:
        key = _ordered_wide(peak)
    else:
        key = (_ordered(peak) << 32) | (_LAST - place)
    return key


@triton.jit
def _sum_of_all(number):
    return tl.sum(tl.sum(number, 0), 0).to(tl.int64)


@triton.jit
def _scan(
    item,
    address,
    block,
    row,
    end,
    best,
    floats,
    counts,
    ends,
    KIND: tl.constexpr,
    NEAREST: tl.constexpr,
    CHANNELS: tl.constexpr,
    HISTOGRAM: tl.constexpr,
    TOP: tl.constexpr,
):
    """What `read` does, where channels lie side by side or places do."""
    AXIS: tl.constexpr = 0 if NEAREST else 1  # of places
    WIDE: tl.constexpr = KIND == 3
    channels = tl.load(item + 1)
    places = tl.load(item + 2)
    by_image = tl.load(item + 3)
    by_place = tl.load(item + 5)
    parts = tl.cdiv(places, BM)
    lane = tl.arange(0, _STEP)
    c = block * BC + tl.arange(0, BC)
    here = tl.expand_dims(c < channels, AXIS)
    at = _addresses(item, address, c, lane, by_place, KIND, NEAREST)
    first = _loaded(at, here & tl.expand_dims(lane < places, 1 - AXIS), KIND)
    pivot = tl.max(tl.where(tl.abs(first) < _INF, first, -_INF), AXIS)  # a value of the output, so that none is far off
    pivot = tl.where(pivot > -_INF, pivot, 0.0).to(tl.float64)
    around = tl.expand_dims(pivot, AXIS)
    total = tl.zeros_like(first).to(tl.float64)
    squares = tl.zeros_like(first).to(tl.float64)
    low = tl.zeros_like(first) + _INF
    high = tl.zeros_like(first) - _INF
    lowest = low
    highest = high
    packed = tl.zeros_like(first).to(tl.int32)
    broken = packed
    peak = high
    place = tl.zeros_like(packed) + _LAST
    image = row // parts
    part = row - image * parts
    inside_all = image * places + tl.minimum(part * BM, places)
    since = part
    for i in range(row, end):
        start = at + (image * by_image + part * BM * by_place)
        for step in tl.static_range(BM // _STEP):
            left = places - part * BM - step * _STEP
            inside = here & tl.expand_dims(lane < left, 1 - AXIS)
            v = _loaded(start + step * _STEP * by_place, inside, KIND)
            finite = tl.abs(v) < _INF
            if CHANNELS:
                distance = tl.where(finite, v.to(tl.float64) - around, 0.0)
                total += distance
                squares += distance * distance
                some = tl.where(v == 0, 0x401, 0x1)
                packed += tl.where(finite, some, tl.where(v != v, 0x100000, 0))
            low = tl.minimum(low, tl.where(finite, v, _INF))
            high = tl.maximum(high, tl.where(finite, v, -_INF))
            if HISTOGRAM:
                counted = finite
                if WIDE:
                    counted = tl.abs(v) < _LARGEST
                    lowest = tl.minimum(lowest, tl.where(counted, v, _INF))
                    highest = tl.maximum(highest, tl.where(counted, v, -_INF))
                broken += tl.where(counted, 0, tl.where(v > 0, 0x400, tl.where(v < 0, 0x100000, 0x1)))
            if TOP:
                better = v > peak
                peak = tl.where(better, v, peak)
                p = tl.expand_dims((part * BM + step * _STEP + lane).to(tl.int32), 1 - AXIS)
                place = tl.where(better, p, place)
        if TOP:
            if tl.load(item + 8) != 0:  # each place is an image
                for step in tl.static_range(BM // _STEP):
                    each = part * BM + step * _STEP + lane
                    inside = here & tl.expand_dims(each < places, 1 - AXIS)
                    v = _loaded(start + step * _STEP * by_place, inside, KIND)
                    v = tl.where(v == v, v, -_INF)
                    rows = tl.load(item + 6) + tl.expand_dims(each * channels, 1 - AXIS) + tl.expand_dims(c, AXIS)
                    tl.store(best + rows, _key(v, 0, WIDE), mask=inside)
            elif (part + 1 == parts) | (i + 1 == end):
                largest = tl.max(peak, AXIS)
                where = tl.min(tl.where(peak == tl.expand_dims(largest, AXIS), place, _LAST), AXIS)
                where = tl.where(where == _LAST, (since * BM).to(tl.int32), where)  # all are NaN or -inf
                rows = tl.load(item + 6) + image * channels
                tl.atomic_max(best + rows + c, _key(largest, where, WIDE), mask=c < channels)
                peak = tl.zeros_like(peak) - _INF
                place = tl.zeros_like(place) + _LAST
                since = tl.zeros_like(since)
        part += 1
        image = tl.where(part == parts, image + 1, image)
        part = tl.where(part == parts, 0, part)
    low_of = tl.min(low, AXIS).to(tl.float64)
    high_of = tl.max(high, AXIS).to(tl.float64)
    inside_all = image * places + tl.minimum(part * BM, places) - inside_all
    if CHANNELS:
        out = floats + tl.arange(0, BC)
        tl.store(out, pivot)
        tl.store(out + BC, tl.sum(total, AXIS))
        tl.store(out + 2 * BC, tl.sum(squares, AXIS))
        tl.store(out + 3 * BC, low_of)
        tl.store(out + 4 * BC, high_of)
        number = tl.sum(packed & 0x3FF, AXIS)
        nan = tl.sum(packed >> 20, AXIS)
        out = counts + tl.arange(0, BC)
        tl.store(out, number)
        tl.store(out + BC, tl.sum((packed >> 10) & 0x3FF, AXIS))
        tl.store(out + 2 * BC, nan)
        tl.store(out + 3 * BC, inside_all.to(tl.int32) - number - nan)
    if HISTOGRAM:
        if WIDE:
            low_of = tl.min(lowest, AXIS)
            high_of = tl.max(highest, AXIS)
        values = inside_all * tl.minimum(channels - block * BC, BC)
        nan = _sum_of_all(broken & 0x3FF)
        above = _sum_of_all((broken >> 10) & 0x3FF)
        below = _sum_of_all(broken >> 20) - ((end - row) * BM * BC - values)  # outside -inf was read
        tl.store(ends, tl.min(low_of, 0))
        tl.store(ends + 1, tl.max(high_of, 0))
        tl.store(ends + 2, (values - nan - above - below).to(tl.float64))
        tl.store(ends + 3, nan.to(tl.float64))
        tl.store(ends + 4, above.to(tl.float64))
        tl.store(ends + 5, below.to(tl.float64))


@triton.jit(do_not_specialize_on_alignment=["outputs"])
def read(
    outputs,
    items,
    programs,
    floats,
    counts,
    ends,
    best,
    ONE: tl.constexpr,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,
    HISTOGRAM: tl.constexpr,
    TOP: tl.constexpr,
):
    """The figures of channels (`floats`, `counts`), of all (`ends`), and maxima (`best`) in the rows of one program."""
    i = tl.program_id(0).to(tl.int64)
    program = programs + PROGRAM * i
    j = tl.load(program)
    item = items + ITEM * j
    address = _address(outputs, j, ONE)
    block = tl.load(program + 1)
    row = tl.load(program + 2)
    end = tl.load(program + 3)
    floats += i * FLOATS * BC
    counts += i * COUNTS * BC
    ends += ENDS * i
    if tl.load(item + 7) != 0:
        _scan(item, address, block, row, end, best, floats, counts, ends, KIND, True, CHANNELS, HISTOGRAM, TOP)
    else:
        _scan(item, address, block, row, end, best, floats, counts, ends, KIND, False, CHANNELS, HISTOGRAM, TOP)


@triton.jit(do_not_specialize_on_alignment=["outputs"])
def locate(outputs, items, programs, best, where, ONE: tl.constexpr):
    """Where the maxima of float64 values are, which are known by now: keys of 64 bits leave no room for a place."""
    program = programs + PROGRAM * tl.program_id(0).to(tl.int64)
    item = items + ITEM * tl.load(program)
    channels = tl.load(item + 1)
    places = tl.load(item + 2)
    parts = tl.cdiv(places, BM)
    each = tl.load(item + 8) != 0
    c = tl.load(program + 1) * BC + tl.arange(0, BC)
    at = _pointer(_address(outputs, tl.load(program), ONE), 3) + (c * tl.load(item + 4))[:, None]
    for row in range(tl.load(program + 2), tl.load(program + 3)):
        image = row // parts
        p = (row % parts) * BM + tl.arange(0, BM)
        inside = (c < channels)[:, None] & (p < places)[None, :]
        v = tl.load(at + (image * tl.load(item + 3) + p * tl.load(item + 5))[None, :], mask=inside, other=0.0)
        if each:
            out = where + tl.load(item + 6) + p[None, :] * channels + c[:, None]
            tl.store(out, tl.zeros_like(v).to(tl.int64), mask=inside)
        else:
            rows = tl.load(item + 6) + image * channels + c
            largest = _unordered_wide(tl.load(best + rows, mask=c < channels, other=0))[:, None]
            found = inside & ((v == largest) | (largest == -_INF))
            first = tl.min(tl.where(found, p[None, :], NOWHERE), 1)
            tl.atomic_min(where + rows, first, mask=c < channels)


@triton.jit
def _in_any_order(slot):
    if _ASKS:
        flat = tl.reshape(slot, [BC * BM], can_reorder=True)
    else:
        flat = tl.reshape(slot, [BC * BM])
    return flat


@triton.jit
def _found(
    item,
    address,
    block,
    row,
    end,
    width,
    start,
    NB: tl.constexpr,
    KIND: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """How many values are in each bin; outside of the output and where they are broken, in the first one too."""
    AXIS: tl.constexpr = 0 if NEAREST else 1  # of places
    channels = tl.load(item + 1)
    places = tl.load(item + 2)
    by_image = tl.load(item + 3)
    by_place = tl.load(item + 5)
    parts = tl.cdiv(places, BM)
    lane = tl.arange(0, BM)
    c = block * BC + tl.arange(0, BC)
    here = tl.expand_dims(c < channels, AXIS)
    at = _addresses(item, address, c, lane, by_place, KIND, NEAREST)
    factor = _power_of_two(-width)
    offset = start.to(tl.float64)
    if KIND != 3:  # in float32 all of it is exact
        factor = factor.to(tl.float32)
        offset = offset.to(tl.float32)
    image = row // parts
    part = row - image * parts
    found = tl.zeros([NB], tl.int32)
    for _ in range(row, end):
        inside = here & tl.expand_dims(lane < places - part * BM, 1 - AXIS)
        v = _loaded(at + (image * by_image + part * BM * by_place), inside, KIND)
        counted = tl.abs(v) < (_LARGEST if KIND == 3 else _INF)
        number = tl.floor(tl.where(counted, v, 0.0) * factor)
        number = tl.where(v < 0, tl.minimum(number, -1.0), number)
        slot = tl.where(counted, (number - offset).to(tl.int32), 0)
        found += tl.histogram(_in_any_order(slot), NB)
        part += 1
        image = tl.where(part == parts, image + 1, image)
        part = tl.where(part == parts, 0, part)
    return found


@triton.jit(do_not_specialize=["bins"], do_not_specialize_on_alignment=["outputs"])
def count(
    outputs,
    items,
    programs,
    ends,
    local,
    bins,
    NB: tl.constexpr,
    ONE: tl.constexpr,
    KIND: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Add the values of one program to the `local` bins of its layer, which hold all that was read of it."""
    i = tl.program_id(0).to(tl.int64)
    program = programs + PROGRAM * i
    j = tl.load(program)
    item = items + ITEM * j
    address = _address(outputs, j, ONE)
    block = tl.load(program + 1)
    row = tl.load(program + 2)
    end = tl.load(program + 3)
    low, high = _ends_of(ends, tl.load(program + 5), tl.load(program + 6))
    width, start = _place(low, high, bins, SYMMETRIC)
    if tl.load(item + 7) != 0:
        found = _found(item, address, block, row, end, width, start, NB, KIND, True)
    else:
        found = _found(item, address, block, row, end, width, start, NB, KIND, False)
    slot = tl.arange(0, NB)
    others = (end - row) * BM * BC - tl.load(ends + ENDS * i + 2).to(tl.int64)
    many = found.to(tl.int64) - tl.where(slot == 0, others, 0)
    tl.atomic_add(local + tl.load(program + 4) * NB + slot, many, mask=many > 0)


@triton.jit(do_not_specialize=["width"])
def fold_channels(folds, floats, counts, sums, totals, width, G: tl.constexpr, LANES: tl.constexpr):
    """Add the figures of programs to those of `LANES` channels: `sums` is `5 width`, `totals` `4 width`."""
    f = folds + 5 * tl.program_id(0)
    start = tl.load(f)
    end = tl.load(f + 1)
    c = tl.load(f + 2) + tl.arange(0, LANES)
    here = tl.arange(0, LANES) < tl.load(f + 3)
    lane = tl.load(f + 4) + tl.arange(0, LANES)
    old_number = tl.load(totals + c, mask=here, other=0)
    pivot = tl.load(floats + start * FLOATS * BC + lane)  # as of any other program of this output
    pivot = tl.where(old_number > 0, tl.load(sums + c, mask=here, other=0.0), pivot)
    total = tl.zeros([G, LANES], tl.float64)
    squares = total
    low = total + _INF
    high = total - _INF
    number = tl.zeros([G, LANES], tl.int64)
    zero = number
    nan = number
    infinite = number
    for t in range(start, end, G):
        program = t + tl.arange(0, G)
        mask = (program < end)[:, None]
        at = counts + program[:, None] * COUNTS * BC + lane[None, :]
        n = tl.load(at, mask=mask, other=0).to(tl.int64)
        number += n
        zero += tl.load(at + BC, mask=mask, other=0).to(tl.int64)
        nan += tl.load(at + 2 * BC, mask=mask, other=0).to(tl.int64)
        infinite += tl.load(at + 3 * BC, mask=mask, other=0).to(tl.int64)
        at = floats + program[:, None] * FLOATS * BC + lane[None, :]
        step = tl.where(n > 0, tl.load(at, mask=mask, other=0.0) - pivot[None, :], 0.0)
        first = tl.load(at + BC, mask=mask, other=0.0)
        shifted = first + n.to(tl.float64) * step
        total += shifted
        squares += tl.load(at + 2 * BC, mask=mask, other=0.0) + step * (first + shifted)
        low = tl.minimum(low, tl.load(at + 3 * BC, mask=mask, other=_INF))
        high = tl.maximum(high, tl.load(at + 4 * BC, mask=mask, other=-_INF))
    total = tl.load(sums + width + c, mask=here, other=0.0) + tl.sum(total, 0)
    squares = tl.load(sums + 2 * width + c, mask=here, other=0.0) + tl.sum(squares, 0)
    low = tl.minimum(tl.load(sums + 3 * width + c, mask=here, other=_INF), tl.min(low, 0))
    high = tl.maximum(tl.load(sums + 4 * width + c, mask=here, other=-_INF), tl.max(high, 0))
    number = old_number + tl.sum(number, 0)
    zero = tl.load(totals + width + c, mask=here, other=0) + tl.sum(zero, 0)
    nan = tl.load(totals + 2 * width + c, mask=here, other=0) + tl.sum(nan, 0)
    infinite = tl.load(totals + 3 * width + c, mask=here, other=0) + tl.sum(infinite, 0)
    tl.store(sums + c, pivot, mask=here)
    tl.store(sums + width + c, total, mask=here)
    tl.store(sums + 2 * width + c, squares, mask=here)
    tl.store(sums + 3 * width + c, low, mask=here)
    tl.store(sums + 4 * width + c, high, mask=here)
    tl.store(totals + c, number, mask=here)
    tl.store(totals + width + c, zero, mask=here)
    tl.store(totals + 2 * width + c, nan, mask=here)
    tl.store(totals + 3 * width + c, infinite, mask=here)


@triton.jit
def _ends_of(ends, start, end):
    """The lowest and the highest value of some programs, float64."""
    G: tl.constexpr = 256
    low = tl.zeros([G], tl.float64) + _INF
    high = tl.zeros([G], tl.float64) - _INF
    for t in range(start, end, G):
        program = t + tl.arange(0, G)
        low = tl.minimum(low, tl.load(ends + ENDS * program, mask=program < end, other=_INF))
        high = tl.maximum(high, tl.load(ends + ENDS * program + 1, mask=program < end, other=-_INF))
    return tl.min(low, 0), tl.max(high, 0)


@triton.jit
def _move(counts, many, width, start, new_width, new_start, bins, NB: tl.constexpr):
    """Add counts of bins to wider ones."""
    slot = tl.arange(0, NB)
    wider = tl.minimum(tl.maximum(new_width - width, 0), 63)
    moved = ((start + slot) >> wider) - new_start
    tl.atomic_add(counts + tl.minimum(tl.maximum(moved, 0), bins - 1), many, mask=(many > 0) & (slot < bins))


@triton.jit(do_not_specialize=["bins"])
def fold_bins(spans, ends, local, extremes, place, counts, bins, NB: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Add the `local` bins of one layer, and its broken values, to those so far, and empty them."""
    span = spans + 3 * tl.program_id(0)
    layer = tl.load(span)
    first = tl.load(span + 1)
    end = tl.load(span + 2)
    low, high = _ends_of(ends, first, end)
    width, start = _place(low, high, bins, SYMMETRIC)
    low = tl.minimum(low, tl.load(extremes + 2 * layer))
    high = tl.maximum(high, -tl.load(extremes + 2 * layer + 1))
    new_width, new_start = _place(low, high, bins, SYMMETRIC)
    old_width = tl.load(place + 2 * layer)
    old_start = tl.load(place + 2 * layer + 1)
    counts += layer * (bins + 3)
    local += layer * NB
    slot = tl.arange(0, NB)
    so_far = tl.load(counts + slot, mask=slot < bins, other=0)
    new = tl.load(local + slot)
    tl.debug_barrier()  # all is loaded
    tl.store(counts + slot, tl.zeros([NB], tl.int64), mask=slot < bins)
    tl.store(local + slot, tl.zeros([NB], tl.int64))
    tl.store(extremes + 2 * layer, low)
    tl.store(extremes + 2 * layer + 1, -high)
    tl.store(place + 2 * layer, new_width)
    tl.store(place + 2 * layer + 1, new_start)
    tl.debug_barrier()  # all is stored
    _move(counts, so_far, old_width, old_start, new_width, new_start, bins, NB)
    _move(counts, new, width, start, new_width, new_start, bins, NB)
    kind = tl.arange(0, 4)  # of broken values: three
    broken = tl.zeros([4], tl.int64)
    for t in range(first, end, 64):
        program = t + tl.arange(0, 64)
        mask = (program < end)[:, None] & (kind < 3)[None, :]
        at = ends + ENDS * program[:, None] + 3 + kind[None, :]
        broken += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.int64), 0)
    out = counts + bins + kind
    tl.store(out, tl.load(out, mask=kind < 3, other=0) + broken, mask=kind < 3)


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
