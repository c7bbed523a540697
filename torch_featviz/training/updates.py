"""What an optimizer's step does to parameters, seen at the optimizer and not at the loop around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_featviz.capture import Histogram, Moments
from torch_featviz.capture.reduce import Reducer, Several
from torch_featviz.capture.reduce.few import Few
from torch_featviz.capture.reduce.reducer import wide
from torch_featviz.capture.reduce.tables import Figures, Tables
from torch_featviz.capture.reduce.together import Together
from torch_featviz.launching import gpu
from torch_featviz.model.values import copies_of, whole
from torch_featviz.torch_private import norm_each, subtract_each

T = TypeVar("T")
_ROW = 4096  # so many values are summed in float32, which is many times faster than converting each
_SAFE = (1e-15, 1e18)


class GradFigures(NamedTuple):
    """What is known of a gradient."""

    reducer: Reducer  # a histogram, or `Moments` of its rows and a histogram
    unreached: Tensor | None  # rows that are exactly 0; None of a vector, and where there are `Moments`


class Move(NamedTuple):
    """What one parameter's gradient was, and how far it was moved; tensors of one number where the parameter is."""

    figures: GradFigures
    grad: Tensor  # norm of the gradient
    before: Tensor  # of the parameter
    added: Tensor  # of what the step added


class Gradients:
    """Looks at the gradients of one step after the other.

    Args:
        bins: of the histogram of each.
    """

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._few = Few(self._histogram())
        self._of_rows = Several(Moments(0), self._histogram())
        self._has_kernels = Figures.takes(self._of_rows)
        self._tables: dict[torch.device, Tables] = {}

    def look(self, grads: dict[str, Tensor]) -> dict[str, GradFigures]:
        """What is known of each gradient, by a name of its parameter."""
        found: dict[str, GradFigures] = {}
        together: dict[torch.device, Together | None] = {}
        for name, grad in grads.items():
            if grad.device not in together:
                together[grad.device] = self._together(grad.device)
            if (several := together[grad.device]) is not None:
                several.add(name, grad, 0)
                found[name] = GradFigures(self._of_rows.fresh(), None)
                continue
            unreached = (grad.flatten(1) == 0).all(1).sum() if grad.dim() > 1 else None
            found[name] = GradFigures(self._histogram(), unreached)
            if self._few.takes_output(grad):
                self._few.add(name, grad)
            else:
                found[name].reducer.update(grad)
        reducers = {name: figures.reducer for name, figures in found.items()}
        for each in filter(None, together.values()):
            each.settle(reducers, last=True)
        self._few.settle(reducers)
        self._few.end_block()
        return found

    def _together(self, device: torch.device) -> Together | None:
        if not (self._has_kernels and gpu.available(device)):
            return None
        if device not in self._tables:
            self._tables[device] = Tables(self._of_rows, device)
        return Together(self._tables[device])

    def _histogram(self) -> Histogram:
        return Histogram(self._bins, symmetric=True)


class Updates:
    """Measures what the next step of an optimizer does: gradients, and how far parameters move.

    Any optimizer of torch will do: gradients are seen as it gets them. Nothing is waited for.

    Args:
        parameters: by name.
        gradients: looks at the gradients.

    Sharded parameters (FSDP2) are gathered one at a time, so every rank has to measure at once.
    """

    def __init__(self, parameters: Mapping[str, Tensor], gradients: Gradients) -> None:
        self._names: dict[int, list[str]] = {}  # several where layers share one
        for name, parameter in parameters.items():
            self._names.setdefault(id(parameter), []).append(name)
        self._gradients = gradients
        self._before: dict[int, list[_Moving]] = {}
        self.moves: dict[str, Move] = {}
        self.norms: dict[int, Tensor] = {}  # of gradients, by the id of the parameter

    @torch.no_grad()
    def measure(self, optimizer: Optimizer) -> None:
        """Gradients are there, and nothing has moved yet."""
        scale = scale_of(optimizer)
        moving = [
            (names, parameter)
            for parameter in (each for group in optimizer.param_groups for each in group["params"])
            if (names := self._names.get(id(parameter))) is not None and _learns(parameter)
        ]
        seen = self._before[id(optimizer)] = []
        for several in _in_turns(moving, [parameter for _, parameter in moving]):
            grads, now = [whole(parameter.grad) for _, parameter in several], [whole(each) for _, each in several]
            grads = grads if scale is None else [grad / scale for grad in grads]
            figures = self._gradients.look({names[0]: grad for (names, _), grad in zip(several, grads, strict=True)})
            norms = iter(norms_of([*grads, *now]))
            of_grads = [next(norms) for _ in grads]
            self.norms |= {id(parameter): norm for (_, parameter), norm in zip(several, of_grads, strict=True)}
            for (names, parameter), grad, before, copy in zip(several, of_grads, norms, copies_of(now), strict=True):
                seen.append(_Moving(names, parameter, copy, figures[names[0]], grad, before))

    @torch.no_grad()
    def stepped(self, optimizer: Optimizer) -> None:
        """Parameters have moved."""
        moved = self._before.pop(id(optimizer), [])
        for several in _in_turns(moved, [each.parameter for each in moved]):
            steps = differences([each.copy for each in several], [whole(each.parameter) for each in several])
            for each, added in zip(several, norms_of(steps), strict=True):
                self.moves |= dict.fromkeys(each.names, Move(each.figures, each.grad, each.before, added))


def scale_of(optimizer: Optimizer) -> Tensor | None:
    """By which its gradients are still multiplied: a GradScaler leaves unscaling to fused optimizers."""
    return getattr(optimizer, "grad_scale", None)


def norms_now(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The norm of each parameter."""
    found: dict[str, Tensor] = {}
    for several in _in_turns([*parameters], [*parameters.values()]):
        found |= zip(several, norms_of([whole(parameters[name]) for name in several]), strict=True)
    return {name: found[name] for name in parameters}


def _in_turns(items: Sequence[T], parameters: Sequence[Tensor]) -> Iterator[list[T]]:
    """What belongs to plain parameters all at once, and to sharded ones one by one, since each has to be gathered."""
    sharded = [hasattr(parameter, "full_tensor") for parameter in parameters]
    yield [item for item, alone in zip(items, sharded, strict=True) if not alone]
    yield from ([item] for item, alone in zip(items, sharded, strict=True) if alone)


class _Moving(NamedTuple):
    """A parameter that an optimizer is about to move."""

    names: list[str]
    parameter: Tensor
    copy: Tensor
    figures: GradFigures
    grad: Tensor  # norms
    before: Tensor


def _learns(parameter: Tensor) -> bool:
    return parameter.grad is not None and not parameter.grad.is_sparse and parameter.requires_grad


def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`norm_of` each; of those on a GPU all in a launch or two, of small ones in one call."""
    together = [tensor.is_cuda or (tensor.device.type == "cpu" and tensor.numel() <= _ROW) for tensor in tensors]
    norms = iter(norm_each([tensor.detach() for tensor, each in zip(tensors, together, strict=True) if each]))
    return [next(norms) if each else norm_of(tensor) for tensor, each in zip(tensors, together, strict=True)]


def differences(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    """`before - after`, in the memory of `before`."""
    if any(tensor.is_cuda for tensor in before):
        subtract_each([*before], [*after])
        return list(before)
    return [old.sub_(new) for old, new in zip(before, after, strict=True)]


def norm_of(tensor: Tensor) -> Tensor:
    """The Euclidean norm, as if summed in float64."""
    tensor = tensor.detach()
    if (
        tensor.numel() > _ROW
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
    ):
        flat, end = tensor.view(-1), tensor.numel() // _ROW * _ROW
        whole, rest = flat[:end], flat[end:]
        parts = [torch.linalg.vector_norm(whole.view(-1, _ROW), dim=1)]
        parts += [torch.linalg.vector_norm(rest)[None]] if len(rest) else []
        norms = torch.cat(parts)
        if bool((norms > _SAFE[0]).all()) and bool((norms < _SAFE[1]).all()):  # no square was lost
            return norms.double().square_().sum().sqrt_()
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=wide(tensor.device))
    return norm
