"""A `Monitor` as a callback of the `Trainer` of Hugging Face's transformers."""

from __future__ import annotations

import json
import weakref
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from torch_featviz.files import write_whole
from torch_featviz.model.layers import Layers

from .monitor import Monitor
from .state import read_state
from .steps import Steps

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class HFMonitor(TrainerCallback):
    """Watch one step in `every` of `trainer.train()`: a callback for the `Trainer` of Hugging Face's transformers.

    A step is one of `state.global_step`: an optimizer step with all batches whose gradients it accumulates. The history
    is written into the folder of each checkpoint, and continues there if the training resumes from a checkpoint in its
    `output_dir`.

    Args:
        layers: as in `Monitor`. Blocks that return a tuple or a `ModelOutput` have no figures; choose layers inside.
        every, probe, to: as in `Monitor`. Several monitors in one trainer must differ in `layers` or `every`.
        settings: further arguments of `Monitor`.
    Raises:
        FeatvizError: what `Monitor` raises, at the start of training.
    Example:
        ```
        monitor = HFMonitor(every=50, to="figures")
        Trainer(model, arguments, train_dataset=data, callbacks=[monitor]).train()
        monitor.watch.report().save("report.png")
        ```

    No callback is told of an exception: the step that it broke off ends when the next training begins, or when the
    callback goes away.
    """

    def __init__(
        self, layers: Layers = None, *, every: int = 100, probe: Any = None, to: Any = None, **settings: Any
    ) -> None:
        self._settings = {"layers": layers, "every": every, "probe": probe, "to": to, **settings}
        self._file = f"featviz-{zlib.crc32(repr((layers, every)).encode()):08x}.json"  # tells several of them apart
        self._steps = Steps()
        weakref.finalize(self, self._steps.close, GeneratorExit())

    @property
    def watch(self) -> Monitor | None:
        """The `Monitor`, from the start of training on, also after its end."""
        return self._steps.watch

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        self._steps.close(GeneratorExit())
        kept = _checkpoint(args, state) / self._file
        resumes = state.global_step and kept.is_file()
        before = read_state(kept) if resumes else None
        self._steps.start(kwargs["model"], args.world_size, before, **self._settings)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:  # noqa: ARG002
        self._steps.begin(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._steps.end()

    on_epoch_end = on_step_end  # some callback may have stopped the epoch between the batches of a step

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        # Not by ExportableState: a Trainer restores it only when asked to, and then puts another callback in the place
        # of this one, without its `to`.
        folder = _checkpoint(args, state)
        if self.watch and state.is_world_process_zero and folder.is_dir():
            write_whole(folder / self._file, json.dumps(self.watch.state_dict()).encode())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._steps.close()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
