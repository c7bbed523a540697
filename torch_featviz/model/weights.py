"""The weight that a layer computes with, as planes that can be drawn."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.errors import LayerError, ShapeError

from .layers import resolve
from .values import whole

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_SOLID = (nn.Conv3d, nn.ConvTranspose3d)


def planes_of(source: nn.Module | Tensor, layer: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """The weight as `k c h w`, and what the legend should add.

    Raises:
        LayerError, ShapeError: as of `kernels`.
    """
    if isinstance(source, Tensor):
        if source.dim() not in (3, 4) or not source.numel():
            raise ShapeError(f"a weight must be 'k c h w' and not empty, got shape {tuple(source.shape)}.")
        return _planes(source), ()
    if not isinstance(source, nn.Module):
        raise LayerError(f"expected a model or a weight, got {type(source).__name__}.")
    module = _resolve(source, layer) if layer else source
    name = f"layer {layer!r}" if layer else "this module"
    weight = getattr(module, "weight", None)
    if isinstance(module, _SOLID):
        raise LayerError(f"{name} is a {type(module).__name__}: draw one slice, kernels(weight[:, :, 0]).")
    if isinstance(weight, Tensor) and is_lazy(weight):
        raise LayerError(f"{name} has no weights before its first call; call the model once.")
    if not isinstance(weight, Tensor) or weight.dim() not in (3, 4) or not weight.numel():
        raise LayerError(f"{name} is a {type(module).__name__} and has no kernels; {_with_kernels(source)}")
    groups = getattr(module, "groups", 1)
    weight = _planes(weight)
    if isinstance(module, _TRANSPOSED):  # stored with the input channels first, group by group
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    notes = (f"in {groups} groups: columns count from each group's first channel",) if groups > 1 else ()
    return weight, notes if weight.shape[1] > 1 else ()


def _planes(weight: Tensor) -> Tensor:
    weight = whole(weight)
    return weight if weight.dim() == 4 else weight[:, :, None]


def _resolve(model: nn.Module, layer: str) -> nn.Module:
    modules = resolve(model, layer)
    if len(modules) > 1:
        several = ", ".join(map(repr, modules))
        raise LayerError(f"{layer!r} stands for {len(modules)} layers, {several}; draw one at a time.")
    return next(iter(modules.values()))


def _with_kernels(model: nn.Module) -> str:
    names = [
        name or "itself"
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and not is_lazy(weight)
        and weight.dim() in (3, 4)
    ]
    if not names:
        return f"{type(model).__name__} has no convolution."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"these have: {', '.join(map(repr, names[:8]))}{more}."
