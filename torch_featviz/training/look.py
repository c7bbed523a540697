"""What was seen in one step: on its way from the device to the plain numbers of a sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torch_featviz.capture.reduce import Reducer
from torch_featviz.capture.reduce.reducer import fetch_states

from .figures import layer_figures, parameter_figures, range_of
from .frames import Frame, Seen
from .history import Sample
from .updates import Move, norms_now
from .watched import Watched


class Look:
    """One step's figures and pictures, whose transfer to the CPU has begun. It holds nothing of the network.

    Args:
        step: its number.
        seen: figures of each layer: `Several` of `Moments` and `Histogram`.
        moves: what the optimizers did.
        watched: the layers and parameters.
        pictured: what is drawn of this step.
        left_out: layers without figures, and why.
    """

    def __init__(
        self,
        step: int,
        seen: Mapping[str, Reducer],
        moves: Mapping[str, Move],
        watched: Watched,
        *,
        pictured: Mapping[str, Seen],
        left_out: Mapping[str, str],
    ) -> None:
        self.step, self.left_out = step, left_out
        self._ends = {name: range_of(watched.layers[name]) for name in seen}
        self._kinds = watched.kinds
        self._counted = {name: move.figures.unreached is not None for name, move in moves.items()}
        self._pictured = {name: (part.shape, part.notes) for name, part in pictured.items()}
        tensors = [
            *norms_now(watched.parameters).values(),
            *(norm for move in moves.values() for norm in (move.grad, move.before, move.added)),
            *(move.figures.unreached for move in moves.values() if move.figures.unreached is not None),
            *(part.values for part in pictured.values()),
        ]
        reducers = [*seen.values(), *(move.figures.reducer for move in moves.values())]
        self.is_on_its_way = _is_on_its_way(tensors)
        self._read = fetch_states(reducers, tensors)

    def read(self) -> tuple[Sample, dict[str, Frame]]:
        """Wait for the transfer; the sample, and what is drawn by name."""
        states, arrays = self._read()
        of_grads = dict(zip(self._counted, states[len(self._ends) :], strict=True))
        numbers = iter(arrays)
        after = {name: float(next(numbers)) for name in self._kinds}
        norms = {name: [float(next(numbers)) for _ in range(3)] for name in self._counted}
        unreached = {name: int(next(numbers)) for name, counted in self._counted.items() if counted}
        frames = {
            name: Frame(self.step, torch.from_numpy(next(numbers)).float(), *about)
            for name, about in self._pictured.items()
        }
        parameters = {
            name: parameter_figures(kind, after[name], of_grads[name], norms[name], unreached.get(name))
            if name in norms
            else parameter_figures(kind, after[name])
            for name, kind in self._kinds.items()
        }
        layers = layer_figures(dict(zip(self._ends, states, strict=False)), self._ends)
        return Sample(self.step, layers, parameters), frames


def _is_on_its_way(tensors: list[Tensor]) -> bool:
    """Whether figures come from a GPU: they are better read when the next step's work has been launched."""
    return any(tensor.is_cuda for tensor in tensors)
