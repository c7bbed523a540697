"""`Monitor`: what the layers of a network return while it learns, and what becomes of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from torch_featviz.capture import Histogram, Moments, capture, read_together
from torch_featviz.capture.select import Layers, check_module, resolve, unwrap
from torch_featviz.errors import OptionError
from torch_featviz.picture import Picture

from .history import Bins, History, LayerFigures, ParameterFigures, Sample
from .report import report
from .updates import Updates, norm_of, whole

_LEARNT = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Monitor:
    """Looks at one training step in `every`; the steps between cost nothing.

    For each of the layers: mean, std, extremes, share of zeros, dead channels, broken values and a histogram of what it
    returned. For each of their parameters: its norm, the norm and histogram of its gradient as the optimizer got it,
    and how far the optimizer moved it. All is computed where the tensors are, and fetched in one transfer at the end of
    the step. The network, its gradients and its random numbers stay exactly as they are.

    Args:
        model: any module, in any mode, compiled or wrapped, as `capture` takes it.
        layers: as in `capture`; default: all convolutions and linear layers, or all leaves where there is none.
        every: look at the first of every so many steps.
        bins: of the histograms, an even number.
        keep: samples held at most; see `History`.
    Raises:
        LayerError: a layer that `model` does not have.
        OptionError: `every`, `bins` or `keep` is none that can be.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> optimizer, watch = torch.optim.SGD(net.parameters(), 0.1), Monitor(net, every=2)
        >>> for images in torch.randn(4, 5, 1, 8, 8):
        ...     with watch.step():
        ...         net(images).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> watch.history.steps, list(watch.history[0].layers)
        ([0, 2], ['0', '3'])
        >>> len(watch.history.values("3.weight", "update_ratio"))
        2
        >>> watch.report(title="a first look").numpy().dtype
        dtype('uint8')
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = None,
        *,
        every: int = 100,
        bins: int = 64,
        keep: int = 512,
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise OptionError(f"every counts steps, 1 for each of them; got {every!r}.")
        self.every = every
        self.history = History(keep)
        self._bins = bins
        check_module(model)
        if layers is None:
            layers = [module for module in unwrap(model).modules() if isinstance(module, _LEARNT)] or None
        self._capture = capture(model, layers, into=[Moments(), Histogram(bins)])
        self._parameters: dict[str, Tensor] = {}
        self._by_outputs = set[str]()  # those whose rows are a layer's outputs
        for name, layer in resolve(model, layers).items():
            found = {f"{name}.{each}".strip("."): parameter for each, parameter in layer.named_parameters()}
            self._parameters |= found
            self._by_outputs.update(found if isinstance(layer, _LEARNT) else ())
        self._step = 0
        self._open = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step: its forwards, the backward, and `optimizer.step()`.

        Gradients are accumulated as the loop does it; a block without a step of an optimizer has none. A step that
        raises is kept too, as far as it came.

        Raises:
            OptionError: a block of this monitor is open already.
        """
        if self._open:
            raise OptionError("a step of this monitor is open already; end its block first.")
        number, self._open = self._step, True
        self._step += 1
        try:
            if number % self.every:
                yield
                return
            with Updates(self._parameters, self._bins) as updates, self._capture as stats:
                try:
                    yield
                finally:
                    self.history.append(self._sample(number, stats, updates))
        finally:
            self._open = False

    def report(self, *, title: str = "") -> Picture:
        """Histograms over steps, spread, dead channels, gradients and updates, a row a layer.

        Raises:
            ShapeError: no step was looked at yet.
        """
        return report(self.history, title=title)

    def _sample(self, step: int, stats: Mapping[str, Any], updates: Updates) -> Sample:
        """All figures of one step, after one transfer."""
        norms = {name: norm_of(whole(each)) for name, each in self._parameters.items()}
        moves = [tensor for move in updates.moves.values() for tensor in move if isinstance(tensor, Tensor)]
        histograms = [move.histogram for move in updates.moves.values()]
        read = iter(read_together([*stats.values(), *histograms], [*norms.values(), *moves]))
        after = {name: float(next(read)) for name in norms}
        came = {
            name: [next(read) if isinstance(x, Tensor) else x for x in move] for name, move in updates.moves.items()
        }
        return Sample(
            step,
            {name: _layer(*several) for name, several in stats.items()},
            {name: self._figures(name, norm, came.get(name)) for name, norm in after.items()},
        )

    def _figures(self, name: str, norm: float, move: list[Any] | None) -> ParameterFigures:
        size = self._parameters[name].numel()
        if move is None:
            return ParameterFigures(size, norm)
        histogram, grad, unreached, before, added = move
        rows = unreached is not None and name in self._by_outputs
        return ParameterFigures(
            size, norm, float(grad),
            update_ratio=float(added / before) if before else float("inf") if added else 0.0,
            grad_histogram=_bins(histogram),
            outputs=len(self._parameters[name]) if rows else None,
            unreached=int(unreached) if rows else None,
        )  # fmt: skip


def _layer(moments: Moments, histogram: Histogram) -> LayerFigures:
    """The figures of a layer as a whole, from those of its channels."""
    count = moments.count.double()
    total, some = float(count.sum()), moments.count > 0
    if total:
        mean = float((moments.mean * count)[some].sum()) / total
        spread = moments.std.square() + (moments.mean - mean).square()
        std = float((spread * count)[some].sum() / total) ** 0.5
        low, high = float(moments.min[some].min()), float(moments.max[some].max())
    else:
        mean = std = low = high = float("nan")
    nan, inf = int(moments.nan.sum()), int(moments.inf.sum())
    zeros = moments.zero_share * (moments.count + moments.nan + moments.inf)
    return LayerFigures(
        mean, std, low, high,
        zero_share=float(zeros.sum()) / (total + nan + inf),
        dead=int(moments.dead.sum()),
        channels=len(moments.dead),
        nan=nan,
        inf=inf,
        histogram=_bins(histogram),
    )  # fmt: skip


def _bins(histogram: Histogram) -> Bins:
    edges = histogram.edges
    return Bins(float(edges[0]), float(edges[1] - edges[0]), tuple(histogram.counts.tolist()))
