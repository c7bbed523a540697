"""Rectifiers with another backward, wherever the network calls them: as layers, as functions, in place.

On the way down, guided backpropagation passes the positive part of the gradient where the unit was active; the
deconvnet passes the positive part everywhere. Both are defined for ReLU (Springenberg et al. 2014, fig. 1; Zeiler &
Fergus 2013, section 2.1). The rule here for its relatives (ReLU6, Hardswish, SiLU, GELU, ELU, leaky ReLU, ...): guided
multiplies the positive part by the activation's own derivative, which for ReLU is where it was active; the deconvnet
ignores the derivative. Sigmoid, tanh and the like rectify nothing and keep their derivative.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_featviz.errors import LayerError
from torch_featviz.torch_private import lower_bound, made_by

_ALWAYS = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu"),
    *("mish", "softplus", "threshold"),
)
_AT_ZERO = {"clamp": "min", "clip": "min", "clamp_min": "min", "hardtanh": "min_val"}
_LARGER = ("maximum", "max")
_OTHERS = ("hardtanh", "sigmoid", "tanh", "softmax", "log_softmax", "hardsigmoid", "logsigmoid", "softsign")
_NODES = re.compile(
    r"(Relu|LeakyRelu|Silu|Gelu|Elu|Hardswish|Mish|Softplus|PreluKernel|Threshold|CheckpointFunction|CompiledFunction)"
    r"Backward\d*"
)


def nonlinear(name: str) -> bool:
    """Whether a function of that name is a nonlinearity that a rule of its own may be wanted for.

    Example:
        >>> nonlinear("relu_"), nonlinear("max_pool2d"), nonlinear("conv2d")
        (True, True, False)
    """
    name = name.rstrip("_")
    return name in (*_ALWAYS, *_OTHERS) or "max_pool" in name


class Rectify(TorchFunctionMode):
    """While on, every rectifier is given the backward of `rule`.

    Args:
        guided: the positive part of the gradient times the activation's derivative; else the positive part alone.
    """

    def __init__(self, *, guided: bool) -> None:
        super().__init__()
        self.guided = guided

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = word_of(func)
        x = args[0] if args else kwargs.get("input")
        if name in _LARGER and len(args) == 2 and isinstance(args[1], Tensor) and args[1].requires_grad:
            args = args if args[0].requires_grad else args[::-1]
            x = args[0]
        if not isinstance(x, Tensor) or not x.requires_grad or not rectifies(name, args, kwargs):
            return func(*args, **kwargs)
        rest = args[1:]
        kwargs.pop("input", None)
        in_place = name.endswith("_") or kwargs.get("inplace", False)
        activation = (lambda y: func(y.clone(), *rest, **kwargs)) if in_place else (lambda y: func(y, *rest, **kwargs))
        output = _Rectified.apply(x, activation, self.guided)
        return x.copy_(output) if in_place else output


def word_of(function: Callable[..., Any]) -> str:
    """A function's name; that of an operator, as exported programs call them, without its overload.

    Example:
        >>> word_of(torch.relu_), word_of(torch.ops.aten.relu.default)
        ('relu_', 'relu')
    """
    return function.__name__.partition(".")[0]


def rectifies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function of that name, with these arguments, is a rectifier."""
    name = name.strip("_")
    if name in _ALWAYS:
        return True
    if name not in _AT_ZERO and name not in _LARGER:
        return False
    low = args[1] if len(args) > 1 else kwargs.get(_AT_ZERO.get(name, "other"))
    if isinstance(low, Tensor):
        return not low.requires_grad and not bool(low.any())
    return name in _AT_ZERO and low is not None and low == 0


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], guided: bool) -> Tensor:
        ctx.guided = guided
        if not guided:
            return function(x.detach())
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            output = function(leaf)
            (slope,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
        ctx.save_for_backward(slope)
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        upward = gradients[0].clamp(min=0)
        return upward * ctx.saved_tensors[0] if ctx.guided else upward, None, None


def refuse_others(output: Tensor) -> None:
    """A rectifier that `Rectify` could not reach would pass the plain gradient, and nobody would see it.

    What reentrant checkpoints and compiled functions hold cannot be seen, so that they are refused as well.

    Args:
        output: of a forward that ran under `Rectify`.
    Raises:
        LayerError: its graph holds such a rectifier.
    """
    for node in graph_of(output):
        match = _NODES.fullmatch(node.name())
        low = lower_bound(node)
        if match or _foreign(node) or (isinstance(low, (int, float)) and low == 0):
            raise LayerError(
                f"{match[1] if match else node.name()} is called in scripted, compiled, checkpointed or custom "
                "code, where its backward cannot be replaced. Pass the model before torch.jit or torch.compile, or "
                "choose another method."
            )


def _foreign(node: Any) -> bool:
    """Whether an autograd function in Python, and none of ours, made this node."""
    function = made_by(node)
    return function is not None and not function.__module__.startswith("torch_featviz.")


def graph_of(output: Tensor, without: Collection[Any] = ()) -> Iterator[Any]:
    """Each node of the autograd graph that ends in `output`, but for these and what is reached through them alone."""
    waiting: list[Any] = [output.grad_fn]
    seen: set[Any] = {None, *without}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]
