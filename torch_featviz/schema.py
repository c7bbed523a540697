"""Plain values that were read back, checked against the types that a dataclass declares.

The annotations are the schema: there is no second description that could differ from them.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import OptionError

T = TypeVar("T")
_Read: TypeAlias = Callable[[Any], Any]
_LARGEST = 2**63 - 1  # whole numbers beyond it are no counts
_WORDS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}  # JSON has no numbers for these


class SchemaError(ValueError):
    """A value that differs from its declaration: `field` is the way to it, `text` says what was expected."""

    def __init__(self, text: str, *field: str) -> None:
        super().__init__(text)
        self.text, self.path = text, field

    @property
    def field(self) -> str:
        """The way to the value, as in `layers.conv1.histogram.counts[3]`; `value` if it is the whole."""
        return "".join(self.path).removeprefix(".") or "value"

    def under(self, part: str) -> SchemaError:
        """The same, seen from the container."""
        self.path = (part, *self.path)
        return self

    def __str__(self) -> str:
        return f"{self.field} must be {self.text}"


@dataclass(frozen=True)
class Between:
    """The range of a number: `Annotated[int, Between(0)]`. NaN is in every range."""

    low: float
    high: float | None = None

    def __str__(self) -> str:
        return f"at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"


Count: TypeAlias = Annotated[int, Between(0)]


def restored(kind: type[T], value: Any) -> T:
    """Rebuild a value of a type out of plain values: what JSON holds, or what `torch.load` returns.

    Floats may be the words `"nan"`, `"inf"` and `"-inf"`. A field may only be absent if its dataclass has a default.
    Fields that are not declared are refused. A class may have a method `_check_read` that raises SchemaError where its
    fields do not fit each other.

    Args:
        kind: a dataclass, named tuple, number, string, list, tuple, dict, or one of these or None.
    Raises:
        SchemaError: the value differs from the type.
    Example:
        >>> restored(dict[str, tuple[int, ...]], {"a": [1, 2]})
        {'a': (1, 2)}
        >>> restored(dict[str, list[Count]], {"a": [1, -2]})
        Traceback (most recent call last):
        torch_featviz.schema.SchemaError: a[1] must be a whole number of at least 0, got -2
    """
    return cast(T, _reader(cast(Any, kind))(value))


def decoded(text: bytes) -> Any:
    """The value that a JSON text holds.

    Raises:
        SchemaError: the text is no JSON, nests too deeply, or holds a key twice.
    """
    try:
        return json.loads(text.decode(), parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError as error:
        raise SchemaError("JSON that nests a few levels deep, got hundreds") from error
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError(f"JSON, got {_short(text)} ({error})") from error


def checked_state(kind: type[T], state: Any) -> T:
    """What `state_dict` returned, as a user gives it to `load_state_dict`.

    Raises:
        OptionError: `state` is something else.
    """
    try:
        return restored(kind, state)
    except SchemaError as error:
        raise OptionError(f"state must be what state_dict() returned: {error}.") from error


def _no_constant(word: str) -> Any:
    raise SchemaError(f'JSON, which has no {word}; a number that is not finite is written as "nan", "inf" or "-inf"')


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise SchemaError("an object whose keys differ", f".{next(key for key in keys if keys.count(key) > 1)}")
    return found


@cache
def _reader(kind: Any) -> _Read:
    """What reads a type, made once for each."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        read = _ranged(inner[0], inner[1])
    elif origin in (Union, types.UnionType):
        (some,) = [each for each in inner if each is not type(None)]
        read = _or_none(_reader(some))
    elif origin in (list, tuple):
        read = _sequence(origin, inner)
    elif origin is dict:
        read = _mapping(_reader(inner[1]))
    elif is_dataclass(kind) or hasattr(kind, "_fields"):
        read = _record(kind)
    elif kind is Any:
        read = _any
    elif kind in (int, float):
        read = _ranged(kind, Between(float("-inf")))
    else:
        read = _instance(kind)
    return read


def _any(value: Any) -> Any:
    return value


def _or_none(read: _Read) -> _Read:
    return lambda value: None if value is None else read(value)


def _ranged(kind: type, between: Between) -> _Read:
    low, high = between.low, float("inf") if between.high is None else between.high
    name = "a whole number" if kind is int else "a number"
    range_ = "" if low == float("-inf") else f" {'of ' * (high == float('inf'))}{between}"

    def read(value: Any) -> Any:
        number: Any = value
        if type(value) is kind and low <= number <= high and (kind is float or abs(number) <= _LARGEST):
            return number  # as nearly all are
        number = _WORDS.get(value, value) if kind is float and isinstance(value, str) else value
        fits = isinstance(number, kind if kind is int else (int, float)) and not isinstance(number, bool)
        if not fits or number < low or number > high or (isinstance(number, int) and abs(number) > _LARGEST):
            raise SchemaError(f"{name}{range_}, got {_short(value)}")
        return kind(number)

    return read


def _sequence(origin: Any, inner: tuple[Any, ...]) -> _Read:
    some = inner[:1] if origin is list or inner[1:] == (...,) else ()  # any number of one type
    reads = [_reader(each) for each in some or inner]
    counts = some == (Count,)

    def read(value: Any) -> Any:
        if counts and _are_counts(value):
            return origin(value)
        if not isinstance(value, (list, tuple)) or not (some or len(value) == len(inner)):
            raise SchemaError(f"a list{'' if some else f' of {len(inner)}'}, got {_short(value)}")
        found = []
        for i, each in enumerate(value):
            try:
                found.append(reads[0 if some else i](each))
            except SchemaError as error:
                raise error.under(f"[{i}]") from None
        return origin(found)

    return read


def _are_counts(value: Any) -> bool:
    """Faster than one by one: a histogram has many."""
    return type(value) is list and set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _LARGEST


def _mapping(inner: _Read) -> _Read:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise SchemaError(f"an object, got {_short(value)}")
        found = {}
        for name, each in value.items():
            if not isinstance(name, str):
                raise SchemaError(f"an object with strings as keys, got the key {_short(name)}")
            try:
                found[name] = inner(each)
            except SchemaError as error:
                raise error.under(f".{name}") from None
        return found

    return read


def _record(kind: Any) -> _Read:
    hints = get_type_hints(kind, include_extras=True)
    if is_dataclass(kind):
        names = [each.name for each in fields(kind)]
        required = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    else:
        names, required = list(kind._fields), set(kind._fields) - set(kind._field_defaults)
    reads = {name: _reader(hints[name]) for name in names}
    check: Callable[[Any], None] | None = getattr(kind, "_check_read", None)

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise SchemaError(f"an object, got {_short(value)}")
        for name in reads:
            if name not in value and name in required:
                raise SchemaError("there, but is missing", f".{name}")
        found = {}
        for name, each in value.items():
            if name not in reads:
                raise SchemaError(f"absent: {_short(name)} is no field (there are {', '.join(reads)})", f".{name}")
            try:
                found[name] = reads[name](each)
            except SchemaError as error:
                raise error.under(f".{name}") from None
        record = kind(**found)
        if check is not None:
            check(record)
        return record

    return read


def _instance(kind: type) -> _Read:
    name = {str: "a string", bool: "true or false"}.get(kind, f"a {kind.__name__}")

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise SchemaError(f"{name}, got {_short(value)}")
        return value

    return read


def _short(value: Any) -> str:
    """In a few letters, also where a value has no `repr`."""
    if isinstance(value, (dict, list, tuple)):
        return f"a {'object' if isinstance(value, dict) else 'list'} of {len(value)}".replace("a o", "an o")
    try:
        text = repr(value if not isinstance(value, (str, bytes)) else value[:60])
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:59]}…"
