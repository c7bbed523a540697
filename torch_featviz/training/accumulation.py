"""Gradients between steps of an optimizer: whether they are added up over several blocks, or never cleared."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_not
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from .optimizers import Optimizers

_FEW = 16  # parameters, the smallest, by whose gradients all is told
_FEWER = 2
_PATIENCE = 1024  # blocks of one step
_SKIPS = 24  # of them in which a GradScaler halves its scale, from 65,536 on 16 times at most


class Trace:
    """The gradient that a parameter has now, and how often it was written to; it is not kept alive.

    Args:
        parameter: of which.
    """

    __slots__ = ("_gradient", "_version")

    def __init__(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        self._gradient = None if gradient is None else ref(gradient)
        self._version = -1 if gradient is None else _version(gradient)

    def is_of(self, parameter: Tensor) -> bool:
        """Whether the parameter has the very same gradient now, whatever was written to it."""
        return parameter.grad is (None if self._gradient is None else self._gradient())

    def writes(self, parameter: Tensor) -> int:
        """How often it was written to since; -1 where there was none, or there is another one."""
        same = self._gradient is not None and parameter.grad is not None and self.is_of(parameter)
        return _version(parameter.grad) - self._version if same and parameter.grad is not None else -1

    def has_grown(self, parameter: Tensor) -> bool:
        """Whether a gradient has come since, or was added to."""
        return parameter.grad is not None and self.writes(parameter) != 0


def _version(gradient: Tensor) -> int:
    """How often it was written to; of a sharded one the part that is here."""
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local._version


class Clearing:
    """Whether gradients are cleared between two steps of an optimizer, told from how often a few were written to.

    A gradient that is the same tensor, and was written to once since it was used, is the old one with a new one added:
    clearing it, whether by zeros or by None, leaves another trace. Clipping hides it.
    """

    def __init__(self) -> None:
        self.missed = False  # in the latest step
        self._few: list[Tensor] = []
        self._of: dict[int, list[Tensor]] = {}  # an optimizer
        self._used: dict[int, Trace] = {}  # by the id of a parameter

    def of(self, few: list[Tensor]) -> None:
        """The parameters whose gradients tell."""
        self._few, self._of, self._used = few, {}, {}

    def measure(self, optimizer: Optimizer) -> None:
        """Gradients are about to be used."""
        if id(optimizer) not in self._of:
            held = {id(each) for group in optimizer.param_groups for each in group["params"]}
            self._of[id(optimizer)] = [each for each in self._few if id(each) in held]
        used = [each for each in self._of[id(optimizer)] if id(each) in self._used and each.grad is not None]
        self.missed = bool(used) and all(self._used[id(each)].writes(each) == 1 for each in used)

    def stepped(self, optimizer: Optimizer) -> None:
        """Gradients were used."""
        self._used |= {id(each): Trace(each) for each in self._of.get(id(optimizer), ()) if each.grad is not None}


class Accumulation:
    """Whether the step of a block is over, or an optimizer is still to use the gradients that came in it.

    Args:
        optimizers: of the model.
    """

    def __init__(self, optimizers: Optimizers) -> None:
        self.clearing = Clearing()
        self.unfinished = False  # whether the optimizer is still to step
        self.blocks = 0  # of the step
        self.thrown_away = False  # gradients came and went in this step, and no optimizer has ever stepped
        self.skipped = 0  # blocks of this step whose gradients were not finite, where no optimizer has ever stepped
        self._optimizers = optimizers
        self._alone = False  # no optimizer is to be waited for
        self._few: list[Tensor] = []
        self._regular = False  # whether the last block had a step
        self._before: list[Trace] = []  # their gradients when the block began,
        self._left: list[Trace] = []  # and when the last block of the step ended

    def of(self, parameters: Iterable[Tensor]) -> None:
        """The model's parameters, as they are now."""
        few = sorted((each for each in parameters if each.requires_grad), key=Tensor.numel)[:_FEW]
        if len(few) != len(self._few) or any(map(is_not, few, self._few)):
            self._few = few
            self.clearing.of(few)

    @property
    def uncleared(self) -> bool:
        """Whether the gradients of this step were added to those of the one before."""
        return self.clearing.missed and self.blocks == 1

    def begin_step(self) -> None:
        self.blocks, self.thrown_away, self.skipped, self._left = 0, False, 0, []

    def begin_block(self) -> None:
        """Remember the gradients: a few of them, where steps come block by block, as they mostly do."""
        self._before = [Trace(each) for each in (self._few[:_FEWER] if self._regular else self._few)]

    def end_block(self) -> None:
        """Tell whether the step goes on; it does where gradients came that no optimizer of the model has used."""
        self.blocks += 1
        self.unfinished = self._goes_on()

    def _goes_on(self) -> bool:
        self._regular = self._optimizers.stepped
        if self._optimizers.stepped or self._alone or not self._came():
            self._alone = self._alone and not self._optimizers.stepped
            return False
        if self._optimizers.ever:
            return self.blocks < _PATIENCE
        if self.blocks == 1 and not self._optimizers.holders():
            self._alone = True  # there is no optimizer that could step
            return False
        gone = any(not trace.is_of(each) for each, trace in zip(self._few, self._left, strict=False))
        self._left = [Trace(each) for each in self._few]
        if not gone and self.blocks < _PATIENCE:
            return True
        if not all(bool(each.grad.isfinite().all()) for each in self._few if each.grad is not None):
            if self.blocks < _SKIPS:  # a GradScaler has skipped the step
                return True
            self.skipped = self.blocks
        else:
            self.thrown_away = True
        self._alone = True
        return False

    def _came(self) -> bool:
        """Whether the block has brought gradients."""
        return any(trace.has_grown(each) for each, trace in zip(self._few, self._before, strict=False))
