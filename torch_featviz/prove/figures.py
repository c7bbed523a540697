"""Numbers about layers: those of `summary` and `shapes`, and statistics, beside what a witness saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_featviz.capture import Moments, capture
from torch_featviz.inspect.shapes import shapes
from torch_featviz.inspect.summary import Summary, summary
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import unwrap

from .claims import Claim
from .counted import counted
from .judged import Unknown, Wrong, as_it_was, by_other_means, judged, listed, many
from .subject import Subject
from .witness import Witness

_IMAGES = 2  # that are looked at
_OFF = 1e-4  # of a standard deviation, by which means and standard deviations may be away
Calls = dict[str, list[list[Tensor]]]


def claims_of_figures(subject: Subject) -> list[Claim]:
    """What is said of layers in numbers; one forward is witnessed, in which statistics are taken as well."""
    inputs = subject.inputs.rows(slice(_IMAGES)).copied()
    seen = cache(lambda: _Seen(subject, inputs))
    return [
        judged(
            "statistics",
            "Statistics of each channel are those of its values in float64",
            lambda: seen().statistics(),
        ),
        judged(
            "summary",
            "A summary has shapes and calls as they were, and each parameter once",
            lambda: _summary(subject, inputs, seen().calls),
        ),
        judged(
            "shapes",
            "Shapes found without computing are those that layers return",
            lambda: _shapes(subject, inputs, seen().calls),
        ),
    ]


class _Seen:
    """One forward of the model itself: what each call of a layer returned, and the statistics of the same values."""

    def __init__(self, subject: Subject, inputs: Inputs) -> None:
        net = unwrap(subject.model)
        witness = Witness(net)
        self._failed: Exception | None = None
        self._moments: dict[str, Any] = {}
        with as_it_was(net), torch.no_grad():
            try:
                with capture(net, "*", into=Moments()) as moments, witness.watching():
                    subject.forward(net, inputs.copied())
                self._moments, self._left_out = dict(moments), moments.left_out
            except Exception as error:
                self._failed = error
        if self._failed is not None:
            with as_it_was(net), torch.no_grad(), by_other_means(), witness.watching():
                subject.forward(net, inputs.copied())
        self.calls: Calls = {}
        for name, values in witness.calls:
            self.calls.setdefault(_plain(name), []).append(values)

    def statistics(self) -> str:
        """How many layers' are right."""
        if self._failed is not None:
            raise self._failed
        for name, moments in self._moments.items():
            values = [call[0] for call in self.calls.get(name, []) if call]
            if not values or not moments_hold(moments, values):
                raise Wrong(f"{name}: not those of its values" if values else f"{name} returned nothing")
        if not self._moments:
            raise Unknown("no layer returns numbers")
        refused = f"; {len(self._left_out)} left out, which is said" if self._left_out else ""
        return many(len(self._moments), "layer") + refused


def _plain(name: str) -> str:
    """Without the parts that wrappers inside a model add."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")


def moments_hold(moments: Moments, values: Sequence[Tensor]) -> bool:
    """Whether they are those of what a layer returned at each call, with its channels on one axis or another."""
    arrays = [tensor.detach().cpu().double().numpy() for tensor in values]
    count = len(moments.mean)
    axes = {axis for array in arrays[:1] for n in range(array.ndim) for axis in (n, n - array.ndim)}
    ways = [axis for axis in axes if all(-a.ndim <= axis < a.ndim and a.shape[axis] == count for a in arrays)]
    rows = [np.concatenate([np.moveaxis(a, axis, 0).reshape(count, -1) for a in arrays], 1) for axis in ways]
    if count == 1:
        rows.append(np.concatenate([array.reshape(1, -1) for array in arrays], 1))
    return any(_are_those(moments, each) for each in rows)


def _are_those(moments: Moments, rows: np.ndarray) -> bool:
    """Of channels by values."""
    finite = np.isfinite(rows)
    count, known = finite.sum(1), np.where(finite, rows, 0)
    seen, divisor = count > 0, np.maximum(count, 1)
    mean = known.sum(1) / divisor
    std = np.sqrt(np.where(finite, (known - mean[:, None]) ** 2, 0).sum(1) / divisor)
    near = _OFF * std + 1e-9 * np.abs(known).max(1)
    low, high = np.where(finite, rows, np.inf).min(1), np.where(finite, rows, -np.inf).max(1)
    exact = [
        (moments.count, count),
        (moments.nan, np.isnan(rows).sum(1)),
        (moments.inf, np.isinf(rows).sum(1)),
        (moments.min, np.where(seen, low, np.nan)),
        (moments.max, np.where(seen, high, np.nan)),
    ]
    about = [(moments.mean, mean, near), (moments.std, std, near), (moments.zero_share, (rows == 0).mean(1), 1e-12)]
    return all(np.array_equal(got.numpy(), expected, equal_nan=True) for got, expected in exact) and all(
        bool(((np.abs(got.numpy() - expected) <= within) | ~seen).all()) for got, expected, within in about
    )


def _summary(subject: Subject, inputs: Inputs, seen: Calls) -> str:
    with counted(subject):
        found = summary(
            subject.model,
            inputs.images,
            additional_forward_args=inputs.args or None,
            keywords=dict(inputs.keywords) or None,
        )
    for layer in found.layers:
        calls = seen.get(layer.name, [])
        expected = tuple(calls[0][0].shape) if calls and calls[0] else ()
        if layer.shape != expected:
            raise Wrong(f"{layer.name} returns {expected}, not {layer.shape}")
        if layer.calls != len(calls):
            raise Wrong(f"{layer.name} is called {len(calls)} times, not {layer.calls}")
    _parameters_hold(unwrap(subject.model), found)
    if not str(found):
        raise Wrong("it prints nothing")
    return f"{many(len(found.layers), 'layer')}; {many(found.parameters, 'parameter')}"


def _parameters_hold(net: nn.Module, found: Summary) -> None:
    """In all, and in the rows: those in a layer that is listed, each once."""
    owned: dict[nn.Parameter, str] = {}
    for name, parameter in net.named_parameters():  # each once
        owned[parameter] = _plain(name).rpartition(".")[0]
    total = sum(parameter.numel() for parameter in owned)
    if found.parameters != total:
        raise Wrong(f"{found.parameters:,} parameters of {total:,}")
    listed_names = {layer.name for layer in found.layers}
    within = sum(p.numel() for p, owner in owned.items() if "" in listed_names or _within(owner, listed_names))
    rows = sum(layer.parameters for layer in found.layers)
    if rows != within:
        raise Wrong(f"the layers listed have {rows:,} parameters, and hold {within:,}")


def _within(owner: str, names: set[str]) -> bool:
    parts = owner.split(".")
    return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))


def _shapes(subject: Subject, inputs: Inputs, seen: Calls) -> str:
    found = shapes(subject.model, inputs.images, *inputs.args, keywords=dict(inputs.keywords) or None)
    wrong = []
    for key, value in found.items():
        name, _, call = key.partition("#")
        calls = seen.get(name, [])
        number = int(call or 1)
        expected = [tuple(tensor.shape) for tensor in calls[number - 1]] if number <= len(calls) else []
        if (got := [tuple(size) for size in _sizes(value)]) != expected:
            wrong.append(f"{key} returns {_few(expected)}, not {_few(got)}")
    if wrong:
        raise Wrong(listed(wrong))
    return many(len(found), "call")


def _sizes(value: Any) -> Iterator[torch.Size]:
    """All in what `shapes` gives for a layer."""
    if isinstance(value, torch.Size):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _sizes(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _sizes(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _sizes(getattr(value, field.name))


def _few(sizes: list[tuple[int, ...]]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else str(sizes)
