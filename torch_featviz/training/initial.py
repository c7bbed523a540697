"""Whether weights are still as a layer begins with: drawn at random, or all alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt

import torch
from torch import Tensor

from torch_featviz.model.values import whole

ENOUGH = 128  # numbers, of fewer nothing is said
_MOST = 2**14  # of them are sorted
_ENDS = 20  # the largest of n numbers is this many parts in n below the end of their range, at most
_STRICT = 1.95  # of Kolmogorov and Smirnov's distance times sqrt(n): one set in a thousand that is random exceeds it
_NEAR = 0.5  # ours: of the norm; weights that were drawn apart differ by 1.4 of it
_STDS = 4.5  # standard errors


def drawn(weights: Mapping[str, Tensor]) -> list[str]:
    """Those that look as an initialisation of PyTorch draws them: uniform to its very bound, or normal with its std.

    Training of some length leaves neither: numbers go beyond the bound, and the std is no longer the one asked for.

    Args:
        weights: `outputs inputs ...`, by name.
    Reference: Glorot & Bengio 2010; He et al. 2015; the defaults of `torch.nn`.
    """
    return [name for name, weight in weights.items() if weight.dim() > 1 and _is_drawn(whole(weight))]


def alike(weights: Mapping[str, Tensor], rows: Mapping[str, int]) -> list[str]:
    """Those of which all rows are equal and not 0: outputs that begin alike and learn alike.

    Args:
        weights: `outputs inputs ...`, by name.
        rows: of each, how many are compared: those of one gate, or of the queries; at least 2.
    """
    several = {name: _blocks(whole(weight), rows[name]) for name, weight in weights.items()}
    first = _bools((weight[0, 0] == weight[0, 1]).all() & (weight[0, 0] != 0).any() for weight in several.values())
    suspects = [name for name, same in zip(several, first, strict=True) if same]
    every = _bools((several[name] == several[name][:, :1]).all() for name in suspects)
    return [name for name, same in zip(suspects, every, strict=True) if same]


def twins(frozen: Mapping[str, Tensor], trained: Iterable[Tensor]) -> set[str]:
    """Those that equal one that is trained, as the teacher that follows its pupil."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for each in trained:
        by_shape.setdefault(each.shape, []).append(each)
    return {
        name
        for name, weight in frozen.items()
        if any(_is_near(whole(weight), whole(other)) for other in by_shape.get(weight.shape, ()))
    }


def _blocks(weight: Tensor, rows: int) -> Tensor:
    """`(block row) inputs ...` as `block row (inputs ...)`."""
    return weight.reshape(len(weight) // rows, rows, *weight.shape[1:]).flatten(2)


def _is_near(weight: Tensor, other: Tensor) -> bool:
    other = other.to(weight.device)
    return bool((weight - other).norm() < _NEAR * other.norm())


def _bools(tensors: Iterable[Tensor]) -> list[bool]:
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append((i, tensor))
    found = {
        i: value
        for several in by_device.values()
        for (i, _), value in zip(several, torch.stack([each for _, each in several]).tolist(), strict=True)
    }
    return [found[i] for i in sorted(found)]


def _is_drawn(weight: Tensor) -> bool:
    n = weight.numel()
    if n < ENOUGH:
        return False
    values = weight.reshape(-1)[:: max(1, n // _MOST)].double().cpu().sort().values
    rows, columns, known = len(weight), n // len(weight), len(values)
    low, high = weight.aminmax()
    end, std = max(-low.item(), high.item()), values.std().item()
    places = rows * (weight[0, 0].numel() if weight.dim() > 2 else 1)
    fans = {columns, places, rows, rows / 3, rows / 4}  # recurrent layers draw from their states, of 3 or 4 gates
    ends = [sqrt(factor / fan) for fan in fans for factor in (1, 3, 6)] + [sqrt(6 / (columns + places))]
    if (
        any(bound * (1 - _ENDS / n) <= end <= bound * (1 + 1e-3) for bound in ends)
        and _distance(values, (values / end + 1) / 2) <= _STRICT
    ):
        return True
    stds = [sqrt(factor / fan) for fan in (columns, places) for factor in (1, 2)]
    stds += [sqrt(2 / (columns + places)), 0.02, 0.01, 1.0]
    if any(abs(std / each - 1) <= _STDS / sqrt(2 * known) for each in stds):
        return _distance(values, torch.special.ndtr(values / std)) <= _STRICT
    return False


def _distance(values: Tensor, expected: Tensor) -> float:
    """Kolmogorov and Smirnov's, times sqrt(n), of sorted values whose cumulated shares are expected to be these."""
    n = len(values)
    steps = torch.arange(n + 1, dtype=torch.float64, device=values.device) / n
    apart = torch.maximum((steps[1:] - expected).abs(), (steps[:-1] - expected).abs())
    return float(apart.max()) * sqrt(n)
