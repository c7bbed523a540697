"""What one forward teaches of the next of its kind: whose attention it is, how tokens move, which layers attend."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from torch_featviz.model.values import tensors

from .groups import Groups
from .path import Path

Call: TypeAlias = tuple[str, int, torch.Size]  # a layer, which of its calls, and of what shape its values are
_KEPT = 16  # kinds of forwards of each model
_kinds: WeakKeyDictionary[nn.Module, dict[Hashable, Learnt | None]] = WeakKeyDictionary()


class Learnt(NamedTuple):
    """What is known of a kind of forward."""

    groups: dict[Call, Groups | str]  # or why it is no attention between tokens
    path: Path | None  # how tokens are moved, where that matters
    ran: set[str]  # the layers whose forwards ran
    attending: set[str]  # those among them within which something was seen: outside of them, nothing is looked at

    def kept(self) -> Learnt:
        """What is worth keeping: no path where no place depends on it."""
        places = any(
            isinstance(groups, Groups) and (groups.windows is not None or groups.order is not None)
            for groups in self.groups.values()
        )
        return self if places else self._replace(path=None)


def kinds_of(module: nn.Module) -> dict[Hashable, Learnt | None]:
    """What is known of the forwards of a module, by kind; None where each goes another way."""
    known = _kinds.setdefault(module, {})
    if len(known) > _KEPT:
        known.clear()
    return known


def kind_of(module: nn.Module, given: Any) -> Hashable:
    """What about a forward, given these arguments, may make it go another way."""
    positional, named = given
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), module.training
    return modes, *map(_kind, positional), *((key, _kind(x)) for key, x in named.items())


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, (bool, int, str)):
        return value
    return type(value), *map(_kind, tensors(value))  # images in a list or dictionary may have other sizes
