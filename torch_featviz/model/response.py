"""The kernel of one layer, asked of the layer itself: a copy of it runs on made-up input, and no network does.

First the copy is watched. Where it hands its input to one convolution and returns what that makes, with one and the
same weight for every input, this weight is the kernel, to the bit. Any other layer that is linear in its input is known
by its derivative: that of one place of the output holds the kernel, tap by tap. A transposed convolution is known by
its answer to an impulse. That it is linear is checked on noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.errors import FeatvizError, LayerError
from torch_featviz.torch_private import Convolution, TorchDispatchMode

from .held import weight_of
from .inputs import device_of
from .twin import twin
from .untouched import isolated

_AT_ONCE = 2**22  # numbers of made-up input that are run together
_STRIDE = 4  # the greatest that is allowed for where a layer does not tell its own
_TRIED = 4  # layers inside of another whose input it may take
_EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}  # what rounding may add up to, as a share of all summands
_ROUGH = 0.02  # of half precision, and of devices that multiply with fewer bits
_LOUD = 100  # times as large as other noise, lest what a layer clips pass unseen


class Response(NamedTuple):
    """What a layer answers by.

    Args:
        weight: `k c ...`, the filters asked for; `c` is the channels of a group.
        filters: how many there are.
        groups: of channels.
        handed_over: the weight that the layer gave to a convolution, where this is it; None where it was derived.
    """

    weight: Tensor
    filters: int
    groups: int
    handed_over: Tensor | None


class _Geometry(NamedTuple):
    """How a layer's window lies on its input, an entry an axis; none of a linear layer."""

    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    transposed: bool = False
    groups: int = 1

    @property
    def input_size(self) -> tuple[int, ...]:
        """The smallest in which one place sees no padding, wherever its window begins, and does not see all of it."""
        if self.transposed:
            return tuple(2 * -(-p // s) + 2 for p, s in zip(self.padding, self.stride, strict=True))
        axes = zip(self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return tuple(max(d * (k - 1) + s, p) + 1 for k, s, d, p in axes)

    @property
    def place(self) -> tuple[int, ...]:
        """Of the output, the first that sees nothing of the padding; of a transposed one, such a place of the input."""
        return tuple(-(-p // s) for p, s in zip(self.padding, self.stride, strict=True))

    def taps(self, device: torch.device) -> list[Tensor]:
        """Where the taps lie for `place`, an axis at a time."""
        axes = zip(self.place, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return [i * s - p + d * torch.arange(k, device=device) for i, k, s, d, p in axes]


class _Call(NamedTuple):
    """One convolution that ran."""

    given: Tensor
    weight: Tensor
    geometry: _Geometry
    result: Tensor
    version: int


def response(module: nn.Module, *, filters: int | None = None, hooks: bool = False) -> Response:
    """What `module` computes with, in evaluation mode; it is untouched.

    Args:
        module: a layer of one input `b c ...`, or a module around such layers.
        filters: as many of the first ones as are wanted; default all.
        hooks: whether its forward pre-hooks run, too, as those that make its weight have to; others never do.
    Raises:
        LayerError: why there is no kernel by which it computes.
    """
    kind = type(module).__name__
    try:
        net = twin(module)
    except FeatvizError as error:
        raise LayerError(f"a {kind} that cannot be copied: {error}") from error
    net._forward_hooks.clear()
    if not hooks:
        net._forward_pre_hooks.clear()
    reasons = []
    with isolated(), torch.autocast(device_of(net).type, enabled=False):
        for guess in _guesses(net):
            try:
                return _Asked(net, guess).answer(filters)
            except LayerError as error:
                reasons.append(str(error))
            except Exception as error:  # of whatever the layer's own code is
                words = f"{type(error).__name__}: {error}".strip().rstrip(".")
                reasons.append(f"a {kind} that does not run on its own ({words})")
    raise LayerError(reasons[0] if reasons else f"a {kind} without a layer whose input it could take")


class _Asked:
    """One layer and the input that is made up for it."""

    def __init__(self, net: nn.Module, guess: _Geometry) -> None:
        self.net, self.guess = net, guess
        self.kind = type(net).__name__
        held = chain(net.parameters(), net.buffers())
        like = next((tensor for tensor in held if tensor.is_floating_point()), torch.empty(0, device="cpu"))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, guess.channels, *guess.input_size, generator=generator, device="cpu")
        self.noise = noise.to(like.device, like.dtype)

    def answer(self, filters: int | None) -> Response:
        watch, again = _Watch(), _Watch()
        with torch.no_grad(), watch:
            output = self.net(self.noise)
        if not isinstance(output, Tensor) or output.dim() != self.noise.dim() or len(output) != 1:
            raise LayerError(f"a {self.kind}, which returns something else than its channels at each place")
        calls = watch.calls
        if len(calls) == 1 and _returns(output, calls[0]) and _same(calls[0].given, self.noise):
            with torch.no_grad(), again:
                self.net(torch.zeros_like(self.noise))
            if len(again.calls) == 1 and _equal(again.calls[0].weight, calls[0].weight):
                return _handed_over(calls[0], filters)
            raise LayerError(f"a {self.kind}, which makes another kernel for each input")
        geometry = self._geometry(calls, output)
        derived = _by_impulses if geometry.transposed else _by_derivative
        found = derived(self.net, geometry, self.noise, output.shape[1], filters)
        if not found.is_linear():
            raise LayerError(f"a {self.kind}, whose output is not linear in its input")
        weight, groups = _by_groups(found.full, geometry.groups, output.shape[1])
        return Response(weight, output.shape[1], groups, handed_over=None)

    def _geometry(self, calls: list[_Call], output: Tensor) -> _Geometry:
        """That of the widest convolution which is given the input and returns what lies like the output."""
        direct = []
        for call in calls:
            at = _offset(call.given, self.noise)
            if at is not None and call.result.shape == output.shape:
                padding = tuple(p + o for p, o in zip(call.geometry.padding, at, strict=True))
                direct.append(call.geometry._replace(padding=padding))
        return max(direct, key=lambda geometry: prod(geometry.kernel), default=self.guess)


class _Watch(TorchDispatchMode):
    """Notes the convolutions that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(getattr(func, "overloadpacket", func)) in ("aten.convolution", "aten._convolution"):
            given, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
            kernel = tuple(weight.shape[2:])
            axes = [tuple(each) * (len(kernel) if len(each) == 1 else 1) for each in (stride, dilation, padding)]
            geometry = _Geometry(given.shape[1], kernel, axes[0], axes[1], axes[2], transposed, groups)
            self.calls.append(_Call(given, weight, geometry, result, result._version))
        return result


def _returns(output: Tensor, call: _Call) -> bool:
    """Whether a layer returned what a convolution made, and wrote nothing to it."""
    same = output.data_ptr() == call.result.data_ptr() and output.shape == call.result.shape
    return same and output._version == call.version


def _same(given: Tensor, noise: Tensor) -> bool:
    return _offset(given, noise) is not None


def _offset(given: Tensor, noise: Tensor) -> tuple[int, ...] | None:
    """Where in what a convolution was given the layer's own input lies; None where it is no part of it."""
    if given.dim() != noise.dim() or given.shape[:2] != noise.shape[:2] or given.dtype != noise.dtype:
        return None
    room = [larger - size for larger, size in zip(given.shape[2:], noise.shape[2:], strict=True)]
    if min(room, default=0) < 0:
        return None
    for at in product(*(range(free + 1) for free in room)):
        cut = (slice(None), slice(None), *(slice(o, o + n) for o, n in zip(at, noise.shape[2:], strict=True)))
        if torch.equal(given[cut], noise):
            return at
    return None


def _handed_over(call: _Call, filters: int | None) -> Response:
    weight = by_filters(call.weight, call.geometry.groups) if call.geometry.transposed else call.weight
    return Response(weight.detach()[:filters], len(weight), call.geometry.groups, call.weight.detach())


def by_filters(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution, stored input channels first and group by group, as `k c ...`."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


class _Derived(NamedTuple):
    """The full kernels `k c ...` that a layer seems to compute with, and what shows whether it does.

    Args:
        rows: the kernels as a matrix: what it is multiplied with, a row for each of some numbers of the output.
        seen: what those numbers see of inputs of noise, a row an input.
        constant: what they are for an input of zeros.
        answers: and for the noise, a row an input.
    """

    full: Tensor
    rows: Tensor
    seen: Tensor
    constant: Tensor
    answers: Tensor

    def is_linear(self) -> bool:
        """Whether noise makes of the output what the kernels say."""
        scale = self.seen.abs() @ self.rows.abs().T + self.constant.abs()
        return _close(self.answers, self.seen @ self.rows.T + self.constant, scale.amax(1, keepdim=True))


def _noises(noise: Tensor) -> Tensor:
    """Inputs that tell a layer which is not linear, wherever it bends or clips."""
    return torch.cat([noise, -noise, _LOUD * noise, -_LOUD * noise.flip(1)])


def _by_derivative(net: nn.Module, geometry: _Geometry, noise: Tensor, outputs: int, filters: int | None) -> _Derived:
    """The kernels as the derivative of one place of the output."""
    taps = geometry.taps(noise.device)
    parts, constant = [], []
    for rows in torch.split(torch.arange(outputs, device=noise.device)[:filters], max(1, _AT_ONCE // noise.numel())):
        leaf = noise.new_zeros(len(rows), *noise.shape[1:]).requires_grad_()
        own = torch.arange(len(rows), device=noise.device)
        values = net(leaf)[own, rows][_at(geometry.place, 1)]
        if not values.requires_grad:
            raise LayerError(f"a {type(net).__name__}, through which no gradient passes")
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        parts.append(_picked(slopes, taps))
        _check_rest(net, parts[-1], slopes)
        constant.append(values.detach())
    full, loud = torch.cat(parts), _noises(noise)
    with torch.no_grad():
        answers = net(loud)[_at(geometry.place)][:, :filters]
    return _Derived(full, full.flatten(1), _picked(loud, taps).flatten(1), torch.cat(constant), answers)


def _by_impulses(net: nn.Module, geometry: _Geometry, noise: Tensor, outputs: int, filters: int | None) -> _Derived:
    """The kernels as the answers to an impulse at one place of the input, a channel at a time."""
    taps, channels = geometry.taps(noise.device), noise.shape[1]
    reach = zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    size = prod((outputs, *(d * k + s for k, s, d in reach)))
    at = _at(geometry.place)

    def answers_to(values: Tensor) -> Tensor:
        given = noise.new_zeros(len(values), *noise.shape[1:])
        given[at] = values
        answer: Tensor = net(given)
        return answer

    with torch.no_grad():
        nothing = net(torch.zeros_like(noise))
        parts = []
        for rows in torch.split(torch.eye(channels, device=noise.device, dtype=noise.dtype), max(1, _AT_ONCE // size)):
            answer = answers_to(rows) - nothing
            parts.append(_picked(answer, taps)[:, :filters])
            _check_rest(net, _picked(answer, taps), answer)
        seen = _noises(noise)[at]
        answers = _picked(answers_to(seen), taps)[:, :filters]
    full = torch.cat(parts).transpose(0, 1)
    constant = _picked(nothing, taps)[0, :filters].flatten()
    return _Derived(full, full.movedim(1, -1).flatten(0, -2), seen, constant, answers.flatten(1))


def _check_rest(net: nn.Module, part: Tensor, whole: Tensor) -> None:
    """Raise LayerError unless all that is not 0 lies in the kernel."""
    if not _close(part.abs().sum(), whole.abs().sum(), whole.abs().sum()):
        raise LayerError(f"a {type(net).__name__}, whose output depends on more of its input than its kernel covers")


def _at(place: tuple[int, ...], before: int = 2) -> tuple[slice | int, ...]:
    """One place, of all that the axes before it hold."""
    return (*[slice(None)] * before, *place)


def _picked(values: Tensor, taps: Sequence[Tensor]) -> Tensor:
    for axis, at in enumerate(taps):
        values = values.index_select(2 + axis, at)
    return values


def _close(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Whether two differ by rounding only; where something is not finite there is no telling."""
    off = (one - other).abs()
    rounding = _EXACT.get(one.dtype, _ROUGH) if one.device.type == "cpu" else _ROUGH
    return not bool((off > rounding * scale).any())


def _by_groups(full: Tensor, groups: int, outputs: int) -> tuple[Tensor, int]:
    """Each filter's own channels, where all others are 0; else all of them, in one group."""
    filters, channels = full.shape[:2]
    if groups == 1 or channels % groups or outputs % groups:
        return full, 1
    split = full.view(filters, groups, channels // groups, *full.shape[2:])
    rows = torch.arange(filters, device=full.device)
    own = split[rows, rows * groups // outputs]
    return (own, groups) if int(own.count_nonzero()) == int(split.count_nonzero()) else (full, 1)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two weights are the same, NaN being like NaN."""
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _guesses(net: nn.Module) -> Iterator[_Geometry]:
    """Inputs that a module may take: its own, or those of layers in it."""
    found = dict.fromkeys(guess for module in net.modules() if (guess := _guess(module)) is not None)
    yield from list(found)[:_TRIED]


def _guess(module: nn.Module) -> _Geometry | None:
    """The input that a layer takes by what it tells of itself, or by the shape of its weight."""
    if isinstance(module, nn.Linear):
        return _Geometry(module.in_features, (), (), (), ())
    weight = None if isinstance(module, Convolution) else weight_of(module)
    if weight is None and not isinstance(module, Convolution):
        return None
    kernel = tuple(module.kernel_size) if weight is None else tuple(weight.shape[2:])  # type: ignore[arg-type]
    if not 1 <= len(kernel) <= 2:
        return None
    axes = len(kernel)
    groups = getattr(module, "groups", 1)
    transposed = bool(getattr(module, "transposed", False))
    given = None if weight is None else len(weight) if transposed else weight.shape[1] * groups
    return _Geometry(
        int(module.in_channels if given is None else given),  # type: ignore[arg-type]
        kernel,
        _numbers(getattr(module, "stride", None), axes, _STRIDE),
        _numbers(getattr(module, "dilation", None), axes, 1),
        _numbers(getattr(module, "padding", None), axes, 0),
        transposed,
        groups if isinstance(groups, int) else 1,
    )


def _numbers(value: Any, axes: int, default: int) -> tuple[int, ...]:
    """An option of a convolution, a number an axis; what is none (padding="same") as the default."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,) * axes
    fits = isinstance(value, (tuple, list)) and len(value) == axes and all(isinstance(each, int) for each in value)
    return tuple(value) if fits else (default,) * axes
