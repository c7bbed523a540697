"""From what a user names (names, globs, types, modules) to an ordered list of modules."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from torch_featviz.errors import DtypeError, LayerError, OptionError
from torch_featviz.gate import gated
from torch_featviz.torch_private import ORIGINAL, PACKED, Convolution, is_optimized

from .held import base_of, reads_weights

Layer: TypeAlias = str | type[nn.Module] | nn.Module
Layers: TypeAlias = Layer | Iterable[Layer] | None
_WEIGHTED = (Convolution, nn.Linear)
WITHOUT_FORWARD = frozenset((nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))  # nobody calls them
_FEW = 25  # names that an error message may hold
_DIGITS = 18  # of a call's number
_WRAPPER_PARTS = ("module", ORIGINAL)
_PARTS = ("parametrizations", PACKED, "activation_post_process", "weight_fake_quant")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside any number of DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while (inner := inside(model)) is not None:
        model = inner
    return model


def inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None for any other module."""
    if is_optimized(module):
        return module._modules[ORIGINAL]
    return module._modules["module"] if isinstance(module, (DataParallel, DistributedDataParallel)) else None


def modules_of(model: nn.Module) -> list[nn.Module]:
    """`model.modules()`, in its order; no names are made on the way, which takes most of its time.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
        >>> modules_of(net) == list(net.modules())
        True
    """
    found, waiting = dict[nn.Module, None](), [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            if module._modules:
                waiting += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found)


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """The dotted name of every module of `model`, the model itself (`""`) first, each module once.

    Wrappers add no part to a name, wherever in the model they stand.
    """
    names: dict[nn.Module, str] = {}
    _walk(unwrap(model), "", names, None)
    return names


def survey(model: nn.Module) -> tuple[dict[nn.Module, str], dict[str, nn.Module]]:
    """`names_of(model)`, and of these the leaves by name: modules without layers in them; and, whatever is in them, all
    convolutions and linear layers, adapters of a layer, and what computes with the weights of a layer in it that it
    never calls, as attention does."""
    names: dict[nn.Module, str] = {}
    leaves: dict[str, nn.Module] = {}
    _walk(unwrap(model), "", names, leaves)
    return names, leaves


def _walk(module: nn.Module, name: str, names: dict[nn.Module, str], leaves: dict[str, nn.Module] | None) -> None:
    """Add the modules from `module` on to `names`, and to `leaves` where they are asked for."""
    names[module] = name
    prefix = f"{name}." if name else ""
    leaf = True
    for part, child in module._modules.items():
        if child is None:
            continue
        if part in _PARTS and _is_part(part, child):  # captured only if named
            _walk(child, prefix + part, names, None)
            continue
        leaf = False
        if child in names:
            continue
        if not child._modules:  # most are leaves: spare them the call
            names[child] = dotted = prefix + part
            if leaves is not None and type(child) not in WITHOUT_FORWARD:
                leaves[dotted] = child
        elif (inner := unwrap(child)) not in names:
            _walk(inner, prefix + part, names, leaves)
    if leaves is None:
        return
    if leaf or isinstance(module, _WEIGHTED) or reads_weights(module) or base_of(module) is not None:
        leaves[name] = module


def wrappers_in(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The torch.compile wrappers among the children of `modules`; `names_of` leaves them out."""
    for module in modules:
        if module._modules:
            for child in module._modules.values():
                if child is not None and is_optimized(child):
                    yield child


@gated
def layer_names(model: nn.Module) -> list[str]:
    """List the dotted names of all layers of `model`, as `capture` takes them, in the order of `named_modules()`.

    Example:
        >>> layer_names(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
        ['0', '1']
    """
    return [name for name in names_of(model).values() if name]


def resolve(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The modules that `layers` stands for, by name, in model order; nothing is touched.

    Args:
        model: any module, wrapped (DDP, DataParallel, torch.compile) or not.
        layers: names, globs (`*` also crosses dots), module types, module objects, one or several;
            None for all leaves, and, whatever is in them, all convolutions, linear layers, attentions and adapters. A
            wrapper's prefix may be given or left out.

    Raises:
        LayerError: something in `layers` is no layer of `model`; close names are given.
        OptionError: `layers` is empty.
        DtypeError: `model` is no module, or an entry of `layers` is of another type.
    """
    names, leaves = survey(model) if layers is None else (names_of(model), {})
    return choose(model, names, leaves, layers)


def find(model: nn.Module, name: str) -> nn.Module | None:
    """The module of a name as `names_of` gives them, without a walk over the model; None where there is none."""
    module = unwrap(model)
    for part in name.split(".") if name else ():
        children = module._modules
        child = children[part] if part in children else None  # noqa: SIM401  of what is scripted they have no get()
        if child is None:
            return None
        module = unwrap(child)
    return module


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of a name, however it is spelled.

    Raises:
        LayerError: there is none.
    """
    module = find(model, name)
    if module is None:
        (module,) = resolve(model, name).values()
    return module


def choose(
    model: nn.Module, names: dict[nn.Module, str], leaves: dict[str, nn.Module], layers: Layers
) -> dict[str, nn.Module]:
    """`resolve`, given what `survey(model)` said; leaves count where no layers are asked for."""
    if layers is None:
        return leaves
    asked = listed(layers)
    if not asked:
        raise OptionError("layers is empty; give at least one layer, or leave it out for all leaf modules.")
    known = {name: module for module, name in names.items()}
    chosen: set[str] = set()
    for entry in asked:
        exact = isinstance(entry, str) and entry in known
        chosen.update([entry] if exact else _names(model, known, entry))  # type: ignore[list-item]
    return {name: module for name, module in known.items() if name in chosen}


def listed(layers: Layers) -> list[Layer]:
    """`layers` as a list, also where it is one layer; what is no layer is kept for `choose` to refuse."""
    if layers is None:
        return []
    single = isinstance(layers, (str, type, nn.Module)) or not isinstance(layers, Iterable) or hasattr(layers, "shape")
    return [layers] if single else list(layers)  # type: ignore[list-item, arg-type]


def canonical(model: nn.Module, name: str) -> str:
    """`name` as `names_of` spells it: wrapper prefixes left out, a shared module under its first name."""
    module = model
    for part in name.split(".") if name else ():
        while part not in module._modules and (inner := inside(module)) is not None:
            module = inner
        child = module._modules.get(part)
        if child is not None:
            module = child
        elif part not in _WRAPPER_PARTS:  # a prefix given although this model is not wrapped says nothing
            return name
    return names_of(model).get(unwrap(module), name)


def _names(model: nn.Module, known: dict[str, nn.Module], entry: Layer) -> Iterable[str]:
    """The known names that one entry stands for."""
    where = type(unwrap(model)).__name__
    if isinstance(entry, str):
        for spelled in (entry, split_call(entry)[0]):
            if (name := spelled if spelled in known else canonical(model, spelled)) in known:
                return [name]
        bare = ".".join(part for part in entry.split(".") if part not in _WRAPPER_PARTS)
        for glob in (entry, bare):
            if names := [n for n in known if n and fnmatchcase(n, glob)]:
                return names
        named = [name for name in known if name]
        lists = f"layer_names(model), or `featviz layers`, lists all {len(named)}."
        if not (close := near(entry, named)) and 0 < len(named) <= _FEW:
            lists = f"it has {', '.join(named)}."
        raise LayerError(f"no layer {entry!r} in {where}; {close}{lists}")
    if isinstance(entry, nn.Module):
        target = unwrap(entry)
        if names := [name for name, module in known.items() if module is target]:
            return names
        raise LayerError(f"this {type(entry).__name__} object is not a layer of {where}; pass one of model.modules().")
    if isinstance(entry, type) and issubclass(entry, nn.Module):
        if names := [name for name, module in known.items() if isinstance(module, entry)]:
            return names
        counts = Counter(type(module).__name__ for name, module in known.items() if name)
        types = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common(6))
        raise LayerError(f"no layer of type {entry.__name__} in {where}; it has {types or 'no layers'}.")
    raise DtypeError(f"a layer must be a name, a glob, a module type or a module, got {entry!r}.")


def near(name: str, known: Iterable[str]) -> str:
    """The close ones of `known`, as the second half of an error message; empty where none is close."""
    close = difflib.get_close_matches(name, [n for n in known if n], n=3, cutoff=0.5)
    return f"close: {', '.join(map(repr, close))}. " if close else ""


def _is_part(name: str, child: nn.Module) -> bool:
    """Whether a child of a name in `_PARTS` makes or watches its parent's weight or output, and is no layer."""
    return name != "parametrizations" or all(isinstance(part, ParametrizationList) for part in child.children())


def layer_name(model: nn.Module, layer: Any) -> str:
    """The full name of the one layer meant, with the number of the call where one is named.

    Args:
        model: any module, wrapped or not.
        layer: a name, a name with the number of a call (`'relu#2'`), or a module.

    Raises:
        LayerError: no such layer, or several are meant.
    """
    names = list(resolve(model, layer))
    if len(names) != 1:
        raise LayerError(f"{layer!r} matches {len(names)} layers ({', '.join(names[:4])}, ...); choose one.")
    call = split_call(layer)[1] if isinstance(layer, str) else None
    return names[0] if call is None else f"{names[0]}#{call}"


def split_call(name: str) -> tuple[str, int | None]:
    """A layer's name, and which of its calls is meant, from 1; None for all of them.

    Example:
        >>> split_call("layer1.relu#2"), split_call("layer1.relu")
        (('layer1.relu', 2), ('layer1.relu', None))
    """
    layer, _, call = name.rpartition("#")
    numbered = layer and call.isdecimal() and len(call) <= _DIGITS and int(call)
    return (layer, int(call)) if numbered else (name, None)
