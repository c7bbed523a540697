"""Progress of a training: a bar, one line per epoch, and the metrics of all epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from itertools import zip_longest

from tqdm import tqdm

from torch_featviz.errors import OptionError
from torch_featviz.table import html_table, text_table

Log = Callable[[str], object]


@dataclass(frozen=True, repr=False)
class TrainingCurves:
    """Metrics of a training, one number per epoch in each field; fields of validation are empty without validation.

    It prints as a table, and shows as one in a notebook; `curves(vars(history))` draws it.

    Example:
        >>> print(TrainingCurves((1.528,), (0.452,), (1.471,), (0.471,), (12.3,)))
        epoch  train loss  train accuracy  valid loss  valid accuracy  seconds
        ----------------------------------------------------------------------
            1       1.528          45.2 %       1.471          47.1 %     12.3
    """

    train_loss: tuple[float, ...] = ()
    train_accuracy: tuple[float, ...] = ()
    valid_loss: tuple[float, ...] = ()
    valid_accuracy: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()

    def __repr__(self) -> str:
        count = max(map(len, astuple(self)))
        parts = [
            f"{name.replace('_', ' ')} {_word(name, values[0])} → {_word(name, values[-1])}"
            for name, values in vars(self).items()
            if values and name in ("train_loss", "train_accuracy", "valid_accuracy")
        ]
        told = f"{count} epoch{'s' if count != 1 else ''}"
        return f"TrainingCurves({': '.join([told, *([', '.join(parts)] if parts else [])])})"

    def __str__(self) -> str:
        heading, rows = self._table()
        return text_table(heading, rows, right=range(len(heading)))

    def _repr_html_(self) -> str:
        heading, rows = self._table()
        return html_table(heading, rows, right=range(len(heading)))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """What stands above the columns that hold something, and a row an epoch."""
        columns = {name: [_word(name, value) for value in values] for name, values in vars(self).items() if values}
        rows = zip_longest(*columns.values(), fillvalue="")
        heading = ["epoch", *(name.replace("_", " ") for name in columns)]
        return heading, [[str(epoch), *row] for epoch, row in enumerate(rows, 1)]


class Progress:
    """A bar on stderr with loss and accuracy as they are, and lines for whoever wants them.

    Args:
        epochs: of the whole training.
        batches: in each.
        bar: whether there is one.
        log: called with each line.
        every: a line after so many batches, besides that of each epoch.
    Raises:
        OptionError: `log` is no function, or `every` is below 1, or given without `log`.
    """

    def __init__(self, epochs: int, batches: int, *, bar: bool, log: Log | None = None, every: int | None = None):
        if log is not None and not callable(log):
            raise OptionError(f"log must be a function that takes a line, such as print, got {log!r}.")
        if every is not None and (every < 1 or log is None):
            raise OptionError(f"every must be at least 1, and needs log=, such as print; got {every} and log={log!r}.")
        self._epochs, self._batches, self._log, self._every = epochs, batches, log, every
        self._bar = tqdm(total=epochs * batches, unit="batch", mininterval=0.5, disable=not bar)

    def begin(self, epoch: int) -> None:
        """An epoch, by its number from 1."""
        self._start = time.perf_counter()
        self._name = f"{epoch:>{len(str(self._epochs))}}/{self._epochs}"
        self._batch, self._all, self._lately = 0, _Sums(), _Sums()
        self._bar.set_description(f"epoch {self._name.strip()}", refresh=False)

    def step(self, loss: float, right: int, count: int) -> None:
        """A batch of `count` images with this mean loss, of which so many were right."""
        self._batch += 1
        for sums in (self._all, self._lately):
            sums.add(loss, right, count)
        loss_now, accuracy = self._all.means()
        self._bar.set_postfix(loss=f"{loss_now:.3f}", accuracy=f"{accuracy:.3f}", refresh=False)
        self._bar.update()
        if self._every and self._batch % self._every == 0:
            place = f"batch {self._batch:>{len(str(self._batches))}}/{self._batches}"
            self._say(place, *_trained(*self._lately.means()))
            self._lately = _Sums()

    def end(self, valid: tuple[float, float] | None) -> tuple[float, ...]:
        """Loss and accuracy of the epoch, those of validation, and seconds."""
        seconds, trained = time.perf_counter() - self._start, self._all.means()
        held_out = [f"valid {100 * valid[1]:.1f} %"] if valid else []
        self._say(*_trained(*trained), *held_out, f"{seconds:.1f} s")
        return (*trained, *(valid or ()), seconds)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _say(self, *parts: str) -> None:
        if self._log is not None:
            with tqdm.external_write_mode():  # the bar stands below the line
                self._log(" | ".join((f"Epoch {self._name}", *parts)))


class _Sums:
    def __init__(self) -> None:
        self.loss, self.right, self.seen = 0.0, 0, 0

    def add(self, loss: float, right: int, count: int) -> None:
        self.loss, self.right, self.seen = self.loss + loss * count, self.right + right, self.seen + count

    def means(self) -> tuple[float, float]:
        return self.loss / self.seen, self.right / self.seen


def _trained(loss: float, accuracy: float) -> tuple[str, str]:
    return f"loss {loss:.3f}", f"train {100 * accuracy:.1f} %"


def _word(name: str, value: float) -> str:
    if name.endswith("accuracy"):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if name == "seconds" else f"{value:.3f}"


NAMES = tuple(field.name for field in fields(TrainingCurves))
