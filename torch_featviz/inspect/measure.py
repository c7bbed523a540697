"""One forward of one image: what each layer costs, which layer feeds it, and whether it does anything."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from torch_featviz.model.held import base_of
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import WITHOUT_FORWARD
from torch_featviz.model.run import hooked, run

from .compute import counting

PARAMETRIZATIONS = "parametrizations"  # where torch keeps what makes a weight, such as spectral_norm


class Measured(NamedTuple):
    """What one forward of one image showed of the layers; lists hold one entry per call."""

    multiply_adds: dict[str, list[int]]
    total: int  # multiply-adds of the whole forward
    feeding: dict[str, list[tuple[str, int] | None]]  # the layer whose output was the input, and which call of it
    idle: set[str]  # layers that return their input, reshaped at most
    uncounted: set[str]  # layers in which an operator ran that there is no formula for


def works(module: nn.Module) -> bool:
    """Whether a module computes something itself, and not only by the modules in it; an adapter adds to one of them."""
    if type(module) in WITHOUT_FORWARD:
        return False
    inside = any(name != PARAMETRIZATIONS for name, _ in module.named_children())
    return not inside or any(True for _ in module.parameters(recurse=False)) or base_of(module) is not None


def measured(net: nn.Module, one: Inputs) -> Measured:
    """Run a copy of a model once under hooks.

    Args:
        net: the caller chooses its mode and turns gradients off.
        one: the inputs of one image.
    Raises:
        ShapeError, DtypeError, DeviceError, OptionError: the model does not take them.
    """
    names = {module: name for name, module in net.named_modules()}
    origin: dict[int, tuple[Tensor, int, str, int]] = {}
    result = Measured({name: [] for name in names.values()}, 0, {name: [] for name in names.values()}, set(), set())
    begun: dict[str, tuple[int, int, int]] = {}  # multiply-adds, unknown operators, version of the input

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensor, version, name, call = origin.get(id(inputs[0]) if inputs else 0, (None, 0, "", 0))
        same = tensor is not None and _version(tensor) == version  # else it was written to since
        result.feeding[names[module]].append((name, call) if same else None)
        begun[names[module]] = count.multiply_adds, len(count.unknown), _version(inputs[0] if inputs else None)

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = names[module]
        multiply_adds, unknown, version = begun[name]
        result.multiply_adds[name].append(count.multiply_adds - multiply_adds)
        if len(count.unknown) > unknown:
            result.uncounted.add(name)
        if isinstance(output, Tensor):  # kept, lest a later tensor get its id
            origin[id(output)] = (output, _version(output), name, len(result.feeding[name]))
            given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if given is not None and _same_memory(given, output) and _version(given) == version:
                result.idle.add(name)

    working = [module for module in names if works(module)]
    with hooked(working, before=before, after=after), counting() as count:
        run(net, one)
    return result._replace(total=count.multiply_adds)


def _version(tensor: Any) -> int:
    """How often it was written to; inference tensors do not count that."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel() > 0
