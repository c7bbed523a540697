"""In a Sequential, an activation in place right after a captured layer is run out of place.

`nn.Sequential` goes on with what a child returns, and nobody but itself has what the child was given. So nobody can
tell; what was captured is not overwritten; and that costs no copy, and no more traffic than in place.

Where the network's own code calls the activation it may go on with what it gave: there the layer's output is copied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import pairwise
from types import FrameType, MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from torch_featviz.torch_private import CALL, WRAPPED_CALL

from .eager import eager
from .recorder import Recorder
from .tap import Taps, has_hooks, is_stand_in, put, untapped

# Not ELU and its kin, whose gradients are rounded otherwise in place.
_OUT_OF_PLACE: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda _, x: F.relu(x),
    nn.ReLU6: lambda _, x: F.relu6(x),
    nn.Hardtanh: lambda m, x: F.hardtanh(x, m.min_val, m.max_val),
    nn.LeakyReLU: lambda m, x: F.leaky_relu(x, m.negative_slope),
    nn.SiLU: lambda _, x: F.silu(x),
    nn.Mish: lambda _, x: F.mish(x),
    nn.Hardswish: lambda _, x: F.hardswish(x),
    nn.Hardsigmoid: lambda _, x: F.hardsigmoid(x),
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_MAKES_NEW = frozenset([nn.Linear, *_CONVOLUTIONS, *_NORMS])  # kinds of layers that return a tensor that is nobody's


def spare(modules: Iterable[nn.Module], layers: Collection[nn.Module], recorder: Recorder, taps: Taps) -> None:
    """Have activations in place spare what `layers` return, where nobody can tell.

    One that another capture stands in for is left to that, and spares what it may; `recorder` then has to watch.
    """
    made = recorder.sparing = {}
    for sequence, layer, activation in _in_a_row(modules):
        if layer in layers:
            made.setdefault(activation, []).append((layer, sequence))
    stand_ins = {kind: _stand_in(kind, recorder) for kind in set(map(type, made))}
    for activation in made:
        if "forward" in vars(activation):
            recorder.shadowed = True
        else:
            put(activation, "forward", MethodType(stand_ins[type(activation)], activation), taps)


def _in_a_row(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
    """A Sequential, a layer in it, and the activation in place that follows; neither with hooks, which would see it."""
    for sequence in modules:
        if isinstance(sequence, nn.Sequential):
            for layer, activation in pairwise(sequence):
                known = type(layer) in _MAKES_NEW and type(activation) in _OUT_OF_PLACE
                if known and vars(activation)["inplace"] and _is_plain(layer) and _is_plain(activation):
                    yield sequence, layer, activation


def _is_plain(module: nn.Module) -> bool:
    """Whether it has no hooks, and its forward is that of its kind, but for captures."""
    slots = vars(module)
    return not has_hooks(module) and ("forward" not in slots or "forward" not in untapped(slots, slots))


def _stand_in(kind: type[nn.Module], recorder: Recorder) -> Callable[..., Any]:
    in_place, out_of_place = kind.forward, _OUT_OF_PLACE[kind]

    def forward(self: nn.Module, input: Tensor) -> Any:
        if is_dynamo_compiling() or not _may_spare(self, recorder, input):
            return in_place(self, input)
        return out_of_place(self, input)

    return forward


@eager
def _may_spare(activation: nn.Module, recorder: Recorder, given: Tensor) -> bool:
    """Whether `given` is what a captured layer just returned, and only its Sequential has it."""
    for layer, sequence in recorder.sparing.get(activation, ()):
        if recorder.just_recorded(layer, given):
            hooked = has_hooks(layer) or has_hooks(activation)  # since the block began
            return not hooked and _calls(sequence)
    return False


def _calls(sequence: nn.Module) -> bool:
    """Whether the module under way is called by the forward of this Sequential."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_between(frame):
        frame = frame.f_back
    return frame is not None and frame.f_code is _SEQUENTIAL and frame.f_locals["self"] is sequence


def _is_between(frame: FrameType) -> bool:
    """Whether it is one of those that PyTorch and this package put between a forward and its caller."""
    ours = is_stand_in(frame.f_code) or str(frame.f_globals.get("__name__")).startswith("torch_featviz.")
    return ours or frame.f_code.co_name in (CALL, WRAPPED_CALL)


_SEQUENTIAL = nn.Sequential.forward.__code__
