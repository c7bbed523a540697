"""The read-only mapping that a capture yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from torch_featviz.displayed import Displayed, within
from torch_featviz.errors import LayerError
from torch_featviz.gate import gated
from torch_featviz.model.layers import canonical, near
from torch_featviz.model.layout import Layout
from torch_featviz.model.values import map_tensors
from torch_featviz.printable import printable

from .asked import call_name
from .inplace import Record
from .layouts import layout_in, without_values
from .noting import numbered
from .recorder import Recorder


class _Recorded(Displayed, Mapping[str, Any]):
    """What reading one forward and reading several have in common."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.capture: object = None  # whose block is open

    @property
    def not_run(self) -> list[str]:
        """Captured layers that did nothing in the latest forward, in model order.

        A layer that is not called, but whose weights another module computes with, as an attention does with those of
        its projections, did something: it is in use, and returned nothing.
        """
        missing = self._recorder.not_called()
        used = self._recorder.in_use(missing)
        return [name for name in missing if name not in used] + self._recorder.functions.unmatched

    def __repr__(self) -> str:
        missing = [f"{len(self.not_run)} layers did not run"] if self.not_run else []
        return within(f"{type(self).__name__}({len(self):,} calls: ", [*missing, *map(repr, self)], ")")

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _words(self, key: str, describe: Callable[[Any], str]) -> str:
        try:
            return describe(self[key])
        except LayerError:
            return "changed in place after the forward"

    def _name(self, key: str) -> str:
        if not isinstance(key, str):
            raise LayerError(f"the key must be a layer name, got {key!r:.80}; list(acts) shows the layers that ran.")
        layer, mark, call = key.partition("#")
        if layer not in self._recorder.names and (model := self._recorder.model()) is not None:
            name = canonical(model, layer)
            layer = name if name in self._recorder.names else call_name(model, layer)
        return layer + mark + call

    def _read(self, records: list[Record], position: int, key: str) -> Any:
        value, intact = self._recorder.read(records, position)
        if not intact:
            raise LayerError(
                f"the output of {key!r} was changed in place after the forward; read it earlier, "
                "or change a clone of the model's output."
            )
        return value

    def _absent(self, key: str, ran: Iterable[str]) -> LayerError:
        names = self._recorder.names
        layer = key.partition("#")[0]
        if layer not in names:
            return LayerError(f"layer {key!r} was not captured; {near(key, names)}list(acts) has all that ran.")
        calls = [k for k in ran if k.partition("#")[0] == layer]
        if not calls:
            if layer in self._recorder.in_use(self._recorder.not_called()):
                return unreturned(layer)
            close = near(layer, self._recorder.functions.seen)
            return LayerError(f"layer {layer!r} {self._recorder.why(layer)} {close}not_run lists all such layers.")
        return LayerError(f"layer {layer!r} ran {len(calls)} times: take one of {', '.join(map(repr, calls))}.")


class Activations(_Recorded):
    """The outputs of the captured layers in the latest forward, by layer name, in order of execution.

    A layer that ran once has its own name as the key. A layer that ran several times has one key per call, `'relu#1'`,
    `'relu#2'`, and no plain key, so that calls cannot be confused; `calls('relu')` lists all of them. The mapping is
    read-only. Read it inside the `with` block or after it.

    Values keep the structure that the layer returned (tensor, tuple, dict, ...). Every tensor is detached.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._indexed = (-1, -1)
        self._positions: dict[str, int] = {}

    @gated
    def calls(self, layer: str) -> list[Any]:
        """List the outputs of `layer`, one per call, in order. Empty if it did not run.

        Raises:
            LayerError: `layer` was not captured.
        """
        name = self._name(layer)
        if name not in self._recorder.names:
            raise self._absent(layer, ())
        records = self._recorder.latest()
        return [self._read(records, i, name) for i, record in enumerate(records) if record[0] == name]

    @gated
    def layout(self, key: str) -> Layout:
        """Return the axes of an output: images, channels and places, for `feature_maps(..., layout=...)`.

        A copy of the model runs once more.

        Raises:
            LayerError: there is no such call, it is a functional call, or the model was called by other compiled code.
        """
        self[key]  # says what is wrong with a name
        model, given = self._recorder.model(), without_values(self._recorder.given)
        if model is None or given is None:
            raise LayerError(f"the layout of {key!r} is not known, or no longer; pass layout=Layout(grid=...).")
        return layout_in(model, given, self._name(key))

    def __getitem__(self, key: str) -> Any:
        index = self._index()
        if key not in index:
            key = self._name(key)
        if key not in index:
            raise self._absent(key, index)
        return self._read(self._recorder.latest(), index[key], key)

    @gated
    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - this is what get() is

    def __contains__(self, key: object) -> bool:
        return key in self._index() or (isinstance(key, str) and self._name(key) in self._index())

    def __iter__(self) -> Iterator[str]:
        return iter(self._index())

    def __len__(self) -> int:
        return len(self._recorder.latest())

    def __str__(self) -> str:
        lines = [f"  {key}: {words}" for key, words in self.described().items()]
        if missing := self.not_run:
            lines.append(f"  did not run: {', '.join(missing)}")
        return "\n".join(map(printable, [f"Activations, {len(self)} calls", *lines]))

    def described(self) -> dict[str, str]:
        """What each call returned, in words: its shape and dtype."""
        return {key: self._words(key, _describe) for key in self}

    def _index(self) -> dict[str, int]:
        records = self._recorder.latest()
        state = (self._recorder.records.changes, len(records))
        if state != self._indexed:
            self._positions = _keys(records)
            self._indexed = state
        return self._positions


class Recent(_Recorded):
    """The outputs of the captured layers in the last forwards: a list by layer name, the oldest first.

    A layer that runs several times in one forward has one list per call, `'relu#1'`, `'relu#2'`.
    """

    def __getitem__(self, key: str) -> list[Any]:
        name = self._name(key)
        found = [(records, keys[name]) for records, keys in self._forwards() if name in keys]
        if not found:
            raise self._absent(name, self)
        return [self._read(records, position, name) for records, position in found]

    def __iter__(self) -> Iterator[str]:
        return iter({key: None for _, keys in self._forwards() for key in keys})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __str__(self) -> str:
        lines = [f"  {key}: {words}" for key, words in self.described().items()]
        return "\n".join(map(printable, [f"Recent, {len(self)} calls", *lines]))

    def described(self) -> dict[str, str]:
        """What each call returned last, in words, and how often it is there."""
        return {key: self._words(key, lambda values: f"{len(values)} x {_describe(values[-1])}") for key in self}

    def _forwards(self) -> list[tuple[list[Record], dict[str, int]]]:
        latest = self._recorder.latest()
        return [(records, _keys(records)) for records in (*self._recorder.records.past, latest)]


def _keys(records: list[Record]) -> dict[str, int]:
    """The position of each call: under its layer's name, or, of several calls, under names with numbers."""
    return {key: position for position, key in enumerate(numbered([name for name, _, _ in records]))}


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{' '.join(map(str, value.shape)) or 'scalar'}, {str(value.dtype).removeprefix('torch.')}"
    shapes = map_tensors(lambda tensor: tuple(tensor.shape), value)
    return f"{type(value).__name__} {shapes}"


def unreturned(layer: str) -> LayerError:
    """The error about a layer that is in use, but returns nothing."""
    parent = layer.rpartition(".")[0]
    owner = f"layer {parent!r}" if parent else "the model"
    return LayerError(
        f"layer {layer!r} is never called and returns nothing: other code, as a rule that of {owner}, computes with "
        f"its weights; capture {parent!r} instead."
    )
