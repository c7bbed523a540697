"""Heatmaps of a detector: for each of its best boxes, which places of the image speak for the box's class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError
from torch_featviz.gate import check
from torch_featviz.inspect.cut import AnswerMap
from torch_featviz.model.boxes import Boxes, classes_in, find_boxes
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated

from .box_runs import Asked, BoxesOf, OnMaps, images_at_once, on_pixels, one_by_one, size_of
from .explained import check_rows, chunks

DEFAULT = "layercam"
ON_MAPS = ("layercam", "hirescam", "gradcam")
ON_PIXELS = ("saliency", "input_x_gradient")
OPTIONS = frozenset(("top", "min_score"))

_detectors: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True, eq=False)
class BoxHeatmaps:
    """Heatmaps of boxes.

    Args:
        boxes: the boxes, by image and score.
        heatmaps: `n h w`, one for each box.
        layers: names of the maps.
        where: the same in words.
    """

    boxes: Boxes
    heatmaps: Tensor
    layers: tuple[str, ...]
    where: str


def is_detector(model: nn.Module, inputs: Inputs, answer: str | None = None, named: int = 0) -> bool:
    """Whether boxes are found in what the model returns for the first image; it runs if that is not known yet."""
    if model in _detectors:
        return True
    with isolated(), torch.no_grad():
        net, one = twin(model), inputs.rows(slice(1)).copied()
        found = find_boxes(run(net, one), size_of(one.images), classes=classes_in(net), named=named, answer=answer)
    if found is not None:
        _detectors.add(model)
    return found is not None


def known_detector(model: nn.Module) -> bool:
    """Whether boxes were found in what this model returned before."""
    return model in _detectors


def box_heatmaps(model: nn.Module, inputs: Inputs, asked: Asked) -> BoxHeatmaps | None:
    """Heatmaps of the best boxes of each image; None where the output holds no boxes.

    A backward from each box's own class logit, before suppression, to the maps that enter the head. Several images run
    at once where the model was seen to give two together what it gives each alone, as far as autograd's memory allows.

    Args:
        model: a detector; it is unchanged.
        inputs: its arguments.
        asked: what is asked.
    Raises:
        OptionError: a method that runs changed images, no box asked for, or no gradient reaches the scores.
        LayerError: no such layer, or the boxes depend on none.
    """
    _check(asked)
    given = inputs.copied()
    net, parts = twin(model), []
    with ExitStack() as watch:
        explained = partial(on_pixels, net) if asked.method in ON_PIXELS else OnMaps(model, net, watch)
        for rows in chunks(len(given.images), images_at_once(model, net, given, asked)):
            for part in _parts(model, explained, given, asked, rows):
                if part is None:
                    return None
                parts.append(part)
    _detectors.add(model)
    every = [found for part in parts for found in part.found]
    xyxy, labels, scores = (torch.cat([found[k] for found in every]) for k in range(3))
    counts = torch.tensor([len(found.scores) for found in every], device=scores.device)
    images = torch.arange(len(every), device=scores.device).repeat_interleave(counts)
    drawn = [heatmap for part in parts for heatmap in part.heatmaps]
    heatmaps = torch.cat(drawn) if drawn else torch.zeros(0, *given.images.shape[-2:], device=scores.device)
    maps = [where for part in parts for where in part.maps]
    layers = tuple(dict.fromkeys(name for where in maps for name in where.layers))
    return BoxHeatmaps(Boxes(xyxy, labels, scores, images), heatmaps, layers, _in_words(maps))


def _parts(
    model: nn.Module, explained: Callable[[Inputs, Asked], BoxesOf | None], given: Inputs, asked: Asked, rows: slice
) -> list[BoxesOf | None]:
    """Images explained together; one by one where that fails, as in a model that loops over its images."""

    def part(some: slice) -> BoxesOf | None:
        return explained(given.rows(some), asked._replace(only=asked.only[some]))

    if rows.stop - rows.start == 1:
        return [part(rows)]
    with suppress(Exception):  # what is wrong with each image is said below
        return [part(rows)]
    parts = [part(slice(number, number + 1)) for number in range(rows.start, rows.stop)]
    one_by_one(model, given)
    return parts


def _check(asked: Asked) -> None:
    if asked.method not in (*ON_MAPS, *ON_PIXELS):
        raise OptionError(
            f"{asked.method} runs changed images, in which a detector finds other boxes; for boxes there are "
            f"{', '.join((*ON_MAPS, *ON_PIXELS))}, or pass target= a callable that returns one value per image."
        )
    check_rows(asked.rows)
    check("top", asked.top, int)
    check("min_score", asked.min_score, float | None)
    if asked.top < 1 or not 0 <= (asked.min_score or 0) <= 1:
        raise OptionError(f"top must be at least 1 and min_score from 0 to 1, got {asked.top} and {asked.min_score}.")


def _in_words(maps: Sequence[AnswerMap]) -> str:
    """Names of the maps; where they differ, with the boxes drawn from each."""
    boxes: dict[str, list[str]] = {}
    for number, where in enumerate(maps, 1):
        boxes.setdefault(str(where), []).append(str(number))
    if len(boxes) < 2:
        return "".join(boxes)
    return "; ".join(f"{where} (box {', '.join(numbers)})" for where, numbers in boxes.items())
