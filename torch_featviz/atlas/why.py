"""Why the model gave its answers, as the page is given it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from torch_featviz.errors import FeatvizError
from torch_featviz.explain import Faithfulness, Reason, Reasons, reasons
from torch_featviz.explain.verdict import lacking, needed
from torch_featviz.explain.within import within_masks
from torch_featviz.model.answer import Answer
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import Segmented

from .pack import Blobs, exponent_of

RANKS = 2  # classes explained where none are asked for: the answer and the runner-up

_TITLES = {
    "deep_lift": "DeepLIFT",
    "gradcam": "Grad-CAM",
    "gradient_shap": "GradientSHAP",
    "guided_gradcam": "Guided Grad-CAM",
    "hirescam": "HiResCAM",
    "input_x_gradient": "Input × gradient",
    "layercam": "LayerCAM",
    "lrp": "LRP",
    "smoothgrad": "SmoothGrad",
}


def put_why(
    blobs: Blobs,
    model: nn.Module,
    inputs: Inputs,
    answer: Answer,
    classes: Sequence[str],
    *,
    names: Sequence[str],
    methods: Sequence[str] | None = None,
    targets: Sequence[int] | Sequence[str] | None = None,
    baselines: Tensor | float | None = None,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """For each method, class and image a heatmap and what it is worth; and what could not be made.

    Args:
        blobs: where the heatmaps go.
        model: any that returns a row of scores for each image.
        inputs: images `b c h w`, and what else it is given.
        answer: what the model said of them.
        classes: their names; may be empty.
        names: of the images.
        methods: as `attribute` knows them, or none; default Grad-CAM, if the model allows it.
        targets: classes, by number or name; default the two likeliest of each image.
        baselines: what a pixel is when there is nothing, `b c h w` or a value.
        progress: show a bar.
    """
    asked = ("gradcam",) if methods is None else methods
    if not asked:
        return [], []
    try:
        why = reasons(
            model,
            inputs.images,
            asked,
            targets,
            likeliest=RANKS,
            answer=answer,
            classes=classes,
            baselines=baselines,
            additional_forward_args=inputs.args,
            keywords=inputs.keywords,
            progress=progress,
        )
    except FeatvizError as error:
        if methods is not None or targets is not None:
            raise
        return [], [f"Why: {title_of('gradcam')} cannot be made for this model: {error}"]
    masks = _masks(blobs, why.methods[0])
    found = [entry for reason in why.ranked for entry in _entries(blobs, reason, why, masks, classes)]
    return found, _absent(why, classes, names)


def _masks(blobs: Blobs, reason: Reason) -> list[list[dict[str, Any] | None]]:
    """Of a segmenter the pixels of each class in each image, `b k`, 0 or 1; None where there is no mask."""
    if reason.masks is None:
        return [[None] * row.shape[0] for row in reason.heatmaps]
    height, width = reason.masks.shape[2:]
    return [
        [{"blob": blobs.numbers(mask.float(), 0), "height": height, "width": width} for mask in row]
        for row in reason.masks.cpu()
    ]


def _absent(why: Reasons, classes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of a segmenter: in which images a class has no pixel."""
    known, told = why.answer.names(classes), []
    for k, here in zip(why.classes[0].tolist(), why.methods[0].explained.unbind(1), strict=True):
        if without := [name for name, there in zip(names, here.tolist(), strict=True) if not there]:
            told.append(f"Why: no pixel of {known[k]!r} in {', '.join(without)}.")
    return told


def _entries(
    blobs: Blobs, reason: Reason, why: Reasons, masks: list[list[dict[str, Any] | None]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    heatmaps, end = reason.heatmaps.cpu(), reason.reach
    figures = why.answer.kind == "figures" or isinstance(why.answer, Segmented)  # these are no probabilities
    known = why.answer.names(names)
    exponent = exponent_of(heatmaps)
    parts = [] if reason.masks is None else zip(reason.heatmaps.unbind(1), reason.masks.unbind(1), strict=True)
    within = [within_masks(*column) for column in parts]
    for i, row in enumerate(why.classes.tolist()):
        for column, k in enumerate(row):
            worth = reason.worth_of(i, column)
            if worth is None:  # a segmenter's class has no pixel in this image
                continue
            yield {
                "image": i,
                "method": reason.method,
                "title": title_of(reason.method),
                "class": k,
                "name": known[k],
                "probability": None if figures else float(why.probabilities[i, k]),
                "layer": reason.where or None,
                "note": reason.note or None,
                "blob": blobs.numbers(heatmaps[i, column], exponent),
                "exponent": exponent,
                "height": heatmaps.shape[2],
                "width": heatmaps.shape[3],
                "scale": {"symmetric": True, "vmin": -end, "vmax": end},
                "mask": masks[i][column],
                "within": float(within[column].share[i]) if within else None,
                "area": float(within[column].area[i]) if within else None,
                "faithfulness": _figures(*worth),
            }


def _figures(worth: Faithfulness, image: int) -> dict[str, Any]:
    areas = ("insertion", "random_insertion", "deletion", "random_deletion")
    return {name: float(getattr(worth, name)[image]) for name in areas} | {
        "similarity": float(worth.similarity[-1, image]),
        "unmoved": bool(worth.alike[image]),
        "mark": worth.verdict[image].mark,
        "verdict": worth.words[image],
        "held_back": worth.held_back[image],
        "lacking": lacking(float(worth.gain[image]), float(needed(worth.spread)[image])),
    }


def title_of(method: str) -> str:
    """What a method is called on the page."""
    return _TITLES.get(method, method.replace("_", " ").capitalize())
