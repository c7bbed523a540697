"""How a model is built: what tells that it may do another thing now than it did before."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from .layers import modules_of

_PLAIN = frozenset((bool, int, float, str, bytes, type(None)))


def build_of(model: nn.Module) -> int:
    """A number that is another one where modules are others, or what they hold: strides, flags, sizes of weights."""
    held: list[Hashable] = []
    for module in modules_of(model):
        held.append(id(module))
        for value in vars(module).values():
            kind = type(value)
            if kind in _PLAIN:
                held.append(value)
            elif (kind is tuple or kind is list) and _PLAIN.issuperset(map(type, value)):
                held.append(tuple(value))
        if module._parameters:
            held += [None if weight is None else weight.shape for weight in module._parameters.values()]
    return hash(tuple(held))
