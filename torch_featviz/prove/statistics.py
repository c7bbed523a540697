"""Statistics of layers, beside float64 arithmetic on what a witness saw in the same forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torch_featviz.capture import Moments, capture
from torch_featviz.model.layers import unwrap

from .claims import Claim
from .figures import IMAGES, called
from .judged import Unknown, Wrong, as_it_was, judged, many
from .subject import Subject
from .witness import Witness

_OFF = 1e-4  # of a standard deviation, by which means and standard deviations may be away


def claims_of_statistics(subject: Subject) -> list[Claim]:
    """That `Moments` are right: counts and extremes to the bit, means and deviations to 1e-4 of the deviation.

    The axis of channels is not checked where several are as long as there are channels.
    """
    words = "Statistics of each channel are those of its values in float64"
    return [judged("statistics", words, lambda: _statistics(subject))]


def _statistics(subject: Subject) -> str:
    net, inputs = unwrap(subject.model), subject.inputs.rows(slice(IMAGES)).copied()
    witness = Witness(net)
    with as_it_was(net), torch.no_grad(), capture(net, "*", into=Moments()) as moments, witness.watching():
        subject.forward(net, inputs)
    calls = called(witness)
    for name, figures in moments.items():
        values = [call[0] for call in calls.get(name, []) if call]
        if not values or not moments_hold(figures, values):
            raise Wrong(f"{name}: not those of its values" if values else f"{name} returned nothing")
    if not moments:
        raise Unknown("no layer returns numbers")
    refused = f"; {len(moments.left_out)} left out, which is said" if moments.left_out else ""
    return many(len(moments), "layer") + refused


def moments_hold(moments: Moments, values: Sequence[Tensor]) -> bool:
    """Whether they are those of what a layer returned at each call, with its channels on one axis or another."""
    arrays = [tensor.detach().cpu().double().numpy() for tensor in values]
    count = len(moments.mean)
    axes = {axis for array in arrays[:1] for n in range(array.ndim) for axis in (n, n - array.ndim)}
    ways = [axis for axis in axes if all(-a.ndim <= axis < a.ndim and a.shape[axis] == count for a in arrays)]
    rows = [np.concatenate([np.moveaxis(a, axis, 0).reshape(count, -1) for a in arrays], 1) for axis in ways]
    if count == 1:
        rows.append(np.concatenate([array.reshape(1, -1) for array in arrays], 1))
    return any(_are_those(moments, each) for each in rows)


def _are_those(moments: Moments, rows: np.ndarray) -> bool:
    """Of channels by values."""
    finite = np.isfinite(rows)
    count, known = finite.sum(1), np.where(finite, rows, 0)
    seen, divisor = count > 0, np.maximum(count, 1)
    mean = known.sum(1) / divisor
    std = np.sqrt(np.where(finite, (known - mean[:, None]) ** 2, 0).sum(1) / divisor)
    near = _OFF * std + 1e-9 * np.abs(known).max(1)
    low, high = np.where(finite, rows, np.inf).min(1), np.where(finite, rows, -np.inf).max(1)
    exact = [
        (moments.count, count),
        (moments.nan, np.isnan(rows).sum(1)),
        (moments.inf, np.isinf(rows).sum(1)),
        (moments.min, np.where(seen, low, np.nan)),
        (moments.max, np.where(seen, high, np.nan)),
    ]
    about = [(moments.mean, mean, near), (moments.std, std, near), (moments.zero_share, (rows == 0).mean(1), 1e-12)]
    return all(np.array_equal(got.numpy(), expected, equal_nan=True) for got, expected in exact) and all(
        bool(((np.abs(got.numpy() - expected) <= within) | ~seen).all()) for got, expected, within in about
    )
