"""A class by its name, wherever one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor

from .answer import LABELS, Kind, named_both
from .labels import class_number, names_of


def known_names(classes: Any, card: Any = None, answer: Kind | None = None) -> tuple[str, ...]:
    """The names of all classes: those given, or the card's; where there is one name, that of its opposite, too.

    Args:
        classes: in the order of the outputs; may be empty.
        card: of the model, or None.
        answer: what the scores are, where it is known: an independent label has no opposite.
    Raises:
        DtypeError: `classes` is no sequence of names.
    Example:
        >>> known_names(["cat"]), known_names({0: "cat", 1: "dog"}), known_names(["cat"], answer="label_logits")
        (('not cat', 'cat'), ('cat', 'dog'), ('cat',))
    """
    names = names_of(classes) or names_of(getattr(card, "classes", ()))
    answer = getattr(card, "answer", None) if answer is None else answer
    return names if answer in (*LABELS, "figures") else named_both(names)


def numbered(target: Any, names: Sequence[str]) -> Any:
    """A target, or several, with numbers in the places of names; all else as it is.

    Args:
        target: as for `attribute`.
        names: of all classes, in the order of the outputs; empty where they are not known.
    Raises:
        OptionError: no class has such a name, or several have, or no names are known.
        DtypeError: it is a class of Python, or a tensor that is not dense.
    Example:
        >>> numbered("dog", ["cat", "dog"]), numbered(["dog", 0], ["cat", "dog"]), numbered(None, [])
        (1, [1, 0], None)
    """
    if isinstance(target, Tensor):
        check_tensor("target", target)
    if isinstance(target, type):
        raise DtypeError(f"target: expected a function, got the class {target.__name__}; pass an instance of it.")
    several = isinstance(target, (list, tuple))
    asked = [each for each in (target if several else [target]) if isinstance(each, str)]
    if asked and not names:
        raise OptionError(f"{asked[0]!r} is a name: tell the names of all classes with classes= or card=.")
    numbers = {name: class_number(name, names) for name in asked}
    if several and asked:
        return [numbers.get(each, each) if isinstance(each, str) else each for each in target]
    return numbers[target] if asked else target


def listed(targets: Any) -> list[Any]:
    """Several targets, as numbers and names.

    Raises:
        DtypeError: they are no sequence, or hold anything but numbers and names.
    Example:
        >>> listed((3, "cat"))
        [3, 'cat']
    """
    if isinstance(targets, Tensor):
        check_tensor("targets", targets)
    values = targets.tolist() if hasattr(targets, "tolist") else targets
    values = [values] if isinstance(values, (int, str)) else values
    if not isinstance(values, (list, tuple, range)) or not all(isinstance(each, (int, str)) for each in values):
        raise DtypeError(f"targets must be a class, or a list of classes, by number or name; got {targets!r:.80}.")
    return list(values)


def check_named(names: Sequence[str], columns: int) -> None:
    """Raise unless there is a name for each class, lest a name be that of another one.

    Args:
        names: of all classes; empty where none are known.
        columns: how many classes the model returns.
    Raises:
        ShapeError: there are more or fewer.
    """
    if names and len(names) != columns:
        raise ShapeError(f"classes must name {columns}, as the model returns, got {len(names)}.")
