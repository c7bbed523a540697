"""The read-only mapping that a capture yields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from torch_featviz.errors import LayerError

from .recorder import Recorder
from .select import canonical, near
from .values import map_tensors


class Activations(Mapping[str, Any]):
    """What each captured layer returned in the latest forward, by layer name, in order of execution.

    A layer that ran once has its own name. One that ran several times has a key for each call, `'relu#1'`, `'relu#2'`,
    and no plain one, so that no call is mistaken for another; `calls('relu')` lists them all. Readable inside the
    block and after it.

    Values keep the structure that the layer returned (tensor, tuple, dict, ...), every tensor detached.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._indexed = (-1, -1)
        self._positions: dict[str, int] = {}

    @property
    def not_run(self) -> list[str]:
        """Captured layers that the latest forward did not call, in model order."""
        ran = {record[0] for record in self._recorder.latest()}
        return [name for name in self._recorder.names if name not in ran]

    def calls(self, layer: str) -> list[Any]:
        """What `layer` returned at each of its calls, first to last; empty where it did not run.

        Raises:
            LayerError: `layer` was not captured.
        """
        name = self._name(layer)
        if name not in self._recorder.names:
            raise self._absent(layer)
        return [self._read(i, name) for i, record in enumerate(self._recorder.latest()) if record[0] == name]

    def __getitem__(self, key: str) -> Any:
        index = self._index()
        if key not in index:
            key = self._name(key)
        if key not in index:
            raise self._absent(key)
        return self._read(index[key], key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - this is what get() is

    def __contains__(self, key: object) -> bool:
        return key in self._index() or (isinstance(key, str) and self._name(key) in self._index())

    def __iter__(self) -> Iterator[str]:
        return iter(self._index())

    def __len__(self) -> int:
        return len(self._recorder.latest())

    def __repr__(self) -> str:
        lines = [f"  {key}: {_describe(value)}" for key, value in self.items()]
        if missing := self.not_run:
            lines.append(f"  did not run: {', '.join(missing)}")
        return "\n".join([f"Activations, {len(self)} calls", *lines])

    def _index(self) -> dict[str, int]:
        records = self._recorder.latest()
        state = (self._recorder.forwards, len(records))
        if state != self._indexed:
            total = Counter(record[0] for record in records)
            seen: Counter[str] = Counter()
            self._positions = {}
            for position, (name, _, _) in enumerate(records):
                seen[name] += 1
                self._positions[name if total[name] == 1 else f"{name}#{seen[name]}"] = position
            self._indexed = state
        return self._positions

    def _name(self, key: str) -> str:
        if not isinstance(key, str):
            raise LayerError(f"activations are read by layer name, got {key!r:.80}; list(acts) has all that ran.")
        layer, mark, call = key.partition("#")
        if layer not in self._recorder.names and (model := self._recorder.model()) is not None:
            layer = canonical(model, layer)
        return layer + mark + call

    def _read(self, position: int, key: str) -> Any:
        value, intact = self._recorder.read(self._recorder.latest(), position)
        if not intact:
            raise LayerError(
                f"what {key!r} returned was changed in place after the forward; read it sooner, "
                "or change a clone of the model's output."
            )
        return value

    def _absent(self, key: str) -> LayerError:
        names = self._recorder.names
        layer = key.partition("#")[0]
        if layer not in names:
            return LayerError(f"layer {key!r} was not captured; {near(key, names)}list(acts) has all that ran.")
        calls = [k for k in self._index() if k.partition("#")[0] == layer]
        if not calls:
            return LayerError(
                f"layer {layer!r} did not run; the forward never called it. not_run lists all such layers."
            )
        return LayerError(f"layer {layer!r} ran {len(calls)} times: take one of {', '.join(map(repr, calls))}.")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{' '.join(map(str, value.shape)) or 'scalar'}, {str(value.dtype).removeprefix('torch.')}"
    shapes = map_tensors(lambda tensor: tuple(tensor.shape), value)
    return f"{type(value).__name__} {shapes}"
