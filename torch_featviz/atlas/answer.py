"""What the model says of each image, as the page is given it: the highest of its answers, with their names."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.explain.masked import segments_of
from torch_featviz.inspect.walk import Walk
from torch_featviz.model.answer import Answer, Kind, answer_of, ending, scores_of
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import Told, is_segmenters
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.picture import Legend, count, rgb

from .pack import Blobs

_TOP = 5


def answered(
    model: nn.Module, inputs: Inputs, seen: Walk, said: Kind | None, *, names: Sequence[str], asked: bool
) -> tuple[Answer | None, list[str]]:
    """What was answered to the images, None where there is no row of scores for each; and what cannot be told.

    Args:
        model: any.
        inputs: what it was given.
        seen: what it did with it.
        said: what its scores are, where it is known.
        names: of classes, which may be of other outputs.
        asked: whether a class was asked for.
    Raises:
        OptionError: the answer is not what was said.
    """
    count, named = len(inputs.images), bool(names) or asked
    if is_segmenters(seen.output, inputs.images):
        return _segmented(model, inputs, seen.output, Told(said, (), names), named)
    try:
        scores = scores_of(seen.output, count).detach()
    except (ShapeError, DtypeError):
        return None, []
    if not scores.is_floating_point():
        return None, []
    if not bool(scores.isfinite().all()):
        return Answer(scores.cpu(), "figures"), []
    try:
        with isolated():
            ended = partial(ending, twin(model), inputs.rows(slice(1)).copied())
            judged = answer_of(scores, count, said=said, named=named, ended=ended)
    except OptionError as error:
        if said is not None:
            raise
        return Answer(scores.cpu(), "figures"), [f"Probabilities: {error}"]
    return Answer(scores.cpu(), judged.kind), []


def _segmented(
    model: nn.Module, inputs: Inputs, output: Any, told: Told, named: bool
) -> tuple[Answer | None, list[str]]:
    """What a segmenter answered."""
    try:
        with isolated():
            found = segments_of(twin(model), inputs.copied(), output, told, asked=named)
    except OptionError as error:
        if told.kind is not None:
            raise
        return None, [f"Classes of pixels: {error}"]
    return replace(found, scores=found.scores.cpu(), pixels=found.pixels.cpu()), []


def no_reasons(answer: Answer | None, methods: Sequence[str] | None, targets: Sized | None) -> str:
    """Why nothing is explained where there is no answer, or none that is finite.

    Raises:
        OptionError: it was asked for.
    """
    if methods is not None or targets is not None:
        raise OptionError("methods and targets explain a class, and this model returns no row of scores for an image.")
    if answer is not None:
        return "Why: what the model returns is not finite."
    return "Prediction and Why: the model returns no row of class scores for each image."


def named_images(names: Sequence[object], count: int) -> list[str]:
    """What each image is called: its own name, or its number.

    Example:
        >>> named_images(["cat.png"], 1), named_images([], 2), named_images([], 1)
        (['cat.png'], ['image 1 of 2', 'image 2 of 2'], ['image'])
    """
    if names:
        return [str(name) for name in names]
    return ["image"] if count == 1 else [f"image {i + 1} of {count}" for i in range(count)]


def put_images(
    blobs: Blobs, units: Tensor, names: Sequence[str], answer: Answer | None, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The images, and the highest of what was answered to each.

    Args:
        blobs: where the pictures go.
        units: `b 3 h w`; what is not within 0 and 1 is marked, and counted for each image.
        names: of the images.
        answer: to them.
        classes: their names; may be empty.
    """
    found = []
    values = units.new_empty(len(units), 0) if answer is None else answer.values
    known = () if answer is None else answer.names(classes)
    order = values.nan_to_num(float("-inf")).argsort(dim=1, descending=True, stable=True)[:, :_TOP].tolist()
    for i, pixels in enumerate(rgb(units)):
        name = names[i]
        top = [{"class": k, "name": known[k], "probability": float(values[i, k])} for k in order[i]]
        picture = blobs.picture(pixels, f"the image {name}")
        found.append({"name": name, "picture": picture, "clipped": marks_of(units[i : i + 1]), "top": top})
    return found


def marks_of(units: Tensor) -> list[dict[str, str]]:
    """The colours reserved for what is not within 0 and 1, where they are used, and how many pixels each marks."""
    marks = Legend(counts=count(units)).marks()
    return [{"color": "#{:02x}{:02x}{:02x}".format(*color), "words": words} for color, words in marks]
