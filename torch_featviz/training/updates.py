"""What an optimizer's step does to parameters, seen at the optimizer and not at the loop around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_featviz.capture import Histogram
from torch_featviz.capture.reduce.reducer import wide


class Updates:
    """A context in which the next step of each parameter is measured: its gradient, and how far it moves.

    Any optimizer of torch will do, also one made later, behind a GradScaler or with a scheduler around it: gradients
    are seen as it gets them. Nothing is waited for.

    Args:
        parameters: by name.
        bins: of the histogram of each gradient.
    """

    def __init__(self, parameters: dict[str, Tensor], bins: int) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._bins = bins
        self._before: dict[int, list[tuple[str, Tensor, Tensor]]] = {}
        self.histograms: dict[str, Histogram] = {}
        self.norms: dict[str, Tensor] = {}  # 3: of the gradient, of the parameter before, of what was added

    def __enter__(self) -> Updates:
        self._hooks = [
            register_optimizer_step_pre_hook(self._about_to_step),
            register_optimizer_step_post_hook(self._stepped),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._before.clear()

    @torch.no_grad()
    def _about_to_step(self, optimizer: Optimizer, *_: Any) -> None:
        moving = []
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            name = self._names.get(id(parameter))
            if name is None or parameter.grad is None or parameter.grad.is_sparse:
                continue
            self.histograms[name] = Histogram(self._bins, symmetric=True)
            self.histograms[name].update(parameter.grad)
            self.norms[name] = norm_of(parameter.grad)
            moving.append((name, parameter, parameter.detach().clone()))
        self._before[id(optimizer)] = moving

    @torch.no_grad()
    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        for name, parameter, before in self._before.pop(id(optimizer), ()):
            moved = norm_of(parameter - before)
            self.norms[name] = torch.stack([self.norms[name], norm_of(before), moved])


def norm_of(tensor: Tensor) -> Tensor:
    """The Euclidean norm, summed wide: squares of float32 overflow at 1e19."""
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=wide(tensor.device))
    return norm
