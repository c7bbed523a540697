"""Heatmaps of a detector: for each of its best boxes, which places of the image speak for the box's class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from torch_featviz.capture.noting import Note, numbered
from torch_featviz.capture.session import Capture
from torch_featviz.errors import LayerError, OptionError
from torch_featviz.gate import check
from torch_featviz.inspect.cut import AnswerMap, map_of, remembered
from torch_featviz.inspect.heads import Begun, Frame, beginning, frontier, head_maps, resizing_in
from torch_featviz.model.boxes import Boxes, Candidates, classes_in, find_boxes
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import find
from torch_featviz.model.logits import own_logits
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated

from .cam import joined, weighed

DEFAULT = "layercam"
ON_MAPS = ("layercam", "hirescam", "gradcam")
ON_PIXELS = ("saliency", "input_x_gradient")
OPTIONS = frozenset(("top", "min_score"))
_LEAST = 0.25  # score of a candidate

_detectors: WeakSet[nn.Module] = WeakSet()


class Asked(NamedTuple):
    """What is asked of a detector.

    Args:
        method: name of the method.
        layers: names of layers; empty for the maps that enter the head.
        top: how many boxes of each image, at most.
        min_score: lowest score of a box; None is 0.25 where the model returns candidates, and none where it returns
            final boxes, which it has chosen itself.
        answer: meaning of the logits of a DETR, if it is said.
        named: how many classes have a name; 0 if no names are given.
        only: the class whose boxes are explained; None for all.
    """

    method: str
    layers: tuple[str, ...] = ()
    top: int = 5
    min_score: float | None = None
    answer: str | None = None
    named: int = 0
    only: int | None = None


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
        found = find_boxes(run(net, one), _size(one.images), classes=classes_in(net), named=named, answer=answer)
    if found is not None:
        _detectors.add(model)
    return found is not None


def known_detector(model: nn.Module) -> bool:
    """Whether boxes were found in what this model returned before."""
    return model in _detectors


def box_heatmaps(model: nn.Module, inputs: Inputs, asked: Asked, classes: Sequence[int] = ()) -> BoxHeatmaps | None:
    """Heatmaps of the best boxes of each image, each image by itself; None where the output holds no boxes.

    One forward for each image, and a backward from each box's own class logit, before suppression, to the maps that
    enter the head.

    Args:
        model: a detector; it is unchanged.
        inputs: its arguments.
        asked: what is asked.
        classes: the class whose boxes are explained, one for each image; empty for all classes.
    Raises:
        OptionError: a method that runs changed images, no box asked for, or no gradient reaches the scores.
        LayerError: no such layer, or the boxes depend on none.
    """
    _check(asked)
    given = inputs.copied()
    net, parts = twin(model), list[_Explained]()
    with ExitStack() as watch:
        explained = partial(_on_pixels, net) if asked.method in ON_PIXELS else _OnMaps(model, net, watch)
        for number in range(len(given.images)):
            own = asked._replace(only=classes[number]) if classes else asked
            part = explained(given.rows(slice(number, number + 1)), own)
            if part is None:
                return None
            parts.append(part)
    _detectors.add(model)
    every = [part.found for part in parts]
    xyxy, labels, scores = (torch.cat([found[k] for found in every]) for k in range(3))
    counts = torch.tensor([len(found.scores) for found in every], device=scores.device)
    images = torch.arange(len(parts), device=scores.device).repeat_interleave(counts)
    drawn = [heatmap for part in parts for heatmap in part.heatmaps]
    heatmaps = torch.cat(drawn) if drawn else torch.zeros(0, *_size(given.images), device=scores.device)
    maps = [where for part in parts for where in part.maps]
    layers = tuple(dict.fromkeys(name for where in maps for name in where.layers))
    return BoxHeatmaps(Boxes(xyxy, labels, scores, images), heatmaps, layers, _in_words(maps))


def _check(asked: Asked) -> None:
    if asked.method not in (*ON_MAPS, *ON_PIXELS):
        raise OptionError(
            f"{asked.method} runs changed images, in which a detector finds other boxes; for boxes there are "
            f"{', '.join((*ON_MAPS, *ON_PIXELS))}, or pass target= a callable that returns one value per image."
        )
    check("top", asked.top, int)
    check("min_score", asked.min_score, float | None)
    if asked.top < 1 or not 0 <= (asked.min_score or 0) <= 1:
        raise OptionError(f"top must be at least 1 and min_score from 0 to 1, got {asked.top} and {asked.min_score}.")


class _Explained(NamedTuple):
    """The boxes of one image without their graph, their heatmaps `n h w`, and the maps that each was drawn from."""

    found: Candidates
    heatmaps: list[Tensor]
    maps: list[AnswerMap]


class _Run(NamedTuple):
    """One forward with its graph.

    Args:
        found: its best boxes.
        start: where the graph begins.
        noted: what each layer returned, and where that is in the graph.
        logits: the class logit of each box, and the gradient to begin with.
        reached: layers that each logit comes from, and whether it comes from nothing else.
    """

    found: Candidates
    start: Begun
    noted: dict[str, tuple[Tensor, GradientEdge]]
    logits: list[tuple[GradientEdge, Tensor]]
    reached: list[tuple[list[str], bool]]


class _OnMaps:
    """Explains the boxes of one image after the other, at maps that are looked for once.

    Args:
        model: the detector.
        net: its twin.
        watch: the block within which the layers are watched.
    """

    def __init__(self, model: nn.Module, net: nn.Module, watch: ExitStack) -> None:
        self.model, self.net, self.watch = model, net, watch
        self.where, self.resizing = AnswerMap((), ()), resizing_in(net)
        self.seen = list[tuple[str, tuple[Tensor, GradientEdge] | None]]()

    def __call__(self, one: Inputs, asked: Asked) -> _Explained | None:
        net, named = self.net, asked.layers
        if not self.where.layers:
            ask = partial(map_of, net, one, named) if named else partial(_seek, net, one, asked)
            self._watch(remembered(self.model, one, named or "boxes", ask))
        ran = self._run(one, asked)
        if ran is not None and not named and not all(whole for _, whole in ran.reached):  # of scales not known yet
            new = _seek(net, one, asked)
            both = dict(zip(self.where.layers + new.layers, self.where.layouts + new.layouts, strict=True))
            joint = AnswerMap(tuple(both), tuple(both.values()))
            self._watch(remembered(self.model, one, "boxes", lambda: joint, anew=True))
            ran = self._run(one, asked)
        return None if ran is None else _weighed(ran, self.where, one, asked)

    def _watch(self, where: AnswerMap) -> None:
        """Have noted what these layers return, and no others."""
        self.where, names = where, sorted({name.partition("#")[0] for name in where.layers})
        self.watch.close()
        if names:
            calls = any(find(self.net, name) is None for name in names)
            self.watch.enter_context(Capture(self.net, names, ops=calls, into=Note(self._look)))

    def _look(self, name: str, output: Any) -> None:
        known = isinstance(output, Tensor) and output.requires_grad
        self.seen.append((name, (output.detach().clone(), get_gradient_edge(output)) if known else None))

    def _run(self, one: Inputs, asked: Asked) -> _Run | None:
        self.seen.clear()
        with torch.enable_grad(), beginning(self.resizing, one) as (given, begun):
            output = run(self.net, given)
        found = _found(self.net, output, one, asked)
        if found is None:
            return None
        calls = zip(numbered([name for name, _ in self.seen]), self.seen, strict=True)
        noted = {name: kept for name, (_, kept) in calls if kept is not None and name in self.where.layers}
        named = {(edge.node, edge.output_nr): name for name, (_, edge) in noted.items()}
        image, logits = get_gradient_edge(begun[-1].image), own_logits(found.figures)
        reached = {}
        for logit in {logit for logit, _ in logits}:
            edges, whole = frontier(logit, set(named), image.node)
            names = {named[edge] for edge in edges}
            reached[logit] = [name for name in self.where.layers if name in names], whole
        return _Run(found, begun[-1], noted, logits, [reached[logit] for logit, _ in logits])


def _weighed(ran: _Run, where: AnswerMap, one: Inputs, asked: Asked) -> _Explained:
    layouts, size = dict(zip(where.layers, where.layouts, strict=True)), _size(one.images)
    reached = {name for names, _ in ran.reached for name in names}
    maps = {name: layouts[name].maps(ran.noted[name][0]) for name in reached}
    heatmaps, used = [], []
    for (logit, first), (behind, _) in zip(ran.logits, ran.reached, strict=True):
        if not behind:
            raise LayerError(f"a box does not depend on {', '.join(where.layers)}; choose another layer, or none.")
        edges = [ran.noted[name][1] for name in behind]
        gradients = dict(zip(behind, torch.autograd.grad([logit], edges, [first], retain_graph=True), strict=True))
        live = [name for name in behind if gradients[name].any()] if len(behind) > 1 else []
        names = live or behind  # other boxes are pooled from other scales
        evidence = [weighed(maps[name], layouts[name].maps(gradients[name]), asked.method) for name in names]
        heatmaps.append(evidence[0] if len(evidence) == 1 else joined(evidence, ran.start.frame.batch))
        used.append(AnswerMap(tuple(names), tuple(layouts[name] for name in names)))
    if len({values.shape for values in heatmaps}) == 1:
        heatmaps = [torch.cat(heatmaps)]
    drawn = [_in_image(values, ran.start.frame, size)[:, 0] for values in heatmaps]
    return _Explained(ran.found.detached(), drawn, used)


def _on_pixels(net: nn.Module, one: Inputs, asked: Asked) -> _Explained | None:
    image = one.images.detach().clone().requires_grad_()
    with torch.enable_grad():
        found = _found(net, run(net, one.at(image, slice(None))), one, asked)
    if found is None:
        return None
    heatmaps = []
    for logit, first in own_logits(found.figures):
        (gradient,) = torch.autograd.grad([logit], [image], [first], retain_graph=True)
        values = gradient.abs() if asked.method == "saliency" else gradient * image.detach()
        heatmaps.append(values.sum(1).float())
    return _Explained(found.detached(), heatmaps, [])


def _seek(net: nn.Module, one: Inputs, asked: Asked) -> AnswerMap:
    """The maps that enter the head; none where there are no boxes."""

    def boxes(output: Any) -> tuple[list[tuple[GradientEdge, Tensor]], Tensor]:
        found = _found(net, output, one, asked)
        if found is None:
            return [], one.images
        return own_logits(found.figures), found.xyxy

    return head_maps(net, one, boxes)


def _found(net: nn.Module, output: Any, one: Inputs, asked: Asked) -> Candidates | None:
    size = _size(one.images)
    least = _LEAST if asked.min_score is None else asked.min_score
    more: dict[str, Any] = {"classes": classes_in(net), "named": asked.named, "answer": asked.answer}
    found = find_boxes(output, size, min_score=least, **more)
    if found is None:
        return None
    if asked.min_score or asked.only is not None:
        kept = found.scores >= (asked.min_score or 0)
        kept &= True if asked.only is None else found.classes == asked.only
        found = Candidates(*(part[kept] for part in found))
    return found.best(asked.top)


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width


def _in_image(values: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """Maps `n 1 h w` of the batch that the first layer is given, on the image's own pixels: without padding."""
    values, (height, width) = values.detach().float(), frame.inside
    if values.shape[2:] != frame.batch:
        values = F.interpolate(values, frame.batch, mode="bilinear")
    values = values[:, :, :height, :width]
    return values if values.shape[2:] == size else F.interpolate(values, size, mode="bilinear")


def _in_words(maps: Sequence[AnswerMap]) -> str:
    """Names of the maps; where they differ, with the boxes drawn from each."""
    boxes: dict[str, list[str]] = {}
    for number, where in enumerate(maps, 1):
        boxes.setdefault(str(where), []).append(str(number))
    if len(boxes) < 2:
        return "".join(boxes)
    return "; ".join(f"{where} (box {', '.join(numbers)})" for where, numbers in boxes.items())
