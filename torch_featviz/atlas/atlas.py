"""`atlas()`: a network and a few images, as one page to walk through."""

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
from torch_featviz.inspect.walk import Walk, walk
from torch_featviz.model.answer import Answer, Kind
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.picture import reserved
from torch_featviz.picture.color import Counts, lut
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.zoo import ModelCard

from .answer import answered, no_reasons, put_images
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


@dataclass(frozen=True, eq=False, repr=False)
class Atlas(Displayed):
    """A page; it shows itself in a notebook.

    Args:
        data: what the page's script reads.
        blobs: numbers and pictures, base64.
    """

    data: dict[str, Any]
    blobs: tuple[str, ...]

    @property
    def title(self) -> str:
        """Of the page."""
        return str(self.data["title"])

    @property
    def left_out(self) -> tuple[str, ...]:
        """In words, what a person should know is not on the page."""
        return tuple(self.data["left_out"])

    @cached_property
    def html(self) -> str:
        """The whole page, which needs nothing else; the same input gives the same text."""
        return render(self.title, self.data, list(self.blobs))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, at once or not at all.

        Args:
            path: ends in `.html`; missing folders are made.
        Returns:
            The path.
        Raises:
            OptionError: `path` does not end in `.html`.
            FileError: it cannot be written; nothing is left behind.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise OptionError(f"an atlas is saved as HTML, got {str(path)!r}; let the name end in '.html'.")
        return write_whole(path, self.html.encode("utf-8", "replace"))  # a file's name may be no text at all

    def _repr_html_(self) -> str:
        page = html.escape(self.html)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{html.escape(self.title)}" width="100%" '
            'height="800"></iframe>'
        )


def atlas(
    model: nn.Module,
    images: Tensor,
    *,
    card: ModelCard | None = None,
    value_range: ValueRange | None = None,
    names: Sequence[str] = (),
    loader: Iterable[Any] | None = None,
    methods: Sequence[str] | None = None,
    targets: Sequence[int] | None = None,
    answer: Kind | None = None,
    baselines: Tensor | float | None = None,
    projection: str | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    training: str | os.PathLike[str] | None = None,
    megabytes: float | None = None,
    progress: bool = False,
) -> Atlas:
    """A page on which a person walks from the pixels to the decision: kernels, feature maps, reasons.

    The model runs in evaluation mode on a copy that shares its weights, a few times for all layers, and as often as the
    methods and the data set need.

    Args:
        model: any module; it is untouched.
        images: `b c h w`, or one image `c h w`, as the model takes them; a few.
        card: names the model and its classes, and says what the values of images mean.
        value_range: what they mean: `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`, `{"mean": ..., "std": ...}`,
            or a function that brings them to 0 to 1; default the card's. Without a card, what is not within 0 and 1 is
            refused unless `"unit"` is declared.
        names: of the images, such as their files'.
        loader: images of a data set, as for `top_patches`: what else moves the channels.
        methods: of attribution, as `attribute` knows them; default Grad-CAM, if the model returns a row of scores for
            each image.
        targets: numbers of the classes to explain; default the two likeliest for each image.
        answer: what the scores are, as for `attribute`; default the card's `answer`, else told by their values and how
            the model makes them. One figure for each image is a logit if the card names classes, and else itself.
        baselines: what a pixel is when there is nothing, for the methods that ask and for measuring: a value, or a
            tensor that can be expanded to the images; default as in `attribute` and `faithfulness`.
        projection: of the channels of `loader`, `"deconvnet"` or `"guided_backprop"`; default: what suits the network,
            as in `deconvnet`.
        additional_forward_args: what `forward` takes after the images, one value or a tuple. A tensor as long as the
            images has a row for each of them.
        keywords: what `forward` takes by name, likewise.
        training: a folder that a `Monitor` wrote to: how it learnt.
        megabytes: that the page may have at most; default 24. Maps and filters of the channels that fire most stay,
            and the page says what had to go.
        progress: show bars.
    Raises:
        ShapeError: images are not `b c h w`, are empty, or do not fit the model or the card.
        DtypeError: they are no floats, or the model cannot be copied.
        LayerError: the model has no layers, or is TorchScript.
        OptionError: values outside [0, 1] without a range, no such method, projection or class, another answer than was
            said, or too few megabytes.
        FileError: there is no training in that folder.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> page = atlas(net, torch.rand(1, 1, 8, 8))
        >>> [layer["name"] for layer in page.data["layers"]]
        ['input', '0', '1', '3']
    """
    images = as_batch(images)
    _check(images, names, targets, megabytes)
    check_projection(projection)
    to_unit = partial(_units, value_range=value_range, card=card)
    units = to_unit(images)
    counts, hints = clipped(units, value_range, card)
    if value_range is None and card is None and counts != Counts():
        raise OptionError(_refused(images))
    limit = (MEGABYTES if megabytes is None else megabytes) * 1e6
    name = card.name if card is not None else type(model).__name__
    names = [str(each) for each in names]
    blobs = Blobs()
    inputs = Inputs.of(images, additional_forward_args, keywords)
    seen = walk(model, inputs)
    if answer is None and card is not None:
        answer = card.answer
    classes: Sequence[str] = () if card is None else card.classes
    said, left_out = answered(model, inputs, seen, answer, named=bool(classes) or targets is not None)
    classes = _fitting(classes, said, left_out)
    shown = put_images(blobs, units, names, said, classes)
    asked: dict[str, Any] = {"methods": methods, "targets": targets}
    unasked = methods is None and targets is None
    why: list[dict[str, Any]] = []
    if said is None or (unasked and not bool(said.scores.isfinite().all())):
        told = [no_reasons(said, **asked)]
    else:
        why, told = put_why(blobs, model, inputs, said, classes, **asked, baselines=baselines, progress=progress)
    left_out = told + left_out
    patches: dict[str, Any] = {}
    if loader is not None:
        patches, told = put_units(blobs, model, seen.layers, loader, to_unit, projection=projection, progress=progress)
        left_out += told
    learning = None
    if training is not None:
        learning, told = put_learning(blobs, Path(training), limit * _LEARNING)
        left_out += told
    layers, cut = put_layers(blobs, seen, _left(limit, blobs, seen, [name, *names, *classes]), progress=progress)
    left_out += _told(seen, cut, limit)
    data = {
        "title": f"{name} on {', '.join(each['name'] for each in shown)}",
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
        "answer": None if said is None else "value" if said.kind == "figures" else "probability",
        "softmax": said is not None and said.squashed == "softmax",
        "sigmoid": said is not None and said.squashed == "sigmoid",
        "answered_by": _answering(seen, said),
        "classes": list(classes),
        "layers": [{**layer, "units": patches.get(layer["name"])} for layer in layers],
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
        left_out.append(f"Names of classes: there are {len(classes)}, and the model returns {count}.")
        return ()


def _answering(seen: Walk, answer: Answer | None) -> str | None:
    """The layer whose channels are the classes; that of a single logit has one channel, and two classes."""
    if seen.answered_by is None or (answer is not None and answer.binary):
        return None
    return seen.answered_by.name or MODEL


def _check(images: Tensor, names: Sequence[str], targets: Sequence[int] | None, megabytes: float | None) -> None:
    if names and len(names) != len(images):
        raise OptionError(f"names must be one for each image, got {len(names)} for {len(images)} images.")
    if targets is not None and not len(targets):
        raise OptionError("targets is empty; name a class at least, or leave it out for the two likeliest.")
    if megabytes is not None and not _LEAST <= megabytes < float("inf"):
        raise OptionError(f"megabytes must be a number of {_LEAST:g} or more, got {megabytes}.")


def _refused(images: Tensor) -> str:
    low, high = (float(end) for end in images.aminmax())
    return (
        f"images must lie in [0, 1], got {low:.4g} to {high:.4g}; give value_range=, or the mean and std they were "
        "normalised with: value_range={'mean': ..., 'std': ...}, or card=. value_range='unit' marks what is beyond."
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
        raise OptionError(f"megabytes must be at least {1.2 * taken / 1e6:.1f} for all asked for, got {limit / 1e6:g}.")
    return limit - taken


def _told(seen: Walk, cut: bool, limit: float) -> list[str]:
    told = []
    if cut:
        told.append(
            f"So that the page stays below {limit / 1e6:g} MB, large layers show only the channels that fire most, and "
            "their filters; each says how many of how many."
        )
    if seen.idle:
        idle = _few([call.name for call in seen.idle])
        told.append(f"These layers only pass on what they are given, as in dropout or padding: {idle}.")
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
