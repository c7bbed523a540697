"""Copies of models to evaluate: what `copy.deepcopy` does, but quickly, and with each tensor copied as the caller says.

Modules are made anew, and their `__dict__` is copied one level deep by the types of what it holds. Whatever refers to a
part of the model (a list of layers, a bound method, a function's closure) refers to the copy's part in the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import MemberDescriptorType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, FeatvizError
from torch_featviz.torch_private import COMPILED_CALL

from .layers import inside, modules_of, unwrap
from .objects import IMMUTABLE, ObjectCopier

_CONTAINERS = {name: type(value) for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))}
_PARTS = frozenset({"_parameters", "_buffers", "_modules"})
# What these modules of PyTorch do about copies is meant for saving, and loses hooks; their __dict__ is all that counts.
_COPIED_BY_DICT = ("torch.nn.", "torch.ao.", "torch.fx.")
# A capture puts things into modules, which no copy is to have. Given a module's __dict__, and what of it is copied,
# each of these returns the latter as it was before.
cleaners: list[Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = []


Copies: TypeAlias = Callable[[Sequence[Tensor]], Iterable[Tensor]]


def copied(model: nn.Module, copies: Copies, *, evaluates: bool = True) -> nn.Module:
    """A copy of `model`; wrappers (compiled, DDP) are taken off.

    Args:
        copies: what stands for each of some tensors; parameters and buffers are given to it together, others one by
            one. Where it raises, it is given them one by one, too.
        evaluates: the copy is in evaluation mode, and no layer of it works in place; else it does as the model does.

    Raises:
        DtypeError: an attribute cannot be copied; the error names it and its module.
    """
    return _ModelCopier(model, copies, evaluates=evaluates).run()


class _Kind(NamedTuple):
    """What is to be known of a class of modules."""

    wraps: bool  # it is a wrapper around a model
    own_way: bool  # it says how it is copied, or is a container of Python, too
    saves: bool  # it says what of it is saved, as Lightning does to leave its trainer out
    slots: list[MemberDescriptorType]


class _ModelCopier(ObjectCopier):
    """One copy of one model."""

    def __init__(self, model: nn.Module, copies: Copies, *, evaluates: bool) -> None:
        super().__init__()
        self.model, self.evaluates = model, evaluates
        self.copies = copies
        self.unfilled: list[tuple[nn.Module, nn.Module]] = []  # modules, and their copies that are still empty
        self.kinds: dict[type, _Kind] = {}

    def run(self) -> nn.Module:
        modules = modules_of(self.model)
        tensors = {
            id(tensor): tensor
            for module in modules
            for held in (module._parameters, module._buffers)
            if held
            for tensor in held.values()
            if tensor is not None
        }
        self.alive += modules
        self.alive += tensors.values()
        self.parts = frozenset(map(id, self.alive))
        memo = self.memo
        with suppress(Exception):  # it is met again where the module is known that holds the tensor
            memo.update(zip(tensors, self.copies([*tensors.values()]), strict=True))
        late = []  # when what they hold is known
        for module in modules:
            kind = self._kind(module)
            if kind.wraps or kind.own_way:
                late.append(module)
            else:
                memo[id(module)] = self._empty(module)
        for module in late:
            self.of(module)
        self._fill_all()
        result: nn.Module = self.of(self.model)
        return result

    def tensor(self, tensor: Tensor) -> Tensor:
        (copy,) = self.copies([tensor])
        return copy

    def module(self, module: nn.Module) -> nn.Module:
        kind = self._kind(module)
        if kind.wraps:
            unwrapped: nn.Module = self.of(unwrap(module))
            return unwrapped
        if kind.own_way:
            return self._in_its_own_way(module)
        return self._empty(module)

    def _empty(self, module: nn.Module) -> nn.Module:
        """A copy that is to be filled."""
        other = object.__new__(type(module))  # the class's own __new__ may want arguments, or return the module itself
        self.unfilled.append((module, other))
        return other

    def _kind(self, module: nn.Module) -> _Kind:
        kind = type(module)
        if kind not in self.kinds:
            self.kinds[kind] = _kind_of(kind, wraps=inside(module) is not None)
        return self.kinds[kind]

    def _fill_all(self) -> None:
        while self.unfilled:  # which grows on the way, where a list holds modules that are no children
            self._fill(*self.unfilled.pop())

    def _fill(self, module: nn.Module, other: nn.Module) -> None:
        kind, of, memo, name = self.kinds[type(module)], self.of, self.memo, "__getstate__"
        try:
            state, filled = (_saved(module), {}) if kind.saves else (vars(module), vars(other))
            for clean in cleaners:
                state = clean(vars(module), state)
            self.alive.append(state)
            for name, value in state.items():
                kept_in = type(value)
                if kept_in in IMMUTABLE or (kept_in is tuple and IMMUTABLE.issuperset(map(type, value))):
                    filled[name] = value
                elif name in _CONTAINERS and not value:  # most of all that there is
                    filled[name] = _CONTAINERS[name]()
                elif name in _PARTS and type(value) is dict:  # most of the rest, and mostly copied already
                    memo[id(value)] = filled[name] = {
                        key: memo[id(part)] if id(part) in memo else of(part) for key, part in value.items()
                    }
                elif name != COMPILED_CALL:  # of module.compile(): it would run the model itself
                    filled[name] = of(value)
            for slot in kind.slots:
                name = slot.__name__
                with suppress(AttributeError):  # nothing is in it
                    slot.__set__(other, of(slot.__get__(module)))
            name = "__setstate__"
            if kind.saves:
                other.__setstate__(filled)  # type: ignore[no-untyped-call]
            if self.evaluates and id(module) in self.parts:  # a layer that is held in a plain list keeps its mode
                _to_evaluate(other)
        except FeatvizError:
            raise
        except Exception as error:
            raise self._refusal(f"{name!r} of {self._name(module)}", error) from error

    def _in_its_own_way(self, module: nn.Module) -> nn.Module:
        """As the module's own `__deepcopy__` or `__reduce__` says; what is known of it is given to that."""
        scripted = isinstance(module, torch.jit.ScriptModule)  # its tensors are other objects each time
        for held in () if scripted else (module._modules, module._parameters, module._buffers):
            for part in held.values():
                self.of(part)
        self._fill_all()
        try:
            other: nn.Module = self.deeply(module)
        except FeatvizError:
            raise
        except Exception as error:
            raise self._refusal(self._name(module), error) from error
        originals = self.parts
        for inner in other.modules():
            if inner is module or id(inner) in originals:
                raise self._refusal(self._name(module), "its copy holds the model's own modules")
            if id(module) in originals:
                _to_evaluate(inner)
            for tensors in (inner._parameters, inner._buffers):
                for name, tensor in list(tensors.items()):
                    if not scripted and id(tensor) in originals:
                        tensors[name] = self.of(tensor)
                    elif tensor is not None:
                        tensor.requires_grad_(False)
        return other

    def _name(self, module: nn.Module) -> str:
        name = next((name for name, part in self.model.named_modules() if part is module), "")
        return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__

    def _refusal(self, what: str, error: object) -> DtypeError:
        return DtypeError(
            f"{what} cannot be copied ({error}), and the model itself must not change. Pass a model without it: "
            "a new one with the same state dict, or the submodule that computes the answer."
        )


def _to_evaluate(module: nn.Module) -> None:
    attributes = vars(module)
    if "training" in attributes:  # and not eval(), which modules may override to change their weights
        attributes["training"] = False
    else:  # it is scripted
        module.training = False
    if (attributes["inplace"] if "inplace" in attributes else getattr(type(module), "inplace", False)) is True:
        module.inplace = False  # type: ignore[assignment]


def _saved(module: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = module.__getstate__()  # type: ignore[no-untyped-call]
    return state


def _kind_of(kind: type, *, wraps: bool) -> _Kind:
    own_way = not all(_usual(kind, name) for name in ("__deepcopy__", "__reduce__", "__reduce_ex__"))
    own = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    slots = [slot for attributes in own for slot in attributes.values() if isinstance(slot, MemberDescriptorType)]
    return _Kind(wraps, own_way or issubclass(kind, (dict, list)), not _usual(kind, "__getstate__"), slots)


def _usual(kind: type, name: str) -> bool:
    """Whether a method is the one of all modules, or one of those of PyTorch that are not needed here."""
    method = getattr(kind, name, None)
    return method is getattr(nn.Module, name, None) or str(method.__module__).startswith(_COPIED_BY_DICT)
