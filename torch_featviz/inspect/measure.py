"""One forward of one image, under hooks: what each layer costs, what it was given, and whether it does anything."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.errors import FeatvizError, ShapeError

PARAMETRIZATIONS = "parametrizations"  # where torch keeps what makes a weight, such as spectral_norm


class Measured(NamedTuple):
    """Of one forward of one image."""

    flops: dict[str, list[int]]  # call by call
    total: int
    feeding: dict[str, list[tuple[str, int] | None]]  # call by call, the layer whose output it was given, and its call
    idle: set[str]  # layers that returned what they were given, in another shape at most


def works(module: nn.Module) -> bool:
    """Whether a module computes something itself, and not only by the modules in it."""
    inside = any(name != PARAMETRIZATIONS for name, _ in module.named_children())
    return not inside or any(True for _ in module.parameters(recurse=False))


def run(net: nn.Module, images: Tensor) -> Any:
    """What a model returns.

    Raises:
        ShapeError: it raised anything of its own.
    """
    try:
        return net(images)
    except FeatvizError:
        raise
    except Exception as error:  # whatever a model may raise
        what = f"{type(error).__name__}: {error}".rstrip(".")
        raise ShapeError(f"the model does not take images of shape {tuple(images.shape)}: {what}.") from error


def measured(net: nn.Module, image: Tensor) -> Measured:
    """Run it under hooks, which are gone afterwards, and count.

    Args:
        net: as it is to run; under `no_grad`.
        image: `1 c h w`.
    Raises:
        ShapeError: the model does not take it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  brings Dynamo

    names = {module: name for name, module in net.named_modules()}
    origin: dict[int, tuple[Tensor, int, str, int]] = {}
    found = Measured({name: [] for name in names.values()}, 0, {name: [] for name in names.values()}, set())
    begun: dict[str, tuple[int, int]] = {}  # by layer, as it begins: operations so far, and the version of the input

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensor, version, name, call = origin.get(id(inputs[0]) if inputs else 0, (None, 0, "", 0))
        same = tensor is not None and _version(tensor) == version  # or else something was added to it since
        found.feeding[names[module]].append((name, call) if same else None)
        begun[names[module]] = (counter.get_total_flops(), _version(inputs[0] if inputs else None))

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = names[module]
        flops, version = begun[name]
        found.flops[name].append(counter.get_total_flops() - flops)
        if isinstance(output, Tensor):  # which is kept, lest another one be given its place
            origin[id(output)] = (output, _version(output), name, len(found.feeding[name]))
            given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if given is not None and _same_memory(given, output) and _version(given) == version:
                found.idle.add(name)

    working = [module for module in net.modules() if works(module)]
    hooks = [module.register_forward_pre_hook(before) for module in working]
    hooks += [module.register_forward_hook(after) for module in working]
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whose one call for all of an attention is not counted
    try:
        with counter:
            run(net, image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    return found._replace(total=counter.get_total_flops())


def _version(tensor: Any) -> int:
    """How often it was written to; inference tensors do not count that."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel() > 0
