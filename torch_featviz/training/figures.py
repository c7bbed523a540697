"""From what was counted on the device to the plain numbers of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from torch_featviz.capture import Histogram, Moments
from torch_featviz.capture.reduce import Several

from .history import Bins, LayerFigures, ParameterFigures

_BOUNDED = {nn.Tanh: (-1.0, 1.0), nn.Softsign: (-1.0, 1.0), nn.Sigmoid: (0.0, 1.0), nn.Hardsigmoid: (0.0, 1.0)}


def layer_figures(ends: tuple[float, float] | None, moments: Moments, histogram: Histogram) -> LayerFigures:
    """The figures of a layer as a whole, from those of its channels."""
    whole, bins = moments.whole, bins_of(histogram)
    return LayerFigures(
        whole.mean, whole.std, whole.min, whole.max,
        zero_share=whole.zero_share,
        dead=int(moments.dead.sum()),
        channels=len(moments.dead),
        nan=whole.nan,
        inf=whole.inf,
        histogram=bins,
        saturated=_saturated(bins, *ends) if ends else None,
    )  # fmt: skip


def range_of(layer: nn.Module) -> tuple[float, float] | None:
    """The least and greatest value a bounded activation can return; not of a ReLU6, whose zeros are no sign of harm."""
    return (layer.min_val, layer.max_val) if type(layer) is nn.Hardtanh else _BOUNDED.get(type(layer))


def _saturated(bins: Bins, low: float, high: float) -> float | None:
    """Share of the values in the bins that lie within 1/32 of the range from either end; None where bins are wider.

    Exact where bins end there, as those of the usual 64 do for tanh and sigmoid.
    """
    outer, total = (high - low) / 32, sum(bins.counts)
    if not total or bins.width > outer:
        return None
    starts = [bins.start + i * bins.width for i in range(len(bins.counts))]
    inside = [start + bins.width <= low + outer or start >= high - outer for start in starts]
    return sum(count for count, each in zip(bins.counts, inside, strict=True) if each) / total


def bins_of(histogram: Histogram) -> Bins:
    """The same as plain numbers."""
    start, then, *_ = histogram.edges.tolist()
    return Bins(start, then - start, tuple(histogram.counts.tolist()))


def parameter_figures(parameter: Tensor, norm: float, move: Sequence[Any] | None, *, rows: bool) -> ParameterFigures:
    """Of a parameter whose norm is known, and the parts of its `Move`; `rows` where these are a layer's outputs."""
    if move is None:
        return ParameterFigures(parameter.numel(), norm)
    figures, unreached, grad, before, added = move
    if isinstance(figures, Several):
        moments, histogram = cast("tuple[Moments, Histogram]", tuple(figures))
        unreached = (moments.zero_share == 1).sum() if parameter.dim() > 1 else None
    else:
        histogram = figures
    counted = rows and unreached is not None
    return ParameterFigures(
        parameter.numel(), norm, float(grad),
        update_ratio=float(added / before) if before else float("inf") if added else 0.0,
        grad_histogram=bins_of(histogram),
        outputs=len(parameter) if counted else None,
        unreached=int(unreached) if counted else None,
    )  # fmt: skip
