"""What one step leaves of a parameter's gradient, before anything works on it; and what it tells of the noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_featviz.training.updates import norm_of


class Told(NamedTuple):
    """What one step tells, still on the device: see `Norms`; and what of it counts."""

    small: int
    of_small: Tensor
    big: int
    of_big: Tensor
    scaled: bool
    before: Tensor  # squared norm of gradients that were there before; 0 where the step counts
    layers: tuple[str, ...]
    left_out: dict[str, str]


class Learnt:
    """One parameter in one step: its gradient, as it is when a backward has added to it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.count, self.changed = tensor, 0, False
        self.norm: Tensor | None = None
        self.before: Tensor | None = None  # norm of the gradient that was there before the step
        self._left: tuple[int, int] | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Begin to look; nothing about the gradient changes."""
        of_tensor = self.tensor.register_hook(self._about_to_add)  # type: ignore[no-untyped-call]
        added = self.tensor.register_post_accumulate_grad_hook(self._added)  # type: ignore[no-untyped-call]
        return [of_tensor, added]

    @torch.no_grad()
    def _about_to_add(self, _part: Tensor) -> None:
        grad = self.tensor.grad
        if self.count == 0:
            self.before = None if grad is None else norm_of(grad)
        elif grad is None or (id(grad), grad._version) != self._left:
            self.changed = True

    @torch.no_grad()
    def _added(self, _tensor: Tensor) -> None:
        self.count += 1
        if (grad := self.tensor.grad) is None:  # another hook's optimizer has used it already
            self.changed = True
        else:
            self.norm, self._left = norm_of(grad), (id(grad), grad._version)


def learning_in(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of a module's own that learn."""
    return {key: each for key, each in module._parameters.items() if each is not None and each.requires_grad}


def total(numbers: list[Tensor]) -> Tensor:
    """The sum, on the device of the first."""
    return torch.stack([each.to(numbers[0].device) for each in numbers]).sum()
