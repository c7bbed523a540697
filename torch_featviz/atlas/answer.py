"""What the model says of each image: whether these are chances of classes, and the highest of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torch_featviz.errors import OptionError
from torch_featviz.inspect.walk import Walk
from torch_featviz.model.answer import chances
from torch_featviz.model.kinds import call_of, is_sigmoid
from torch_featviz.picture import rgb

from .pack import Blobs

_TOP = 5


class Answer(NamedTuple):
    """What was answered to each image, `b k`, and whether these are probabilities; None where it is no such thing."""

    rows: Tensor
    kind: Literal["probability", "value"] | None = None
    softmax: bool = False  # whether it was taken to make them probabilities


def answered(seen: Walk, count: int) -> Answer:
    """To so many images."""
    output, by = seen.output, seen.answered_by
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != count or not output.is_floating_point():
        return Answer(torch.empty(count, 0))
    rows = output.detach().float().cpu()
    if rows.shape[1] < 2 or not bool(rows.isfinite().all()):
        return Answer(rows, "value")
    if by is not None and is_sigmoid(by.module, call_of(by.name)):
        return Answer(rows, "value")  # each output speaks for itself
    found = chances(rows)
    return Answer(found, "probability", softmax=found is not rows)


def no_reasons(answer: Answer, methods: Sequence[str] | None, targets: Sequence[int] | None) -> str:
    """Why nothing is explained where the answer is no probabilities.

    Raises:
        OptionError: it was asked for.
    """
    if methods is not None or targets is not None:
        raise OptionError("methods and targets explain a class, and this model returns no row of scores for an image.")
    if answer.kind == "value":
        return "Why: what the model returns are no scores of several classes."
    return "Prediction and Why: the model returns no row of class scores for each image."


def put_images(
    blobs: Blobs, units: Tensor, names: Sequence[str], answer: Answer, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The images, and the highest of what was answered to each.

    Args:
        blobs: where the pictures go.
        units: `b 3 h w` in [0, 1].
        names: of the images, or none.
        answer: to them.
        classes: their names; may be empty.
    """
    found = []
    order = answer.rows.nan_to_num(-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :_TOP].tolist()
    for i, pixels in enumerate(rgb(units)):
        name = names[i] if names else f"image {i}"
        top = [
            {"class": k, "name": classes[k] if classes else f"class {k}", "probability": float(answer.rows[i, k])}
            for k in order[i]
        ]
        found.append({"name": name, "picture": blobs.picture(pixels, f"the image {name}"), "top": top})
    return found
