"""What was seen in one step: on its way from the device to the plain numbers of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from torch_featviz.capture.reduce import Reducer
from torch_featviz.capture.reduce.reducer import fetch_states

from .account import Account, Pending
from .figures import layer_figures, parameter_figures, range_of
from .frames import Frame, Seen
from .history import Sample
from .noise import GradientNoise
from .records import PendingRecords, StepRecord, of_all
from .updates import Move, norms_now
from .watched import Watched


class Look:
    """One step's figures and pictures, whose transfer to the CPU has begun. It holds nothing of the network.

    Args:
        step: its number.
        seen: figures of each layer, in the order in which they ran: `Several` of `Moments` and `Histogram`.
        inputs: the same of what the model was given.
        moves: what the optimizers did.
        watched: the layers and parameters.
        account: of all parameters.
        records: of the steps since the last look.
        pictured: what is drawn of this step.
        left_out: layers without figures, and why.
        noise: the noise scale, to which this step is added.
        group: whose losses and other scalars are averaged.
    """

    def __init__(
        self,
        step: int,
        seen: Mapping[str, Reducer],
        moves: Mapping[str, Move],
        watched: Watched,
        *,
        inputs: Mapping[str, Reducer],
        account: Pending,
        records: PendingRecords,
        pictured: Mapping[str, Seen],
        left_out: Mapping[str, str],
        noise: GradientNoise | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.step, self.left_out = step, left_out
        self._ends = {name: range_of(watched.layers.get(name, name)) for name in seen}
        self._inputs = list(inputs)
        self._kinds = watched.kinds
        self._counted = {name: move.figures.unreached is not None for name, move in moves.items()}
        self._pictured = {name: (part.shape, part.notes) for name, part in pictured.items()}
        self._account, self._records, self._group = account, records, group
        self._noise, sums = noise, noise.sums() if noise else []
        self._sums = len(sums)
        tensors = [
            *norms_now(watched.parameters).values(),
            *(norm for move in moves.values() for norm in (move.grad, move.before, move.added)),
            *(move.figures.unreached for move in moves.values() if move.figures.unreached is not None),
            *records.tensors,
            *account.tensors,
            *sums,
            *(part.values for part in pictured.values()),
        ]
        reducers = [*seen.values(), *inputs.values(), *(move.figures.reducer for move in moves.values())]
        self.is_on_its_way = _is_on_its_way(tensors)
        self._read = fetch_states(reducers, tensors)

    def read(self) -> tuple[Sample, Account, dict[str, Frame]]:
        """Wait for the transfer; the sample, what is known beside it, and what is drawn by name."""
        states, arrays = self._read()
        of_inputs = states[len(self._ends) :]
        of_grads = dict(zip(self._counted, of_inputs[len(self._inputs) :], strict=True))
        numbers = iter(arrays)
        after = {name: float(next(numbers)) for name in self._kinds}
        norms = {name: [float(next(numbers)) for _ in range(3)] for name in self._counted}
        unreached = {name: int(next(numbers)) for name, counted in self._counted.items() if counted}
        records = self._records.read(numbers)
        if self._group is not None:
            records = of_all(records, self._group)
        account = self._account.read(numbers, records)
        if self._noise:
            self._noise.take([float(next(numbers)) for _ in range(self._sums)])
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
        ends = {**self._ends, **dict.fromkeys(self._inputs)}
        layers = layer_figures(dict(zip(ends, states, strict=False)), ends)
        given = {name: layers.pop(name) for name in self._inputs}
        return Sample(self.step, layers, parameters, _scalars(account, records), given), account, frames


def _scalars(account: Account, records: Sequence[StepRecord]) -> dict[str, float]:
    """Those of the step itself, which is the last of the records."""
    rates = account.groups
    found = dict(records[-1].scalars) if records else {}
    if rates:
        same = len(set(rates)) == 1
        found |= {"learning_rate": rates[0]} if same else {f"learning_rate/{i}": rate for i, rate in enumerate(rates)}
    if records and records[-1].gradient is not None:
        found["gradient_norm"] = records[-1].gradient
    return found


def _is_on_its_way(tensors: list[Tensor]) -> bool:
    """Whether figures come from a GPU: they are better read when the next step's work has been launched."""
    return any(tensor.is_cuda for tensor in tensors)
