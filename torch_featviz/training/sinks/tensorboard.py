"""What a `Monitor` saw, in TensorBoard."""

from __future__ import annotations

from typing import Any

from torch_featviz.training.history import Bins, LayerFigures

from .sink import Record, edges, numbers, tag


class TensorBoardSink:
    """Writes scalars, histograms, pictures and findings to a SummaryWriter, each at its step.

    Scalars and histograms are named figure first, as `std/features.0`, so that TensorBoard shows all layers of one
    figure together. Histograms have the bins that were counted. The sum and the sum of squares that TensorBoard keeps
    beside them are, for a layer, those of its mean and std; for a gradient, of which only the bins are known, every
    value is taken for the middle of its bin, and the extremes for the outer edges of the filled bins. A histogram that
    counted nothing is left out.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or tensorboardX's. It stays yours: `close` only flushes it.
    Example:
        ```
        sink = TensorBoardSink(SummaryWriter("runs/first"))
        sink.write(Record(watch.history[-1]))
        ```
    """

    def __init__(self, writer: Any) -> None:  # of one of two packages, neither of which needs to be there
        self._writer = writer

    def write(self, record: Record) -> None:
        """Put one step into the event file, and flush it."""
        writer, sample, step = self._writer, record.sample, record.step
        for name, value in numbers(sample).items():
            writer.add_scalar(name, value, global_step=step)
        for name, layer in sample.layers.items():
            self._histogram(tag("histogram", name), layer.histogram, _moments(layer), step)
        for name, parameter in sample.parameters.items():
            if (bins := parameter.grad_histogram) and sum(bins.counts):
                self._histogram(tag("grad_histogram", name), bins, _moments_of_bins(bins), step)
        for name, picture in record.pictures.items():
            writer.add_image(name, picture.numpy(), global_step=step, dataformats="HWC")
        if record.findings:  # one text, as a tag has one a step; TensorBoard reads it as Markdown
            writer.add_text("findings", "\n\n".join(each.text for each in record.findings), global_step=step)
        writer.flush()

    def close(self) -> None:
        """Flush the writer; whoever made it closes it."""
        self._writer.flush()

    def _histogram(self, name: str, bins: Bins, moments: dict[str, float], step: int) -> None:
        if sum(bins.counts):
            self._writer.add_histogram_raw(
                name,
                num=sum(bins.counts),
                bucket_limits=edges(bins)[1:],
                bucket_counts=list(bins.counts),
                global_step=step,
                **moments,
            )


def _moments(layer: LayerFigures) -> dict[str, float]:
    count = sum(layer.histogram.counts)
    squares = count * (layer.std * layer.std + layer.mean * layer.mean)  # ** would raise where this is infinite
    return {"min": layer.min, "max": layer.max, "sum": count * layer.mean, "sum_squares": squares}


def _moments_of_bins(bins: Bins) -> dict[str, float]:
    half = bins.width / 2
    filled = [(count, edge + half) for count, edge in zip(bins.counts, edges(bins), strict=False) if count]
    return {
        "min": filled[0][1] - half,
        "max": filled[-1][1] + half,
        "sum": sum(count * middle for count, middle in filled),
        "sum_squares": sum(count * middle * middle for count, middle in filled),
    }
