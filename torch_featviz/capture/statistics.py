"""Streaming statistics of a capture: `into=Moments()` and its like, one reducer for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch import distributed as dist

from torch_featviz.displayed import Displayed, within
from torch_featviz.errors import LayerError
from torch_featviz.model.layers import canonical, near
from torch_featviz.printable import printable

from .activations import unreturned
from .asked import call_name
from .attention import ReducedAttentions
from .gradients import ReducedGradients
from .reduce import Reducer, across_ranks
from .reduction import Reduction


class Statistics(Displayed, Mapping[str, Any]):
    """The statistics of each captured layer, by layer name, in model order.

    One entry sums up all calls of a layer in all forwards of the block. Read it inside the block or after it. If a
    layer returns several tensors, the first one counts. A layer whose output has no statistics (complex or sparse
    tensors, dictionaries) does not stop the forward; it is listed in `left_out`.
    """

    def __init__(
        self, recorder: Reduction | ReducedGradients | ReducedAttentions, reducers: dict[str, Reducer]
    ) -> None:
        self._recorder = recorder
        self._reducers = reducers
        self.capture: object = None  # whose block is open

    @property
    def left_out(self) -> dict[str, str]:
        """Layers that ran and have no statistics, each with the reason."""
        self._recorder.settle()
        return dict(self._recorder.left_out)

    @property
    def not_run(self) -> list[str]:
        """Captured layers that did not run, in model order; see `Activations.not_run`."""
        left_out = self.left_out
        empty = [name for name, reducer in self._reducers.items() if reducer.empty and name not in left_out]
        used = self._recorder.in_use(empty)
        return [name for name in empty if name not in used] + self._recorder.functions.unmatched

    def for_training(self) -> None:
        """From now on forwards in evaluation mode do not count, and there are inputs and losses, too.

        Each tensor of floating-point numbers is one, called `"inputs"`, `"inputs/1"`, or `"inputs/<keyword>"`.
        """
        if isinstance(self._recorder, Reduction):
            model = self._recorder.model()
            self._recorder.only_training = model is not None and model.training
            self._recorder.with_inputs = True

    def in_order(self) -> list[str]:
        """The layers that ran in the order in which they first returned; those of compiled code as in the model."""
        recorder, names = self._recorder, list(self)
        if not isinstance(recorder, Reduction):
            return names
        names = [name for name in names if name not in recorder.inputs]
        ran = [name for name in recorder.ran if name in names]
        return ran if len(ran) == len(names) else names

    @property
    def inputs(self) -> list[str]:
        """The model's inputs of which there are figures, see `for_training`."""
        return [name for name in self if name in getattr(self._recorder, "inputs", ())]

    @property
    def losses(self) -> list[Tensor]:
        """What the model returned as its loss, of each forward; see `for_training`."""
        return list(getattr(self._recorder, "losses", ()))

    def merged(self, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
        """Merge the statistics of all ranks of a distributed run; see `across_ranks`. Every rank must call it."""
        return across_ranks(dict(self), group)

    def __getitem__(self, layer: str) -> Any:
        reducers = self._reducers
        if not isinstance(layer, str):
            raise LayerError(f"the key must be a layer name, got {layer!r:.80}; list(stats) shows the layers that ran.")
        model = self._recorder.model()
        name = layer if layer in reducers or model is None else canonical(model, layer)
        if name not in reducers and model is not None:
            name = call_name(model, layer)
        if name not in reducers:
            raise LayerError(
                f"layer {layer!r} was not captured; {near(layer, reducers)}list(stats) shows the layers that ran."
            )
        if name in (left_out := self.left_out):
            raise LayerError(f"layer {layer!r} has no statistics: {left_out[name]}")
        if reducers[name].empty:
            if self._recorder.in_use([name]):
                raise unreturned(name)
            close = near(name, self._recorder.functions.seen)
            raise LayerError(f"layer {layer!r} did not run; {close}not_run lists all such layers.")
        self._recorder.handed_out = True
        return reducers[name]

    def __iter__(self) -> Iterator[str]:
        left_out = self.left_out
        return (name for name, reducer in self._reducers.items() if not reducer.empty and name not in left_out)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return within(f"Statistics({len(self):,} layers: ", [repr(name) for name in self], ")")

    def __str__(self) -> str:
        lines = [f"  {name}: {reducer!r}" for name, reducer in self.items()]
        if missing := self.not_run:
            lines.append(f"  did not run: {', '.join(missing)}")
        lines += [f"  {name} is left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(map(printable, [f"Statistics, {len(self)} layers", *lines]))
