"""What a module does with the layers in it besides calling them: an adapter adds to one, an attention reads weights."""

from __future__ import annotations

import dis
import math
from collections.abc import Iterator, Mapping
from inspect import unwrap
from itertools import permutations, takewhile
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.torch_private import Convolution

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WEIGHTED = (Convolution, nn.Linear)
_BASE = "base_layer"  # the name by which peft, diffusers and what follows them know it
_ABOUT = frozenset(("dtype", "device", "shape", "size", "ndim", "dim", "numel"))  # of a weight, and not its values
_SELF = ("LOAD_FAST", "LOAD_DEREF")

_by_kind: WeakKeyDictionary[type, dict[str, frozenset[str]]] = WeakKeyDictionary()


def base_of(module: nn.Module) -> nn.Module | None:
    """The layer that `module` adapts; None where it is no adapter.

    An adapter (LoRA) holds a layer as `base_layer`, or beside it two weights whose product is as large as the layer's
    own, and of a lower rank.

    Example:
        >>> lora = nn.Module()
        >>> lora.conv, lora.down, lora.up = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 8, 1)
        >>> base_of(lora) is lora.conv, base_of(nn.Sequential(lora)) is None
        (True, True)
    """
    children = module._modules
    if not children or isinstance(module, (*_CONTAINERS, torch.jit.ScriptModule)):
        return None
    if (base := children.get(_BASE)) is not None:
        return base
    layers = [child for child in children.values() if isinstance(child, _WEIGHTED)]
    own = module._parameters
    if not layers or len(layers) + len(own) < 3:
        return None
    beside = _matrices(own)
    by_layer = [_matrices(layer._parameters) for layer in layers]
    for layer, its in zip(layers, by_layer, strict=True):
        others = [*beside, *(size for sizes in by_layer if sizes is not its for size in sizes)]
        if any(
            rank == inner and _fits(layer, rows, rank, columns)
            for (rows, rank), (inner, columns) in permutations(others, 2)
        ):
            return layer
    return None


def _matrices(parameters: Mapping[str, Tensor | None]) -> list[tuple[int, int]]:
    """Rows and columns of the parameters that are no vectors, each with its first axis against all others."""
    weights = [p for p in parameters.values() if p is not None and not is_lazy(p) and p.dim() > 1 and len(p)]
    return [(len(p), p.numel() // len(p)) for p in weights]


def _fits(layer: nn.Module, rows: int, rank: int, columns: int) -> bool:
    """Whether the product of `rows × rank` and `rank × columns` has the size of a layer's weight, and a lower rank."""
    if isinstance(layer, Convolution):
        outputs, inputs = layer.out_channels, layer.in_channels * math.prod(layer.kernel_size)
    else:
        outputs, inputs = layer.out_features, layer.in_features  # type: ignore[assignment]
    sizes = (outputs * inputs, outputs * inputs // getattr(layer, "groups", 1))  # over all channels, or a group's
    return rows * columns in sizes and rank < min(outputs, inputs)


def weight_of(module: nn.Module) -> Tensor | None:
    """The parameter `weight` that a module itself holds; a scripted one holds it in another way."""
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_parameters(recurse=False)).get("weight")
    return module._parameters.get("weight")


def reads_weights(module: nn.Module) -> bool:
    """Whether the forward of `module` computes with the weights of a layer in it, and never calls that layer.

    `nn.MultiheadAttention` does so with its `out_proj`.

    Example:
        >>> reads_weights(nn.MultiheadAttention(4, 2)), reads_weights(nn.TransformerEncoderLayer(4, 2))
        (True, False)
    """
    return next(read_in(module), None) is not None


def read_in(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of which `reads_weights` tells.

    It is told from the code of the class: a parameter of the layer is loaded (`self.layer.weight`) in `forward` or in a
    method that it names, and nothing else is ever done with `self.layer`.
    """
    kind = type(module)
    read = _by_kind.get(kind)
    if read is None:
        read = _by_kind[kind] = _read_by(kind)
    for name, attributes in read.items():
        child = module._modules.get(name)
        if child is not None and not attributes.isdisjoint(child._parameters):
            yield child


def _read_by(kind: type[nn.Module]) -> dict[str, frozenset[str]]:
    """What the code of a class reads of its attributes, of those that it does nothing else with."""
    read: dict[str, set[str]] = {}
    other: set[str] = set()
    for code in _codes(kind):
        for name, attribute, about in _loads(code):
            if not attribute:
                other.add(name)
            elif about not in _ABOUT:
                read.setdefault(name, set()).add(attribute)
    return {name: frozenset(attributes) for name, attributes in read.items() if name not in other}


def _codes(kind: type[nn.Module]) -> list[CodeType]:
    """The code of `forward`, and of all methods of the class that are named in it."""
    own = [vars(base) for base in kind.__mro__ if not issubclass(nn.Module, base)]
    names, codes = ["forward"], []
    for name in names:
        for attributes in own:
            function: Any = attributes.get(name)
            function = getattr(function, "fget", getattr(function, "__func__", function))
            parts = [code] if (code := getattr(unwrap(function), "__code__", None)) is not None else []
            for part in parts:
                parts += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
                names += [each for each in part.co_names if each not in names]
            codes += parts
    return codes


def _loads(code: CodeType) -> Iterator[tuple[str, str, str]]:
    """Each attribute that is loaded of `self`, the attribute that is then loaded of it, and the one of that."""
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps[1:], 1):
        before = steps[i - 1]
        if not _is_attribute(step) or not before.opname.startswith(_SELF):
            continue
        value = before.argval
        if (value[-1] if isinstance(value, tuple) else value) == "self":
            chain = [later.argval for later in takewhile(_is_attribute, steps[i + 1 : i + 3])]
            yield step.argval, *[*chain, "", ""][:2]


def _is_attribute(step: dis.Instruction) -> bool:
    return step.opname in ("LOAD_ATTR", "LOAD_METHOD")
