"""How long the gradients of single examples are, seen in one ordinary forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from random import Random
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from torch_featviz.capture.tap import Taps, function_of, put
from torch_featviz.model.layers import names_of
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import in_backward, is_mapped, viewed

from .apart import with_parameters
from .learnt import Learnt, Told, learning_in, total
from .per_example import sum_of_squared_norms


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
        for name, module, why_not in with_parameters(names):
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
