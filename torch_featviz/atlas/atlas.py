"""`atlas()`: a network and a few images on one page."""

from __future__ import annotations

import base64
import html
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain.deconvnet import check_projection
from torch_featviz.files import write_whole
from torch_featviz.gate import gate, gated
from torch_featviz.inspect.walk import Walk, walk
from torch_featviz.model.answer import Answer, Kind
from torch_featviz.model.boxes import names_in
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.labels import names_of
from torch_featviz.model.masks import Segmented
from torch_featviz.model.names import listed
from torch_featviz.picture import reserved
from torch_featviz.picture.color import Counts, lut
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.printable import escaped
from torch_featviz.zoo import ModelCard

from .answer import answered, named_images, no_reasons, put_images
from .attention import put_attention
from .boxes import put_boxes
from .layers import MODEL, put_layers
from .learning import put_learning
from .pack import Blobs, plain
from .page import render
from .units import put_units
from .why import put_why

MEGABYTES = 24.0  # of a page, where nothing else is said
_LEAST = 1.0
_SCRIPT, _WORDS = 150_000, 6_000  # letters of what is on every page, and of what describes a layer, at most about
_NAMED = 12  # layers that a note names
_LEARNING = 0.3  # of the page, at most
_ATTENTION = 0.3  # likewise


@dataclass(frozen=True, eq=False, repr=False)
class Atlas(Displayed):
    """An atlas; it shows itself in a notebook.

    Args:
        data: the data of the page's script.
        blobs: numbers and pictures, base64.
    """

    data: dict[str, Any]
    blobs: tuple[str, ...]

    @property
    def title(self) -> str:
        """Title of the page."""
        return str(self.data["title"])

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is not on the page, in words."""
        return tuple(self.data["left_out"])

    @cached_property
    def html(self) -> str:
        """The page as HTML without external files; the same input gives the same text."""
        return render(self.title, self.data, list(self.blobs))

    @gated
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the page; the file is complete or not written.

        Args:
            path: ends in `.html`; missing folders are made.
        Returns:
            The path.
        Raises:
            OptionError: `path` does not end in `.html`.
            FileError: it cannot be written; no part of it is left.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise OptionError(f"path must end in '.html', got {str(path)!r}.")
        return write_whole(path, self.html.encode())

    def _repr_html_(self) -> str:
        page = html.escape(self.html)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{escaped(self.title)}" width="100%" '
            'height="800"></iframe>'
        )


@gate("targets")
def atlas(
    model: nn.Module,
    images: Tensor,
    *,
    card: ModelCard | None = None,
    value_range: ValueRange | None = None,
    names: Sequence[object] = (),
    loader: Iterable[Any] | None = None,
    methods: Sequence[str] | None = None,
    targets: Sequence[int] | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    answer: Kind | None = None,
    baselines: Tensor | float | None = None,
    projection: str | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    training: str | os.PathLike[str] | None = None,
    megabytes: float | None = None,
    progress: bool = False,
) -> Atlas:
    """Build one HTML page of a network, from the pixels to the decision: kernels, feature maps, attention, heatmaps.

    The model is unchanged: a copy that shares its weights runs, in evaluation mode, a few times for all layers, and as
    often as the methods and the data set need.

    Args:
        model: any module; it is unchanged.
        images: a few images `b c h w`, or one image `c h w`, as the model takes them.
        card: card of the model: its name, its classes, and the range of its images.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card. Without a card, values outside [0, 1] are refused unless `"unit"` is declared.
        names: names of the images, such as their files. Default: `image 1 of 3` and so on.
        loader: images of a data set, as for `top_patches`, for the top-activating patches of the channels.
        methods: names of methods, as for `attribute`. Default: Grad-CAM, if the model returns a row of scores per
            image, and LayerCAM for the boxes of a detector.
        targets: the classes to explain, by number or name. Default: the two most probable ones of each image; of a
            detector the five best boxes of each image.
        classes: class names in the order of the outputs, as for `attributions`. Default: those of the card.
        answer: meaning of the model's scores, as for `attribute`. Default: that of the card, or derived from their
            values and from the model. One value per image is a logit if classes are named, otherwise a plain number.
        baselines: what replaces a pixel, for methods that need it and for the faithfulness: a value, or a tensor that
            expands to the images. Default: as in `attribute` and `faithfulness`.
        projection: for the patches of `loader`, `"deconvnet"` or `"guided_backprop"`. Default: the one that suits the
            network, as in `deconvnet`.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple. A tensor as long as
            the images has one row per image.
        keywords: keyword arguments of `forward`, likewise.
        training: a folder written by a `Monitor`; the page then shows the training.
        megabytes: largest size of the page, by default 24. The channels with the highest activations are kept, and the
            page says what is left out.
        progress: show bars.
    Raises:
        ShapeError: images are not `b c h w`, are empty, or do not fit the model or the card; or the number of class
            names is wrong.
        DtypeError: images are not floats, or the model cannot be copied.
        LayerError: the model has no layers, or is TorchScript.
        OptionError: values outside [0, 1] without a range, an invalid method, projection, class or answer, or too few
            megabytes.
        FileError: the folder holds no training.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> page = atlas(net, torch.rand(1, 1, 8, 8))
        >>> [layer["name"] for layer in page.data["layers"]]
        ['input', '0', '1', '3']
    """
    images = as_batch(images)
    names, targets = list(names), None if targets is None else listed(targets)
    _check(images, names, targets, megabytes)
    check_projection(projection)
    to_unit = partial(_units, value_range=value_range, card=card)
    units = to_unit(images)
    counts, hints = clipped(units, value_range, card)
    if value_range is None and card is None and counts != Counts():
        raise OptionError(_refused(images))
    limit = (MEGABYTES if megabytes is None else megabytes) * 1e6
    name = card.name if card is not None else type(model).__name__
    classes, published = names_of(classes), () if card is None else card.classes
    on = ", ".join(map(str, names)) or ("one image" if len(images) == 1 else f"{len(images)} images")
    names = named_images(names, len(images))
    blobs = Blobs()
    inputs = Inputs.of(images, additional_forward_args, keywords)
    seen = walk(model, inputs)
    if answer is None and card is not None:
        answer = card.answer
    said, left_out = answered(model, inputs, seen, answer, names=classes or published, asked=targets is not None)
    pixels, of_boxes = isinstance(said, Segmented), classes or published or names_in(model)
    classes = said.names(classes) if said is not None and classes else _fitting(published, said, left_out)
    shown = put_images(blobs, units, names, said, classes)
    asked: dict[str, Any] = {"methods": methods, "targets": targets}
    unasked = methods is None and targets is None
    why: list[dict[str, Any]] = []
    boxes = put_boxes(blobs, model, inputs, of_boxes, names=names, answer=answer, **asked) if said is None else None
    if boxes is not None:
        why, told = boxes
    elif said is None or (unasked and not bool(said.scores.isfinite().all())):
        told = [no_reasons(said, **asked)]
    else:
        given: dict[str, Any] = {**asked, "baselines": baselines, "progress": progress}
        why, told = put_why(blobs, model, inputs, said, classes, names=names, **given)
    left_out = told + left_out
    patches: dict[str, Any] = {}
    if loader is not None:
        patches, told = put_units(blobs, model, seen.layers, loader, to_unit, projection=projection, progress=progress)
        left_out += told
    learning = None
    if training is not None:
        learning, told = put_learning(blobs, Path(training), limit * _LEARNING)
        left_out += told
    attention, told = put_attention(blobs, model, inputs, seen.layers, limit * _ATTENTION)
    left_out += told
    layers, cut = put_layers(blobs, seen, _left(limit, blobs, seen, [name, *names, *classes]), progress=progress)
    left_out += _told(seen, cut, limit)
    data = {
        "title": f"{name} on {on}",
        "model": name,
        "version": sys.modules["torch_featviz"].__version__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "multiply_adds": seen.multiply_adds,
        "input": list(images.shape[1:]),
        "precision": "float16",
        "palettes": {"signed": _palette("RdBu_r"), "positive": _palette("viridis")},
        "reserved": {"signed": _reserved("RdBu_r"), "positive": _reserved("viridis")},
        "images": shown,
        "range": list(hints),
        "answer": None if said is None else "value" if said.kind == "figures" and not pixels else "probability",
        "softmax": said is not None and said.squashed == "softmax" and not pixels,
        "sigmoid": said is not None and said.squashed == "sigmoid" and not pixels,
        "pixels": pixels,
        "boxes": boxes is not None,
        "answered_by": _answering(seen, said),
        "classes": list(classes),
        "layers": [
            {**layer, "units": patches.get(layer["name"]), "attention": attention.get(layer["name"])}
            for layer in layers
        ],
        "why": why,
        "learning": learning,
        "left_out": left_out,
    }
    return Atlas(plain(data), tuple(blobs.texts))


def _fitting(classes: Sequence[str], answer: Answer | None, left_out: list[str]) -> Sequence[str]:
    """A name for each class of the answer; none where there are more or fewer, which is told."""
    if answer is None or not classes:
        return ()
    try:
        return answer.names(classes)
    except ShapeError:
        count = answer.values.shape[1]
        left_out.append(f"Class names: there are {len(classes)}, but the model returns {count} classes.")
        return ()


def _answering(seen: Walk, answer: Answer | None) -> str | None:
    """The layer whose channels are the classes; that of a single logit has one channel, and two classes."""
    if seen.answered_by is None or (answer is not None and answer.binary):
        return None
    return seen.answered_by.name or MODEL


def _check(images: Tensor, names: Sequence[object], targets: Sequence[object] | None, megabytes: float | None) -> None:
    if names and len(names) != len(images):
        raise OptionError(f"names must have one entry per image, got {len(names)} for {len(images)} images.")
    if targets is not None and not len(targets):
        raise OptionError(
            "targets must name at least one class, got none; without it the two most probable are explained."
        )
    if megabytes is not None and not _LEAST <= megabytes < float("inf"):
        raise OptionError(f"megabytes must be a number of {_LEAST:g} or more, got {megabytes}.")


def _refused(images: Tensor) -> str:
    low, high = (float(end) for end in images.aminmax())
    return (
        f"images must lie in [0, 1], got {low:.4g} to {high:.4g}; pass card=, or value_range=, for instance with the "
        "mean and std of the images: {'mean': ..., 'std': ...}. value_range='unit' marks values outside [0, 1]."
    )


def _units(images: Tensor, value_range: ValueRange | None, card: ModelCard | None) -> Tensor:
    """Images as the model takes them on the unit range, `b 3 h w`; channels other than 1 or 3 become their mean."""
    if images.shape[1] not in (1, 3):
        to_unit = value_range if value_range is not None or card is None else card.denormalize
        images = (to_unit(images) if callable(to_unit) else images).mean(1, keepdim=True)
        value_range, card = ("unit" if callable(to_unit) else to_unit), None
    return unit_images(images, value_range, card).cpu()


def _left(limit: float, blobs: Blobs, seen: Walk, names: list[str]) -> float:
    """Letters for the layers, beside what is there and names that come with the images.

    Raises:
        OptionError: what else is on the page leaves too little.
    """
    taken = blobs.letters() + _SCRIPT + _WORDS * len(seen.layers) + 2 * len(json.dumps(names))
    if limit - taken < limit / 10:
        raise OptionError(f"megabytes must be at least {1.2 * taken / 1e6:.1f} for this page, got {limit / 1e6:g}.")
    return limit - taken


def _told(seen: Walk, cut: bool, limit: float) -> list[str]:
    told = []
    if cut:
        told.append(
            f"To keep the page below {limit / 1e6:g} MB, large layers show only the channels of highest activation "
            "and their filters; each layer says how many."
        )
    if seen.idle:
        idle = _few([call.name for call in seen.idle])
        told.append(f"These layers only pass values on, such as dropout or padding: {idle}.")
    if seen.uncounted:
        told.append(f"Not all multiply-adds of these layers are known: {_few(seen.uncounted)}.")
    if seen.not_run:
        told.append(f"These layers did not run: {_few(seen.not_run)}.")
    return told


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name or MODEL for name in names[:_NAMED]) + more


def _palette(cmap: str) -> str:
    return base64.b64encode(np.ascontiguousarray(lut(cmap)).tobytes()).decode()


def _reserved(cmap: str) -> dict[str, str]:
    colors = reserved(cmap)
    keys = {"nan": "nan", "inf": "posinf", "-inf": "neginf", "above": "over", "below": "under"}
    return {key: "#{:02x}{:02x}{:02x}".format(*colors[name]) for key, name in keys.items()}
