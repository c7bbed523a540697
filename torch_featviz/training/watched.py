"""Which layers and parameters are watched: those that the model has now."""

from __future__ import annotations

from torch import Tensor, nn

from torch_featviz.capture import Histogram, Moments, capture
from torch_featviz.errors import LayerError
from torch_featviz.model.held import base_of
from torch_featviz.model.layers import Layers, resolve, unwrap

from .figures import range_of

_LEARNT = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Watched:
    """The layers that were asked for, and what of them can learn.

    Args:
        model: any module.
        asked: as in `capture`; None for all convolutions, linear layers, adapters and bounded activations, or else all
            leaves.
        bins: of histograms.
    Raises:
        LayerError: a layer that `model` does not have.
    """

    def __init__(self, model: nn.Module, asked: Layers, bins: int) -> None:
        self._model, self._asked, self._bins = model, asked, bins
        self._find()

    def refresh(self) -> None:
        """Look again whether a layer was put in another's place; one that is named and gone is kept."""
        try:
            layers = resolve(self._model, self._chosen())
        except LayerError:
            layers = self.layers
        if layers != self.layers:
            self._find()
        else:
            self._find_parameters()

    def _find(self) -> None:
        chosen = self._chosen()
        self.layers = resolve(self._model, chosen)
        self.capture = capture(self._model, chosen, into=[Moments(), Histogram(self._bins)])
        self._find_parameters()

    def _find_parameters(self) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.by_outputs = set[str]()  # those whose rows are a layer's outputs
        for name, layer in self.layers.items():
            found = {
                f"{name}.{each}".strip("."): parameter
                for each, parameter in layer.named_parameters()
                if parameter.is_floating_point()  # and not packed integers, as of quantised layers
            }
            self.parameters |= found
            self.by_outputs.update(found if isinstance(layer, _LEARNT) else ())

    def _chosen(self) -> Layers:
        if self._asked is not None:
            return self._asked
        modules = list(unwrap(self._model).modules())
        chosen = [each for each in modules if isinstance(each, _LEARNT) or range_of(each) or base_of(each) is not None]
        return chosen or [each for each in modules if not list(each.children())]
