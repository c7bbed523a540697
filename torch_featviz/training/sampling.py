"""A look while it goes on: over all blocks of one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch import distributed as dist

from torch_featviz.capture import Statistics
from torch_featviz.capture.reduce import Reducer, across_ranks

from .updates import Gradients, Updates


class Sampling:
    """What is seen in the blocks of one step.

    Args:
        step: its number.
        parameters: that are watched, by name.
        gradients: looks at gradients.
    """

    def __init__(self, step: int, parameters: Mapping[str, Tensor], gradients: Gradients) -> None:
        self.step = step
        self.updates = Updates(parameters, gradients)
        self._blocks: list[Statistics] = []

    @contextmanager
    def block(self, stats: Statistics) -> Iterator[None]:
        """One more block, captured in `stats`."""
        stats.for_training()
        self._blocks.append(stats)
        yield

    def figures(self, group: dist.ProcessGroup | None) -> tuple[dict[str, Reducer], dict[str, Reducer], dict[str, str]]:
        """The figures of layers in the order in which they ran, of inputs, and the layers without any, with the reason.

        Args:
            group: whose figures are one.
        """
        names = dict.fromkeys(name for stats in self._blocks for name in stats.in_order())
        inputs = dict.fromkeys(name for stats in self._blocks for name in stats.inputs)
        left_out = {name: why for stats in self._blocks for name, why in stats.left_out.items()}
        whole = {name: self._whole(name) for name in (*names, *inputs) if name not in left_out}
        if group is not None:
            whole = across_ranks(whole, group)
        layers = {name: each for name, each in whole.items() if name not in inputs}
        return layers, {name: whole[name] for name in inputs if name in whole}, left_out

    def _whole(self, name: str) -> Any:
        """The figures of all blocks, the first one's where it is the only one."""
        first, *others = [stats[name] for stats in self._blocks if name in stats]
        if not others:
            return first
        whole = first.fresh()
        for each in (first, *others):
            whole.merge(each)
        return whole
