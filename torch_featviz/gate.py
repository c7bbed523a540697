"""The gate of public calls: each argument is checked against its annotation before anything is done with it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from fractions import Fraction
from numbers import Integral
from os import PathLike
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.data import DataLoader

from torch_featviz.errors import DeviceError, DtypeError, FeatvizError, OptionError

P = ParamSpec("P")
T = TypeVar("T")
_ELSEWHERE = ("classes", "value_range")  # which come in several forms: those that read them say more
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Tensor: "a tensor",
    nn.Module: "a torch.nn.Module",
    type(None): "None",
    Sequence: "a list or tuple",
    Mapping: "a mapping",
    Iterable: "something to iterate over",
    Callable: "a function",
}


def gate(*but: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Check the arguments of each call of a function against its annotations, as `check` does.

    NumPy's numbers and flags become Python's, and NumPy arrays of floats become tensors where one is asked for.

    Args:
        but: arguments that the function checks itself, because it can say more about them.
    Example:
        >>> @gate()
        ... def double(n: int) -> int:
        ...     return 2 * n
        >>> double("a")
        Traceback (most recent call last):
            ...
        torch_featviz.errors.OptionError: n must be a whole number, got 'a'.
    """

    def gated(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters.values()
        by_position = [each.name for each in parameters if each.kind in _BY_POSITION]
        several = [each.name for each in parameters if each.kind is inspect.Parameter.VAR_POSITIONAL]
        any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
        names = {each.name for each in parameters}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if is_dynamo_compiling():  # the graph is of the function alone
                return function(*args, **kwargs)
            further = args[len(by_position) :]
            if (further and not several) or not (any_name or names.issuperset(kwargs)):  # the function itself says so
                return function(*args, **kwargs)
            taken = functools.partial(_taken, _kinds(function), but)
            given = [*map(taken, by_position, args), *(taken(name, item) for name in several for item in further)]
            return function(*given, **{name: taken(name, value) for name, value in kwargs.items()})

        return call

    return gated


gated = gate()


def _taken(kinds: Mapping[str, Any], but: Sequence[str], name: str, value: Any) -> Any:
    """What a function is given for an argument, once that is checked as far as the function does not do it."""
    if name not in kinds:
        return value
    if name not in but and name not in _ELSEWHERE:
        return check(name, value, kinds[name])
    if isinstance(value, Tensor) and value.is_nested:  # whose shape cannot be asked for
        check_dense(name, value)
    return functools.reduce(_plain, _options(kinds[name]), value)


def check_fields(result: Any) -> None:
    """Check the fields of a frozen dataclass against their annotations, and put what `check` returns there."""
    if is_dynamo_compiling():
        return
    kind: Any = type(result)
    kinds = _kinds(kind)
    for each in fields(result):
        value = getattr(result, each.name)
        if (checked := check(each.name, value, kinds.get(each.name, Any))) is not value:
            object.__setattr__(result, each.name, checked)


def check(name: str, value: object, kind: Any) -> Any:
    """Raise unless `value` is of that kind; kinds that are not known here take anything.

    Whole numbers may be NumPy's and fit 64 bits; `True` is no number. A tensor is dense and holds plain
    values; whether they may be complex is for the function to say. An array of floats passes for a tensor.

    Returns:
        The value; of NumPy's numbers, flags and arrays that passed for a tensor, Python's and torch's. An array or a
        tensor that passed for a list of numbers or texts is one.
    Raises:
        OptionError: it is no such number, flag, text or choice.
        DtypeError: it has another type, or is no dense tensor of plain values.
        DeviceError: it is a tensor on the meta device.
    """
    options = _options(kind)
    if value is None and type(None) in options:
        return None
    wrong: list[FeatvizError] = []
    for option in options:
        try:
            return _listed(_check_one(name, value, option), option, options)
        except FeatvizError as error:
            wrong.append(error.with_traceback(None))  # whose frames hold what the caller has
    special = [error for error in wrong if not str(error).startswith(f"{name} must be ")]
    rest = [option for option in options if option is not type(None)]
    if special or len(rest) == 1:
        raise (special or [wrong[options.index(rest[0])]])[0] from None
    texts = any(option in (int, float, bool, str) or get_origin(option) is Literal for option in rest)
    words = list(dict.fromkeys(map(_words, options)))
    wanted = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    raise (OptionError if texts else DtypeError)(f"{name} must be {wanted}, got {_got(value)}{made_by(value)}.")


def check_tensor(name: str, value: object) -> None:
    """Raise DtypeError unless `value` is a dense tensor that holds plain values, which may be complex.

    On the meta device it holds none, which is a DeviceError.
    """
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} must be a tensor, got {_got(value)}{made_by(value)}.")
    check_dense(name, value)
    if value.is_meta:
        raise DeviceError(f"{name}: expected values, got a tensor on the meta device, which has none.")


def check_dense(name: str, value: Tensor) -> None:
    """Raise DtypeError unless the tensor is dense and holds plain values, or would on another device than meta."""
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested tensor" if value.is_nested else str(value.layout)
        raise DtypeError(f"{name}: expected a dense tensor, got {kind}; use {name}.to_dense() or pad it.")
    if value.is_quantized:
        raise DtypeError(f"{name}: expected plain values, got {value.dtype}; use {name}.dequantize().")
    if value.is_floating_point() and value.dtype.itemsize < 2:  # a format of storage, without arithmetic
        raise DtypeError(f"{name}: expected values to compute with, got {value.dtype}; use {name}.float().")


def check_module(name: str, value: object) -> None:
    """Raise DtypeError unless `value` is an `nn.Module`."""
    if not isinstance(value, nn.Module):
        exported = type(value).__name__ == "ExportedProgram"
        what = "capture torch.export.unflatten() of it" if exported else f"{value!r:.80}"
        raise DtypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}: {what}.")


def check_runs(name: str, model: nn.Module) -> None:
    """Raise DtypeError if the module has no `forward`, as a `ModuleList` has none."""
    if type(model).forward is nn.Module.forward and "forward" not in vars(model):  # a compiled module holds its own
        raise DtypeError(f"{name} must have a forward, got {type(model).__name__}; pass the module that holds it.")


def check_floats(name: str, value: Tensor) -> None:
    """Raise DtypeError unless `value` holds floats that can be computed with."""
    if not value.is_floating_point():
        raise DtypeError(f"{name} must be floats, got {value.dtype}{made_by(value)}.")


def made_by(images: Any) -> str:
    """What makes such a tensor of what was given instead."""
    if isinstance(images, Tensor):
        return "; bytes are made floats by images.float() / 255" if images.dtype == torch.uint8 else ""
    if isinstance(images, (str, PathLike)):
        return "; fv.zoo.read_image opens a file, and card.preprocess makes of it what the model takes"
    if hasattr(images, "__array__") or hasattr(images, "__array_interface__"):
        return "; torch.from_numpy makes a tensor of an array, fv.zoo.from_pil of a Pillow image"
    if isinstance(images, (list, tuple)) and any(isinstance(image, Tensor) for image in images):
        return "; torch.stack(images) makes a batch of images, and of a batch with labels take batch[0]"
    return ""


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _check_one(name: str, value: object, kind: Any) -> Any:
    """The value, if it is of that one kind."""
    origin = get_origin(kind) or kind
    value = _plain(value, origin)
    if origin is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise OptionError(f"{name} must be {_words(kind)}, got {_got(value)}.")
    elif origin in _CHECKS:
        _CHECKS[origin](name, value, kind)
    else:
        _check_class(name, value, origin)
    return value


def _plain(value: Any, kind: Any) -> Any:
    """A number, flag or array of floats of NumPy, or a fraction, as Python and torch have it, if that is asked for."""
    if kind in (int, float, bool) and isinstance(value, np.generic):
        return value.item()
    if kind is float and isinstance(value, Fraction):
        with suppress(OverflowError):
            return float(value)
    if kind is not Tensor or type(value) not in (np.ndarray, np.memmap) or value.dtype.kind != "f":
        return value
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="))) if value.itemsize <= 8 else value


def _listed(value: Any, kind: Any, options: tuple[Any, ...]) -> Any:
    """A list in the place of an array or a tensor, where several numbers or texts are asked for and no tensor."""
    several = get_origin(kind) in (Sequence, tuple, list) and get_args(kind)[:1] in ((int,), (float,), (str,))
    if several and isinstance(value, (Tensor, np.ndarray)) and Tensor not in options:
        return value.tolist()
    return value


def _check_flag(name: str, value: object, _kind: Any) -> None:
    if not (isinstance(value, Integral) and value in (0, 1)):  # True and False are such
        raise OptionError(f"{name} must be True or False, got {_got(value)}.")


def _check_mapping(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, Mapping):
        raise DtypeError(f"{name} must be a mapping, got {_got(value)}.")
    key, item = get_args(kind) or (Any, Any)
    for each in value:
        check(f"a key of {name}", each, key)
        check(f"{name}[{each!r:.40}]", value[each], item)


def _check_iterable(name: str, value: object, _kind: Any) -> None:
    if isinstance(value, Tensor):
        check_tensor(name, value)
    listed = hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    if not listed or isinstance(value, (str, type)) or getattr(value, "shape", None) == ():
        raise DtypeError(f"{name} must be something to iterate over, such as a DataLoader, got {_got(value)}.")


def _check_function(name: str, value: object, kind: Any) -> None:
    if not callable(value):
        raise DtypeError(f"{name} must be a function, got {_got(value)}.")
    if isinstance(value, nn.Module):
        check_runs(name, value)
    taken = next(iter(get_args(kind)), None)
    if isinstance(value, type) and isinstance(taken, list) and Tensor in taken:  # which makes no tensor of a tensor
        raise DtypeError(f"{name}: expected a function, got the class {value.__name__}; pass an instance of it.")


def _check_class(name: str, value: object, kind: Any) -> None:
    """Classes are those of the annotation; a protocol or an unknown name takes anything."""
    kind = type(None) if kind is None else kind
    if kind is Any or not isinstance(kind, type) or Protocol in kind.__mro__:
        return
    if kind is nn.Module:
        check_module(name, value)
    if not isinstance(value, kind):
        ours = kind in (str, type(None)) or kind.__module__.startswith("torch_featviz")
        error = OptionError if ours else DtypeError
        raise error(f"{name} must be {_words(kind)}, got {_got(value)}.")


def _check_number(name: str, value: object, kind: type) -> None:
    numbers = Integral if kind is int else (Integral, float)
    if isinstance(value, bool) or not isinstance(value, numbers):
        raise OptionError(f"{name} must be {_words(kind)}, got {_got(value)}.")
    if isinstance(value, Integral) and not -(2**63) <= int(value) < 2**63:
        raise OptionError(f"{name} must be a number of 64 bits, got one of {int(value).bit_length()} bits.")


def _check_items(name: str, value: object, kind: Any) -> None:
    if isinstance(value, Tensor):
        check_tensor(name, value)
    listed = all(hasattr(value, part) for part in ("__len__", "__getitem__", "__iter__"))
    options = [option for option in get_args(kind) if option is not ...]
    if isinstance(value, str) and options == [str]:  # "abc" are three names
        return
    if not listed or isinstance(value, (str, bytes, Mapping, nn.Module, type)):
        raise DtypeError(f"{name} must be a list or tuple, got {_got(value)}.")
    if getattr(value, "shape", None) == ():
        raise DtypeError(f"{name} must be a list or tuple, got a value without axes.")
    if isinstance(value, Tensor):
        value = value.tolist() if options and options[0] in (int, float, str) else value
    if len(set(options)) == 1 and options[0] is not Any:
        items: Any = value
        for i, item in enumerate(items):
            check(f"{name}[{i}]", item, options[0])


_CHECKS: dict[Any, Callable[[str, object, Any], None]] = {
    **dict.fromkeys((int, float), _check_number),
    **dict.fromkeys((Sequence, tuple, list), _check_items),
    **dict.fromkeys((Mapping, dict), _check_mapping),
    Tensor: lambda name, value, _: check_tensor(name, value),
    bool: _check_flag,
    **dict.fromkeys((Iterable, DataLoader), _check_iterable),  # any batches will do
    Callable: _check_function,
}


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is type:
        return "a class"
    kind = get_origin(kind) or kind
    known = _WORDS.get({tuple: Sequence, list: Sequence, dict: Mapping}.get(kind, kind))
    name = str(getattr(kind, "__name__", kind))
    return known or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _got(value: object) -> str:
    """What came, in short: the value of what has a short one, else its type."""
    if isinstance(value, (bool, int, float, str, bytes, type(None), list, tuple, dict)):
        try:
            return f"{value!r:.80}"
        except (ValueError, RecursionError):  # a number of too many digits
            return f"a large {type(value).__name__}"
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__}"


@functools.cache
def _kinds(owner: Any) -> dict[str, Any]:
    """The annotations of a function or class; a name that only type checkers know takes anything."""
    space = dict(vars(sys.modules[owner.__module__]))
    annotations = dict(owner.__annotations__)
    annotations.pop("return", None)
    if inspect.isfunction(owner):  # further keywords are checked where they go
        named = inspect.signature(owner).parameters
        annotations = {n: a for n, a in annotations.items() if named[n].kind is not inspect.Parameter.VAR_KEYWORD}
    return {name: _kind(text, space) for name, text in annotations.items()}


def _kind(text: Any, space: dict[str, Any]) -> Any:
    if not isinstance(text, str):
        return text
    for _ in range(20):
        try:
            return eval(text, space)
        except NameError as error:
            space = {**space, str(error.name): Any}
        except (AttributeError, TypeError):
            return Any
    return Any
