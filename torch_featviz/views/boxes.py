"""Boxes of a detector: the image with all of them, then the heatmap of each, with its class and score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_featviz.errors import ShapeError
from torch_featviz.explain import Attribution
from torch_featviz.explain.within import within_boxes
from torch_featviz.picture import Legend, Scale, Sheet, count, rgb
from torch_featviz.picture.bounds import fitted, named, shrunk
from torch_featviz.picture.color import Counts, total_of
from torch_featviz.picture.legend import OF_IMAGES
from torch_featviz.picture.overlay import laid
from torch_featviz.picture.tile import enlarge

from .masks import WITHIN, within_words

_SIDE = 200  # pixels, about, of a cell
_HELD = 0.995  # share of a heatmap's values within its range
_UNIT, _CMAP = Scale(symmetric=True, vmin=-1, vmax=1), "RdBu_r"
_RANGES = "symmetric about 0; ±1 is each box's own range, which holds 99.5 % of the values of its heatmap"
_DARK, _LIGHT = 0, 255  # of an outline, which is seen on any image


def boxes_sheet(
    units: Tensor,
    whys: Sequence[Attribution],
    names: Sequence[str],
    marked: tuple[Counts, tuple[str, ...]],
    title: str,
) -> Sheet:
    """A row for each image and method: the image with its boxes, then a heatmap for each.

    Args:
        units: the images on the unit range, `b 3 h w`.
        whys: results of `attribute` for these images, one for each method.
        names: class names, or none.
        marked: how many pixels of the images are beyond the range, and hints.
        title: heading; empty for one that says what is seen.
    """
    _check_named(whys, names)
    most = max((int(_in_image(why, number).sum()) for why in whys for number in range(len(units))), default=0)
    small, zoom, notes = fitted(units, 1 + most, len(units) * len(whys), goal=_SIDE, lines=3)
    rows = [_row(small, zoom, why, number, names) for number in range(len(units)) for why in whys]
    cells, labels, captions, empty = list[Tensor](), list[str](), list[str](), set[int]()
    for row in rows:
        missing = 1 + most - len(row.labels)
        empty |= set(range(len(labels) + len(row.labels), len(labels) + 1 + most))
        cells += [row.cells, row.cells[:1].expand(missing, -1, -1, -1)]
        labels += [*row.labels, *[""] * missing]
        captions += [*row.captions, *[""] * missing]
    none = not most
    legend = Legend(
        None if none else _UNIT,
        None if none else _CMAP,
        total_of([marked[0], *(row.counts for row in rows)]),
        (*(() if none else _notes(whys)), *notes, *marked[1]),
        OF_IMAGES,
        said=_RANGES,
    )
    heading = "No boxes found" if none else "What speaks for each box (red) and against it (blue)"
    words = (tuple(labels), () if none else tuple(captions))
    return Sheet(torch.cat(cells), legend, title or heading, 1 + most, *words, zoom=1, empty=frozenset(empty))


def _check_named(whys: Sequence[Attribution], names: Sequence[str]) -> None:
    """Raise ShapeError if a box has a class without a name: then others have wrong ones."""
    for why in whys:
        for label in [] if why.boxes is None else why.boxes.classes.tolist():
            if names and not 0 <= label < len(names):
                raise ShapeError(
                    f"a box has class {label}, but {len(names)} names are given, for classes from 0; in torchvision's "
                    "detectors class 0 is the background, which needs a name, too."
                )


class _Row(NamedTuple):
    """The image with its boxes, and the heatmap of each."""

    cells: Tensor
    labels: list[str]
    captions: list[str]
    counts: Counts


def _row(small: Tensor, zoom: int, why: Attribution, number: int, names: Sequence[str]) -> _Row:
    boxes, chosen = why.boxes, _in_image(why, number)
    if boxes is None:
        raise ShapeError(f"the heatmaps of {why.method} are of no boxes; draw them with attributions(model, images).")
    corners, maps = boxes.xyxy[chosen] * (zoom * small.shape[-1] / why.heatmaps.shape[-1]), why.heatmaps[chosen]
    cells = [outlined(enlarge(rgb(small[number : number + 1], _CMAP), zoom)[0], corners)]
    shares = torch.stack([_share(values) for values in maps]) if len(maps) else maps
    image = small[number : number + 1].expand(len(maps), -1, -1, -1)
    if len(maps):
        drawn = laid(image, shrunk(shares[:, None], max(small.shape[-2:]), None)[:, 0], scale=_UNIT, cmap=_CMAP)
        cells += [outlined(cell, box[None]) for cell, box in zip(enlarge(drawn, zoom), corners, strict=True)]
    of_class = _of_class(why.target, number, names)
    found = f"{len(maps)} box{'es' * (len(maps) > 1)}{of_class}" if len(maps) else f"no box{of_class} found"
    labels = [f"{why.method}: {found}"]
    captions = [""]
    within = within_boxes(why.heatmaps[chosen], boxes.xyxy[chosen])
    each = (boxes.classes[chosen], boxes.scores[chosen], *within)
    for label, score, share, area in zip(*(values.tolist() for values in each), strict=True):
        name = named(f"{_name(label, names)} {100 * score:.0f} %", max(_SIDE, zoom * small.shape[-1]))
        labels.append(name)
        captions.append(f"{within_words(share)}\n{100 * area:.1f} % of pixels")
    return _Row(torch.stack(cells), labels, captions, count(_UNIT(shares[:, None])) if len(maps) else Counts())


def _of_class(target: Any, number: int, names: Sequence[str]) -> str:
    """Which class was asked for in the image of that number, if one was."""
    asked = target.tolist() if isinstance(target, Tensor) else target
    asked = asked[number] if isinstance(asked, (list, tuple)) else asked
    return "" if asked is None else f" of {asked if isinstance(asked, str) else _name(int(asked), names)}"


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if names else f"class {label}"


def _in_image(why: Attribution, number: int) -> Tensor:
    """Which boxes are in the image of that number."""
    return torch.zeros(0, dtype=torch.bool, device="cpu") if why.boxes is None else why.boxes.images == number


def _share(values: Tensor) -> Tensor:
    """A heatmap in shares of its own range, clamped."""
    reach = Scale(symmetric=True, quantile=_HELD).fit(values).vmax or values.abs().nan_to_num(0).max()
    return (values / (float(reach) or 1.0)).clamp(-1, 1)


def _notes(whys: Sequence[Attribution]) -> list[str]:
    maps = dict.fromkeys(f"{why.method} looks at layer {why.where}" for why in whys if why.where)
    return [
        *maps,
        "explained: each box's own class logit, before suppression",
        f"{WITHIN.format('box')}; below it the share of the image's pixels that the box covers",
    ]


def outlined(cell: Tensor, boxes: Tensor) -> Tensor:
    """A cell `3 h w` with a light line on the edge of each box, and a dark one around it; `boxes` are in its pixels."""
    cell, (height, width) = cell.clone(), cell.shape[1:]
    for left, top, right, bottom in boxes.round().long().tolist():
        for out, ink in ((1, _DARK), (0, _LIGHT)):
            x1, x2 = (min(max(x, 0), width - 1) for x in (left - out, right - 1 + out))
            y1, y2 = (min(max(y, 0), height - 1) for y in (top - out, bottom - 1 + out))
            cell[:, [y1, y2], x1 : x2 + 1] = ink
            cell[:, y1 : y2 + 1, [x1, x2]] = ink
    return cell
