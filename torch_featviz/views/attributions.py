"""Why a model decided, in one picture: images by methods, or by classes, with what each heatmap is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import Faithfulness, attribute, faithfulness
from torch_featviz.explain.methods import LAYERED, method_of
from torch_featviz.model.answer import chances
from torch_featviz.model.twin import apart, twin
from torch_featviz.picture import Legend, Picture, Scale, Sheet, overlay, rgb
from torch_featviz.picture.images import unit_images

_HELD = 0.995  # share of a method's values within its scale
_SIDE = 200  # pixels, about, of a cell
_UNIT = Scale(symmetric=True, vmin=-1, vmax=1)


def attributions(
    model: nn.Module,
    images: Tensor,
    *,
    methods: Sequence[str] = ("gradcam",),
    targets: Sequence[int] | int | None = None,
    layer: str | None = None,
    classes: Sequence[str] = (),
    to_unit: Callable[[Tensor], Tensor] | None = None,
    value_range: str = "unit",
    baselines: Tensor | float | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    faithful: bool = True,
    title: str = "",
) -> Picture:
    """Each image with what it was taken for, and beside it what speaks for (red) and against (blue) each class.

    Args:
        model: a classifier; untouched.
        images: `b c h w`, as the model takes them, one or three channels.
        methods: names that `attribute` knows.
        targets: the classes to explain, each for every image; default the one predicted for each.
        layer: for methods of one layer; default the last convolution with a map.
        classes: names, in the order of the outputs.
        to_unit: from the images as the model takes them to those for the eye, such as a card's `denormalize`.
        value_range: `"unit"`, `"signed"`, `"byte"` or `"imagenet"`: what the values of images, after that, mean.
        baselines: what a pixel is when there is nothing, for the methods that ask and for measuring: a value, or a
            tensor that can be expanded to the images; default as in `attribute` and `faithfulness`.
        options: for each method by its name, as `attribute` takes them.
        faithful: measure each heatmap (some forwards more, and each method once more with random weights).
        title: above everything.
    Raises:
        ShapeError: images are not `b c h w`, or more than 64 cells are asked for.
        OptionError: no methods, or an option of a method that is not asked for.
        LayerError, DtypeError: as `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attributions(net, torch.rand(2, 1, 8, 8), methods=["gradcam", "saliency"]).pixels.shape
        torch.Size([3, 17, 26])
    """
    wanted: list[int | None] = [None] if targets is None else [targets] if isinstance(targets, int) else list(targets)
    options = options or {}
    _check(images, methods, len(wanted), options)
    if layer is not None and not set(methods) & set(LAYERED):
        raise OptionError(f"none of {', '.join(methods)} looks at a layer; leave layer={layer!r} out.")
    shown = images if to_unit is None else to_unit(images)
    said = _predicted(model, images)
    columns = [_Column("", rgb(unit_images(shown, value_range).clamp(0, 1)), [""] * len(images))]
    unmoved = []
    nothing = baselines.expand_as(images) if isinstance(baselines, Tensor) else baselines
    for method in methods:
        given: dict[str, Any] = {"layer": layer if method in LAYERED else None, **options.get(method, {})}
        if nothing is not None and "baselines" in method_of(method).takes:
            given.setdefault("baselines", nothing)
        found = [attribute(model, images, method=method, target=target, **given) for target in wanted]
        worth = [faithfulness(model, images, why, stages=1, baselines=nothing) for why in found] if faithful else []
        unmoved += [method] if any(figures.unmoved for figures in worth) else []
        cells = _drawn(shown, torch.stack([why.heatmaps for why in found], dim=1), value_range)
        for k, target in enumerate(wanted):
            heading = method + (" (!)" if method in unmoved else "")
            heading += "" if target is None else f": {_name(target, classes)}"
            columns.append(_Column(heading, cells[:, k], _captions(worth[k]) if worth else [""] * len(images)))
    rows = range(len(images))
    return Sheet(
        torch.stack([column.cells for column in columns], dim=1).flatten(0, 1),
        Legend(_UNIT, "RdBu_r", notes=_notes(faithful, unmoved, targets is None)),
        title=title or "What speaks for the answer (red) and against it (blue)",
        ncols=len(columns),
        columns=tuple(column.heading for column in columns),
        labels=tuple(_said(said[i], classes) if k == 0 else "" for i in rows for k in range(len(columns))),
        captions=tuple(column.captions[i] for i in rows for column in columns),
        zoom=max(1, round(_SIDE / max(images.shape[2:]))),
    )


class _Column(NamedTuple):
    heading: str
    cells: Tensor
    captions: list[str]


def _drawn(shown: Tensor, maps: Tensor, value_range: str) -> Tensor:
    """Heatmaps `b k h w` of one method over the images, on one scale: `b k 3 h w`."""
    reach = Scale(symmetric=True, quantile=_HELD).fit(maps).vmax or float(maps.abs().nan_to_num(0).max()) or 1.0
    return overlay(shown, (maps / reach).clamp(-1, 1), scale=_UNIT, value_range=value_range)


def _check(images: Tensor, methods: Sequence[str], wanted: int, options: Mapping[str, object]) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(f"images must be 'b c h w', got {shape}.")
    if isinstance(methods, str) or not methods or not wanted:
        raise OptionError(f"methods and targets must name at least one each, got methods={methods!r}.")
    if foreign := sorted(set(options) - set(methods)):
        raise OptionError(f"options for {', '.join(foreign)}, which is not among the methods {', '.join(methods)}.")
    if len(images) * len(methods) * wanted > 64:
        raise ShapeError(
            f"{len(images)} images by {len(methods) * wanted} heatmaps are more than a sheet of 64 can show."
        )


def _predicted(model: nn.Module, images: Tensor) -> list[tuple[int, float]]:
    """The class predicted for each image, and its probability."""
    with apart(), torch.no_grad():
        output = twin(model)(images.detach().clone())
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(f"model must be a classifier that returns 'b k', got {got}; attribute() takes any target.")
        best = chances(output).max(1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _name(target: int, classes: Sequence[str]) -> str:
    return classes[target] if classes else f"class {target}"


def _said(row: tuple[int, float], classes: Sequence[str]) -> str:
    return f"{_name(row[0], classes)} {100 * row[1]:.0f} %"


def _captions(worth: Faithfulness) -> list[str]:
    columns = (worth.insertion, worth.random_insertion, worth.deletion, worth.random_deletion)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [f"ins {a:.2f} ({b:.2f}), del {c:.2f} ({d:.2f})" for a, b, c, d in rows]


def _notes(faithful: bool, unmoved: list[str], predicted: bool) -> tuple[str, ...]:
    notes = [
        "in shares of each method's own range, which is the same for all images and classes and holds 99.5 % of its "
        "values; what is beyond is drawn as ±1",
        *(["the class explained is the one predicted"] if predicted else []),
    ]
    if faithful:
        notes.append(
            "ins, del: area under the class's probability while pixels are put in or taken out, most important first; "
            "in brackets in random order. A good map has a high ins and a low del"
        )
    if unmoved:
        notes.append(
            f"(!) {', '.join(sorted(unmoved))}: hardly changes when all weights are made random; do not trust it"
        )
    return tuple(notes)
