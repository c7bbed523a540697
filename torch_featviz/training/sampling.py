"""A look while it goes on: over all blocks of one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch import distributed as dist

from torch_featviz.capture import Statistics
from torch_featviz.capture.reduce import Reducer

from .criterion import Criterion
from .updates import Gradients, Updates
from .watched import Watched


class Sampling:
    """What is seen in the blocks of one step.

    Args:
        step: its number.
        watched: layers and parameters.
        gradients: looks at gradients.
    """

    def __init__(self, step: int, watched: Watched, gradients: Gradients) -> None:
        self.step = step
        self.updates = Updates(watched.parameters, gradients)
        self.criterion: Criterion | None = None  # of the loss that was logged
        self._capture = watched.capture
        self._stats: Statistics | None = None

    @contextmanager
    def block(self) -> Iterator[None]:
        """One more block; between two of them the model is left alone."""
        if self._stats is None:
            self._stats = self._capture.__enter__()
            self._stats.for_training()
        else:
            self._capture.resume()
        try:
            yield
        finally:
            self._capture.suspend()

    def end(self) -> None:
        """There is no further block."""
        if self._stats is not None and self._stats.capture is not None:
            self._capture.__exit__(None, None, None)

    @property
    def losses(self) -> list[Tensor]:
        """What the model returned as its loss, if it does."""
        return [] if self._stats is None else self._stats.losses

    def figures(self, group: dist.ProcessGroup | None) -> tuple[dict[str, Reducer], dict[str, Reducer], dict[str, str]]:
        """The figures of layers in the order in which they ran, of inputs, and the layers without any, with the reason.

        Args:
            group: whose figures are one.
        """
        stats = self._stats
        if stats is None:
            return {}, {}, {}
        whole = dict(stats) if group is None else stats.merged(group)
        inputs, order = stats.inputs, stats.in_order()
        layers = {name: whole[name] for name in dict.fromkeys((*order, *whole)) if name in whole and name not in inputs}
        return layers, {name: whole[name] for name in inputs if name in whole}, stats.left_out
