"""What a `Monitor` saw, in Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from torch_featviz.training.history import Bins

from .sink import Record, edges, histograms, numbers, tag

if TYPE_CHECKING:
    from wandb import Run

_MOST = 512  # bins that wandb.Histogram takes


class WandbSink:
    """Logs scalars, histograms, pictures and findings to a W&B run, under `featviz/`, over an axis `featviz/step`.

    The run's own steps stay yours: what is written joins the row that your next `run.log` completes, and no `step=` is
    given. Only where two steps were seen with no row of yours between them does the first get a row of its own, since
    it would be lost otherwise. The last row is there at the latest when the run is finished.

    Findings are a table of all so far: a panel shows the latest table of a run, works offline, and stays with the run
    for all who open it, while an alert goes to one person and is gone. Of histograms of more than 512 bins, neighbours
    are added, as W&B takes no more.

    Args:
        run: what `wandb.init` returned, in any mode. It stays yours: `close` does not finish it.
    Example:
        ```
        sink = WandbSink(wandb.init(project="xo"))
        sink.write(Record(watch.history[-1]))
        ```
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._findings: list[list[Any]] = []
        self._row: int | None = None  # the run's step at which the latest record joined
        run.define_metric("featviz/step", hidden=True)
        run.define_metric("featviz/*", step_metric="featviz/step")

    def write(self, record: Record) -> None:
        """Log one step."""
        if self._run.step == self._row:  # that row is still open, and has the same keys
            self._run.log({}, commit=True)
        self._row = self._run.step
        self._run.log({f"featviz/{key}": value for key, value in self._values(record).items()}, commit=False)

    def close(self) -> None:
        """Nothing is held; whoever made the run finishes it."""

    def _values(self, record: Record) -> dict[str, Any]:
        import wandb  # noqa: PLC0415  it is there, as a run of it is

        values: dict[str, Any] = {"step": record.step}
        values |= numbers(record.sample)
        for key, bins in histograms(record.sample).items():
            few = _at_most(bins, _MOST)
            values[tag(*key)] = wandb.Histogram(np_histogram=(np.array(few.counts), np.array(edges(few))))
        values |= {name: wandb.Image(picture.numpy()) for name, picture in record.pictures.items()}
        if record.findings:
            self._findings += [[each.step, each.kind, ", ".join(each.names), each.text] for each in record.findings]
            values["findings"] = wandb.Table(columns=["step", "kind", "names", "text"], data=[*self._findings])
        return values


def _at_most(bins: Bins, most: int) -> Bins:
    """The same counts in bins that are wider by a whole factor, where there are more than `most`."""
    factor = -(-len(bins.counts) // most)
    groups = range(0, len(bins.counts), factor)
    return Bins(bins.start, bins.width * factor, tuple(sum(bins.counts[i : i + factor]) for i in groups))
