"""Whether examples have gradients of their own: what keeps a batch apart, and of which layers these are known."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.model.layers import names_of

from .learnt import learning_in
from .per_example import KINDS

_FORWARDS = {kind.forward for kind in KINDS}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def mixing(model: nn.Module, *, over_ranks: bool = False) -> str:
    """A layer in which each example's result depends on the others, in words; empty where there is none.

    Args:
        over_ranks: whether ranks count as examples, among which only synchronised batch normalisation mixes.
    """
    kinds = (nn.SyncBatchNorm,) if over_ranks else _NORMS
    found = [
        f"{type(module).__name__} at {name!r}"
        for module, name in names_of(model).items()
        if isinstance(module, kinds) and (module.training or module.running_mean is None)
    ]
    return found[0] + (f" and {len(found) - 1} more" if found[1:] else "") if found else ""


def batch_second(model: nn.Module) -> str:
    """A layer that takes the batch on its second axis, in words; empty where there is none."""
    for module, name in names_of(model).items():
        if getattr(module, "batch_first", True) is False:
            return f"{type(module).__name__} at {name!r}"
    return ""


def with_parameters(names: dict[nn.Module, str]) -> Iterator[tuple[str, nn.Module, str]]:
    """Each module that has parameters of its own which learn, and why the gradients of its examples are not known."""
    owners: dict[int, list[str]] = {}
    for module, name in names.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    for module, name in names.items():
        learning = learning_in(module)
        if learning:
            others = [other for each in learning.values() for other in owners[id(each)] if other != name]
            yield name, module, _why_unknown(module, learning, others)


def _why_unknown(module: nn.Module, learning: dict[str, Tensor], others: list[str]) -> str:
    weights, kind = learning.values(), type(module)
    reasons = {
        "it has no weights before its first call": any(map(is_lazy, weights)),
        f"{kind.__name__}: only linear layers and convolutions are known": not isinstance(module, KINDS),
        "its weight is made from other parameters": (
            not learning.keys() <= {"weight", "bias"} or module._parameters.get("weight") is None
        ),
        f"{kind.__name__} has a forward of its own": kind.forward not in _FORWARDS,
        f"it shares its weight with {', '.join(map(repr, others))}": bool(others),
        "its weight is sharded": any(hasattr(each, "full_tensor") for each in weights),
        "its weight is complex": any(each.is_complex() for each in weights),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
