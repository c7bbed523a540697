"""What a convolution in two dimensions computes with, as its answers tell: to an impulse at each tap, and to noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from torch_featviz.model.twin import twin

Conv: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
_ENTRIES = 2**24  # numbers that a layer is given at once
_EVERY = slice(None)


class Probe(NamedTuple):
    """Where the taps of a layer are, in an input around whose middle no padding is seen.

    Args:
        size: of the input, rows and columns.
        middle: of a convolution the place of its output that is read, of a transposed one that of its input.
        taps: where the kernel's weights meet, row by row: in the input; of a transposed one in the output.
    """

    size: tuple[int, ...]
    middle: tuple[int, ...]
    taps: list[tuple[int, ...]]

    @classmethod
    def of(cls, layer: Conv) -> Probe:
        """Of a `bare` layer, by noise in one row or column after another."""
        reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        # Far enough from the edge that no padding, of whatever mode, comes into the middle.
        size = tuple(r + 4 * s for r, s in zip(reach, layer.stride, strict=True))
        quiet = _quiet(layer, size)
        if isinstance(layer, nn.ConvTranspose2d):  # where the middle place writes to
            middle = tuple(n // 2 for n in size)
            (written,) = _answers(layer, quiet, [(_EVERY, *middle)], lambda a: a.abs().amax(1), noise=True)
            starts = [int((written.amax(1 - axis) > 1e-12).nonzero()[0]) for axis in (0, 1)]
        else:  # from where the middle place reads
            middle = tuple(n // 2 for n in layer(quiet).shape[2:])
            read = lambda answer: answer[:, :, middle[0], middle[1]].abs().amax(1)
            down = _answers(layer, quiet, [(_EVERY, row) for row in range(size[0])], read, noise=True)
            across = [(_EVERY, _EVERY, column) for column in range(size[1])]
            both = down, _answers(layer, quiet, across, read, noise=True)
            starts = [int((seen > 1e-12).nonzero()[0]) for seen in both]
        taps = [
            tuple(start + d * tap for start, d, tap in zip(starts, layer.dilation, ij, strict=True))
            for ij in product(*map(range, layer.kernel_size))
        ]
        return cls(size, middle, taps)


def bare(layer: Conv) -> Conv:
    """A copy in float64 that only computes: without hooks, but those that make its weight."""
    copy = cast("Conv", twin(layer).double())
    copy._forward_hooks.clear()
    for key, hook in list(copy._forward_pre_hooks.items()):
        if not type(hook).__module__.startswith("torch.nn.utils."):
            del copy._forward_pre_hooks[key]
    return copy


@torch.no_grad()
def impulses(layer: Conv, probe: Probe, channels: int) -> Tensor:
    """What a `bare` layer answers to one 1 at each tap, among zeros: `k c h w`, of the first channels of each group."""
    quiet = _quiet(layer, probe.size)
    each = layer.in_channels // layer.groups
    chosen = [slice(c, None, each) for c in range(min(channels, each))]
    if isinstance(layer, nn.ConvTranspose2d):
        places: list[tuple[Any, ...]] = [(c, *probe.middle) for c in chosen]
        found = _answers(layer, quiet, places, lambda answer: _at(answer, probe.taps)).transpose(0, 1)
    else:
        places = [(c, *at) for c in chosen for at in probe.taps]
        found = _answers(layer, quiet, places, lambda answer: _at(answer, [probe.middle])[:, :, 0]).t()
    return found.reshape(len(found), len(chosen), *layer.kernel_size)


@torch.no_grad()
def off_by_noise(layer: Conv, probe: Probe, weight: Tensor) -> float:
    """How far a `bare` layer's answer to noise is from that of kernels `k c h w`, as a share of the largest."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(layer.in_channels, *probe.size, generator=generator, dtype=torch.double, device="cpu")
    quiet = _quiet(layer, probe.size)
    noise, given = noise.to(quiet.device), quiet.clone()
    transposed = isinstance(layer, nn.ConvTranspose2d)
    at: tuple[Any, ...] = (_EVERY, *probe.middle) if transposed else (_EVERY,)
    given[0][at] = noise[at]
    answer = layer(given) - layer(quiet)
    groups = layer.groups
    kernels = weight.double().flatten(2).view(groups, -1, *weight.shape[1:2], len(probe.taps))
    if transposed:
        got = _at(answer, probe.taps)[0]
        expected = torch.einsum("gkct,gc->gkt", kernels, noise[at].view(groups, -1)).flatten(0, 1)
    else:
        got = _at(answer, [probe.middle])[0, :, 0]
        patch = _at(given, probe.taps)[0].view(groups, -1, len(probe.taps))
        expected = torch.einsum("gkct,gct->gk", kernels, patch).flatten()
    return apart(got, expected)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest number of either."""
    largest = max(float(one.abs().max()), float(other.abs().max()), 1e-12)
    return float((one.double() - other.double()).abs().max()) / largest


def _at(answer: Tensor, places: list[tuple[int, ...]]) -> Tensor:
    """`b k h w -> b k t`."""
    rows, columns = ([at[axis] for at in places] for axis in (0, 1))
    return answer[:, :, rows, columns]


def _quiet(layer: Conv, size: tuple[int, ...]) -> Tensor:
    device = next(layer.parameters()).device
    return torch.zeros(1, layer.in_channels, *size, dtype=torch.double, device=device)


def _answers(
    layer: Conv,
    quiet: Tensor,
    places: list[tuple[Any, ...]],
    read: Callable[[Tensor], Tensor],
    *,
    noise: bool = False,
) -> Tensor:
    """Of a 1 at each of these places, or of noise there, what is read of the answers; some at a time."""
    found, part = [], max(1, _ENTRIES // quiet.numel())
    with torch.no_grad():
        still = layer(quiet)
        for start in range(0, len(places), part):
            given = quiet.repeat(len(places[start : start + part]), 1, 1, 1)
            for one, at in zip(given, places[start : start + part], strict=True):
                one[at] = torch.rand_like(one[at]) if noise else 1
            found.append(read(layer(given) - still))
    return torch.cat(found)
