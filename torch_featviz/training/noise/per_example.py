"""The gradient of each example's share of a loss, by its squared norm, from what a layer was given and got back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.capture.reduce.reducer import wide

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
CHUNK = 2**22  # values of patches that are unfolded at once
_PAD = {"zeros": "constant"}  # as F.pad calls what convolutions call otherwise


@torch.no_grad()
def sum_of_squared_norms(
    layer: nn.Module, given: Tensor, grad: Tensor, *, examples: int | None, start: float, **learnt: bool
) -> Tensor:
    """The sum of `squared_norms` over a batch, from a sample of it where that costs less; one number, as `wide` has it.

    Late in a training a few examples have nearly all of the gradient, and an even sample would miss them. Each example
    is drawn in proportion to the product of the squared norms of what the layer was given and got back, of which its
    gradient's squared norm is much the same share in all of them, and divided by how often it is drawn on average. So
    the sum is right on average over `start`, whatever the examples are.

    Args:
        examples: how many are drawn; None for all, and all where there are not more, or there is one place only.
        start: from 0 to 1, where in the batch the even steps of the sample begin.
    Reference: Madow 1949, systematic sampling with probability proportional to size.
    """
    precision = wide(grad.device)
    if examples is None or len(grad) <= examples or (isinstance(layer, nn.Linear) and grad.dim() == 2):
        total: Tensor = squared_norms(layer, given, grad, **learnt).sum(dtype=precision)
        return total
    sizes = _lengths(given, precision) * _lengths(grad, precision)
    ends = sizes.cumsum(0)
    steps = (torch.arange(examples, dtype=precision, device=grad.device) + start) / examples
    drawn = torch.searchsorted(ends, steps * ends[-1], right=True).clamp_max(len(grad) - 1)  # a step may be NaN
    squares = squared_norms(layer, given[drawn], grad[drawn], **learnt).to(precision)
    shares = torch.where(ends[-1] == 0, 1.0, sizes[drawn] / ends[-1])  # without gradients there is nothing to share
    mean: Tensor = (squares / shares).mean()
    return mean


def _lengths(tensor: Tensor, precision: torch.dtype) -> Tensor:
    """The squared norm of each example."""
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=_precise(tensor))
    return norms.to(precision).square()


@torch.no_grad()
def squared_norms(layer: Any, given: Tensor, grad: Tensor, *, weight: bool = True, bias: bool = True) -> Tensor:
    """The squared norm of each example's part of the gradient of `layer.weight` and `layer.bias`: `b`.

    The gradient of a weight is the sum over examples and places of an outer product: what came in times the gradient
    of what went out. Of each example it is summed over its places, and squared: as a matrix, or, where that is
    cheaper, by the inner products of all pairs of places.

    Args:
        layer: linear, a convolution, or a transposed one; of any stride, padding, dilation and groups.
        given: its input, `b ... c` of a linear layer and `b c ...` of a convolution.
        grad: the gradient of its output.
        weight, bias: which of the two count; a bias only where there is one.
    Returns:
        float64 where the gradient is, else float32.
    Reference: Goodfellow 2015, arXiv 1510.01799; Rochette et al. 2019, arXiv 1912.06015.
    Example:
        >>> layer = nn.Linear(2, 1)
        >>> squared_norms(layer, torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]))  # 2 · (3, 4), and 2 of the bias
        tensor([104.])
    """
    precise = _precise(grad)
    squares = torch.zeros(len(grad), dtype=precise, device=grad.device)
    given, grad = given.to(grad.dtype).to(precise), grad.to(precise)  # as autocast had it
    with torch.autocast(grad.device.type, enabled=False):
        if weight:
            squares += _of_linear(given, grad) if isinstance(layer, nn.Linear) else _of_convolution(layer, given, grad)
        if bias and layer.bias is not None:
            places = (*range(1, grad.dim() - 1),) if isinstance(layer, nn.Linear) else (*range(2, grad.dim()),)
            squares += (grad.sum(places) if places else grad).square().sum(1)
    return squares


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _of_linear(given: Tensor, grad: Tensor) -> Tensor:
    if grad.dim() == 2:
        return given.square().sum(1) * grad.square().sum(1)
    places = math.prod(grad.shape[1:-1])
    size = places * (given.shape[-1] + grad.shape[-1])
    return _in_chunks(size, lambda a, d: _of_outer_products(a.flatten(1, -2), d.flatten(1, -2)), given, grad)


def _of_convolution(layer: Any, given: Tensor, grad: Tensor) -> Tensor:
    """A kernel's gradient is that of a linear layer whose inputs are the patches under the kernel, group by group."""
    groups = layer.groups
    # What a transposed convolution spreads over patches is its input: the two change places.
    unfolded, other = (grad, given) if isinstance(layer, TRANSPOSED) else (given, grad)
    places = math.prod(other.shape[2:])
    size = places * (unfolded.shape[1] * math.prod(layer.kernel_size) + other.shape[1])

    def of_chunk(whole: Tensor, at_places: Tensor) -> Tensor:
        count = len(whole)
        patches = _patches(layer, whole, at_places.shape[2:])
        rows = at_places.reshape(count * groups, -1, places).transpose(1, 2)
        return _of_outer_products(patches.reshape(count * groups, places, -1), rows).view(count, groups).sum(1)

    return _in_chunks(size, of_chunk, unfolded, other)


def _patches(layer: Any, whole: Tensor, places: torch.Size) -> Tensor:
    """What lies under the kernel at each place: `b c ... -> b g ... (c k)`, with as many places as are asked for."""
    mode = layer.padding_mode
    if any(padding := _padding(layer)):
        whole = F.pad(whole, padding, mode=_PAD.get(mode, mode))
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, places, strict=True)
    for axis, (kernel, stride, dilation, count) in enumerate(sizes, 2):
        whole = whole.unfold(axis, (kernel - 1) * dilation + 1, stride).narrow(axis, 0, count)[..., ::dilation]
    axes = len(places)
    whole = whole.unflatten(1, (layer.groups, -1))  # type: ignore[no-untyped-call]  # b g c places kernel
    return whole.permute(0, 1, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))


def _padding(layer: Any) -> list[int]:
    """As F.pad takes it: the last axis first, and before and behind of each."""
    if layer.padding == "same":  # what is left over goes behind
        both = [dilation * (kernel - 1) for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        pairs = [(each // 2, each - each // 2) for each in both]
    elif layer.padding == "valid":
        return []
    else:
        pairs = [(each, each) for each in layer.padding]
    return [each for pair in reversed(pairs) for each in pair]


def _of_outer_products(given: Tensor, grad: Tensor) -> Tensor:
    """Of each example the squared norm of the sum over places of `grad ⊗ given`: `n t i, n t o -> n`."""
    (_, places, inputs), outputs = given.shape, grad.shape[2]
    if places * (inputs + outputs) < inputs * outputs:
        return ((given @ given.transpose(1, 2)) * (grad @ grad.transpose(1, 2))).sum((1, 2))
    return (grad.transpose(1, 2) @ given).square().sum((1, 2))


def _in_chunks(size: int, of_chunk: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """`of_chunk` of as many examples at once as there is room for, `size` values each."""
    count = max(1, CHUNK // size)
    parts = zip(torch.split(first, count), torch.split(second, count), strict=True)
    return torch.cat([of_chunk(a, d) for a, d in parts])
