"""Boxes in what a detector returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.displayed import Displayed
from torch_featviz.errors import ShapeError

from .answer import Answer
from .values import map_tensors, tensors

_FINAL = ("boxes", "labels", "scores")
_OVERLAP = 0.5  # of two boxes of a class, above which the one with the lower score is left out
_SLACK = 1e-3  # by which rows of probabilities may miss a sum of 1
_INTEGERS = 6  # columns of a final box: its corners, its score and its class


@dataclass(frozen=True, eq=False, repr=False)
class Boxes(Displayed):
    """Boxes that a detector found, those of each image by score, best first.

    Args:
        xyxy: `n 4`, left, top, right and bottom edge in pixels of the image.
        classes: `n`, the number of each box's class.
        scores: `n`, from 0 to 1.
        images: `n`, the number of the image that each box is in.
    """

    xyxy: Tensor
    classes: Tensor
    scores: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.scores)


class Candidates(NamedTuple):
    """Boxes of one image in autograd's graph, by score, best first.

    Args:
        xyxy: `n 4`, in pixels.
        classes: `n`.
        scores: `n`.
        figures: `n`, numbers of the model's output that `logits.own_logit` leads back from.
    """

    xyxy: Tensor
    classes: Tensor
    scores: Tensor
    figures: Tensor

    def best(self, top: int) -> Candidates:
        return Candidates(*(part[:top] for part in self)) if len(self.scores) > top else self

    def detached(self) -> Candidates:
        return Candidates(*(part.detach() for part in self))


def find_boxes(
    output: Any,
    size: tuple[int, int],
    *,
    classes: int | None = None,
    named: int = 0,
    answer: str | None = None,
    min_score: float = 0.25,
) -> Candidates | None:
    """The boxes of one image in what a detector returned; None where none of these rules applies.

    1. Boxes as torchvision returns them: a dictionary, or a list of one, with `boxes` (`n 4`, edges in pixels),
       `labels` and `scores`. They are final.
    2. Boxes as transformers' DETR family returns them: a dictionary, dataclass or named tuple with `logits` or
       `pred_logits` (`1 n c`) and `pred_boxes` (`1 n 4`, centre and size as shares of the image). The scores are a
       softmax, whose last column is "no object", if `c` is one more than `classes`, if the key is `pred_logits`, or if
       `answer="logits"`; else, and with `answer="label_logits"`, they are sigmoids.
    3. A tensor `1 n 6`, whose last column holds whole numbers: edges in pixels, score, class. They are final.
    4. A tensor `1 n 4+1+c` or `1 4+1+c n`: centre and size, probability of an object, and of each class. The score is
       the product of both.
    5. A tensor `1 n 4+c` or `1 4+c n`: centre and size, and the probability of each class.

    The number of names, `named`, tells 4 from 5, and columns from boxes. Without names there are taken to be more boxes
    than columns, read as published: `1 n 4+1+c` as YOLOv5 returns it, and `1 4+c n` as YOLOv8 does.

    The tensor may be the first that fits in a tuple or list. In 4 and 5 neither rows nor columns all sum to 1, as
    those of attention and of text do, sizes are at least 0 and probabilities from 0
    to 1; sizes are pixels, or shares of the image if none is above 2. Of the boxes of one class that overlap by more
    than half, the best remains. In 2, 4 and 5 boxes with a lower score than `min_score` are left out.

    Args:
        output: what the model returned for one image.
        size: height and width of the image.
        classes: how many the model says it has.
        named: how many classes have a name; 0 if no names are given.
        answer: the meaning of logits, if it is known.
        min_score: lowest score of a box.
    Raises:
        ShapeError: a tensor as in 4 and 5 has columns for more or fewer classes than have names.
    Example:
        >>> output = torch.tensor([[[8.0, 8.0, 4.0, 4.0, 0.9, 0.1, 0.8]]]).expand(1, 10, 7)
        >>> find_boxes(output, (16, 16)).xyxy
        tensor([[ 6.,  6., 10., 10.]])
    """
    if found := _final(output):
        return found
    if found := _queries(output, size, classes, answer, min_score):
        return found
    for tensor in (part for part in _parts(output) if part.dim() == 3 and len(part) == 1):
        if found := _rows(tensor[0], size, named, min_score):
            return found
    return None


def of_each(output: Any, count: int) -> list[Any]:
    """What a detector returned for each of several images, as it returns it for one: the dictionaries of a list, or the
    rows of all tensors.

    Raises:
        ShapeError: it is neither one dictionary for each image, nor do tensors hold a row for each.
    Example:
        >>> [rows.shape for rows in of_each(torch.zeros(2, 5, 6), 2)]
        [torch.Size([1, 5, 6]), torch.Size([1, 5, 6])]
    """
    if count == 1:
        return [output]
    if isinstance(output, (list, tuple)) and len(output) == count and all(isinstance(one, Mapping) for one in output):
        return list(output)
    rows = [tensor for tensor in tensors(output) if tensor.dim() and len(tensor) == count]
    if not rows:
        raise ShapeError(f"what the model returned holds no row for each of {count} images.")
    return [map_tensors(partial(_row, number, count), output) for number in range(count)]


def _row(number: int, count: int, tensor: Tensor) -> Tensor:
    return tensor[number : number + 1] if tensor.dim() and len(tensor) == count else tensor


def names_in(model: nn.Module) -> tuple[str, ...]:
    """The class names in the configuration of a model of transformers; none where there are none of its own."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    own = [names.get(number) for number in range(len(names))]
    return tuple(map(str, own)) if own and own[0] not in (None, "LABEL_0") else ()


def classes_in(model: nn.Module) -> int | None:
    """How many classes a model of transformers says it has."""
    count = getattr(getattr(model, "config", None), "num_labels", None)
    return count if isinstance(count, int) else None


def _final(output: Any) -> Candidates | None:
    """Rules 1 and 3."""
    one = output[0] if isinstance(output, (list, tuple)) and len(output) == 1 else output
    if isinstance(one, Mapping) and all(isinstance(one.get(name), Tensor) for name in _FINAL):
        boxes, labels, scores = (one[name] for name in _FINAL)
        return _sorted(boxes, labels, scores, scores)
    for tensor in _parts(output):
        if tensor.dim() == 3 and len(tensor) == 1 and tensor.shape[2] == _INTEGERS and tensor.is_floating_point():
            rows = tensor[0]
            whole = rows[:, 5].detach()
            ordered = bool((rows[:, 2:4] >= rows[:, :2]).all())
            if ordered and torch.equal(whole, whole.round()) and bool((whole >= 0).all()) and _unit(rows[:, 4]):
                kept = rows[rows[:, 4] > 0]
                return _sorted(kept[:, :4], kept[:, 5].detach().long(), kept[:, 4], kept[:, 4])
    return None


def _queries(
    output: Any, size: tuple[int, int], classes: int | None, answer: str | None, min_score: float
) -> Candidates | None:
    """Rule 2."""
    key = next((name for name in ("logits", "pred_logits") if isinstance(_named(output, name), Tensor)), "")
    logits, boxes = _named(output, key), _named(output, "pred_boxes")
    if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor) or logits.dim() != 3 or len(logits) != 1:
        return None
    if boxes.shape != (*logits.shape[:2], 4):
        return None
    exclusive = classes == logits.shape[2] - 1 or (classes is None and key == "pred_logits")
    if answer in ("logits", "label_logits"):
        exclusive = answer == "logits"
    logits, boxes = logits[0], boxes[0]
    scores = Answer(logits.detach(), "logits" if exclusive else "label_logits").values
    best, labels = scores[:, : logits.shape[1] - exclusive].max(1)
    kept = (best >= min_score).nonzero()[:, 0]
    return _sorted(_edges(boxes[kept], size), labels[kept], best[kept], logits[kept, labels[kept]])


def _rows(rows: Tensor, size: tuple[int, int], named: int, min_score: float) -> Candidates | None:
    """Rules 4 and 5."""
    if not rows.is_floating_point() or rows.shape[0] == rows.shape[1]:
        return None
    usual = (1, True) if rows.shape[0] > rows.shape[1] else (0, False)
    fits = [(by, objects) for by in (1, 0) for objects in (True, False) if rows.shape[by] == 4 + objects + named]
    fits = [fit for fit in fits if fit[0] == usual[0]] or fits
    by, objects = fits[0] if named and fits else usual
    rows = rows if by else rows.t()
    first = 4 + objects
    if rows.shape[1] <= first or not _unit(rows[:, 4:]) or bool((rows[:, 2:4] < 0).any()):
        return None
    if any(bool(((rows.detach().sum(axis) - 1).abs() < _SLACK).all()) for axis in (0, 1)):  # a softmax: attention, text
        return None
    if named and not fits:
        count = rows.shape[1]
        raise ShapeError(
            f"classes must name {count - 5} or {count - 4}, got {named}: this model gives a box {count} columns, 4 for "
            "its place, perhaps 1 for an object, and one for each class."
        )
    best, labels = rows[:, first:].detach().max(1)
    scores = best * rows[:, 4].detach() if objects else best
    column = labels + first
    if objects and rows.shape[1] == first + 1:  # of a single class: only the object tells boxes apart
        column = torch.full_like(column, 4)
    kept = (scores >= min_score).nonzero()[:, 0]
    boxes = rows[kept, :4]
    shares = not len(rows) or float(rows[:, :4].detach().amax()) <= 2
    found = _sorted(_edges(boxes, size if shares else (1, 1)), labels[kept], scores[kept], rows[kept, column[kept]])
    alone = _suppressed(found)
    return Candidates(*(part[alone] for part in found))


def _suppressed(found: Candidates) -> list[int]:
    """Numbers of the boxes that no better one of their class covers by more than half (greedy non-maximum
    suppression)."""
    boxes = found.xyxy.detach().double()
    low, high = boxes[:, None, :2].maximum(boxes[:, :2]), boxes[:, None, 2:].minimum(boxes[:, 2:])
    common = (high - low).clamp(min=0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    covers = common > _OVERLAP * (areas[:, None] + areas - common)
    covers &= found.classes[:, None] == found.classes
    kept: list[int] = []
    for number, row in enumerate(covers.tolist()):
        if not any(row[better] for better in kept):
            kept.append(number)
    return kept


def _sorted(xyxy: Tensor, classes: Tensor, scores: Tensor, figures: Tensor) -> Candidates:
    found, values = Candidates(xyxy, classes, scores, figures), scores.detach()
    if bool((values[1:] <= values[:-1]).all()):  # as most detectors return them
        return found
    order = values.argsort(descending=True, stable=True)
    return Candidates(*(part[order] for part in found))


def _edges(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Left, top, right and bottom, of centres and sizes as shares of this size."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    height, width = size
    return torch.cat([middle - half, middle + half], 1) * boxes.new_tensor([width, height, width, height])


def _unit(values: Tensor) -> bool:
    values = values.detach()
    return bool(((values >= 0) & (values <= 1)).all())


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) if name else None


def _parts(output: Any) -> Iterator[Tensor]:
    """The output, or the tensors in a tuple or list."""
    for part in output if isinstance(output, (list, tuple)) else (output,):
        if isinstance(part, Tensor):
            yield part
