"""Parameters that a model keeps where PyTorch does not look for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from torch_featviz.model.layers import names_of

_DEEP = 3  # containers within containers
_CONTAINERS = (list, tuple, dict)


def hidden(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of layers in lists, tuples and dictionaries of Python, by a name; those that have a gradient wanted.

    `parameters()` does not return them, so that an optimizer which is made of it never hears of them. What is in
    evaluation mode is left out: it was put there by hand, as a network that only measures how alike two images are.

    Example:
        >>> net = nn.Sequential()
        >>> net.blocks = [nn.Linear(2, 2, bias=False)]
        >>> list(hidden(net))
        ['blocks.0.weight']
    """
    known = {id(each) for each in model.parameters()}
    found: dict[str, Tensor] = {}
    for module, path in names_of(model).items():
        for own, value in vars(module).items():
            if isinstance(value, _CONTAINERS) and own not in _REGISTERED:
                for name, parameter in _within(value, f"{path}.{own}" if path else own, _DEEP):
                    if id(parameter) not in known and parameter.requires_grad:
                        known.add(id(parameter))
                        found[name] = parameter
    return found


_REGISTERED = frozenset(vars(nn.Module()))


def _within(value: Any, path: str, deep: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, nn.Module):
        yield from ((f"{path}.{name}", each) for name, each in value.named_parameters() if value.training)
    elif isinstance(value, nn.Parameter):
        yield path, value
    elif deep and isinstance(value, _CONTAINERS):
        for key, each in _items(value):
            if isinstance(each, (*_CONTAINERS, nn.Module, nn.Parameter)):
                yield from _within(each, f"{path}.{key}", deep - 1)


def _items(value: Any) -> list[tuple[Any, Any]]:
    """As Python's own containers keep them: one that loads what it is asked for is not asked."""
    if isinstance(value, dict):
        return list(dict.items(value))
    return list(enumerate(list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)))
