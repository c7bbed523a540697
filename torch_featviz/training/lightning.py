"""A `Monitor` as a callback of Lightning's `Trainer`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_featviz.errors import OptionError
from torch_featviz.model.layers import Layers

from .monitor import Monitor
from .sinks import Sink, sinks_for
from .steps import Steps

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
elif "lightning.pytorch" in sys.modules or ("pytorch_lightning" not in sys.modules and find_spec("lightning")):
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback


class LightningMonitor(Callback):
    """Watch one step in `every` of `trainer.fit`, and write to the trainer's loggers: a callback for Lightning's
    `Trainer`.

    A step is one of `trainer.global_step`: an optimizer step with all batches whose gradients it accumulates. With
    manual optimization, each step of each optimizer counts. Validation is never watched. The loss that `training_step`
    returns is logged. The history is saved in checkpoints and continues from them. The callback is one of
    `lightning.pytorch`, or of `pytorch_lightning` if only that was imported before or is installed.

    Args:
        layers, every, probe: as in `Monitor`. Several monitors in one trainer must differ in `layers` or `every`.
        to: as in `Monitor`. Default: those of the trainer's loggers that accept pictures; an empty list for none.
        settings: further arguments of `Monitor`.
    Raises:
        FeatvizError: what `Monitor` raises, at the start of training.
    Example:
        ```
        monitor = LightningMonitor(every=50)
        Trainer(callbacks=[monitor]).fit(model, loader)
        monitor.watch.report().save("report.png")
        ```
    """

    def __init__(
        self, layers: Layers = None, *, every: int = 100, probe: Any = None, to: Any = None, **settings: Any
    ) -> None:
        self._settings = {"layers": layers, "every": every, "probe": probe, **settings}
        self._to, self._steps, self._loaded = to, Steps(), dict[str, Any]()
        self._key = self._generate_state_key(layers=layers, every=every)

    @property
    def watch(self) -> Monitor | None:
        """The `Monitor`, from the start of training on, also after its end."""
        return self._steps.watch

    @property
    def state_key(self) -> str:
        return self._key

    def state_dict(self) -> dict[str, Any]:
        return self.watch.state_dict() if self.watch else self._loaded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in on_fit_start: some strategies load a checkpoint after it. Above step 0, `fit` goes on with a training.
        state = self._loaded or (self.state_dict() if trainer.global_step else {})
        to = list(_that_can_take(trainer.loggers)) if self._to is None else self._to
        self._steps.start(pl_module, trainer.world_size, state, to=to, **self._settings)
        self._loaded = {}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self._steps.open and (trainer.global_step != self._steps.number or self._steps.unfinished):
            self._steps.begin(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, _module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._steps.log(loss=loss * trainer.accumulate_grad_batches)
        if trainer.global_step != self._steps.number:
            self._steps.end()

    def on_validation_start(self, *_: Any) -> None:
        self._steps.end()

    def on_exception(self, _trainer: Trainer, _module: LightningModule, exception: BaseException) -> None:
        self._steps.close(exception)

    def teardown(self, *_: Any, **__: Any) -> None:
        self._steps.close()


def _that_can_take(loggers: Iterable[Any]) -> Iterator[Sink]:
    for logger in loggers:
        with suppress(OptionError):  # such as CSVLogger, which nobody has named
            yield from sinks_for(logger)
