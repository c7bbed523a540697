"""Capture as modules: `FeatureExtractor` around a model, `FeatureTap` around one layer of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.errors import LayerError
from torch_featviz.gate import gated
from torch_featviz.model.layers import Layers, canonical, listed, resolve, split_call
from torch_featviz.model.values import map_tensors
from torch_featviz.torch_private import DISABLING_TAKES_A_REASON

from .activations import unreturned
from .session import Capture


class _Transparent(nn.Module):
    """Holds one module and adds nothing to its `state_dict`: checkpoints fit with and without the wrapper."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.register_state_dict_post_hook(_drop_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]


def _drop_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    _rename(state, f"{prefix}module.", prefix)


def _add_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    _rename(state, prefix, f"{prefix}module.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for key in [key for key in state if key.startswith(old)]:
        state[new + key.removeprefix(old)] = state.pop(key)


class FeatureExtractor(_Transparent):
    """Wrap a model so that it returns the outputs of some layers instead of its own output.

    Args:
        model: the model; it is used, not copied.
        layers: as for `capture`.

    `forward` takes the model's arguments. It returns a dict from layer name to output, in order of execution; a layer
    that is called several times has the keys `name#1`, `name#2` (see `Activations`). Where gradients are enabled, the
    outputs are part of the autograd graph, so that a loss on features can be trained. To compile it, pass a compiled
    model. In `torch.compile(FeatureExtractor(model))` the model runs uncompiled, and `fullgraph=True` is an error.

    Raises:
        LayerError: the model has no such layer; in `forward`, a layer given by name did not run.

    Example:
        >>> extractor = FeatureExtractor(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), ["1"])
        >>> {name: features.shape for name, features in extractor(torch.zeros(1, 1, 8, 8)).items()}
        {'1': torch.Size([1, 4, 6, 6])}
    """

    @gated
    def __init__(self, model: nn.Module, layers: Layers = None) -> None:
        super().__init__(model)
        self.layers = None if layers is None else listed(layers)  # a list, even of modules, registers no child
        Capture(model, self.layers)  # a wrong name is an error now, not at the first batch
        self._asked = {canonical(model, layer) for layer in self.layers or () if isinstance(layer, str)}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return (_extract_uncompiled if is_dynamo_compiling() else _extract)(self, args, kwargs)

    def extra_repr(self) -> str:
        return f"layers={self.layers!r}"


def _extract(extractor: FeatureExtractor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    with Capture(extractor.module, extractor.layers, detach=False) as acts:
        extractor.module(*args, **kwargs)
    if missing := extractor._asked.difference(split_call(key)[0] for key in acts):
        for name in acts.not_run:
            if name in missing:
                raise LayerError(f"layer {name!r} did not run: the model's forward never called it.")
        for name in filter(missing.__contains__, resolve(extractor.module, extractor.layers)):
            raise unreturned(name)
    return dict(acts)


def _extract_uncompiled(*args: Any) -> dict[str, Any]:
    why = "compile the model inside FeatureExtractor instead"
    reason = {"reason": why} if DISABLING_TAKES_A_REASON else {}
    features: dict[str, Any] = torch.compiler.disable(_extract, **reason)(*args)  # type: ignore[no-untyped-call]
    return features


class FeatureTap(_Transparent):
    """Wrap one module so that it also keeps its latest output: `model.layer1 = FeatureTap(model.layer1)`.

    `output` is a detached copy, because a later layer may overwrite the original. It is None before the first call and
    is not part of `state_dict()`.

    Example:
        >>> model = nn.Sequential(FeatureTap(nn.Conv2d(1, 4, 3)), nn.ReLU(inplace=True))
        >>> _ = model(torch.zeros(1, 1, 8, 8))
        >>> model[0].output.shape
        torch.Size([1, 4, 6, 6])
    """

    @gated
    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        self.output = map_tensors(_detached_copy, output)
        return output

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "output": None}


def _detached_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
