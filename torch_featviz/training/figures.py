"""From what was counted on the device to the plain numbers of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from torch_featviz.capture.reduce.histogram import start_and_width
from torch_featviz.capture.reduce.moments import dead_of, wholes

from .history import Bins, LayerFigures, ParameterFigures

_BOUNDED = {nn.Tanh: (-1.0, 1.0), nn.Softsign: (-1.0, 1.0), nn.Sigmoid: (0.0, 1.0), nn.Hardsigmoid: (0.0, 1.0)}
_RECURRENT = (nn.RNN, nn.RNNCell, nn.GRU, nn.GRUCell)  # their states lie between -1 and 1, but for those of a ReLU
State = Sequence[np.ndarray]  # of a reducer


def layer_figures(
    states: Mapping[str, State], ends: Mapping[str, tuple[float, float] | None]
) -> dict[str, LayerFigures]:
    """The figures of layers as a whole.

    Args:
        states: of `Moments` and `Histogram`, by layer.
        ends: of the range of each that is a bounded activation.
    """
    figures = {}
    for (name, state), whole in zip(
        states.items(), wholes([(state[0], state[1]) for state in states.values()]), strict=True
    ):
        floats, counts, *histogram = state
        bins, range_ = bins_of(histogram), ends[name]
        figures[name] = LayerFigures(
            whole.mean, whole.std, whole.min, whole.max,
            zero_share=whole.zero_share,
            dead=int(np.count_nonzero(dead_of(floats, counts))),
            channels=counts.shape[1],
            nan=whole.nan,
            inf=whole.inf,
            histogram=bins,
            saturated=_saturated(bins, *range_) if range_ else None,
        )  # fmt: skip
    return figures


def range_of(layer: nn.Module | str) -> tuple[float, float] | None:
    """The least and greatest value of a bounded activation, or of a recurrent layer's states.

    Not of a ReLU6, whose zeros are no sign of harm.

    Args:
        layer: itself, or the name of a call of a function, such as `"conv1.tanh#2"`.
    """
    if isinstance(layer, str):
        call = layer.rpartition(".")[2].partition("#")[0].removesuffix("()")
        return next((range_ for kind, range_ in _BOUNDED.items() if kind.__name__.lower() == call), None)
    if isinstance(layer, _RECURRENT):
        kind = getattr(layer, "mode", getattr(layer, "nonlinearity", ""))
        return None if kind.lower().endswith("relu") else (-1.0, 1.0)
    return (layer.min_val, layer.max_val) if type(layer) is nn.Hardtanh else _BOUNDED.get(type(layer))


def is_recurrent(layer: nn.Module) -> bool:
    """Whether it has states, of which `range_of` tells."""
    return isinstance(layer, _RECURRENT)


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


def bins_of(state: State) -> Bins:
    """Plain numbers of a state of `Histogram`."""
    _, place, counts = state
    return Bins(*start_and_width(place), tuple(counts[:-3].tolist()))


class Kind(NamedTuple):
    """What does not change of a parameter while it learns."""

    size: int  # numbers in it
    rows: int | None  # of a matrix, or of more axes: one for each output of its layer, where that is known
    frozen: bool = False

    @classmethod
    def of(cls, parameter: Tensor, *, by_outputs: bool) -> Kind:
        """`by_outputs`: rows are outputs of a layer."""
        rows = len(parameter) if by_outputs and parameter.dim() > 1 else None
        return cls(parameter.numel(), rows, not parameter.requires_grad)


def parameter_figures(
    kind: Kind, norm: float, state: State = (), norms: Sequence[float] = (), unreached: int | None = None
) -> ParameterFigures:
    """The figures of a parameter.

    Args:
        norm: of it, after the step.
        state: of its gradient: of `Histogram`, or of `Moments` of the rows and `Histogram`.
        norms: of the gradient, of the parameter before, and of what the step added; none where it was not moved.
        unreached: rows of the gradient that are exactly 0, where no `Moments` tell.
    """
    if not norms:
        return ParameterFigures(kind.size, norm, frozen=kind.frozen)
    grad, before, added = norms
    moments, histogram = state[:-3], state[-3:]  # neither, of an empty gradient
    if moments:
        finite, zeros, nan, inf = moments[1]
        unreached = int(np.count_nonzero(zeros == finite + nan + inf))
    counted = kind.rows is not None and unreached is not None
    return ParameterFigures(
        kind.size, norm, grad,
        update_ratio=added / before if before else float("inf") if added else 0.0,
        grad_histogram=bins_of(histogram) if histogram else None,
        outputs=kind.rows if counted else None,
        unreached=unreached if counted else None,
        frozen=kind.frozen,
    )  # fmt: skip
