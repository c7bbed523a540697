"""A step of a `Monitor` that one call begins and another ends, as trainers tell it to their callbacks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import distributed, nn

from .monitor import Monitor
from .step import Step


class Steps:
    """The steps of one Monitor, of which at most one is open; nothing happens while there is no Monitor.

    Args:
        watch: its `step` is entered by `begin`, and left by `end`.
    """

    def __init__(self, watch: Monitor | None = None) -> None:
        self.watch = watch
        self.number = -1  # of the step that began last
        self._block: AbstractContextManager[Step] | None = None
        self._step: Step | None = None

    def start(self, model: nn.Module, ranks: int, state: dict[str, Any] | None, **settings: Any) -> None:
        """Watch a training on so many ranks by a new Monitor, which goes on from `state`, where there is one."""
        group = distributed.group.WORLD if ranks > 1 else None
        self.watch, self.number = Monitor(model, group=group, **settings), -1
        if state:
            self.watch.load_state_dict(state)

    @property
    def open(self) -> bool:
        """A step has begun and not ended."""
        return self._block is not None

    @property
    def unfinished(self) -> bool:
        """The last step waits for its optimizer."""
        return self.watch is not None and self.watch.unfinished

    def log(self, **scalars: Any) -> None:
        """Log scalars of the step that is open, if one is."""
        if self._step is not None:
            self._step.log(**scalars)

    def begin(self, number: int) -> None:
        """Begin a step; one that never ended is abandoned."""
        self.abandon()
        if self.watch:
            block = self.watch.step(number)
            self._step = block.__enter__()
            self._block, self.number = block, number

    def end(self, error: BaseException | None = None) -> None:
        """End the step, if one is open; with the error that broke it off, if one did."""
        block, self._block, self._step = self._block, None, None
        if block:
            block.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def abandon(self) -> None:
        """End the step as Python ends a block that nobody goes on with."""
        self.end(GeneratorExit())

    def close(self, error: BaseException | None = None) -> None:
        """End the step and close the Monitor; may be called again."""
        try:
            self.end(error)
        finally:
            if self.watch:
                self.watch.__exit__(type(error) if error else None, error, None)
