"""Runs of a detector on one image or several: its boxes, and heatmaps from gradients of their own class logits.

The graphs of several images are one. Where no image changes what is found in another, the k-th boxes of all images
share a backward: at an image's own places, the gradient of their sum is that of its own box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from torch_featviz.capture.noting import Note, numbered
from torch_featviz.capture.session import Capture
from torch_featviz.errors import LayerError
from torch_featviz.inspect.cut import AnswerMap, map_of, remembered
from torch_featviz.inspect.heads import Frame, beginning, frontier, head_maps, resizing_in
from torch_featviz.model.boxes import Candidates, classes_in, find_boxes, of_each
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layers import find
from torch_featviz.model.logits import Logit, own_logits
from torch_featviz.model.run import run

from .cam import joined, weighed
from .explained import held, rows_of

_LEAST = 0.25  # score of a candidate
_BYTES = "bytes of an image by itself"  # as a question about a model


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
        only: the class whose boxes are explained, one for each image; empty for all.
        rows: how many images run at once, at most; None is as many as memory allows.
    """

    method: str
    layers: tuple[str, ...] = ()
    top: int = 5
    min_score: float | None = None
    answer: str | None = None
    named: int = 0
    only: tuple[int, ...] = ()
    rows: int | None = None


class BoxesOf(NamedTuple):
    """The boxes of some images without their graph, by image; their heatmaps `n h w`, in one part or several; and the
    maps that each was drawn from."""

    found: list[Candidates]
    heatmaps: list[Tensor]
    maps: list[AnswerMap]


def images_at_once(model: nn.Module, net: nn.Module, given: Inputs, asked: Asked) -> int:
    """How many images may run at once: 1, unless two were seen not to change each other's boxes; as far as there is
    memory for their graphs.

    Args:
        model: the detector.
        net: its twin.
        given: the inputs of all images.
        asked: what is asked.
    """
    wanted = min(len(given.images), asked.rows or len(given.images))
    if wanted == 1:
        return 1
    size = remembered(model, given, _BYTES, partial(_bytes_of_one, net, given, asked))
    return 1 if size is None else rows_of(size, given.images.device, wanted)


def one_by_one(model: nn.Module, given: Inputs) -> None:
    """From now on, images of this shape run one at a time."""
    remembered(model, given, _BYTES, lambda: inf, anew=True)


def _bytes_of_one(net: nn.Module, given: Inputs, asked: Asked) -> float | None:
    """What autograd holds for an image; infinite where one image changes what is found in another, and None where that
    was not seen, because the first image has no boxes.

    Of two images together, in either order, the first must have the boxes that it has alone, and the second none of
    their gradient.
    """
    one, asked = given.rows(slice(1)), asked._replace(only=(), min_score=None)
    try:
        size = held(net, one)
    except Exception:  # a model may not be given an image that wants a gradient
        return inf
    if rows_of(size, given.images.device, 2) == 1:
        return None if given.images.is_cuda else inf  # there may be more free memory of a GPU the next time
    with torch.no_grad():
        alone = _found(net, run(net, one.copied()), one, asked)
    if alone is None or not len(alone[0].scores):
        return None
    return size if all(_as_alone(net, given, asked, alone[0], at) for at in (0, 1)) else inf


def _as_alone(net: nn.Module, given: Inputs, asked: Asked, alone: Candidates, at: int) -> bool:
    """Whether the first image has the boxes that it has alone beside the second, too, and none of their gradient is at
    the second.

    Args:
        net: a twin.
        given: the inputs of all images.
        asked: what is asked.
        alone: the boxes of the first image alone.
        at: its place among the two.
    """
    two = given.rows(torch.tensor([at, 1 - at], device="cpu"))
    image = two.images.detach().clone().requires_grad_()
    with torch.enable_grad():
        try:
            found = _found(net, run(net, two.at(image, slice(None))), two, asked)
        except Exception:  # a model may take one image at a time, and end in any way where there are two
            return False
    together = None if found is None else found[at]
    if together is None or together.scores.shape != alone.scores.shape or not together.figures.requires_grad:
        return False
    same = torch.equal(together.classes, alone.classes)
    for mine, own in zip(together.detached()[::2], alone[::2], strict=True):  # edges and scores
        same &= torch.allclose(mine, own, rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(together.figures.sum(), image)
    reached = gradient.nan_to_num(0.0).flatten(1).any(1).tolist()
    return same and reached[at] and not reached[1 - at]


class _Run(NamedTuple):
    """One forward with its graph.

    Args:
        found: the best boxes of each image.
        frame: where the images lie in the batch that the first layer was given.
        noted: what each layer returned, and where that is in the graph.
        logits: the class logit of each box, and the gradient to begin with.
        reached: layers that each logit comes from, and whether it comes from nothing else.
    """

    found: list[Candidates]
    frame: Frame
    noted: dict[str, tuple[Tensor, GradientEdge]]
    logits: list[Logit]
    reached: list[tuple[list[str], bool]]


class OnMaps:
    """Explains the boxes of some images after others, at maps that are looked for once.

    Args:
        model: the detector.
        net: its twin.
        watch: the block within which the layers are watched.
    """

    def __init__(self, model: nn.Module, net: nn.Module, watch: ExitStack) -> None:
        self.model, self.net, self.watch = model, net, watch
        self.where, self.resizing = AnswerMap((), ()), resizing_in(net)
        self.seen = list[tuple[str, tuple[Tensor, GradientEdge] | None]]()

    def __call__(self, given: Inputs, asked: Asked) -> BoxesOf | None:
        if not self.where.layers:
            one = given.rows(slice(1))
            ask = (
                partial(map_of, self.net, one.copied(), asked.layers)
                if asked.layers
                else partial(self._seek, given, 0, asked)
            )
            self._watch(remembered(self.model, one, asked.layers or "boxes", ask))
        ran = self._run(given, asked)
        if ran is None:
            return None
        if not asked.layers and not all(whole for _, whole in ran.reached):  # of scales not known yet
            both = dict(zip(self.where.layers, self.where.layouts, strict=True))
            images = [image for image, found in enumerate(ran.found) for _ in found.scores]
            for image in sorted({at for at, (_, whole) in zip(images, ran.reached, strict=True) if not whole}):
                new = self._seek(given, image, asked)
                both.update(zip(new.layers, new.layouts, strict=True))
            joint = AnswerMap(tuple(both), tuple(both.values()))
            self._watch(remembered(self.model, given, "boxes", lambda: joint, anew=True))
            ran = self._run(given, asked)
        return None if ran is None else _weighed(ran, self.where, given, asked)

    def _seek(self, given: Inputs, number: int, asked: Asked) -> AnswerMap:
        """The maps that enter the head, for the boxes of one image; none where there are none."""
        part = slice(number, number + 1)
        one, own = given.rows(part), asked._replace(only=asked.only[part])

        def boxes(output: Any) -> tuple[list[Logit], Tensor]:
            found = _found(self.net, output, one, own)
            return ([], one.images) if found is None else (own_logits(found[0].figures), found[0].xyxy)

        return head_maps(self.net, one, boxes)

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

    def _run(self, given: Inputs, asked: Asked) -> _Run | None:
        self.seen.clear()
        with torch.enable_grad(), beginning(self.resizing, given) as (begins, begun):
            output = run(self.net, begins)
        found = _found(self.net, output, given, asked)
        if found is None:
            return None
        calls = zip(numbered([name for name, _ in self.seen]), self.seen, strict=True)
        noted = {name: kept for name, (_, kept) in calls if kept is not None and name in self.where.layers}
        named = {(edge.node, edge.output_nr): name for name, (_, edge) in noted.items()}
        image, logits = get_gradient_edge(begun[-1].image), _logits(found)
        reached = {}
        for logit in {logit for logit, _ in logits}:
            edges, whole = frontier(logit, set(named), image.node)
            names = {named[edge] for edge in edges}
            reached[logit] = [name for name in self.where.layers if name in names], whole
        return _Run(found, begun[-1].frame, noted, logits, [reached[logit] for logit, _ in logits])


def _weighed(ran: _Run, where: AnswerMap, given: Inputs, asked: Asked) -> BoxesOf:
    layouts = dict(zip(where.layers, where.layouts, strict=True))
    if not all(names for names, _ in ran.reached):
        raise LayerError(f"a box does not depend on {', '.join(where.layers)}; choose another layer, or none.")
    heatmaps, used = dict[int, Tensor](), dict[int, AnswerMap]()
    maps = {name: layouts[name].maps(ran.noted[name][0]) for name in {n for names, _ in ran.reached for n in names}}
    if any(len(values) != len(ran.found) for values in maps.values()):  # as where a model loops over its images
        raise LayerError(f"{', '.join(maps)} did not return a map for each of {len(ran.found)} images.")
    for boxes in _ranks(ran.found):
        behind = list(dict.fromkeys(name for _, number in boxes for name in ran.reached[number][0]))
        slopes = _slopes([ran.logits[number] for _, number in boxes], [ran.noted[name][1] for name in behind])
        gradients = {name: layouts[name].maps(slope) for name, slope in zip(behind, slopes, strict=True)}
        evidence = {name: weighed(maps[name], gradients[name], asked.method) for name in behind}
        live = {name: gradients[name].flatten(1).any(1).tolist() for name in behind} if len(behind) > 1 else {}
        for image, number in boxes:
            names = ran.reached[number][0]
            if len(names) > 1:  # other boxes are pooled from other scales
                names = [name for name in names if live[name][image]] or names
            parts = [evidence[name][image : image + 1] for name in names]
            heatmaps[number] = parts[0] if len(parts) == 1 else joined(parts, ran.frame.batch)
            used[number] = AnswerMap(tuple(names), tuple(layouts[name] for name in names))
    drawn = [heatmaps[number] for number in sorted(heatmaps)]
    if len({values.shape for values in drawn}) == 1:
        drawn = [torch.cat(drawn)]
    drawn = [_in_image(values, ran.frame, size_of(given.images))[:, 0] for values in drawn]
    return BoxesOf([found.detached() for found in ran.found], drawn, [used[number] for number in sorted(used)])


def on_pixels(net: nn.Module, given: Inputs, asked: Asked) -> BoxesOf | None:
    """The boxes of some images and their heatmaps, by a method that needs no maps."""
    image = given.images.detach().clone().requires_grad_()
    with torch.enable_grad():
        found = _found(net, run(net, given.at(image, slice(None))), given, asked)
    if found is None:
        return None
    heatmaps, logits = dict[int, Tensor](), _logits(found)
    for boxes in _ranks(found):
        (gradient,) = _slopes([logits[number] for _, number in boxes], [get_gradient_edge(image)])
        values = gradient.abs() if asked.method == "saliency" else gradient * image.detach()
        values = values.sum(1).float()
        heatmaps.update((number, values[at : at + 1]) for at, number in boxes)
    return BoxesOf([each.detached() for each in found], [heatmaps[number] for number in sorted(heatmaps)], [])


def _logits(found: Sequence[Candidates]) -> list[Logit]:
    figures = [each.figures for each in found]
    return own_logits(torch.cat(figures) if len(figures) > 1 else figures[0], [len(each) for each in figures])


def _ranks(found: Sequence[Candidates]) -> Iterator[list[tuple[int, int]]]:
    """The best boxes, then the second and so on: the number of each one's image, and its own among all boxes."""
    counts = [len(each.scores) for each in found]
    first = [0, *accumulate(counts)]
    for rank in range(max(counts)):
        yield [(image, first[image] + rank) for image, count in enumerate(counts) if count > rank]


def _slopes(logits: Sequence[Logit], ends: Sequence[GradientEdge]) -> tuple[Tensor, ...]:
    """The gradient of the sum of some logits at each of these."""
    edges, ones = dict[Any, GradientEdge](), dict[Any, dict[int, Tensor]]()
    for edge, one in logits:
        key = edge.node, edge.output_nr
        edges[key] = edge
        ones.setdefault(key, {})[id(one)] = one  # several boxes may share it
    begin = [sum(every[1:], every[0]) for every in (list(shared.values()) for shared in ones.values())]
    return torch.autograd.grad(list(edges.values()), list(ends), begin, retain_graph=True)


def _found(net: nn.Module, output: Any, given: Inputs, asked: Asked) -> list[Candidates] | None:
    """The best boxes of each image; None where there are none that is known how to read."""
    every = []
    more: dict[str, Any] = {"classes": classes_in(net), "named": asked.named, "answer": asked.answer}
    least = _LEAST if asked.min_score is None else asked.min_score
    for number, one in enumerate(of_each(output, len(given.images))):
        found = find_boxes(one, size_of(given.images), min_score=least, **more)
        if found is None:
            return None
        if asked.min_score or asked.only:
            kept = found.scores >= (asked.min_score or 0)
            kept &= found.classes == asked.only[number] if asked.only else True
            found = Candidates(*(part[kept] for part in found))
        every.append(found.best(asked.top))
    return every


def size_of(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width


def _in_image(values: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """Maps `n 1 h w` of the batch that the first layer is given, on the image's own pixels: without padding."""
    values, (height, width) = values.detach().float(), frame.inside
    if values.shape[2:] != frame.batch:
        values = F.interpolate(values, frame.batch, mode="bilinear")
    values = values[:, :, :height, :width]
    return values if values.shape[2:] == size else F.interpolate(values, size, mode="bilinear")
