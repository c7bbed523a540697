"""A `Monitor` on an engine of PyTorch-Ignite."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from torch_featviz.errors import OptionError

from .monitor import Monitor
from .steps import Steps


def attach_ignite(engine: Engine, watch: Monitor, *, accumulate: int = 1) -> Attached:
    """Attach `watch` to a PyTorch-Ignite training `engine`: it then watches the steps of all runs.

    A number that the process function returns, or a value called `loss` in its result, is logged as the loss. Event
    handlers are not watched: they may run an evaluator on the same model. If `engine.run` starts again at its first
    iteration, steps continue to count up. `watch` stays open; close it at the end.

    Args:
        engine: the trainer; an iteration is a forward, a backward and an optimizer step.
        watch: a `Monitor` of the model that it trains.
        accumulate: iterations per optimizer step, like `gradient_accumulation_steps` of `engine`. Handlers that run
            between the iterations of one step are watched too.
    Returns:
        A handle; its `remove()` restores the engine.
    Raises:
        OptionError: `accumulate` is below 1.
    Example:
        ```
        with Monitor(model, every=50) as watch:
            attach_ignite(trainer, watch)
            trainer.run(loader, max_epochs=3)
        watch.report().save("report.png")
        ```
    """
    if not isinstance(accumulate, int) or accumulate < 1:
        raise OptionError(f"accumulate must be at least 1 iteration per optimizer step, got {accumulate!r}.")
    return Attached(engine, watch, accumulate)


class Attached:
    """An engine's process function, with a step of a Monitor around it."""

    # Around the function, and not from ITERATION_STARTED to ITERATION_COMPLETED: handlers run in the order in which
    # they were added, so one added before could run an evaluator inside a step; and any handler of EXCEPTION_RAISED
    # changes what becomes of an exception.

    def __init__(self, engine: Engine, watch: Monitor, accumulate: int) -> None:
        self._engine, self._process, self._accumulate = engine, engine._process_function, accumulate
        self._steps: Steps | None = Steps(watch)
        self._before = 0  # steps of earlier runs
        engine._process_function = self
        ends = Events.TERMINATE_SINGLE_EPOCH | Events.TERMINATE | Events.COMPLETED
        self._handle = engine.add_event_handler(ends, self._run_ends)
        self._finish = weakref.finalize(engine, self._steps.abandon)  # a handler may raise between two iterations

    def __call__(self, engine: Engine, batch: Any) -> Any:
        if self._steps is None:
            return self._process(engine, batch)
        if not self._steps.open:
            self._steps.begin(self._number(engine.state.iteration - 1))
        try:
            output = self._process(engine, batch)
        except BaseException as error:
            self._steps.end(error)
            raise
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, float) or (isinstance(loss, Tensor) and loss.dim() == 0):
            self._steps.log(loss=loss)
        if engine.state.iteration % self._accumulate == 0:
            self._steps.end()
        return output

    def _number(self, iteration: int) -> int:
        assert self._steps is not None
        step = iteration // self._accumulate
        if step + self._before <= self._steps.number:
            self._before = self._steps.number + 1
        return step + self._before

    def _run_ends(self, *_: Any, **__: Any) -> None:
        if self._steps:
            self._steps.abandon()

    def remove(self) -> None:
        """Take the Monitor off the engine; may be called again."""
        self._finish()
        self._steps = None
        self._handle.remove()
        if self._engine._process_function is self:  # nobody has put another around it
            self._engine._process_function = self._process
