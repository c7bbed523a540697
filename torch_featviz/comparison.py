"""Compare networks: accuracy, time, size and compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.bench import Ratio, interleaved
from torch_featviz.displayed import Displayed
from torch_featviz.errors import FeatvizError, OptionError, ShapeError
from torch_featviz.gate import gate, gated
from torch_featviz.inspect import Summary, summary
from torch_featviz.model.inputs import Inputs, as_batch, device_of
from torch_featviz.model.labels import image_of
from torch_featviz.model.reading import read_batches
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated, seed_all
from torch_featviz.picture import Chart, Picture
from torch_featviz.printable import escaped, printable
from torch_featviz.table import html_table, text_table
from torch_featviz.zoo import evaluate

__all__ = ["Compared", "Comparison", "compare"]

BATCH = 64  # images at most that are timed at once
_RIGHT = range(1, 7)  # columns of numbers


@dataclass(frozen=True, repr=False)
class Compared(Displayed):
    """One network of a `Comparison`.

    Args:
        name: name of the network.
        accuracy: in [0, 1]; None if images have no labels.
        seconds: median time per image.
        ratio: its time relative to that of the fastest network, with its 95 % confidence interval.
        parameters: number of trainable parameters.
        megabytes: size of parameters and buffers, in 2^20 bytes.
        multiply_adds: multiply-adds of one forward of one image.
    """

    name: str
    accuracy: float | None
    seconds: float
    ratio: Ratio
    parameters: int
    megabytes: float
    multiply_adds: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`: it prints as a table, shows as one in a notebook, and `picture()` draws it.

    Args:
        networks: in the order of the arguments.
        examples: number of images that the accuracy is of; 0 without labels.
        batch: images per timed forward.
        rounds: timed forwards of each network, in turns.
        device: the device of the networks.
    """

    networks: tuple[Compared, ...]
    examples: int
    batch: int
    rounds: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        """The result as numbers, strings and lists, for JSON."""
        return asdict(self) | {"networks": [asdict(net) | {"ratio": net.ratio._asdict()} for net in self.networks]}

    def __repr__(self) -> str:
        return f"Comparison({len(self.networks)} networks: {', '.join(net.name for net in self.networks)})"

    def __str__(self) -> str:
        heading, rows = self._table()
        return f"{text_table(heading, rows, right=_RIGHT)}\n\n{printable(self._note())}"

    def _repr_html_(self) -> str:
        heading, rows = self._table()
        return f"{html_table(heading, rows, right=_RIGHT)}<p>{escaped(self._note())}</p>"

    @gated
    def picture(self, *, title: str = "") -> Picture:
        """Draw a bar per network: accuracy, time, parameters and multiply-adds side by side."""
        from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

        panels = [(words, values) for words, values in self._panels().items() if None not in values]
        count = len(self.networks)
        figure = Figure(figsize=(2.6 * len(panels) + 1.4, 0.42 * count + 1.3), dpi=110)
        figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
        figure.suptitle(title or f"{count} networks side by side", x=0.01, ha="left", weight="bold")
        figure.supxlabel(self._note(), fontsize=8)
        cells = {words: [row[i] for row in self._table()[1]] for i, words in enumerate(self._table()[0])}
        for axes, (words, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.barh(range(count), values, height=0.6, color="#b4c5da")
            axes.set_title(words, loc="left", fontsize=10)
            axes.set_ylim(count - 0.5, -0.5)
            axes.set_xlim(0, 1.0 if words == "accuracy" else max(*values, 1e-12))
            axes.set_xticks([])
            axes.set_yticks(
                range(count), [net.name for net in self.networks] if words == panels[0][0] else [""] * count
            )
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            for y in range(count):
                axes.text(0.02, y, cells[words][y], transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        return Chart(figure)

    def _panels(self) -> dict[str, list[Any]]:
        """What is drawn, by the heading of its column."""
        nets = self.networks
        return {
            "accuracy": [net.accuracy for net in nets],
            "ms an image": [net.seconds for net in nets],
            "parameters": [net.parameters for net in nets],
            "multiply-adds": [net.multiply_adds for net in nets],
        }

    def _table(self) -> tuple[list[str], list[list[str]]]:
        heading = ["network", "accuracy", "ms an image", "to the fastest", "parameters", "MB", "multiply-adds"]
        rows = [
            [
                net.name,
                "" if net.accuracy is None else f"{100 * net.accuracy:.1f} %",
                f"{1000 * net.seconds:.3g}",
                f"{net.ratio.median:.2f}×",
                f"{net.parameters:,}",
                f"{net.megabytes:.2f}",
                f"{net.multiply_adds:,}",
            ]
            for net in self.networks
        ]
        return heading, rows

    def _note(self) -> str:
        of = f"accuracy on {self.examples:,} images; " if self.examples else ""
        return f"{of}time in batches of {self.batch} on {self.device}, median of {self.rounds} rounds in turns"


@gate("models")
def compare(
    models: Mapping[str, nn.Module],
    data: Iterable[Any] | Tensor,
    *,
    rounds: int | None = None,
) -> Comparison:
    """Compare accuracy, time per image, parameters, size and compute of several networks on the same data.

    Copies run, in evaluation mode and without gradients; the networks are unchanged. A compiled network runs
    uncompiled.

    Args:
        models: networks by name, each on one device; all take the same images.
        data: a loader of images and labels, or images `b c h w`, which have no accuracy. Each network reads the loader
            once; a generator is read into a list. The first images, at most 64, are timed.
        rounds: timed forwards of each network, in turns. None: as many as fit in two seconds, from 15 to 401.
    Raises:
        OptionError: there is no network, `rounds` is below 1, or a label is not a class of a network.
        ShapeError: the loader is empty, a network does not accept the images, or returns no row of scores per image.
        DtypeError, LayerError: as for `summary` and `zoo.evaluate`; the error names the network.
    Example:
        >>> nets = {"one": nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), "two": nn.Sequential(nn.Flatten())}
        >>> result = compare(nets, torch.rand(8, 1, 4, 4), rounds=1)
        >>> [net.parameters for net in result.networks]
        [34, 0]
    """
    if not isinstance(models, Mapping) or not models:
        raise OptionError(f"models must be networks by name, such as {{'small': net}}, got {models!r:.80}.")
    if rounds is not None and rounds < 1:
        raise OptionError(f"rounds must be at least 1, got {rounds}.")
    data = list(data) if isinstance(data, Iterator) else data  # which can be read once only
    facts: dict[str, tuple[Summary, float | None, int]] = {}
    forwards: list[Callable[[], Any]] = []
    with isolated(), torch.no_grad():
        images = as_batch(data) if isinstance(data, Tensor) else _first(data)
        images = images[:BATCH].detach().clone()  # they may be of inference mode
        for name, model in models.items():
            with _named(name):
                net, given = twin(model), images.to(device_of(model))
                run(net, Inputs(given))
                facts[name] = (summary(model, given[:1]), *_accuracy(net, data))
                forwards.append(_forward(net, given))
        times = interleaved(forwards, rounds)
    fastest = min(range(len(forwards)), key=lambda i: _middle([row[i] for row in times]))
    networks = [
        Compared(
            name,
            accuracy,
            _middle([row[i] for row in times]) / len(images),
            Ratio.of([row[i] / row[fastest] for row in times]),
            known.parameters,
            known.megabytes,
            known.multiply_adds,
        )
        for i, (name, (known, accuracy, _)) in enumerate(facts.items())
    ]
    devices = dict.fromkeys(str(device_of(model)) for model in models.values())
    examples = max(count for _, _, count in facts.values())
    return Comparison(tuple(networks), examples, len(images), len(times), ", ".join(devices))


def _first(loader: Any) -> Tensor:
    """The images of the first batch."""
    for batch in read_batches(loader, {}):
        return as_batch(image_of(batch))
    raise ShapeError("data must yield at least one batch, got none.")


def _accuracy(net: nn.Module, data: Any) -> tuple[float | None, int]:
    """How often it is right, and of how many images; each network is given the same ones, also where they vary."""
    if isinstance(data, Tensor):
        return None, 0
    seed_all(0)
    result = evaluate(net, data)
    return result.accuracy, len(result.logits)


def _forward(net: nn.Module, images: Tensor) -> Callable[[], Any]:
    if images.device.type == "cpu":
        return lambda: net(images)

    def forward() -> None:
        net(images)
        torch.accelerator.synchronize(images.device)

    return forward


def _middle(values: list[float]) -> float:
    return Ratio.of(values).median


@contextmanager
def _named(name: str) -> Iterator[None]:
    """An error within says of which network."""
    try:
        yield
    except FeatvizError as error:
        raise type(error)(f"{name!r}: {error}") from error
