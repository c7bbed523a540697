"""Adversarial examples: images, perturbations and perturbed images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import ShapeError
from torch_featviz.explain import Adversarial, attack
from torch_featviz.gate import gated
from torch_featviz.model.answer import Answer, Kind, named_both
from torch_featviz.model.inputs import as_batch
from torch_featviz.model.labels import names_of
from torch_featviz.picture import Picture, Scale, Sheet, grid_columns, number, paint, rgb
from torch_featviz.picture.bounds import LABEL, fitted, named, shrunk
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.picture.legend import OF_IMAGES
from torch_featviz.picture.text import width
from torch_featviz.zoo import ModelCard

LIMIT = 32
_GOAL = 224  # pixels of a cell
_AROUND = 8  # pixels beside a label


@gated
def adversarial(
    model: nn.Module,
    images: Tensor,
    *,
    target: int | str | Sequence[int | str] | Tensor | None = None,
    eps: float = 0.005,
    steps: int = 40,
    seed: int = 0,
    classes: Sequence[str] = (),
    answer: Kind | None = None,
    value_range: ValueRange | None = None,
    card: ModelCard | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """Draw each image, a perturbation that is too small to see but changes the model's answer, and the perturbed image.

    The perturbation is amplified. Above an image stand the predicted class and its probability; below it, the
    probability of the target class, or without a target that of the original class. `explain.attack` returns tensors.

    Args:
        model: any module that returns one row of scores per image; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them, with one or three channels; at most 32.
        target: the class to reach, by number or name, or one per image. Default: any class other than the predicted
            one.
        eps: largest change of a value, where images are in [0, 1]; 0.005 is about one of 255 levels.
        steps: steps of projected gradient descent (Madry et al. 2018); 1 is the fast gradient sign method.
        seed: seed of the random start.
        classes: class names in the order of the outputs. Default: those of the card.
        answer: meaning of the model's scores, as for `attribute`. Default: that of the card, or derived from their
            values and from the model.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that scales and shifts each value to
            0 to 1. Default: the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
        title: heading of the picture.
    Raises:
        ShapeError: images are not `b c h w`, there are more than 32, or the number of class names is wrong.
        OptionError, DtypeError, DeviceError: as for `explain.attack`.
    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> adversarial(net, torch.rand(2, 1, 8, 8), target=1, eps=0.1, classes=["pig", "airliner"]).columns
        ('image', 'perturbation × 5', 'perturbed image')

    Reference: Goodfellow et al. 2015; Madry et al. 2018.
    """
    images = as_batch(images)
    if len(images) > LIMIT:
        raise ShapeError(f"{len(images)} images are too many, a sheet shows {LIMIT}; pass images[:{LIMIT}].")
    found = attack(
        model,
        images,
        target=target,
        eps=eps,
        steps=steps,
        seed=seed,
        classes=classes,
        answer=answer,
        value_range=value_range,
        card=card,
        additional_forward_args=additional_forward_args,
        keywords=keywords,
    )
    both = named_both if found.before.shape[1] == 2 else tuple
    names = Answer(found.before, found.kind).names(both(names_of(classes)), both(() if card is None else card.classes))
    before, after = (unit_images(x, value_range, card) for x in (images, found.images))
    counts, hints = clipped(before, value_range, card)  # afterwards no other pixels are beyond
    change = found.perturbation.expand(-1, 3, -1, -1)
    n = len(images)
    groups = grid_columns(n, images.shape[2] / (3 * images.shape[3]))
    pictures, zoom, notes = fitted(torch.cat([before, after]), 3 * groups, -(-n // groups), goal=_GOAL)
    before, after = pictures.chunk(2)
    change = shrunk(change.to(before), max(before.shape[2:]), None)
    ends = max(eps, float(change.abs().max()))  # which is eps, rounded
    painted, legend = paint(change, Scale(symmetric=True, vmin=-ends, vmax=ends), notes=_notes(found, names))
    legend = replace(legend, counts=counts, notes=(*legend.notes, *notes, *hints), bounds=OF_IMAGES)
    side = pictures.shape[3] * zoom
    return Sheet(
        torch.stack([rgb(before), painted, rgb(after)], 1).flatten(0, 1),
        legend,
        title=title or _title(found),
        ncols=3 * groups,
        columns=("image", f"perturbation × {number(0.5 / eps)}", "perturbed image"),
        group=3,
        labels=tuple(words for i in range(n) for words in _labels(found, i, names, side)),
        captions=tuple(words for i in range(n) for words in _captions(found, i, names, side)),
        zoom=zoom,
    )


def _title(found: Adversarial) -> str:
    moved, n = int(found.moved.sum()), len(found.images)
    share = "the answer" if n == 1 else f"{moved or 'any'} of {n} answers"
    does = "alters" if moved else "does not alter"
    return f"A perturbation of at most {number(found.eps)} {does} {share}{' to the target' if found.targeted else ''}"


def _notes(found: Adversarial, names: Sequence[str]) -> tuple[str, ...]:
    by = (
        "the fast gradient sign method, 1 step"
        if found.steps == 1
        else f"projected gradient descent, {found.steps} steps"
    )
    already = int((found.reached & ~found.moved).sum())
    wanted = sorted(set(found.classes.tolist()))
    sought = "any other answer"
    if found.targeted:
        sought = f"{names[wanted[0]]}" if len(wanted) == 1 else "a target for each image"
    return (
        f"perturbation: at most {number(found.eps)} per value in [0, 1] "
        f"({number(255 * found.eps)} of 255 levels), by {by}; target: {sought}",
        f"✓ reached: {int(found.reached.sum())} of {len(found.images)}",
        *((f"already so without a perturbation: {already}",) if already else ()),
    )


def _labels(found: Adversarial, image: int, names: Sequence[str], side: int) -> tuple[str, str, str]:
    """The answer before and after, with a mark whether it is the one that was sought."""
    before, after = (
        _chance(values[image], int(values[image].argmax()), names, side) for values in (found.before, found.after)
    )
    mark = "✓" if bool(found.reached[image]) else "✗"
    return before, "", f"{mark} {after}"


def _captions(found: Adversarial, image: int, names: Sequence[str], side: int) -> tuple[str, str, str]:
    """The probability of the class that is sought, or left, before and after."""
    k = int(found.classes[image])
    before, after = (_chance(values[image], k, names, side) for values in (found.before, found.after))
    return (before, "", after) if found.targeted else ("", "", after)


def _chance(values: Tensor, k: int, names: Sequence[str], side: int) -> str:
    """A class with its probability, no wider than a cell."""
    chance = f" {100 * float(values[k]):.1f} %"
    return named(names[k], max(60, side - _AROUND - width(f"✓ {chance}", LABEL))) + chance
