"""Which layers and parameters are watched: those that the model has now."""

from __future__ import annotations

from inspect import getattr_static
from operator import is_
from types import FunctionType
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from torch_featviz.capture import Histogram, Moments, capture
from torch_featviz.capture.reduce import Reducer
from torch_featviz.errors import LayerError
from torch_featviz.model.held import base_of
from torch_featviz.model.layers import Layers, names_of, resolve, unwrap

from .figures import Kind, is_recurrent, range_of

_LEARNT = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_BOUNDED_CALLS = ("tanh", "sigmoid", "hardsigmoid", "softsign")


class About(NamedTuple):
    """What does not change of a parameter, or seldom."""

    axes: int
    dtype: str  # such as "bfloat16"
    table: bool  # of an embedding, of which a step uses few rows
    rows: int  # that begin unlike each other, of a layer in one group, or of one gate of a recurrent one; else 0
    frozen: bool  # requires_grad=False


class Watched:
    """The layers that were asked for, and what of them can learn.

    Args:
        model: any module.
        asked: as in `capture`; None for all layers with parameters of their own, adapters, attentions and bounded
            activations, also those that a module calls as functions (`torch.tanh(x)`); or else all leaves.
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

    def is_asked_for(self, name: str) -> bool:
        """Whether somebody has named the layer: of one taken by default nobody misses figures."""
        return self._asked is not None or isinstance(self.layers.get(name), _LEARNT)

    @property
    def drawn(self) -> dict[str, nn.Module]:
        """The layers whose kernels and maps are kept; by default without norms, embeddings and the like."""
        if self._asked is not None:
            return self.layers
        drawn = {name: layer for name, layer in self.layers.items() if _is_drawn(layer)}
        return drawn or self.layers

    def _find(self) -> None:
        chosen, calls = self._chosen(), self._bounded_calls()
        self.layers = resolve(self._model, chosen)
        into: list[Reducer] = [Moments(), Histogram(self._bins)]
        asked: Layers = [*self.layers.values(), *calls] if calls else chosen
        self.capture = capture(self._model, asked, into=into, ops=bool(calls))
        self.capture.calls_only_if_eager = True
        self._find_parts()
        self._find_parameters()

    def _find_parts(self) -> None:
        self._parts = _parts_of(self._model)
        self.leaves = tuple(
            name for module, name in names_of(self._model).items() if not any(True for _ in module.children())
        )
        self._within = {name: list(layer.named_modules()) for name, layer in self.layers.items()}

    def _find_parameters(self) -> None:
        """Those of the layers; by default, and for the account, all of the model."""
        self.parameters: dict[str, Tensor] = {}
        self.kinds: dict[str, Kind] = {}
        self.everything: dict[str, Tensor] = {}
        self.about: dict[str, About] = {}
        for name, modules in self._within.items():
            by_outputs, known = isinstance(self.layers[name], _LEARNT), set[int]()
            for within, module in modules:
                for own, parameter in module._parameters.items():
                    if parameter is None or id(parameter) in known or not _has_figures(parameter):
                        continue
                    known.add(id(parameter))
                    path = ".".join(filter(None, (name, within, own)))
                    self.parameters[path] = parameter
                    self.kinds[path] = Kind.of(parameter, by_outputs=by_outputs)
        names = {id(parameter): name for name, parameter in reversed(self.parameters.items())}
        for module, path in names_of(unwrap(self._model)).items():
            for own, parameter in module._parameters.items():
                if parameter is None or not _has_figures(parameter) or not parameter.numel():
                    continue
                name = names.setdefault(id(parameter), f"{path}.{own}" if path else own)
                if name not in self.everything:
                    self.everything[name] = parameter
                    self.about[name] = _about(module, parameter)
                if self._asked is None and name not in self.parameters:
                    self.parameters[name] = parameter
                    self.kinds[name] = Kind.of(parameter, by_outputs=False)

    def _chosen(self) -> Layers:
        if self._asked is not None:
            return self._asked
        modules = list(unwrap(self._model).modules())
        watched = [each for each in modules if _is_watched(each)]
        return watched or [each for each in modules if not any(True for _ in each.children())]

    def _bounded_calls(self) -> list[str]:
        """Globs for the calls of bounded functions, where a module of the model has one in its forward."""
        if self._asked is not None:
            return []
        called = set[str]()
        for kind in {type(module) for module in unwrap(self._model).modules()}:
            forward = getattr_static(kind, "forward", None)  # of a ScriptModule's class there is none
            if isinstance(forward, FunctionType) and not kind.__module__.startswith("torch."):
                called.update(forward.__code__.co_names)
        found = [call for call in _BOUNDED_CALLS if call in called]
        return [glob for call in found for glob in (call, f"{call}#*", f"*.{call}", f"*.{call}#*")]


def _has_figures(parameter: Tensor) -> bool:
    """Not packed integers, as of quantised layers, and not 8 bits, with which PyTorch does not compute."""
    return parameter.is_floating_point() and parameter.dtype.itemsize > 1


def _is_watched(module: nn.Module) -> bool:
    """Whether it is a layer that learns or clips: not one that merely holds others, and a parameter beside them."""
    if isinstance(module, (*_LEARNT, nn.MultiheadAttention)) or range_of(module) or base_of(module) is not None:
        return True
    own = any(each is not None for each in module._parameters.values())
    return own and not any(True for child in module.children() for _ in child.parameters())


def _is_drawn(layer: nn.Module) -> bool:
    clips = range_of(layer) is not None and not is_recurrent(layer)
    return isinstance(layer, (*_LEARNT, *_TRANSPOSED)) or clips or base_of(layer) is not None


def _about(module: nn.Module, parameter: Tensor) -> About:
    return About(
        parameter.dim(),
        str(parameter.dtype).removeprefix("torch."),
        isinstance(module, _TABLES),
        _rows(module, parameter),
        not parameter.requires_grad,
    )


def _rows(module: nn.Module, parameter: Tensor) -> int:
    if parameter.dim() < 2:
        return 0
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _divides(module.hidden_size, parameter)
    if isinstance(module, nn.MultiheadAttention):
        return _divides(module.embed_dim, parameter)
    return len(parameter) if isinstance(module, _LEARNT) and getattr(module, "groups", 1) == 1 else 0


def _divides(rows: int, parameter: Tensor) -> int:
    return rows if len(parameter) % rows == 0 else 0


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
