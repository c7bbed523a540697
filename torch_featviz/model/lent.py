"""A twin for the length of a block, and the same one for the next block while the model is built as it was.

To make a twin can take as long as a forward. Most models consist of modules that hold tensors, layers and values that
cannot change, and nothing else; whether all of these are as they were is told in a fraction of that. Between blocks a
kept twin holds no tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from itertools import chain
from operator import is_, itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.amp import is_autocast_available

from .copier import copied_by_dict
from .inputs import Inputs
from .layers import check_module, unwrap
from .objects import IMMUTABLE
from .twin import shared, twin

T = TypeVar("T")
_USUAL = vars(nn.Module()).keys()
_CONTAINERS = {name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))}
_TENSORS = ("_parameters", "_buffers")
_hooks_of = itemgetter(*_CONTAINERS.difference((*_TENSORS, "_modules")))


@contextmanager
def lent(model: nn.Module) -> Iterator[nn.Module]:
    """`twin(model)`, which is not to be used after the block.

    Raises:
        DtypeError, LayerError: as of `twin`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> with lent(net) as first:
        ...     pass
        >>> with lent(net) as second:
        ...     second is first, second[0].weight.data_ptr() == net[0].weight.data_ptr()
        (True, True)
    """
    check_module(model)
    model = unwrap(model)
    kept = _kept.pop(model, None)  # another thread makes its own meanwhile
    if kept is None or not kept.made_ready():
        net = twin(model)
        kept = _Kept.of(model, net)
    else:
        net = kept.net
    yield net
    if kept is not None and kept.put_back():  # after an error it is not kept
        _kept[model] = kept


def known(net: nn.Module, inputs: Inputs, question: Hashable, ask: Callable[[], T]) -> T:
    """`ask()`, once for each `question` about a twin that is lent again and again, and images like these.

    Args:
        net: a lent twin.
        inputs: where the model is given more than images, it is asked each time.
        question: names all else that the answer depends on, but for the values of weights and images.
        ask: its result must not hold the twin.
    """
    if inputs.more:
        return ask()
    images = inputs.images
    kind = images.device.type
    casts = is_autocast_available(kind) and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    answers = _known.setdefault(net, {})
    key = (question, images.shape[1:], images.dtype, images.device, casts)
    if key not in answers:
        answers[key] = ask()
    answer: T = answers[key]
    return answer


class _Part(NamedTuple):
    """A module and its copy, and what both held before the block besides tensors."""

    module: Callable[[], nn.Module | None]  # a weak reference
    copy: nn.Module
    size: int  # of the __dict__ of each
    values_of: Callable[[dict[str, Any]], tuple[Any, ...]]  # of those that cannot change, but for the mode
    values: tuple[Any, ...]
    held: list[tuple[str, list[Any]]]  # what lists, dictionaries and the like hold, all of which cannot change
    children: Mapping[str, Callable[[], nn.Module | None]]
    copied_values: dict[str, Any]
    copied_children: dict[str, nn.Module | None]

    @classmethod
    def of(cls, module: nn.Module, copy: nn.Module) -> _Part | None:
        """None where there is something else, such as an object or a hook, which may change unseen."""
        state, copied = vars(module), vars(copy)
        if not copied_by_dict(type(module)):
            return None
        if list(copied) != list(state) or not state.keys() >= _USUAL or any(_hooks_of(state)):
            return None
        rest = [(name, value) for name, value in state.items() if name not in _CONTAINERS]
        names = [name for name, value in rest if _is_constant(value)]
        held = [(name, _flat(value)) for name, value in rest if name not in names]
        if not all(map(_is_constant, chain.from_iterable(items for _, items in held))):
            return None
        values = {name: copied[name] for name in names}
        names.remove("training")
        children = {name: _nothing if child is None else ref(child) for name, child in module._modules.items()}
        values_of = itemgetter(names[0], *names)  # of one name alone it would give no tuple
        return cls(
            ref(module), copy, len(state), values_of, values_of(state), held, children, values, {**copy._modules}
        )

    def fits(self) -> bool:
        """Whether the module holds the same, whatever its mode."""
        module = self.module()
        if type(module) is not type(self.copy):
            return False
        state = vars(module)
        try:
            return (
                len(state) == self.size
                and all(map(is_, self.values_of(state), self.values))
                and "training" in state
                and not any(_hooks_of(state))
                and _are(state["_modules"], self.children)
                and (not self.held or self._holds(state))
            )
        except KeyError:
            return False

    def _holds(self, state: dict[str, Any]) -> bool:
        return all(_are_items(_flat(state[name]), items) for name, items in self.held)

    def put_back(self) -> bool:
        """Let go of all that the copy did not hold before; False where that cannot be done."""
        state = vars(self.copy)
        state.update(self.copied_values)
        try:
            if len(state) != self.size or any(_hooks_of(state)) or not self._holds(state):
                return False
            state["_parameters"].clear()
            state["_buffers"].clear()
            if state["_modules"] or self.copied_children:
                state["_modules"].clear()
                state["_modules"].update(self.copied_children)
        except KeyError:
            return False
        return True


class _Kept:
    """A twin, and what tells whether another one would be the same but for its tensors."""

    def __init__(self, net: nn.Module, parts: list[_Part]) -> None:
        self.net, self.parts = net, parts

    @classmethod
    def of(cls, model: nn.Module, net: nn.Module) -> _Kept | None:
        """None where that cannot be told."""
        copies, parts = {model: net}, []
        for module in (modules := [model]):  # which grows
            part = _Part.of(module, copies[module])
            if part is None:
                return None
            parts.append(part)
            for child, copy in zip(module._modules.values(), part.copied_children.values(), strict=True):
                if child is not None and copy is not None and child not in copies:
                    copies[child] = copy
                    modules.append(child)
        return cls(net, parts)

    def made_ready(self) -> bool:
        """Give the twin the model's tensors; False where the model is not built as it was."""
        if not all(part.fits() for part in self.parts):
            return False
        slots = [
            (vars(part.copy)[name], held)
            for part in self.parts
            for name in _TENSORS
            if (held := vars(part.module())[name])
        ]
        tensors = {id(tensor): tensor for _, held in slots for tensor in held.values() if tensor is not None}
        with suppress(Exception), torch.inference_mode(False), torch.no_grad():  # a new twin will say what is wrong
            copies = dict(zip(tensors, shared(self.net, [*tensors.values()]), strict=True))
            for to, held in slots:
                to.update({name: None if tensor is None else copies[id(tensor)] for name, tensor in held.items()})
            return True
        return False

    def put_back(self) -> bool:
        """Let go of all that was not there before the block; False where that cannot be done."""
        return all(part.put_back() for part in self.parts)


_DEEP = 8
_END = type("_End", (), {})  # of one of these; a class is a constant
_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()
_known: WeakKeyDictionary[nn.Module, dict[Hashable, Any]] = WeakKeyDictionary()


def _is_constant(value: Any) -> bool:
    kind = type(value)
    if kind is BuiltinFunctionType:  # of a module, or bound to what it would keep alive
        return value.__self__ is None or isinstance(value.__self__, (type, ModuleType))
    if kind is FunctionType:
        return str(value.__module__).startswith("torch.nn.")
    if isinstance(value, Enum):
        return True
    return kind in IMMUTABLE or (kind is tuple and IMMUTABLE.issuperset(map(type, value)))


def _flat(value: Any, depth: int = 0) -> list[Any]:
    """What lists, tuples, dictionaries and partial functions hold, all in one row; what is no such thing is itself.

    One that holds itself, or is too deep to tell, is not taken apart.
    """
    kind = type(value)
    if kind is partial:
        parts: Iterable[Any] = (value.func, value.args, value.keywords)
    elif kind is dict:
        parts = chain.from_iterable(value.items())
    elif kind in (list, tuple):
        parts = value
    else:
        return [value]
    return [value] if depth > _DEEP else [kind, *(x for part in parts for x in _flat(part, depth + 1)), _END]


def _nothing() -> None:
    """In place of a weak reference to a layer that is None."""


def _are(inner: Mapping[str, nn.Module | None], children: Mapping[str, Callable[[], nn.Module | None]]) -> bool:
    if not inner and not children:  # most are leaves
        return True
    known = [child() for child in children.values()]
    return list(inner) == list(children) and _are_items([*inner.values()], known)


def _are_items(these: list[Any], those: list[Any]) -> bool:
    return len(these) == len(those) and all(map(is_, these, those))
