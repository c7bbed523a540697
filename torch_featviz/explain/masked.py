"""A segmenter's class is explained by its score over its own mask: what `attribute` does where pixels have classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.errors import OptionError
from torch_featviz.inspect.cut import AnswerMap, answer_map
from torch_featviz.inspect.encoder import encoder_map
from torch_featviz.model.answer import End, Kind, Target, classes_of, end_of
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import Segmented, Told, mask_of, pixel_scores, segmented, with_mask
from torch_featviz.model.run import run

from .explained import Explained

_PIXELS = 8  # of a mask, that are looked at until one has a gradient


def segments_of(net: nn.Module, inputs: Inputs, output: Any, told: Told, *, asked: bool = False) -> Segmented:
    """What a segmenter said of images.

    Args:
        net: a twin.
        inputs: of all images.
        output: what it returned for them.
        told: what is known of its scores.
        asked: whether a class was asked for.
    Raises:
        OptionError: the output may be a picture, or it cannot be told what the scores are.
        ShapeError: the number of names is wrong.
    """
    known = asked or told.kind is not None or bool(told.names)
    if not known and isinstance(output, Tensor) and output.shape[1] in (1, inputs.images.shape[1]):
        raise OptionError(
            f"the model returns shape {tuple(output.shape)}: is it a picture or a depth, or are these scores of "
            "classes? If they are, name classes=, or set target= to a class; else pass target= a callable that "
            "returns shape 'b', one value per image."
        )
    return segmented(output, inputs.images, net=net, told=told, ended=partial(_end, net, inputs))


def own_masks(net: nn.Module, inputs: Inputs, target: Target, told: Told) -> tuple[Inputs, Tensor, Kind]:
    """The inputs with the mask of the class that is explained for each image; these classes; what the scores are.

    Args:
        net: a twin of a segmenter.
        inputs: of all images.
        target: a class, one for each image, or None for the largest one besides the background.
        told: what is known of its scores.
    Raises:
        OptionError: a class has no pixel in an image, or the model does not have it; or as for `segments_of`.
        ShapeError: there are fewer or more targets than images; or as for `segments_of`.
    """
    with torch.no_grad():
        output = run(net, inputs)
    found = segments_of(net, inputs, output, told, asked=target is not None)
    classes = found.largest()[:, 0] if target is None else _chosen(target, found)
    mask = found.mask(classes)
    if not bool(mask.flatten(1).any(1).all()):
        raise _without_pixels(found, classes, mask, found.names(told.names, told.published))
    return with_mask(inputs, mask), classes, found.kind


def _end(net: nn.Module, inputs: Inputs) -> End | None:
    """What made the scores of one image."""
    one = inputs.rows(slice(1))
    with torch.enable_grad():
        images = one.images.detach().clone().requires_grad_()
        scores = pixel_scores(run(net, one.with_images(images)), images)
    return None if scores is None else end_of(scores)


def _chosen(target: Target, found: Segmented) -> Tensor:
    chosen = classes_of(target, found.scores, len(found.scores), found.kind)
    assert chosen is not None
    return chosen


def _without_pixels(found: Segmented, classes: Tensor, mask: Tensor, names: Sequence[str]) -> OptionError:
    """Which class has no pixel in which image, and which classes have some there."""
    image = int(mask.flatten(1).any(1).long().argmin())
    shares = found.values[image]
    there = [int(k) for k in shares.argsort(descending=True) if shares[k] > 0]
    have = ", ".join(f"{names[k]!r}" for k in there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    return OptionError(f"class {names[int(classes[image])]!r} has no pixel in image {image}; there are {have}.")


def map_of_mask(one: Explained) -> AnswerMap:
    """The map that one image's mask rests on, looked for from a pixel of it that has a gradient.

    Raises:
        OptionError: no gradient reaches the mask, or all of it is 0.
        LayerError: there is no such map.
    """
    given = one.inputs
    mask = mask_of(given)
    assert mask is not None
    try:
        for place in _inmost(mask):
            one.inputs = with_mask(given, place)
            with suppress(OptionError):  # behind dead ReLUs, say
                return encoder_map(one.model, one.inputs, one.figures)
    finally:
        one.inputs = given
    return answer_map(one.model, one.inputs, one.figures)


def _inmost(mask: Tensor) -> Iterator[Tensor]:
    """Some pixels of a mask `1 h w`, each as a mask; that which has most of it around it comes first."""
    around = [max(1, side // 4) for side in mask.shape[1:]]
    density = F.avg_pool2d(mask[:, None].float(), [2 * side + 1 for side in around], 1, around)
    order = density.masked_fill(~mask[:, None], -1).flatten().argsort(descending=True)[: int(mask.sum())]
    for number in order[:: max(1, len(order) // _PIXELS)][:_PIXELS].tolist():
        place = torch.zeros_like(mask)
        place.view(-1)[number] = True
        yield place
