"""Rectifiers with another backward, wherever the network calls them: as layers, as functions, in place.

On the way down, guided backpropagation passes the positive part of the gradient where the unit was active; the
deconvnet passes the positive part everywhere. Both are defined for ReLU (Springenberg et al. 2014, fig. 1; Zeiler &
Fergus 2013, section 2.1). The rule here for its relatives (ReLU6, Hardswish, SiLU, GELU, ELU, leaky ReLU, ...): guided
multiplies the positive part by the activation's own derivative, which for ReLU is where it was active; the deconvnet
ignores the derivative. Sigmoid, tanh and the like rectify nothing and keep their derivative.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_featviz.errors import LayerError

_ALWAYS = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "elu", "selu", "celu", "leaky_relu", "prelu", "rrelu"),
    *("mish", "softplus"),
)
_AT_ZERO = {"clamp": "min", "clip": "min", "clamp_min": "min", "hardtanh": "min_val", "threshold": "threshold"}
_NODES = re.compile(r"(Relu|LeakyRelu|Silu|Gelu|Elu|Hardswish|Mish|Softplus|PreluKernel|Threshold)Backward\d*")


def nonlinear(name: str) -> bool:
    """Whether a function of that name is a nonlinearity that a rule of its own may be wanted for.

    Example:
        >>> nonlinear("relu_"), nonlinear("max_pool2d"), nonlinear("conv2d")
        (True, True, False)
    """
    name = name.rstrip("_")
    return name in _ALWAYS or name in ("hardtanh", "threshold", "sigmoid", "tanh", "softmax") or "max_pool" in name


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
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or not x.requires_grad or not _rectifies(func.__name__, args, kwargs):
            return func(*args, **kwargs)
        rest = args[1:]
        kwargs.pop("input", None)
        in_place = func.__name__.endswith("_") or kwargs.get("inplace", False) or any(v is True for v in rest)
        plain = (lambda y: func(y.clone(), *rest, **kwargs)) if in_place else (lambda y: func(y, *rest, **kwargs))
        output = _Rectified.apply(x, plain, self.guided)
        return x.copy_(output) if in_place else output


def _rectifies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name = name.rstrip("_")
    if name in _ALWAYS:
        return True
    low = args[1] if len(args) > 1 else kwargs.get(_AT_ZERO.get(name, "other"))
    if name in _AT_ZERO:
        return not isinstance(low, Tensor) and low == 0
    return name in ("maximum", "max") and isinstance(low, Tensor) and not low.requires_grad and not bool(low.any())


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

    Args:
        output: of a forward that ran under `Rectify`.
    Raises:
        LayerError: its graph holds such a rectifier.
    """
    for node in _graph(output):
        if match := _NODES.fullmatch(node.name()):
            raise LayerError(
                f"{match[1]} is called out of reach, in scripted code or a custom autograd function; its backward "
                "would be the plain one. Give the model as it was before torch.jit, or another method."
            )


def _graph(output: Tensor) -> Iterator[Any]:
    """Each node of the autograd graph that ends in `output`."""
    waiting: list[Any] = [output.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]
