"""Which layers and parameters are watched: those that the model has now."""

from __future__ import annotations

from operator import is_
from typing import TypeAlias

from torch import Tensor, nn

from torch_featviz.capture import Histogram, Moments, capture
from torch_featviz.errors import LayerError
from torch_featviz.model.held import base_of
from torch_featviz.model.layers import Layers, resolve, unwrap

from .figures import Kind, range_of

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
        if not _same(_parts_of(self._model), self._parts):
            try:
                layers = resolve(self._model, self._chosen())
            except LayerError:
                layers = self.layers
            if layers != self.layers:
                self._find()
                return
            self._find_parts()
        self._find_parameters()

    def _find(self) -> None:
        chosen = self._chosen()
        self.layers = resolve(self._model, chosen)
        self.capture = capture(self._model, chosen, into=[Moments(), Histogram(self._bins)])
        self._find_parts()
        self._find_parameters()

    def _find_parts(self) -> None:
        self._parts = _parts_of(self._model)
        self._within = {name: list(layer.named_modules()) for name, layer in self.layers.items()}

    def _find_parameters(self) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.kinds: dict[str, Kind] = {}
        for name, modules in self._within.items():
            by_outputs, known = isinstance(self.layers[name], _LEARNT), set[int]()
            for within, module in modules:
                for own, parameter in module._parameters.items():
                    if parameter is None or id(parameter) in known or not parameter.is_floating_point():
                        continue  # packed integers, as of quantised layers
                    known.add(id(parameter))
                    path = ".".join(filter(None, (name, within, own)))
                    self.parameters[path] = parameter
                    self.kinds[path] = Kind.of(parameter, by_outputs=by_outputs)

    def _chosen(self) -> Layers:
        if self._asked is not None:
            return self._asked
        modules = list(unwrap(self._model).modules())
        chosen = [each for each in modules if isinstance(each, _LEARNT) or range_of(each) or base_of(each) is not None]
        return chosen or [each for each in modules if not list(each.children())]


_Parts: TypeAlias = tuple[list[nn.Module | None], list[str]]


def _parts_of(model: nn.Module) -> _Parts:
    """Each module with what it holds, and the names by which; they change where a module is put in another's place."""
    parts: list[nn.Module | None] = []
    names: list[str] = []
    known, walk = {model}, [model]
    for module in walk:
        children = module._modules
        parts += (module, *children.values())
        names += (*children, *module._parameters)
        for child in children.values():
            if child is not None and child not in known:
                known.add(child)
                walk.append(child)
    return parts, names


def _same(parts: _Parts, others: _Parts) -> bool:
    return parts[1] == others[1] and len(parts[0]) == len(others[0]) and all(map(is_, parts[0], others[0]))
