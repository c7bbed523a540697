"""Numbers about layers, those of `summary` and `shapes`, beside what a witness saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.inspect.shapes import shapes
from torch_featviz.inspect.summary import Summary, summary
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import unwrap

from .claims import Claim
from .counted import counted
from .judged import Wrong, as_it_was, by_other_means, judged, listed, many
from .subject import Subject
from .witness import Witness

IMAGES = 2  # that are looked at
Calls = dict[str, list[list[Tensor]]]


def claims_of_figures(subject: Subject) -> list[Claim]:
    """What is said of layers in numbers, beside one forward that is witnessed."""
    inputs = subject.inputs.rows(slice(IMAGES)).copied()
    seen = cache(lambda: _seen(subject, inputs))
    of_summary = "A summary has shapes and calls as they were, and each parameter once"
    of_shapes = "Shapes found without computing are those that layers return"
    return [
        judged("summary", of_summary, lambda: _summary(subject, inputs, seen())),
        judged("shapes", of_shapes, lambda: _shapes(subject, inputs, seen())),
    ]


def called(witness: Witness) -> Calls:
    """What the calls of each layer returned, by the layer's name as the library has it."""
    calls: Calls = {}
    for name, values in witness.calls:
        calls.setdefault(_plain(name), []).append(values)
    return calls


def _seen(subject: Subject, inputs: Inputs) -> Calls:
    """Of one forward of the model itself."""
    net = unwrap(subject.model)
    witness = Witness(net)
    with as_it_was(net), torch.no_grad(), by_other_means(), witness.watching():
        subject.forward(net, inputs.copied())
    return called(witness)


def _plain(name: str) -> str:
    """Without the parts that wrappers inside a model add."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")


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
