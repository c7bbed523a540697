"""What kernel does a layer compute with now? Its weight as it goes into the next forward in evaluation mode.

What a layer holds as `weight` need not be that: weight norm, spectral norm and pruning make it anew before each call,
parametrizations and weight standardisation within it, an adapter adds to it, and a quantised layer has it packed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from torch_featviz.errors import FeatvizError, LayerError, ShapeError
from torch_featviz.torch_private import CONV_FORWARD, Convolution

from .held import base_of, weight_of
from .layers import names_of, resolve, unwrap
from .response import by_filters, response
from .twin import twin
from .values import whole

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_FORWARDS = frozenset(kind.forward for kind in _PLAIN)
_CONV_FORWARDS = frozenset(getattr(kind, CONV_FORWARD, None) for kind in _PLAIN)
_SOLID = (nn.Conv3d, nn.ConvTranspose3d)
_OTHER = (nn.LayerNorm, nn.RMSNorm, nn.Bilinear)  # their weights are no kernels, whatever the shape
_BITS = {torch.qint8: 8, torch.quint8: 8, torch.qint32: 32, torch.quint4x2: 4, torch.quint2x4: 2}


class Kernel(NamedTuple):
    """What a layer computes with.

    Args:
        weight: `k c ...`, `c` the channels of a group; of a layer, some of its first filters may be all.
        filters: how many there are.
        groups: of channels.
        notes: what is in it, and what is not.
    """

    weight: Tensor
    filters: int
    groups: int = 1
    notes: tuple[str, ...] = ()


def kernel_of(module: nn.Module, *, filters: int | None = None, name: str = "this module") -> Kernel:
    """What a layer computes with now: what it will multiply its input by, in evaluation mode.

    Nothing about the layer changes, and no network runs. A weight that is there as it is used is given as it is; one
    that is made at each call, as it is made in a copy of the layer. What else multiplies its input, as in an adapter,
    is found by the answers of such a copy to made-up input.

    Args:
        module: a convolution or a linear layer, of whatever kind, or an adapter around one.
        filters: of the first ones as many as are wanted, which costs less; default all.
        name: by which errors tell it.
    Raises:
        LayerError: it has none: it is lazy, not linear in its input, makes another for each input, or does not run on
            its own; the error says which.
    Example:
        >>> conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 5))
        >>> found = kernel_of(conv)
        >>> found.weight.shape, found.notes
        (torch.Size([4, 3, 5, 5]), ('weight norm',))
    """
    module = unwrap(module)
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise LayerError(f"{name} is lazy and has no weights yet; run the model once on an input first.")
    if (packed := _unpacked(module)) is not None:
        weight, groups, notes = packed, _groups(module), _packed_notes(module)
    elif _is_plain(module) and (stored := _stored(module, name)) is not None:
        weight, groups, notes = whole(stored), _groups(module), (*_notes(module), *_hook_notes(module))
    else:
        return _answered(module, filters, name)
    if getattr(module, "transposed", False):
        weight = by_filters(weight, groups)
    return Kernel(weight[:filters], len(weight), groups, notes)


def has_kernel(module: nn.Module) -> bool:
    """Whether a layer has a kernel of one or two dimensions by what it is; so does an adapter of one."""
    module = unwrap(module)
    if isinstance(module, (*_SOLID, *_OTHER)):
        return False
    if isinstance(module, Convolution):
        return True
    if (base := base_of(module)) is not None:
        return has_kernel(base)
    weight = packed if (packed := _unpacked(module)) is not None else weight_of(module)
    return weight is not None and not is_lazy(weight) and weight.dim() in (3, 4) and weight.numel() > 0


def planes_of(source: nn.Module | Tensor, layer: str | None = None, *, filters: int | None = None) -> Kernel:
    """The same as planes that can be drawn, `k c h w`.

    Args:
        source: a model, a layer, or a weight.
        layer: the layer's name in the model; may be left out where only one has kernels.
        filters: as of `kernel_of`.
    Raises:
        LayerError, ShapeError: as of `kernels`.
    """
    if isinstance(source, Tensor):
        if source.dim() not in (3, 4) or not source.numel():
            raise ShapeError(f"a weight must be 'k c h w' and not empty, got shape {tuple(source.shape)}.")
        return _planes(Kernel(whole(source), len(source)))
    if not isinstance(source, nn.Module):
        raise LayerError(f"kernels need a model, a layer or a weight tensor, got {type(source).__name__}.")
    module = unwrap(_resolve(source, layer) if layer else source)
    name = f"layer {layer!r}" if layer else "this module"
    if not layer and not has_kernel(module) and len(only := _names_with_kernels(module)) == 1:
        return planes_of(module, only[0], filters=filters)
    if isinstance(module, _SOLID):
        raise LayerError(f"{name} is a {type(module).__name__}: draw one slice, kernels(weight[:, :, 0]).")
    if not has_kernel(module) and not (layer and _may_have(module)):
        raise LayerError(f"{name} is a {type(module).__name__} and has no kernels; {_with_kernels(source)}")
    try:
        found = kernel_of(module, filters=filters, name=name)
    except LayerError as error:
        if has_kernel(module):
            raise
        why = str(error).removesuffix(".")
        raise LayerError(f"{why}, and has no kernels; {_with_kernels(source)}") from error
    if found.weight.dim() not in (3, 4) or not found.weight.numel():
        raise LayerError(f"{name} is a {type(module).__name__} and has no kernels; {_with_kernels(source)}")
    return _planes(found._replace(notes=(*found.notes, *_dilated(module), *_adapted_by(source, module))))


def _planes(found: Kernel) -> Kernel:
    weight = found.weight if found.weight.dim() == 4 else found.weight[:, :, None]
    grouped = found.groups > 1 and weight.shape[1] > 1
    notes = (f"in {found.groups} groups: columns count from each group's first channel",) if grouped else ()
    return found._replace(weight=weight, notes=(*found.notes, *notes))


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer does what PyTorch's own of its kind does with `module.weight`."""
    kind = type(module)
    own = "forward" not in vars(module) and kind.forward in _FORWARDS
    return own and getattr(kind, CONV_FORWARD, None) in _CONV_FORWARDS


def _stored(module: nn.Module, name: str) -> Tensor | None:
    """The weight of a plain layer where no call is needed to know it; None where one is."""
    for held in (module._parameters, module._buffers):
        if (weight := held.get("weight")) is not None:
            return weight.dequantize() if _packs_itself(weight) else weight
    if "weight" in vars(module):
        stored: Tensor = vars(module)["weight"]
        return None if module._forward_pre_hooks else stored
    try:  # computed when it is read, which in training may change what it is computed from
        with torch.no_grad():
            computed: Tensor = twin(module).weight  # type: ignore[assignment]
    except FeatvizError as error:
        raise LayerError(f"{name} is a {type(module).__name__} that cannot be copied: {error}") from error
    return computed


def _packs_itself(weight: Tensor) -> bool:
    """Whether a tensor holds other numbers than it stands for."""
    return weight.is_quantized or type(weight).dequantize is not Tensor.dequantize


def _unpacked(module: nn.Module) -> Tensor | None:
    """The weight of a layer that gives it by a method, as quantised ones do."""
    method = getattr(type(module), "weight", None)
    if not callable(method) or isinstance(module, Convolution):
        return None
    try:
        weight = method(module)
    except TypeError:  # it takes arguments: another thing of that name
        return None
    return weight.dequantize() if isinstance(weight, Tensor) else None


def _packed_notes(module: nn.Module) -> tuple[str, ...]:
    dtype = module.weight().dtype  # type: ignore[operator]
    return (f"quantised to {_BITS[dtype]} bits",) if dtype in _BITS else ()


def _answered(module: nn.Module, filters: int | None, name: str) -> Kernel:
    """By what a copy of the layer answers."""
    makes = "weight" not in module._parameters and "weight" in vars(module)  # a hook makes it
    try:
        found = response(module, filters=filters, hooks=makes)
    except LayerError as error:
        raise LayerError(f"{name} is {error}.") from error
    base = base_of(module)
    if base is not None:
        notes = _adapter_notes(found.weight, base, filters)
    elif _notes(module) or makes:
        notes = _notes(module) or ("as a hook makes it at each call",)
    elif _is_stored(found.handed_over, module):
        notes = ()
    else:
        notes = (f"as {type(module).__name__} makes it at each call",)
    return Kernel(found.weight, found.filters, found.groups, (*notes, *(() if makes else _hook_notes(module))))


def _adapter_notes(weight: Tensor, base: nn.Module, filters: int | None) -> tuple[str, ...]:
    try:
        own = kernel_of(base, filters=filters)
    except LayerError:
        return ("adapter added",)
    same = own.weight.shape == weight.shape and torch.equal(own.weight, weight)
    return own.notes if same else (*own.notes, "adapter added")


def _is_stored(weight: Tensor | None, module: nn.Module) -> bool:
    """Whether what a layer handed to a convolution is the parameter that it holds."""
    stored = weight_of(module)
    return weight is not None and stored is not None and torch.equal(weight, stored.detach())


def _notes(module: nn.Module) -> tuple[str, ...]:
    """What makes a layer's weight, as far as PyTorch's own ways of saying so are used."""
    return tuple(dict.fromkeys(_makers(module)))


def _makers(module: nn.Module) -> Iterator[str]:
    for hook in module._forward_pre_hooks.values():
        kind = type(hook)
        if isinstance(hook, BasePruningMethod):
            yield from _pruned(module)
        elif kind.__module__.startswith("torch.nn.utils.") and getattr(hook, "name", "weight") == "weight":
            yield _words(kind)
    if parametrize.is_parametrized(module, "weight"):
        yield from (_words(type(part)) for part in module.parametrizations["weight"])  # type: ignore[index]


def _pruned(module: nn.Module) -> Iterator[str]:
    mask = module._buffers.get("weight_mask")
    if mask is not None:
        yield f"pruned {100 * float((mask == 0).double().mean()):.3g} %"


def _words(kind: type) -> str:
    """The name of a class in words.

    Example:
        >>> _words(type("_WeightNorm", (), {}))
        'weight norm'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind.__name__.lstrip("_")).lower()


def _hook_notes(module: nn.Module) -> tuple[str, ...]:
    """That hooks which may change what a layer is given or returns are not in its kernel."""
    before = [h for h in module._forward_pre_hooks.values() if not type(h).__module__.startswith("torch.nn.utils.")]
    return ("without what its hooks do",) if before or module._forward_hooks else ()


def _groups(module: nn.Module) -> int:
    groups = getattr(module, "groups", 1)
    return groups if isinstance(groups, int) else 1


def _dilated(module: nn.Module) -> tuple[str, ...]:
    """How far apart the values are that neighbours in a kernel are multiplied with."""
    base = base_of(module)
    steps = getattr(module if base is None else base, "dilation", 1)
    steps = steps if isinstance(steps, tuple) else (steps,)
    if not all(isinstance(step, int) for step in steps) or max(steps, default=1) < 2:
        return ()
    words = "×".join(map(str, steps if len(set(steps)) > 1 else steps[:1]))
    return (f"dilation {words}: neighbours in a kernel read inputs {words} apart",)


def _resolve(model: nn.Module, layer: str) -> nn.Module:
    modules = resolve(model, layer)
    if len(modules) > 1:
        several = ", ".join(map(repr, modules))
        raise LayerError(f"{layer!r} matches {len(modules)} layers, {several}; choose one.")
    return next(iter(modules.values()))


def _may_have(module: nn.Module) -> bool:
    """Whether a module that somebody names is worth asking: a small one, with a convolution in it."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    children = list(module.children())
    small = not isinstance(module, containers) and not any(child._modules for child in children)
    return small and any(has_kernel(child) for child in children)


def _adapted_by(model: nn.Module | Tensor, module: nn.Module) -> tuple[str, ...]:
    """The adapter around a layer, which adds to what is drawn."""
    if not isinstance(model, nn.Module):
        return ()
    around = (name for outer, name in names_of(model).items() if base_of(outer) is module)
    return tuple(f"without the adapter around it: draw {name!r}" for name in around if name)


def _names_with_kernels(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if has_kernel(module)]


def _with_kernels(model: nn.Module) -> str:
    names = [name or "itself" for name in _names_with_kernels(model)]
    if not names:
        return f"{type(model).__name__} has no convolution."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"these have: {', '.join(map(repr, names[:8]))}{more}."
