"""The layers' maps of the probe at one step, tokens among them; and the layers of which there are none."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from torch_featviz.inspect.activations import activations, is_sharded
from torch_featviz.inspect.placed import layouts
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layout import Layout
from torch_featviz.model.unplaced import unplaced
from torch_featviz.model.values import tensors
from torch_featviz.warn import warn

from .frames import IMAGES, Seen

FEW = 4  # layers that a warning names

MAPS = 9  # channels that are kept of a layer's output
VALUES = 2**18  # of maps that are kept of a step: fewer images, then fewer channels


class Maps:
    """The maps of a probe, in evaluation mode. Where places are in what a layer returns is found once.

    Args:
        model: whose layers are looked at.
        probe: its arguments; None if there are none, and then there are no maps.
    """

    def __init__(self, model: nn.Module, probe: Inputs | None) -> None:
        self._model, self._probe = model, probe
        self._layouts: dict[str, tuple[tuple[int, ...], Layout]] = {}
        self.left_out: dict[str, str] = {}  # layers of which nothing is drawn, and why
        self._lost: list[str] = []  # those among them that may have places

    def now(self, layers: Mapping[str, nn.Module]) -> dict[str, Seen]:
        """Of layers whose places are known: `b c h w`, as they are now."""
        if self._probe is None:
            return {}
        outputs = {
            name: tensor
            for name, output in activations(self._model, self._probe, list(layers)).items()
            if (tensor := next(iter(tensors(output)), None)) is not None
        }
        if any(self._layout(name, output) is None for name, output in outputs.items()):
            self._find(self._probe, layers, outputs)
        drawn = {}
        for name, output in outputs.items():
            layout = self._layout(name, output)
            if layout is not None and len(layout.grid) == 2 and layout.is_map:
                drawn[name] = _seen(layout.maps(output), unplaced(layout, self._model))
        return drawn

    def _layout(self, name: str, output: Tensor) -> Layout | None:
        """What is known of an output of this shape."""
        shape, layout = self._layouts.get(name, ((), None))
        return layout if shape == tuple(output.shape) else None

    def tell(self) -> None:
        """Warn of layers whose places are not known, by name."""
        if self._lost:
            few = ", ".join(map(repr, self._lost[:FEW]))
            more = f" and {len(self._lost) - FEW} more" if len(self._lost) > FEW else ""
            first = self._lost[0]
            warn(f"no maps are kept of {few}{more}: {first!r} {self.left_out[first]}.")

    def _find(self, probe: Inputs, layers: Mapping[str, nn.Module], outputs: Mapping[str, Tensor]) -> None:
        found = {} if is_sharded(self._model) else layouts(self._model, probe, list(layers))
        self._layouts.clear()
        self.left_out.clear()
        for name, output in outputs.items():
            layout = found.get(name) or _by_shape(output)
            self._layouts[name] = tuple(output.shape), layout
            if why := _why_not(output, layout):
                self.left_out[name] = why
        one = (1, 1)
        self._lost = [name for name in self.left_out if outputs[name].dim() > 2 and self._layouts[name][1].grid != one]


def _by_shape(output: Tensor) -> Layout:
    """Of a sharded model, which cannot be copied and followed: four axes are those of a map."""
    is_map = output.dim() == 4
    return Layout(tuple(output.shape[2:]), channels=1, places=(2, 3)) if is_map else Layout(channels=None)


def _why_not(output: Tensor, layout: Layout) -> str:
    """Why nothing is drawn of what a layer returned; empty where it is drawn."""
    shape = f"returns shape {tuple(output.shape)}"
    if not layout.grid:
        return f"{shape}, which has no places" if output.dim() < 3 else f"{shape}, whose places are not known"
    if not layout.is_map:
        return f"{shape}, which is a single place"
    return "" if len(layout.grid) == 2 else f"{shape}, whose places have {len(layout.grid)} axes and not 2"


def _seen(maps: Tensor, without: str) -> Seen:
    images = max(1, min(IMAGES, VALUES // maps[0, 0].numel()))
    channels = max(1, min(MAPS, VALUES // (images * maps[0, 0].numel())))
    notes = (f"{without}: not drawn",) if without else ()
    return Seen(maps[:images, :channels].float(), tuple(maps.shape), notes)
