"""What is known of every step between two looks: the norm of all gradients, and what was logged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from .squares import Squares
from .updates import Updates, scale_of

_MOST = 1024  # steps since the last look that are kept
Value = Tensor | float
# its number, squared norms by optimizer, and what was logged
_Step: TypeAlias = tuple[int, dict[int, list[Value]], dict[str, list[Value]]]


class StepRecord(NamedTuple):
    """One step: plain numbers, NaN where the step was broken; no `gradient` where no optimizer stepped."""

    step: int
    gradient: float | None
    scalars: Mapping[str, float]

    @property
    def loss(self) -> float | None:
        """What was logged as `loss`."""
        return self.scalars.get("loss")

    @property
    def broken(self) -> bool:
        """Whether loss or gradient is not finite."""
        return not all(isfinite(value) for value in (self.gradient, self.loss) if value is not None)


class StepRecorder:
    """Collects the records since the last look; nothing is waited for.

    Args:
        on: whether gradients of steps between two looks are asked for.
    """

    def __init__(self, *, on: bool) -> None:
        self.on = on
        self.updates: Updates | None = None  # of a look, which knows most norms
        self._squares = Squares()
        self._steps: deque[_Step] = deque(maxlen=_MOST)

    def begin(self, step: int) -> None:
        """The next step; what follows belongs to it."""
        self._steps.append((step, {}, {}))

    @torch.no_grad()
    def measure(self, optimizer: Optimizer) -> None:
        """Gradients are there; those that a GradScaler has not unscaled are its own to judge."""
        if (self.updates is None and not self.on) or scale_of(optimizer) is not None or not self._steps:
            return
        known = self.updates.norms if self.updates else {}
        held = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        moved = [each for each in held if each.grad.is_floating_point()]  # of complex ones nothing is known
        norms = [known[id(each)] for each in moved if id(each) in known]
        others = [_local(each.grad) for each in moved if id(each) not in known and not each.grad.is_sparse]
        squares = [*_joined(norms), *self._squares.of(others)]
        self._steps[-1][1][id(optimizer)] = squares  # of several steps in one the last counts

    def stepped(self, _optimizer: Optimizer) -> None:
        """Parameters have moved, of which nothing is asked."""

    def logged(self, scalars: Mapping[str, list[Value]]) -> None:
        """What a block logged."""
        for name, values in scalars.items():
            self._steps[-1][2].setdefault(name, []).extend(values)

    def returned(self, losses: Sequence[Tensor]) -> None:
        """The losses that the model returned in the latest step, where none was logged."""
        if losses and self._steps:
            self._steps[-1][2].setdefault("loss", list(losses))

    def take(self) -> PendingRecords:
        """All steps so far; those that follow are for the next look."""
        steps = list(self._steps)
        self._steps.clear()
        return PendingRecords(steps)


class PendingRecords:
    """Steps whose numbers are to be fetched: `tensors` go to the CPU, `read` is given what became of them."""

    def __init__(self, steps: Sequence[_Step]) -> None:
        self._steps: list[tuple[int, list[float | None], dict[str, list[float | None]]]] = []  # None: among the tensors
        self.tensors: list[Tensor] = []
        for step, by_optimizer, scalars in steps:
            squares = [each for several in by_optimizer.values() for each in several]
            self.tensors += [value for value in squares if isinstance(value, Tensor)]
            kept: dict[str, list[float | None]] = {}
            for name, values in scalars.items():
                kept[name] = [None if isinstance(value, Tensor) else value for value in values]
                self.tensors += [value for value in values if isinstance(value, Tensor)]
            here = [None if isinstance(value, Tensor) else value for value in squares]
            self._steps.append((step, here, kept))

    def read(self, numbers: Iterator[Any]) -> list[StepRecord]:
        """The records, from the numbers of the tensors in their order."""
        records = []
        for step, norms, kept in self._steps:
            squares = [float(next(numbers)) if value is None else value for value in norms]
            scalars = {
                name: sum(float(next(numbers)) if value is None else value for value in values) / len(values)
                for name, values in kept.items()
            }
            records.append(StepRecord(step, sum(squares) ** 0.5 if squares else None, scalars))
        return records


def of_all(records: list[StepRecord], group: dist.ProcessGroup) -> list[StepRecord]:
    """The same steps of all ranks: the mean of each scalar, and the largest norm, or one that is not finite.

    Every rank has to call this.
    """
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, [tuple(record) for record in records], group)
    found = []
    for each in zip(*gathered, strict=False):
        step, _, mine = each[0]
        scalars = {
            name: sum(values) / len(values)
            for name in mine
            if (values := [other[name] for _, _, other in each if name in other])
        }
        norms = [gradient for _, gradient, _ in each if gradient is not None]
        broken = [gradient for gradient in norms if not isfinite(gradient)]
        found.append(StepRecord(step, max(broken or norms, default=None), scalars))
    return found


def _joined(norms: Sequence[Tensor]) -> list[Tensor]:
    """The sum of their squares on each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in norms:
        by_device.setdefault(norm.device, []).append(norm)
    return [torch.stack(several).square().sum() for several in by_device.values()]


def _local(gradient: Tensor) -> Tensor:
    """The part of a sharded gradient that is here: whether it is finite is told without the other ranks."""
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local
