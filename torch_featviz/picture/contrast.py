"""How maps are drawn where no scale is given: each by its signs, between robust ends."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from torch_featviz.picture.color import total_of
from torch_featviz.picture.legend import Legend
from torch_featviz.picture.scale import Scale
from torch_featviz.picture.text import ends, number

_HELD = 0.995  # of the values, at least
_RULES = {False: "values of one sign: sequential colours", True: "values of both signs: diverging colours"}


def contrast(symmetric: bool, per: Literal["kernel", "layer"] = "kernel") -> Scale:
    """The scale of maps by default: outliers, at most 0.5 % of the values, are clipped.

    Example:
        >>> scale = contrast(symmetric=False).fit(torch.tensor([[0.0, 1.0], [2.0, 4.0]]))
        >>> ends_of(scale)
        ['0…4']
    """
    return Scale(symmetric=symmetric, quantile=_HELD, by="outliers", per=per)


def signed(maps: Tensor) -> Tensor:
    """Which of these has finite values on both sides of 0: `n ... -> n`, boolean."""
    flat = maps.flatten(1)
    flat = flat.masked_fill(~flat.isfinite(), 0)
    return (flat.amin(1) < 0) & (flat.amax(1) > 0)


def ends_of(scale: Scale) -> list[str]:
    """The ends of a fitted scale in words, one for each range that it has.

    Example:
        >>> ends_of(Scale(symmetric=True, vmin=-1.0, vmax=1.0)), ends_of(Scale(vmin=3.0, vmax=3.0))
        (['±1'], ['3'])
    """
    lows, highs = (torch.as_tensor(end, device="cpu").flatten().tolist() for end in (scale.vmin, scale.vmax))
    count = max(len(lows), len(highs))
    pairs = zip(lows * (count // len(lows)), highs * (count // len(highs)), strict=True)
    if scale.symmetric:
        return [f"±{number(high)}" if high else "0" for _, high in pairs]
    words = [ends(low, high) for low, high in pairs]
    return [first if first == last else f"{first}…{last}" for first, last in words]


def joined(legends: Sequence[Legend], notes: tuple[str, ...] = (), *, told: bool) -> Legend:
    """One legend of many cells; where only some have diverging colours, theirs, and above it that of the others.

    Args:
        legends: with fitted scales, all with a colour map.
        notes: stand below.
        told: by which rule the colours were chosen is said.
    """
    result: Legend | None = None
    kinds = [
        kind
        for symmetric in (False, True)
        if (kind := [each for each in legends if each.scale is not None and each.scale.symmetric is symmetric])
    ]
    for kind in kinds:
        scale = _scale_of([each.scale for each in kind if each.scale is not None])
        words = ((_RULES[scale.symmetric],) if told else ()) + (notes if kind is kinds[-1] else ())
        counts, total = total_of(each.counts for each in kind), sum(each.total for each in kind)
        result = Legend(scale, kind[0].cmap, counts, words, total=total, also=result)
    assert result is not None
    return result


def _scale_of(scales: Sequence[Scale]) -> Scale:
    """The scale of all of these, whose ends may differ."""
    lows, highs = (
        torch.cat([torch.as_tensor(end, dtype=torch.float64, device="cpu").flatten() for end in ends])
        for ends in ([each.vmin for each in scales], [each.vmax for each in scales])
    )
    if len(scales) == 1:
        return scales[0]
    if bool((lows == lows[0]).all() and (highs == highs[0]).all()):
        return replace(scales[0], vmin=lows[0].item(), vmax=highs[0].item())
    return replace(scales[0], vmin=lows[:, None, None, None], vmax=highs[:, None, None, None], per="kernel")
