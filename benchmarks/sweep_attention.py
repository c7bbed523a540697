"""Attention weights of a model, found in other ways than `torch_featviz` does.

Softmaxes and fused kernels are seen as functions, not as operators, and a fused one is computed anew in float64. Beside
that stand the weights that timm's blocks and transformers' models tell themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.sweep_models import Built

LARGEST = 2**28  # weights of all layers together, from which on two rows of each are looked at
ROWS = 6  # of each head


class Noted(NamedTuple):
    """What of a layer's calls may be attention.

    Args:
        weights: of each call, softmaxed, as the layer computes them: of windows, for instance.
        surely: whether a function computed them that computes nothing else.
    """

    weights: list[Tensor]
    surely: bool


class Functions(TorchFunctionMode):
    """Notes the softmaxes of a forward, and those within fused kernels, by the layer in whose own forward they are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.noted: dict[str, Noted] = {}
        self._net, self._running = net, [""]

    @classmethod
    def of(cls, built: Built) -> dict[str, Noted]:
        """By layer, of one forward."""
        mode = cls(built.net)
        with ExitStack() as stack, torch.no_grad():
            for name, module in built.net.named_modules():
                if name and (type(module).__module__.split(".")[0] != "torch" or any(True for _ in module.children())):
                    stack.callback(module.register_forward_pre_hook(mode._enter(name)).remove)
                    stack.callback(module.register_forward_hook(mode._leave, always_call=True).remove)
            torch.manual_seed(1)
            with mode:
                built()
        return mode.noted

    def _enter(self, name: str) -> Any:
        return lambda _module, _given: self._running.append(name)

    def _leave(self, _module: nn.Module, _given: Any, _output: Any) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            wanted = kwargs.get("need_weights", True), kwargs.get("average_attn_weights", True)
            output, weights = func(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
            self._note(weights, surely=True)
            return output, (weights.mean(1) if wanted[1] else weights) if wanted[0] else None
        if func is F.scaled_dot_product_attention:
            self._note(explicit(*args, **kwargs), surely=True)
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "softmax" and isinstance(output, Tensor) and output.dim() > 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, output.dim() - 1):
                self._note(output, surely=False)
        return output

    def _note(self, weights: Tensor, *, surely: bool) -> None:
        name = self._running[-1]
        known = self.noted.get(name, Noted([], False))
        self.noted[name] = Noted([*known.weights, weights.detach().clone()], known.surely or surely)


def explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001 - of what is fused
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights of scaled dot-product attention, from its definition."""
    query, key = query.double(), key.double()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    exponents = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponents / exponents.sum(-1, keepdim=True)


def of_timm(built: Built) -> dict[str, Tensor]:
    """What enters the dropout of blocks that are told not to fuse, by layer."""
    net, seen = copy.deepcopy(built.net), dict[str, Tensor]()
    for name, module in net.named_modules():
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module):

            def note(_module: nn.Module, given: tuple[Tensor], name: str = name) -> None:
                seen.setdefault(name, given[0].detach().clone())

            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(note)
    with torch.no_grad():
        built(net)
    return seen


def of_transformers(built: Built) -> list[Tensor]:
    """`output_attentions` of a model with eager attention, layer by layer; none where it has no such output."""
    net = copy.deepcopy(built.net)
    net.set_attn_implementation("eager")
    with torch.no_grad():
        output = net(built.images, *built.args, **built.keywords, output_attentions=True)
    attentions = list(output.get("attentions") or ())
    return attentions if all(isinstance(weights, Tensor) for weights in attentions) else []


def on_a_grid(layer: Noted) -> int:
    """How many weights there are if those of windows lie on the grid of the image."""
    return sum(weights.numel() * (len(weights) if weights.dim() == 4 else 1) for weights in layer.weights)


def astray(weights: Tensor, others: Tensor) -> float:
    """How far `images heads queries keys` are from weights that may be of windows: the largest difference.

    Of the same shape they are compared number by number. Of windows each row has to be among those of its head; which
    window lies where is not looked at.
    """
    weights, others = weights.double(), others.double()
    if weights.shape == others.shape:
        return float((weights - others).abs().max())
    if weights[0].numel() == others.numel() and len(weights) == 1 and others.shape[-2:] == weights.shape[-2:]:
        return float((weights - others.reshape(weights.shape)).abs().max())
    heads = weights.shape[1]
    apart = others.dim() == 4 and others.shape[1] == heads
    return max(_among(weights[:, head], others[:, head] if apart else others) for head in range(heads))


def _among(rows: Tensor, others: Tensor) -> float:
    """How far each row is from the nearest of the others, whatever the order of its weights.

    Of a window with padding the weights of the padding are missing: then each weight has to be in the other row.
    """
    rows, others = rows.flatten(0, -2), others.flatten(0, -2).sort(-1)[0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(ROWS, len(rows)), device="cpu").long()]
    return max(float(_apart(row[row > 0].sort()[0], others).min()) for row in rows)


def _apart(weights: Tensor, others: Tensor) -> Tensor:
    """How far these are from being in each of the other rows; all of them sorted."""
    count = others.shape[-1]
    if len(weights) <= count and abs(float(weights.sum()) - 1) < 1e-5:  # the rest of the window is 0
        return (others - F.pad(weights, (count - len(weights), 0))).abs().amax(-1)
    at = torch.searchsorted(others, weights.expand(len(others), -1).contiguous())
    near = [others.gather(-1, (at + step).clamp(0, count - 1)) for step in (-1, 0)]
    return torch.minimum(*((found - weights).abs() for found in near)).amax(-1)


def heads_of(layers: Sequence[Tensor]) -> str:
    """`3`, or `3 to 24`; nothing without layers."""
    heads = sorted({weights.shape[1] for weights in layers})
    return " to ".join(str(count) for count in (heads[:1] + heads[1:][-1:]))
