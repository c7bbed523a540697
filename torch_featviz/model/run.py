"""The one way to run a network: on a copy or in evaluation mode, up to a layer or from it, with errors of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torch_featviz.errors import DeviceError, DtypeError, FeatvizError, LayerError, OptionError, ShapeError

from .inputs import Inputs
from .layers import module_at, split_call
from .layout import Layout
from .values import tensors

T = TypeVar("T")
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # of inputs, by torch and by layers


def run(net: nn.Module, inputs: Inputs) -> Any:
    """What `net` returns.

    Raises:
        DeviceError: the inputs are on another device than its weights.
        DtypeError: the inputs are of another dtype than its weights.
        OptionError: its `forward` takes other arguments.
        ShapeError: it refused them for another reason, such as images of another size.

    Other errors, which are the model's own faults, pass as they are.
    """
    try:
        return net(*inputs.positional, **inputs.named)
    except (FeatvizError, torch.cuda.OutOfMemoryError):
        raise
    except _REFUSALS as error:
        raise _explained(error, net, inputs) from error


def _explained(error: Exception, net: nn.Module, inputs: Inputs) -> FeatvizError:
    """The likeliest reason why a model raised."""
    if other := _on_another_device(net, (inputs.images, inputs.args, dict(inputs.keywords))):
        return other
    name = type(net).__name__
    weights = [tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()]
    dtypes = {tensor.dtype for tensor in weights}
    images = inputs.images
    if dtypes and images.is_floating_point() and images.dtype not in dtypes and not torch.is_autocast_enabled():
        wanted = _listed(dtypes)
        return DtypeError(
            f"images are {images.dtype}, but the weights of {name} are {wanted}; pass images.to({wanted})."
        )
    if isinstance(error, TypeError) and (known := _misfit(net, inputs)):
        return OptionError(
            f"{name}.forward{known} takes other arguments ({error}); pass further ones with "
            "additional_forward_args=(...) or keywords={'name': value}."
        )
    if images.is_nested:
        return DtypeError(f"{name} does not accept nested tensors ({type(error).__name__}: {error}).")
    what = f"{type(error).__name__}: {error}".rstrip(".")
    hint = " One image 'c h w' is given as images[None]." if images.dim() == 3 else ""
    return ShapeError(f"{name} does not accept inputs of shape {tuple(images.shape)}: {what}.{hint}")


def _on_another_device(net: nn.Module, given: Any) -> DeviceError | None:
    devices = {tensor.device for tensor in (*net.parameters(), *net.buffers())}
    away = {tensor.device for tensor in tensors(given)} - devices
    if not devices or not away:
        return None
    where = f"the weights of {type(net).__name__} on {_listed(devices)}"
    return DeviceError(f"the inputs are on {_listed(away)} and {where}; move the inputs.")


@contextmanager
def device_told(net: nn.Module, given: Any) -> Iterator[None]:
    """An error within, where `net` is given tensors of another device, says that.

    Weights on the meta device have no values; a convolution may read what lies in memory instead, and return that.

    Raises:
        DeviceError: that.
    """
    if any(weight.is_meta for weight in net.parameters()) and (other := _on_another_device(net, given)):
        raise other
    try:
        yield
    except RuntimeError as error:
        raise _on_another_device(net, given) or error from error


def _misfit(net: nn.Module, inputs: Inputs) -> str:
    """The signature of a forward that these inputs cannot be bound to; empty where they can."""
    with suppress(ValueError):  # of a function without a signature
        known = signature(type(net).forward)
        try:
            known.bind(net, *inputs.positional, **inputs.named)
        except TypeError:
            return str(known)
    return ""


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, values)))


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Call `before(module, inputs)` and `after(module, inputs, output)` around each call; nothing is left behind.

    Forward hooks are registered here and nowhere else, and on a copy of the model (`twin`).
    """
    hooks = []
    try:
        for module in modules:
            if before is not None:
                hooks.append(module.register_forward_pre_hook(before))
            if after is not None:
                hooks.append(module.register_forward_hook(after))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def wrapped(net: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> nn.Module:
    """The same copy (`twin`), which now calls `before(module, args, keywords)` and `after(module, args, output)`.

    What they return replaces what the network is given, and what it returned.
    """
    net.register_forward_pre_hook(before, with_kwargs=True)
    net.register_forward_hook(after)
    return net


class _Reached(BaseException):
    """Ends a forward at its layer; no model's `except Exception` is to swallow it."""


def run_until(net: nn.Module, layer: str, inputs: Inputs) -> Any:
    """What `layer` returns at its first call; the rest of the network does not run.

    Raises:
        LayerError: it did not run.
    """
    outputs: list[Any] = []

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)
        raise _Reached

    with hooked([module_at(net, layer)], after=stop), suppress(_Reached):
        run(net, inputs)
    if not outputs:
        raise LayerError(f"layer {layer!r} did not run: the model's forward never called it.")
    return outputs[0]


def run_looking_at(net: nn.Module, layer: str, inputs: Inputs, look: Callable[[Any], T]) -> T:
    """`look(output)` of a layer that runs once; the network runs to its end, where it can.

    What fails after the layer is of no consequence: a head that fits no other size of image, say.

    Raises:
        LayerError: the layer does not run exactly once.
        ShapeError, DeviceError, DtypeError, OptionError: as of `run`, where the layer was not reached.
    """
    seen: list[T] = []
    failed: FeatvizError | None = None
    with hooked([module_at(net, layer)], after=lambda _module, _inputs, output: seen.append(look(output))):
        try:
            run(net, inputs)
        except (ShapeError, DtypeError, DeviceError, OptionError) as error:
            failed = error
    if failed is not None and not seen:
        raise failed
    check_once(layer, len(seen))
    return seen[0]


@contextmanager
def graph_from(net: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Within the block, autograd's graph of `net` begins at what `layer` returns; the list holds that, one a call.

    Raises:
        ShapeError: the layer returns no tensor.
    """
    leaves: list[Tensor] = []

    def begin(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise ShapeError(f"layer {layer!r} returns a {type(output).__name__}, not a map; choose a convolution.")
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # the network may go on in place

    with hooked([module_at(net, layer)], after=begin):
        yield leaves


def check_once(layer: str, times: int) -> None:
    """Raise LayerError unless a layer ran once."""
    if times == 0:
        raise LayerError(f"layer {layer!r} did not run: the model's forward never called it.")
    if times > 1:
        names = ", ".join(f"'{layer}#{call}'" for call in range(1, min(times, 4) + 1))
        more = ", ..." if times > 4 else ""
        raise LayerError(f"layer {layer!r} ran {times} times in one forward; choose one call: {names}{more}.")


def check_call(name: str, times: int) -> None:
    """The same of a name that may have the number of a call, `'relu#2'`: then the layer has to run as often."""
    layer, call = split_call(name)
    if call is None or not times:
        check_once(layer, times)
    elif call > times:
        ran = "once" if times == 1 else f"{times} times"
        raise LayerError(f"layer {layer!r} ran {ran} in one forward; it has no call {call}.")


def one_call(net: nn.Module, layer: str, channels_at: int | Layout = 1) -> tuple[nn.Module, str]:
    """The network and the name by which one call of one of its layers can be looked at.

    Args:
        net: a copy (`twin`), which is changed where a call is named, or channels are elsewhere.
        layer: its full name, also as `capture` gives it to one of several calls, `'relu#2'`.
        channels_at: the axis of what it returns that its channels are on, or of tokens their layout; it is looked at as
            `b c ...`.
    Returns:
        `net` and the name; where a call is named, or channels are elsewhere, a network around `net`, in which that is
        a layer of its own.
    Raises:
        LayerError: no such layer.
    """
    base, number = split_call(layer)
    module = module_at(net, layer)
    if number is None and channels_at == 1:
        return net, layer
    called = _Called(net, module, base, number, channels_at)
    return called, called.name_of_call


class _Called(nn.Module):
    """A network in which what a layer returns, at its n-th call or at all, is that of a layer `call`, as `b c ...`."""

    name_of_call = "call"

    def __init__(
        self, net: nn.Module, module: nn.Module, layer: str, number: int | None, channels_at: int | Layout
    ) -> None:
        super().__init__()
        self.net = net
        self.call = nn.Identity()
        self.layer, self.number, self.channels_at = layer, number, channels_at
        self.calls = 0
        module.register_forward_hook(self._count)

    def _count(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        self.calls += 1
        if self.number not in (None, self.calls):
            return None
        if self.channels_at == 1:
            return self.call(output)
        if isinstance(self.channels_at, Layout):
            return self.channels_at.put_back(self.call(self.channels_at.maps(output)), output)
        return self.call(output.movedim(self.channels_at, 1)).movedim(1, self.channels_at)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        self.calls = 0
        output = self.net(*args, **keywords)
        if self.number is not None and self.calls < self.number:
            check_call(f"{self.layer}#{self.number}", self.calls)
        return output
