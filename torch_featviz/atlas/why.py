"""Why the model gave its answers, as the page is given it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torch_featviz.errors import FeatvizError
from torch_featviz.explain import Faithfulness, attribute, faithfulness
from torch_featviz.explain.faithfulness import UNMOVED
from torch_featviz.explain.methods import method_of
from torch_featviz.picture import Scale

from .pack import Blobs, exponent_of

RANKS = 2  # classes explained where none are asked for: the answer and the runner-up
_HELD = 0.995  # share of a method's values within its scale, as in `attributions`

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
    images: Tensor,
    chances: Tensor,
    classes: Sequence[str],
    *,
    methods: Sequence[str] | None = None,
    targets: Sequence[int] | None = None,
    baselines: Tensor | float | None = None,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """For each method, class and image a heatmap and what it is worth; and what could not be made.

    Args:
        blobs: where the heatmaps go.
        model: a classifier.
        images: `b c h w`.
        chances: probabilities `b k`.
        classes: their names; may be empty.
        methods: as `attribute` knows them; default Grad-CAM, if the model allows it.
        targets: classes; default the two likeliest of each image.
        baselines: what a pixel is when there is nothing, `b c h w` or a value.
        progress: show a bar.
    """
    likely = chances.topk(min(RANKS, chances.shape[1]), dim=1).indices
    wanted = likely if targets is None else torch.tensor(list(dict.fromkeys(targets))).expand(len(images), -1)
    cases = [(i, k) for i, row in enumerate(wanted.tolist()) for k in row]
    every = images[[i for i, _ in cases]]
    nothing = baselines.expand_as(images)[[i for i, _ in cases]] if isinstance(baselines, Tensor) else baselines
    found: list[dict[str, Any]] = []
    failed = []
    for method in tqdm(("gradcam",) if methods is None else methods, desc="why", disable=not progress, leave=False):
        try:
            given: dict[str, Any] = (
                {"baselines": nothing} if nothing is not None and "baselines" in method_of(method).takes else {}
            )
            why = attribute(model, every, method=method, target=[k for _, k in cases], **given)
            worth = faithfulness(model, every, why, stages=1, baselines=nothing)
        except FeatvizError as error:
            if methods is not None or targets is not None:
                raise
            failed.append(f"Why: {_title(method)} cannot be made for this model: {error}")
            continue
        heat = why.heatmaps.cpu()
        exponent = exponent_of(heat)
        end = float(Scale(symmetric=True, quantile=_HELD).fit(heat).vmax or heat.abs().max())
        for row, (i, k) in enumerate(cases):
            found.append(
                {
                    "image": i,
                    "method": method,
                    "title": _title(method),
                    "class": k,
                    "name": classes[k] if classes else f"class {k}",
                    "probability": float(chances[i, k]),
                    "layer": why.layer or None,
                    "blob": blobs.numbers(heat[row], exponent),
                    "exponent": exponent,
                    "height": heat.shape[1],
                    "width": heat.shape[2],
                    "scale": {"symmetric": True, "vmin": -end, "vmax": end},
                    "faithfulness": _figures(worth, row),
                }
            )
    return found, failed


def _figures(worth: Faithfulness, row: int) -> dict[str, Any]:
    areas = ("insertion", "random_insertion", "deletion", "random_deletion")
    similarity = float(worth.similarity[-1, row])
    return {name: float(getattr(worth, name)[row]) for name in areas} | {
        "similarity": similarity,
        "unmoved": similarity > UNMOVED,
    }


def _title(method: str) -> str:
    return _TITLES.get(method, method.replace("_", " ").capitalize())
