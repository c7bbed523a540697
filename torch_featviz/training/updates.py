"""What an optimizer's step does to parameters, seen at the optimizer and not at the loop around it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_featviz.capture import Histogram
from torch_featviz.capture.reduce.reducer import wide
from torch_featviz.model.values import whole

_ROW = 4096  # so many values are summed in float32, which is many times faster than converting each
_SAFE = (1e-15, 1e18)


class Move(NamedTuple):
    """What one parameter's gradient was, and how far it was moved; tensors of one number where the parameter is."""

    histogram: Histogram  # of the gradient
    grad: Tensor  # its norm
    unreached: Tensor | None  # rows of it that are exactly 0; None of a vector
    before: Tensor  # norm of the parameter
    added: Tensor | None  # norm of the difference, once it is there


class Updates:
    """A context in which the next step of each parameter is measured: its gradient, and how far it moves.

    Any optimizer of torch will do, also one made later, behind a GradScaler or with a scheduler around it: gradients
    are seen as it gets them. Nothing is waited for.

    Args:
        parameters: by name.
        bins: of the histogram of each gradient.

    Sharded parameters (FSDP2) are gathered one at a time, so every rank has to be in such a context at once.
    """

    def __init__(self, parameters: dict[str, Tensor], bins: int) -> None:
        self._names: dict[int, list[str]] = {}  # several where layers share one
        for name, parameter in parameters.items():
            self._names.setdefault(id(parameter), []).append(name)
        self._bins = bins
        self._before: dict[int, list[tuple[list[str], Tensor, Tensor, Move]]] = {}
        self.moves: dict[str, Move] = {}

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

    def _about_to_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._measure(optimizer)
            return None

        def measured() -> Any:
            loss = closure()  # only now are there gradients
            if id(optimizer) not in self._before:  # LBFGS calls it again when parameters have moved
                self._measure(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, {**kwargs, "closure": measured}

    @torch.no_grad()
    def _measure(self, optimizer: Optimizer) -> None:
        moving = []
        scale = getattr(optimizer, "grad_scale", None)  # of a GradScaler, which leaves unscaling to fused optimizers
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            names = self._names.get(id(parameter))
            if names is None or parameter.grad is None or parameter.grad.is_sparse or not parameter.requires_grad:
                continue
            grad, now = whole(parameter.grad), whole(parameter)
            if scale is not None:
                grad = grad / scale
            histogram = Histogram(self._bins, symmetric=True)
            histogram.update(grad)
            unreached = (grad.flatten(1) == 0).all(1).sum() if grad.dim() > 1 else None
            seen = Move(histogram, norm_of(grad), unreached, norm_of(now), added=None)
            moving.append((names, parameter, now.clone(), seen))
        self._before[id(optimizer)] = moving

    @torch.no_grad()
    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        for names, parameter, before, seen in self._before.pop(id(optimizer), ()):
            move = seen._replace(added=norm_of(before.sub_(whole(parameter))))
            self.moves |= dict.fromkeys(names, move)


def norm_of(tensor: Tensor) -> Tensor:
    """The Euclidean norm, as if summed in float64."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous():
        flat, end = tensor.view(-1), tensor.numel() // _ROW * _ROW
        whole, rest = flat[:end], flat[end:]
        parts = [torch.linalg.vector_norm(whole.view(-1, _ROW), dim=1)]
        parts += [torch.linalg.vector_norm(rest)[None]] if len(rest) else []
        norms = torch.cat(parts)
        if bool((norms > _SAFE[0]).all()) and bool((norms < _SAFE[1]).all()):  # no square was lost
            return norms.double().square_().sum().sqrt_()
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=wide(tensor.device))
    return norm
