"""What speaks for each box of a detector, as the page is given it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import FeatvizError
from torch_featviz.explain import Attribution, attribute
from torch_featviz.explain.boxes import DEFAULT, is_detector
from torch_featviz.explain.within import within_boxes
from torch_featviz.model.answer import Kind
from torch_featviz.model.inputs import Inputs
from torch_featviz.picture import Scale
from torch_featviz.picture.bounds import shrunk

from .pack import Blobs, exponent_of
from .why import title_of

_SIDE = 256  # of a heatmap, at most: a map that a head reads has fewer places, and images of detectors are large
_HELD = 0.995  # share of the values within the scale


def put_boxes(
    blobs: Blobs,
    model: nn.Module,
    inputs: Inputs,
    classes: Sequence[str],
    *,
    names: Sequence[str],
    methods: Sequence[str] | None = None,
    targets: Sequence[int] | Sequence[str] | None = None,
    answer: Kind | None = None,
) -> tuple[list[dict[str, Any]], list[str]] | None:
    """For each method and box a heatmap, without a verdict; what is missing; None where the model returns no boxes.

    Args:
        blobs: where the heatmaps go.
        model: any.
        inputs: images `b c h w`, and what else it is given.
        classes: their names; may be empty.
        names: of the images.
        methods: those of `attribute` for boxes, or none; default LayerCAM.
        targets: classes whose boxes are explained; default all.
        answer: meaning of the logits of a DETR, if it is said.
    """
    try:
        if inputs.images.dim() != 4 or not is_detector(model, inputs, answer, len(classes)):
            return None
        whys = [
            attribute(
                model,
                inputs.images,
                method=method,
                target=target,
                answer=answer,
                classes=classes,
                additional_forward_args=inputs.args,
                keywords=inputs.keywords,
            )
            for method in ((DEFAULT,) if methods is None else methods)
            for target in ([None] if targets is None else targets)
        ]
    except FeatvizError as error:
        if methods is not None or targets is not None:
            raise
        return [], [f"Why: heatmaps of boxes cannot be made for this model: {error}"]
    if not whys:
        return [], []
    told = ["Prediction and verdicts: the model returns boxes. Each has a heatmap, which is not compared with chance."]
    found = {int(image) for why in whys if why.boxes is not None for image in why.boxes.images}
    if without := [name for i, name in enumerate(names) if i not in found]:
        told.append(f"Why: no box in {', '.join(without)}.")
    return [entry for why in whys for entry in _entries(blobs, why, classes)], told


def _entries(blobs: Blobs, why: Attribution, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    if why.boxes is None or not len(why.boxes):
        return
    height, width = why.heatmaps.shape[1:]
    heatmaps = shrunk(why.heatmaps.cpu()[:, None], _SIDE, None)[:, 0]
    exponent = exponent_of(heatmaps)
    end = float(Scale(symmetric=True, quantile=_HELD).fit(heatmaps).vmax or heatmaps.abs().nan_to_num(0).max())
    numbers = dict[int, int]()  # of boxes so far, by image
    found = why.boxes
    figures = (found.images, found.classes, found.scores, *within_boxes(why.heatmaps, found.xyxy))
    rows = zip(*(each.tolist() for each in figures), found.xyxy.cpu(), heatmaps, strict=True)
    for image, label, score, within, area, corners, heatmap in rows:
        numbers[image] = number = numbers.get(image, 0) + 1
        name = classes[label] if 0 <= label < len(classes) else f"class {label}"
        yield {
            "image": image,
            "method": why.method,
            "title": title_of(why.method),
            "class": number if why.target is None else f"{why.target}, {number}",
            "name": name,
            "probability": score,
            "layer": why.where or None,
            "note": None,
            "blob": blobs.numbers(heatmap, exponent),
            "exponent": exponent,
            "height": heatmaps.shape[1],
            "width": heatmaps.shape[2],
            "scale": {"symmetric": True, "vmin": -end, "vmax": end},
            "mask": {"blob": blobs.numbers(_within(corners, height, width), 0), "height": height, "width": width},
            "within": within,
            "area": area,
            "faithfulness": None,
        }


def _within(corners: Tensor, height: int, width: int) -> Tensor:
    """The pixels of a box, `h w`, 0 or 1."""
    left, top, right, bottom = corners.round().long().clamp(min=0).tolist()
    mask = torch.zeros(height, width, device="cpu")
    mask[top:bottom, left:right] = 1
    return mask
