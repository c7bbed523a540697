"""Softmaxed weights, followed from operator to operator until they meet values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from torch_featviz.model.follow import key_of
from torch_featviz.torch_private import is_higher_order, schema_of, tree_leaves

from ..eager import all_eager
from .operators import COPIES, RESHAPED, VIEWS


class Weights(NamedTuple):
    """Softmaxed weights that a tensor holds, before dropout and in its shape; in which forwards they were made."""

    values: Tensor
    heads: int | None  # that the softmax was over, where they have an axis
    frames: tuple[str, ...]
    holder: Tensor  # kept alive, lest its memory be taken for another's
    axes: int  # of the softmax


@all_eager
class Held:
    """The tensors that hold softmaxed weights now."""

    def __init__(self) -> None:
        self._live: dict[Any, Weights] = {}
        self._noise: dict[int, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._live)

    def put(self, tensor: Tensor, weights: Weights) -> None:
        """`tensor` holds these."""
        key = key_of(tensor)
        if key is not None:
            self._live[key] = weights

    def of(self, tensor: Any) -> Weights | None:
        """Those that it holds."""
        return self._live.get(key_of(tensor))

    def noise(self, tensor: Tensor) -> None:
        """It was drawn at random: what it multiplies is dropped, not changed."""
        if self._live:
            self._noise[id(tensor)] = tensor

    def leave(self, depth: int) -> None:
        """A forward has ended; so many run."""
        for key in [key for key, weights in self._live.items() if len(weights.frames) > depth + 1]:
            del self._live[key]

    def clear(self) -> None:
        """Nothing is held."""
        self._live.clear()
        self._noise.clear()

    def follow(
        self, func: Any, name: str, args: Any, kwargs: Any, running: Sequence[str]
    ) -> tuple[Any, Weights | None]:
        """What an operator answers, and the weights that it made something else of.

        They stay what they are in views, copies and dropout.

        Args:
            running: the layers whose forwards run, outermost first.
        """
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        held = next((w for value in given if (w := self.of(value)) is not None), None)
        if held is None:
            return func(*args, **kwargs), None
        written = not is_higher_order(func) and schema_of(func).is_mutable
        if written:  # dropout in place, say: the weights are kept as they were
            for key, weights in list(self._live.items()):
                self._live[key] = weights._replace(values=weights.values.clone())
            held = next(w for value in given if (w := self.of(value)) is not None)
        answer = func(*args, **kwargs)
        dropout = name.rstrip("_") in ("mul", "div") and any(id(value) in self._noise for value in given)
        outputs = list(answer) if isinstance(answer, (tuple, list)) else [answer]
        values = [held.values]
        if name in VIEWS:
            moved = func(held.values, *args[1:], **kwargs)
            values = list(moved) if isinstance(moved, (tuple, list)) else [moved]
        elif name in RESHAPED:
            values = [held.values.reshape(answer.shape)]
        elif not dropout and name not in COPIES:
            if written:
                self._live.pop(key_of(given[0]), None)
            changed = isinstance(answer, Tensor) and answer.shape == held.values.shape
            return answer, held if changed else None
        for output, value in zip(outputs, values, strict=False):
            self.put(output, held._replace(values=value, frames=common(held.frames, running), holder=output))
        return answer, None


def common(frames: Sequence[str], running: Sequence[str]) -> tuple[str, ...]:
    """Those of these forwards that run now."""
    return tuple(name for name, now in zip(frames, running, strict=False) if name == now)
