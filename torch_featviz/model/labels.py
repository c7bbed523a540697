"""What a data set gives: an image and its class, in whatever form; the one place where labels are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor

_IMAGES = ("image", "img", "images", "pixel_values")  # in items that are dictionaries, as Hugging Face's are
_LABELS = ("label", "labels", "target", "class")
_LARGEST = 2**63
_HINT = "set a target_transform on the data set that returns a class number"


def image_of(item: Any) -> Any:
    """The image of an item, or the images of a batch: the first of a pair, what a dictionary calls so, or all of it."""
    if isinstance(item, Mapping):
        name = next((name for name in _IMAGES if name in item), None)
        return item if name is None else item[name]
    return item[0] if isinstance(item, (tuple, list)) and item else item


def pair_of(item: Any, where: str) -> tuple[Any, Any]:
    """The image of an item and its label as it is given, or the images and labels of a batch.

    Args:
        item: `(image, label, ...)`, or a dictionary with `image` and `label`.
        where: which item, in words.
    Raises:
        DtypeError: it is neither.
    """
    if isinstance(item, Mapping):
        label = next((name for name in _LABELS if name in item), None)
        if label is None or (image := image_of(item)) is item:
            keys = ", ".join(map(repr, item)) or "nothing"
            raise DtypeError(
                f"{where} is a dict with {keys}; expected the image under {', '.join(_IMAGES)} and the class under "
                f"{', '.join(_LABELS)}. Rename the keys, or give pairs (image, label)."
            )
        return image, item[label]
    if isinstance(item, (tuple, list)) and len(item) > 1:
        return item[0], item[1]
    what = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list)) else "")
    raise DtypeError(f"{where} is {what}, not a pair (image, label).")


def names_of(classes: Any) -> tuple[str, ...]:
    """The names of classes in order, as texts; of a mapping those that 0, 1, ... stand for, in any order.

    Raises:
        DtypeError: that is no sequence, or no mapping from all numbers to names.
    Example:
        >>> names_of(["cat", 1]), names_of({1: "dog", 0: "cat"})
        (('cat', '1'), ('cat', 'dog'))
    """
    if isinstance(classes, Tensor):
        check_tensor("classes", classes)
    names = _by_number(classes) if isinstance(classes, Mapping) else classes
    if not isinstance(names, Iterable) or getattr(names, "shape", None) == ():  # such a tensor only seems iterable
        raise DtypeError(f"classes must be the names of all classes, got {classes!r:.80}.")
    return tuple(str(name) for name in names)


def _by_number(classes: Mapping[Any, Any]) -> list[Any]:
    try:
        numbers = {int(number): name for number, name in classes.items()}
    except (TypeError, ValueError, OverflowError):
        numbers = {}
    if sorted(numbers) != list(range(len(classes))):
        raise DtypeError(f"classes must map 0, 1, ... to the names of all classes, got {dict(classes)!r:.80}.")
    return [numbers[number] for number in range(len(numbers))]


def class_number(name: str, names: Sequence[str], owner: str = "the model") -> int:
    """The number of the class that has a name; no other function looks for one.

    Args:
        name: as it is written among `names`.
        names: of all classes, in the order of the outputs; empty where they are not known.
        owner: whose classes they are, in words.
    Raises:
        OptionError: no class has that name, or several have, or no names are known.
    Example:
        >>> class_number("dog", ["cat", "dog"])
        1
    """
    found = [i for i, known in enumerate(names) if known == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise OptionError(f"{owner} has several classes {name!r}: give a number, {' or '.join(map(str, found))}.")
    if not names:
        raise OptionError(f"{owner} tells no names of classes; give a number instead of {name!r}.")
    close = ", ".join(map(repr, get_close_matches(name, names, 3, 0.5)))
    raise OptionError(f"{owner} has no class {name!r}; close: {close or 'none'}. It has {len(names)}.")


def label_of(value: Any, where: str, names: Sequence[str] | None = None, hint: str = _HINT) -> int | str:
    """The class in a label: its number, or its name where no names are known.

    Args:
        value: a whole number of any type, a one-hot vector, or a name.
        where: whose label it is, in words.
        names: of all classes, in order.
        hint: what to do about anything else.
    Raises:
        DtypeError: it is no class, but a mask, a dictionary, several classes or nothing.
        OptionError: `names` has no such name, or not as many as a one-hot vector has entries.
    Example:
        >>> label_of(torch.tensor([0.0, 1.0, 0.0]), "item 4"), label_of("dog", "item 5", ["cat", "dog"])
        (1, 1)
    """
    if isinstance(value, Tensor):
        check_tensor(where, value)
    shape = tuple(n for n in getattr(value, "shape", ()) if n != 1)
    if len(shape) > 1:
        what = f"of shape {tuple(value.shape)}, a mask or an image"
        raise DtypeError(f"{where} is {what}, not a class; {hint}.")
    plain = value.reshape(-1).tolist() if hasattr(value, "reshape") else value
    while isinstance(plain, (list, tuple)) and len(plain) == 1:
        plain = plain[0]
    if isinstance(plain, str):
        return plain if names is None else _number_of(plain, where, names)
    if _is_number(plain) and float(plain).is_integer():  # True, too
        return int(plain)
    if isinstance(plain, (list, tuple)) and plain and all(map(_is_number, plain)):
        return _hot(plain, where, names, hint)
    raise DtypeError(f"{where} is {_what(plain)}, not a class; {hint}.")


def _is_number(value: Any) -> bool:
    """Whether it is a number of at most 64 bits; NaN is one."""
    return isinstance(value, Real) and not abs(value) >= _LARGEST  # type: ignore[operator]


def labels_of(
    values: Any,
    count: int,
    *,
    first: int = 0,
    names: Sequence[str] | None = None,
    what: str = "item",
    hint: str = _HINT,
) -> Tensor:
    """The classes of a batch, `b` int64, on the CPU or where they are.

    Args:
        values: as the data set gives them: numbers, one-hot rows, or names.
        count: of images in the batch.
        first: the number of the first of them.
        names: of all classes, in order, where labels are names.
        what: what each is called in errors.
        hint: as for `label_of`.
    Raises:
        ShapeError: there are more or fewer.
        DtypeError: one of them is no class.
        OptionError: one has a name that `names` does not have.
    Example:
        >>> labels_of(torch.eye(3)[[2, 0]], 2)
        tensor([2, 0])
    """
    if isinstance(values, Tensor):
        check_tensor(f"{what}s", values)
    numbers = isinstance(values, Tensor) and not values.is_floating_point() and not values.is_complex()
    if numbers and values.shape == (count,):
        numbered: Tensor = values.long()
        return numbered
    if getattr(values, "shape", None) == ():
        values = values.reshape(1)
    many = hasattr(values, "__len__") and not isinstance(values, (str, bytes, Mapping))
    if count != (len(values) if many else 1) or isinstance(values, Mapping):
        got = len(values) if many else _what(values)
        raise ShapeError(f"{what}s must hold {count} classes, one per image, got {got}.")
    rows = list(values) if many else [values]
    owner = f"the label of {what} {{}}" if what == "item" else f"{what} {{}}"
    found = [label_of(row, owner.format(first + i), names, hint) for i, row in enumerate(rows)]
    for i, label in enumerate(found):
        if isinstance(label, str):
            raise DtypeError(f"{owner.format(first + i)} must be a class number, got the name {label!r}; {hint}.")
    return torch.tensor(found, device=values.device if isinstance(values, Tensor) else "cpu", dtype=torch.int64)


def _number_of(name: str, where: str, names: Sequence[str]) -> int:
    if name not in names:
        close = ", ".join(map(repr, get_close_matches(name, names, 3, 0.5))) or "none"
        raise OptionError(f"{where} is {name!r}, which is not one of the {len(names)} classes; close: {close}.")
    return class_number(name, names, f"{where} is {name!r}, and the data set")


def _hot(entries: Sequence[Any], where: str, names: Sequence[str] | None, hint: str) -> int:
    """The place of the one entry that is 1."""
    hot = [i for i, each in enumerate(entries) if each == 1]
    if len(hot) != 1 or any(each not in (0, 1) for each in entries):
        shown = ", ".join(f"{each:g}" for each in entries[:6]) + (", …" if len(entries) > 6 else "")
        raise DtypeError(f"{where} is ({shown}), not one class; {hint}.")
    if names is not None and len(entries) != len(names):
        raise OptionError(
            f"{where} is one-hot with {len(entries)} classes, but {len(names)} names are given; name all of them."
        )
    return hot[0]


def _what(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a dict of " + (", ".join(map(repr, value)) or "nothing")
    if isinstance(value, (bool, int, float)) or value is None:
        return f"{value!r:.40}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (list, tuple)) else "")
