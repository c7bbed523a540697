"""The map that a heatmap is drawn from by default, beside gradients that are cut there."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import FeatvizError
from torch_featviz.explain.attribute import attribute
from torch_featviz.explain.attribution import Attribution
from torch_featviz.model.answer import LABELS
from torch_featviz.model.layers import unwrap
from torch_featviz.model.masks import is_background, pixel_scores
from torch_featviz.model.values import tensors

from .claims import Claim
from .counted import counted
from .judged import Unknown, Wrong, by_other_means, judged, listed, many
from .passing import FUNCTIONAL, Noted, Passing
from .subject import Subject

_COARSEST, _READ = 64, 16  # of a segmenter's maps: sides of the image, and places that one pixel reads


def claims_of_maps(subject: Subject) -> list[Claim]:
    """That the layer of the default heatmap is the latest map that the whole score depends on.

    One backward is cut at that map. What it does not tell: whether a functional call that comes later would do, and, of
    a later layer, whether gradients beside it cancel out.
    """
    words = "The default heatmap is drawn from the latest map that the whole score passes through"
    return [judged("default map", words, lambda: _default_map(subject))]


def _default_map(subject: Subject) -> str:
    found = _asked(subject)
    if found.boxes is not None and not len(found.boxes):
        raise Unknown("no boxes in the first image")
    if found.attributions.shape[2:].numel() < 2:
        raise Wrong(f"{found.where}: one place")
    with by_other_means():
        passing = Passing(subject, found.layers)
        chosen = [passing.number(name) for name in found.layers]
        answer = _answer(subject, found, passing.output)
        if passing.backward(subject, answer, set(chosen)):
            raise Wrong(f"{found.where}: the answer passes beside it")
        if found.boxes is not None:
            return _boxes(found, passing, chosen)
        if dead := [name for name, i in zip(found.layers, chosen, strict=True) if not _may_be_live(passing, i)]:
            behind = len(chosen) > 1 and not all(i in passing.met for i in chosen)
            raise Wrong(f"{found.where}: {dead[0]} is behind the others" if behind else f"{listed(dead)}: one place")
        if found.mask is not None:
            return _of_pixels(subject, found, passing, chosen)
        looked_at = _nothing_later(found, passing, chosen)
        _all_needed(found, passing, chosen)
    later = f"{many(looked_at, 'later map')} would not do alone" if looked_at else "no later layer is a map"
    return f"{found.where}; cut there, no gradient comes to the image, and {later}"


def _asked(subject: Subject) -> Attribution:
    """Of the first image; by the map alone where it is one, for which no second backward is needed."""
    one = subject.inputs.rows(slice(1)).copied()
    given: dict[str, Any] = {"additional_forward_args": one.args or None, "keywords": dict(one.keywords) or None}
    with counted(subject):
        try:
            return attribute(subject.model, one.images, method="layer_activation", **given)
        except FeatvizError:  # of several maps, and of boxes
            return attribute(subject.model, one.images, **given)


def _answer(subject: Subject, found: Attribution, output: Any) -> Tensor:
    """What is explained: the score of the predicted class, of the best boxes, or of a mask."""
    if found.boxes is not None:
        first = output[0] if isinstance(output, (list, tuple)) else output
        if not isinstance(first, dict) or "scores" not in first:
            raise Unknown(f"which scores of a {type(output).__name__} belong to boxes is not known here")
        best: Tensor = first["scores"][: len(found.boxes)].sum()
        return best
    if found.mask is not None:
        scores = _scores_of_pixels(subject, output)
        return scores[:, found.mask[0]][_class(found) or 0].mean()
    rows = [tensor for tensor in tensors(output) if tensor.is_floating_point() and tensor.dim() in (1, 2)]
    if not rows or len(rows[0]) != 1:
        raise Unknown(f"a {type(output).__name__} of the model has no row of scores")
    row = rows[0][0].reshape(-1)
    number = _class(found)
    if len(row) > 1 and number is not None and number != int(row.argmax()):
        raise Wrong(f"class {number} is explained, and {int(row.argmax())} has the highest score")
    return row[number] if len(row) > 1 and number is not None else row[0]


def _class(found: Attribution) -> int | None:
    return None if found.classes is None else int(found.classes[0])


def _may_be_live(passing: Passing, i: int) -> bool:
    return i in passing.met and passing.met[i].may_be_live


def _nothing_later(found: Attribution, passing: Passing, chosen: list[int]) -> int:
    """How many later layers return maps that the score depends on at more than one place; none of them is a cut."""
    last, count = max(chosen), 0
    before = {noted.edge for noted in passing.noted[: last + 1]}  # which may be handed on later
    for i, noted in enumerate(passing.noted[last + 1 :], last + 1):
        if noted.name == FUNCTIONAL or noted.edge in before or i not in passing.met or not passing.met[i].is_live:
            continue
        count += 1
        if not passing.passes_beside(i):
            raise Wrong(f"{found.where}, but {noted.name} {noted.shape} is later")
    return count


def _all_needed(found: Attribution, passing: Passing, chosen: list[int]) -> None:
    for i in chosen if len(chosen) > 1 else []:
        if not passing.leads_on(i):
            raise Wrong(f"{found.where}: {passing.noted[i].name} is not needed")


def _boxes(found: Attribution, passing: Passing, chosen: list[int]) -> str:
    """No gradient of the best boxes' scores passes beside the maps, and each map is needed."""
    if not bool(found.heatmaps.flatten(1).any(1).all()):
        raise Wrong("a heatmap of a box is 0")
    _all_needed(found, passing, chosen)
    return f"boxes: {found.where}; cut there, no gradient of their scores comes to the image"


def _scores_of_pixels(subject: Subject, output: Any) -> Tensor:
    """`n h w`."""
    scores = pixel_scores(output, subject.inputs.images[:1])
    if scores is None:
        raise Unknown(f"a {type(output).__name__} of the model has no scores of pixels")
    return scores[0]


def _of_pixels(subject: Subject, found: Attribution, passing: Passing, chosen: list[int]) -> str:
    """The maps of a segmenter: each is met by a gradient beside the others, and no later one is as coarse."""
    scores = _scores_of_pixels(subject, passing.output)
    number = _class(found)
    if len(scores) > 1 and found.answer not in LABELS and found.mask is not None and number is not None:
        labels = scores.argmax(0)
        counts = torch.bincount(labels.flatten(), minlength=len(scores))
        counts[[i for i in _backgrounds(unwrap(subject.model)) if i != number]] = 0
        if not torch.equal(found.mask[0], labels == number) or int(counts.max()) > int(counts[number]):
            raise Wrong(f"class {[number]} is explained, which is not the largest")
    end = min((passing.noted[i] for i in chosen), key=lambda noted: (_places(noted), -passing.noted.index(noted)))
    first = passing.noted.index(end) + 1
    passing.backward(subject, _in_the_middle(scores[int(number or 0)], found))
    for i, noted in enumerate(passing.noted[first:], first):
        if noted.name == FUNCTIONAL or len(noted.shape) != 4 or _places(noted) > _places(end) or i not in passing.met:
            continue
        sides = zip(noted.shape[2:], subject.inputs.images.shape[2:], strict=True)
        if all(_COARSEST * side >= whole for side, whole in sides) and passing.met[i].places[0] > _READ:
            raise Wrong(f"{found.where}, but {noted.name} {noted.shape} is later, as coarse, and no score of a pixel")
    return f"{found.where}; cut there, no gradient of the mask comes to the image, and no later map is as coarse"


def _backgrounds(net: nn.Module) -> list[int]:
    if type(net).__module__.startswith("torchvision.models.segmentation"):
        return [0]
    names = getattr(getattr(net, "config", None), "id2label", None) or {}
    return [int(i) for i, name in names.items() if is_background(str(name))]


def _in_the_middle(scores: Tensor, found: Attribution) -> Tensor:
    """The score `h w` of the pixel of the mask that is nearest to the middle of it."""
    assert found.mask is not None
    ys, xs = found.mask[0].nonzero(as_tuple=True)
    i = int(((ys - ys.float().mean()) ** 2 + (xs - xs.float().mean()) ** 2).argmin())
    return scores[ys[i], xs[i]]


def _places(noted: Noted) -> int:
    """Of a map `1 c h w`, or of tokens `1 n c`."""
    return prod(noted.shape[2:]) if len(noted.shape) == 4 else noted.shape[1]
