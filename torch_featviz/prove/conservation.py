"""What heatmaps sum to, where the method says so: of integrated gradients, the change of the score on their way."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_featviz.explain.attribute import attribute
from torch_featviz.explain.attribution import Attribution
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import pixel_scores
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.model.values import map_tensors, tensors

from .claims import Claim
from .counted import counted
from .judged import Unknown, Wrong, by_other_means, judged
from .subject import Subject

_STEPS, _STEP = 8, 1e-6
_NUMBERS = 2**22  # of images that run at once


def claims_of_conservation(subject: Subject) -> list[Claim]:
    """That integrated gradients of a few steps sum to what the same steps find without gradients.

    The slope of the score at each step is a difference quotient in float64. Whether steps are many enough for the sum
    to be the whole change of the score is not claimed, but said: layer norm may turn black into anything at once.
    """
    words = "Integrated gradients sum to what slopes of the score make"
    return [judged("conservation", words, lambda: _conservation(subject))]


def _conservation(subject: Subject) -> str:
    one = subject.inputs.rows(slice(1)).copied()
    if one.images.dtype not in (torch.float32, torch.float64):
        raise Unknown(f"gradients in {one.images.dtype} are too coarse to be summed up")
    with counted(subject):
        found = attribute(
            subject.model,
            one.images,
            method="integrated_gradients",
            n_steps=_STEPS,
            additional_forward_args=one.args or None,
            keywords=dict(one.keywords) or None,
        )
    heat = found.heatmaps.double()
    got = float(heat.sum())
    with by_other_means(), isolated(), torch.no_grad():
        slopes, weights, change = _slopes(subject, one, found)
    expected = float(weights @ slopes)
    if not isfinite(expected):
        raise Unknown("the score has no finite slopes between an image of zeros and this one")
    near = 1e-2 * float(weights @ np.abs(slopes)) + 1e-5 * float(heat.abs().sum())
    if not abs(got - expected) <= near:
        raise Wrong(f"its sum is {got:.4g}, and the slopes of the score at its {_STEPS} steps make {expected:.4g}")
    share = f", which is {got / change:.1%} of it" if change else ""
    return f"{got:.4g} in {_STEPS} steps; from an image of zeros the score changes by {change:.4g}{share}"


def _slopes(subject: Subject, one: Inputs, found: Attribution) -> tuple[np.ndarray, np.ndarray, float]:
    """Slopes of the score at the steps of Gauss and Legendre, the weights of these, and the change of the score."""
    net = twin(subject.model).double()
    nodes, weights = np.polynomial.legendre.leggauss(_STEPS)
    at = (nodes + 1) / 2
    ways = torch.from_numpy(np.concatenate([[0, 1], at + _STEP, at - _STEP])).to(one.images.device)
    wide = replace(one, **map_tensors(_wide, {"args": one.args, "keywords": dict(one.keywords)}))
    images = ways.view(-1, *[1] * (one.images.dim() - 1)) * one.images.double()
    scores: list[Tensor] = []
    for part in torch.split(images, max(1, _NUMBERS // one.images.numel())):
        rows = wide.at(part, torch.zeros(len(part), dtype=torch.long, device=part.device))
        scores.append(_scores(subject.forward(net, rows), part, found))
    start, end, *others = torch.cat(scores).tolist()
    above, below = np.array(others[:_STEPS]), np.array(others[_STEPS:])
    return (above - below) / (2 * _STEP), weights / 2, end - start


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _scores(output: Any, images: Tensor, found: Attribution) -> Tensor:
    """Of the class that is explained, `b`."""
    number = None if found.classes is None else int(found.classes[0])
    if found.mask is not None:
        pixels = pixel_scores(output, images)
        if pixels is None or pixels.shape[1] == 1 or number is None:
            raise Unknown("scores of pixels are none of several classes")
        return pixels[:, number][:, found.mask[0]].mean(1)
    rows = [t for t in tensors(output) if t.is_floating_point() and t.dim() in (1, 2) and len(t) == len(images)]
    if not rows:
        raise Unknown(f"a {type(output).__name__} of the model has no rows of scores")
    scores = rows[0].reshape(len(images), -1)
    if scores.shape[1] > 1:
        return scores[:, number or 0]
    return -scores[:, 0] if number == 0 else scores[:, 0]
