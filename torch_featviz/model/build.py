"""How a model is built: what tells that it may do another thing now than it did before."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

_PLAIN = frozenset((bool, int, float, str, bytes, type(None)))


def build_of(model: nn.Module) -> int:
    """A number that is another one where modules are others, or what they hold: strides, flags, sizes of weights."""
    held: list[Hashable] = []
    for module in model.modules():
        held.append(id(module))
        for value in vars(module).values():
            kind = type(value)
            if kind in _PLAIN:
                held.append(value)
            elif kind in (tuple, list) and _PLAIN.issuperset(map(type, value)):
                held.append(tuple(value))
        held += [None if weight is None else weight.shape for weight in module._parameters.values()]
    return hash(tuple(held))
