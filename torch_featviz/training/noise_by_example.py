"""How long the gradients of single examples are, seen in one ordinary forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from torch_featviz.capture.tap import Taps, function_of, put
from torch_featviz.model.layers import names_of
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import in_backward, is_mapped, viewed

from .per_example import KINDS, sum_of_squared_norms
from .updates import norm_of

_FORWARDS = {kind.forward for kind in KINDS}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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


@dataclass
class _Layer:
    """A layer in one step."""

    name: str
    module: Any
    learnt: dict[str, Learnt]
    waiting: bool = False  # for the backward of a call
    outside: bool = False  # called outside of any backward
    calls: int = 0  # that a backward has reached
    examples: int = 0  # in these
    squares: list[Tensor] = field(default_factory=list)  # sums over the examples of a call
    why_not: str = ""

    def why_left_out(self) -> str:
        if self.why_not:
            return self.why_not
        if not self.calls:
            return "no backward reached a call of it"
        if any(each.count != self.calls for each in self.learnt.values()):
            return "its weights are used elsewhere than in its calls"
        return ""


class ByExample:
    """Contexts around the forwards and backwards of one step: the squared norms of examples' gradients in each.

    Of each call of a layer the input is held until the backward has come by, which autograd does as well, unless it
    computes the call again (a checkpoint) or keeps it in fewer bits.

    Args:
        model: any module; its layers are looked up anew.
        examples: of each forward so many stand for all; None for all.
        random: draws them.
        copied: layers whose input is overwritten in place before the backward; a name is added when that is seen.
    """

    def __init__(self, model: nn.Module, examples: int | None, random: Random, copied: set[str]) -> None:
        self._examples, self._random, self._copied = examples, random, copied
        self._open, self._scaled = False, False
        self.compiled = False  # whether some layer ran in compiled code
        self._batch: int | None = None  # examples in this forward
        self._by_model = False  # as its forward was given them
        self._handles: list[RemovableHandle] = []
        names = names_of(model)
        self._root = next(iter(names))
        self._layers: list[_Layer] = []
        self.left_out: dict[str, str] = {}
        for name, module, why_not in _with_parameters(names):
            if why_not:
                self.left_out[name] = why_not
            else:
                learnt = {key: Learnt(each) for key, each in learning_in(module).items()}
                self._layers.append(_Layer(name, module, learnt))

    def enter(self, taps: Taps) -> None:
        """Begin to look at calls; what was put into modules is in `taps`."""
        self._open = True
        for layer in self._layers:
            around = self._around(function_of(layer.module, "forward"), layer)
            put(layer.module, "forward", MethodType(around, layer.module), taps)
            for learnt in layer.learnt.values():
                self._handles += learnt.hooks()
        around = self._around_model(function_of(self._root, "forward"))
        put(self._root, "forward", MethodType(around, self._root), taps)

    def leave(self) -> None:
        """What then comes is not seen."""
        self._open, self._batch, self._by_model = False, None, False
        for layer in self._layers:
            layer.waiting = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def end(self) -> Told | str:
        """What the step tells; or why it tells nothing."""
        left_out = {**self.left_out}
        counted: list[_Layer] = []
        for layer in self._layers:
            if why_not := layer.why_left_out():
                left_out[layer.name] = why_not
            else:
                counted.append(layer)
        learnt = [each for layer in counted for each in layer.learnt.values()]
        if not counted:
            return "; ".join(f"{name!r}: {why_not}" for name, why_not in left_out.items()) or "nothing in it learns"
        if any(each.changed for each in learnt):
            return "gradients were changed or dropped between two backwards of one step"
        big = max(layer.examples for layer in counted)
        if big < 2:
            return "one example tells nothing of how examples differ"
        of_small = total([square for layer in counted for square in layer.squares])
        of_big = total([each.norm.square() for each in learnt if each.norm is not None])
        before = [each.before for each in learnt if each.before is not None]
        zero = torch.zeros_like(of_big)
        layers = tuple(layer.name for layer in counted)
        return Told(1, big * of_small, big, of_big, self._scaled, total(before) if before else zero, layers, left_out)

    def _around_model(self, inner: Any) -> Any:
        def forward(self_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_dynamo_compiling():
                return inner(self_, *args, **kwargs)
            if self_ is self._root and self._open and torch.is_grad_enabled() and not in_backward():
                self._batch = next((len(each) for each in tensors((args, kwargs)) if each.dim()), None)
                self._by_model = self._batch is not None
            return inner(self_, *args, **kwargs)

        return forward

    def _around(self, inner: Any, layer: _Layer) -> Any:
        def forward(self_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_dynamo_compiling():
                self.compiled = True
                return inner(self_, *args, **kwargs)
            seen = self_ is layer.module and self._open and layer.module.training
            output = inner(self_, *args, **kwargs)
            if seen and isinstance(output, Tensor) and not is_mapped(output) and output.requires_grad:
                self._called(layer, args[0] if args else next(iter(kwargs.values())), output)
            return output

        return forward

    @torch.no_grad()
    def _called(self, layer: _Layer, given: Any, output: Tensor) -> None:
        """A call whose gradient may come."""
        if in_backward():
            if layer.outside:  # a checkpoint computes it again; the gradient flows in the first one
                return
        else:
            layer.outside = True
        if layer.waiting:
            layer.why_not = "it is called more than once before a backward: an example's gradient has several parts"
        elif type(given) is not Tensor or type(output) is not Tensor or given.layout != torch.strided:
            layer.why_not = "what it is given or returns is no plain, dense tensor"
        else:
            layer.why_not = layer.why_not or self._why_no_batch(layer, given)
        layer.waiting = True
        if layer.why_not:
            return
        held = given.detach().clone() if layer.name in self._copied else given.detach()
        call = _Call(held, held._version, output.shape)
        _seen_in_full(output).register_hook(partial(self._arrived, layer, call))  # type: ignore[no-untyped-call]

    def _why_no_batch(self, layer: _Layer, given: Tensor) -> str:
        places = 1 if isinstance(layer.module, nn.Linear) else 1 + len(layer.module.kernel_size)
        if given.dim() < places + 1:
            return "its input has no batch axis"
        if self._batch is None:  # called outside of the model's own forward
            self._batch = len(given)
        if len(given) != self._batch:
            return f"the first axis of its input is not the batch: {len(given)}, not {self._batch}"
        return ""

    @torch.no_grad()
    def _arrived(self, layer: _Layer, call: _Call, grad: Tensor) -> None:
        """The gradient of a call's output."""
        if not self._open:
            return
        given, call.given = call.given, None
        if given is None:
            layer.why_not = "several backwards pass through one call of it"
            return
        layer.waiting = False
        if not self._by_model:
            self._batch = None
        if given._version != call.version:
            layer.why_not = "its input was overwritten before the backward; from the next step on it is copied"
            self._copied.add(layer.name)
        if layer.why_not:
            return
        layer.calls += 1
        self._scaled |= grad.dtype == torch.float16
        if not grad.numel():
            return
        start, learnt = self._random.random(), {key: key in layer.learnt for key in ("weight", "bias")}
        grad, examples = grad.reshape(call.shape), self._examples
        layer.squares.append(sum_of_squared_norms(layer.module, given, grad, examples=examples, start=start, **learnt))
        layer.examples += len(grad)


@dataclass
class _Call:
    """What a layer was given, until the gradient of what it returned comes."""

    given: Tensor | None
    version: int  # another one tells that it was overwritten
    shape: torch.Size  # of the gradient


def _seen_in_full(output: Tensor) -> Tensor:
    """The tensor that the gradient of `output` reaches also where `output` is then overwritten in place.

    A linear layer computes on two axes, and returns a view; what works on that in place goes past the view's gradient.
    """
    base = viewed(output)
    same = base is not None and base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if same and base is not None and base.requires_grad else output


def mixing(model: nn.Module, *, over_ranks: bool = False) -> str:
    """A layer in which each example's result depends on the others, in words; empty where there is none.

    Args:
        over_ranks: whether ranks count as examples, among which only synchronised batch normalisation mixes.
    """
    kinds = (nn.SyncBatchNorm,) if over_ranks else _NORMS
    found = [
        f"{type(module).__name__} at {name!r}"
        for module, name in names_of(model).items()
        if isinstance(module, kinds) and (module.training or module.running_mean is None)
    ]
    return found[0] + (f" and {len(found) - 1} more" if found[1:] else "") if found else ""


def batch_second(model: nn.Module) -> str:
    """A layer that takes the batch on its second axis, in words; empty where there is none."""
    for module, name in names_of(model).items():
        if getattr(module, "batch_first", True) is False:
            return f"{type(module).__name__} at {name!r}"
    return ""


def _with_parameters(names: dict[nn.Module, str]) -> Iterator[tuple[str, nn.Module, str]]:
    """Each module that has parameters of its own which learn, and why the gradients of its examples are not known."""
    owners: dict[int, list[str]] = {}
    for module, name in names.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    for module, name in names.items():
        learning = learning_in(module)
        if learning:
            others = [other for each in learning.values() for other in owners[id(each)] if other != name]
            yield name, module, _why_unknown(module, learning, others)


def learning_in(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of a module's own that learn."""
    return {key: each for key, each in module._parameters.items() if each is not None and each.requires_grad}


def _why_unknown(module: nn.Module, learning: dict[str, Tensor], others: list[str]) -> str:
    weights, kind = learning.values(), type(module)
    reasons = {
        "it has no weights before its first call": any(map(is_lazy, weights)),
        f"{kind.__name__}: only linear layers and convolutions are known": not isinstance(module, KINDS),
        "its weight is made from other parameters": (
            not learning.keys() <= {"weight", "bias"} or module._parameters.get("weight") is None
        ),
        f"{kind.__name__} has a forward of its own": kind.forward not in _FORWARDS,
        f"it shares its weight with {', '.join(map(repr, others))}": bool(others),
        "its weight is sharded": any(hasattr(each, "full_tensor") for each in weights),
        "its weight is complex": any(each.is_complex() for each in weights),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def total(numbers: list[Tensor]) -> Tensor:
    """The sum, on the device of the first."""
    return torch.stack([each.to(numbers[0].device) for each in numbers]).sum()
