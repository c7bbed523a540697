"""Heatmaps by several methods, or for several classes, with the verdict on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.explain import Faithfulness, Reason, Reasons, attribute, reasons
from torch_featviz.explain.attribute import OneOrMore
from torch_featviz.explain.boxes import DEFAULT, is_detector
from torch_featviz.explain.reasons import answered
from torch_featviz.explain.verdict import MEANING, lacking, needed
from torch_featviz.gate import gate
from torch_featviz.model.answer import Kind
from torch_featviz.model.boxes import names_in
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.labels import names_of
from torch_featviz.model.masks import Segmented
from torch_featviz.model.names import listed
from torch_featviz.picture import Legend, Picture, Scale, Sheet, count, enlarge, number, rgb
from torch_featviz.picture.bounds import drawn_at, named, room, shrunk
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.picture.legend import OF_IMAGES
from torch_featviz.picture.overlay import laid
from torch_featviz.zoo import ModelCard

from .boxes import boxes_sheet
from .masks import EXPLAINED, NOTE, WITHIN, bare, captions_over, outlined

_CELLS = 64
_SIDE = 200  # pixels, about, of a cell
_ROWS, _WIDEST = 10, 10  # images above each other, and cells of one image beside each other
_LINES = 3  # of text above and below a cell
_UNIT, _CMAP = Scale(symmetric=True, vmin=-1, vmax=1), "RdBu_r"
_RANGES = "symmetric about 0; ±1 is each method's own range, which holds 99.5 % of the values of its heatmaps"
_CLASS, _OF_LABEL = "the predicted class", "the most probable label"
_EXPLAINED: dict[Kind, str] = {
    "logits": _CLASS,
    "probabilities": _CLASS,
    "label_logits": _OF_LABEL,
    "label_probabilities": _OF_LABEL,
    "figures": "the output, of several the highest",
}


@gate("targets")
def attributions(
    model: nn.Module,
    images: Tensor,
    *,
    methods: Sequence[str] | None = None,
    targets: Sequence[int] | Sequence[str] | int | str | None = None,
    layer: OneOrMore = None,
    classes: Sequence[str] = (),
    answer: Kind | None = None,
    value_range: ValueRange | None = None,
    card: ModelCard | None = None,
    baselines: Tensor | float | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    faithful: bool = True,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    top: int | None = None,
    title: str = "",
) -> Picture:
    """Draw heatmaps over the images: what speaks for (red) and against (blue) a class, by each method.

    Each heatmap is captioned with its verdict: whether it is better than chance. The methods are sorted by verdict,
    best first; the mark in a heading is the verdict on all heatmaps of that method. For a segmenter, a class is
    explained over its own mask, as `attribute` does it, and a line shows the edge of the mask.

    Args:
        model: any module that returns one row of scores per image, or a segmenter; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them, with one or three channels.
        methods: names of methods, as for `attribute`. Default: `["gradcam"]`, and `["layercam"]` for a detector.
        targets: the classes to explain, by number or name, each for every image. Default: the predicted class of each
            image; of a detector its best boxes, each drawn with its class and score; of a segmenter the class with the
            most pixels, the background last. For a detector, the boxes of these classes are drawn, a row for each.
        layer: for methods on a layer, as for `attribute`. Default: the map that the answer depends on. The legend names
            it.
        classes: class names in the order of the outputs; for a single logit or probability two names, or that of the
            class it belongs to. Default: those of the card.
        answer: meaning of the model's scores, as for `attribute`. Default: that of the card, or derived from their
            values and from the model. One value per image is a logit if classes are named, otherwise a plain number.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        baselines: what replaces a pixel, for methods that need it and for the faithfulness: a value, or a tensor that
            expands to the images. Default: as in `attribute` and `faithfulness`.
        options: options of each method by its name, as for `attribute`.
        faithful: measure the faithfulness of each heatmap; this costs some forwards, and each method runs once more
            with random weights.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
        top: for a detector: how many boxes of an image are drawn, at most. Default: 5.
        title: heading of the picture.
    Raises:
        ShapeError: images have other axes, there are more than 64 heatmaps, the model returns no row of scores per
            image, or the number of class names is wrong.
        OptionError: no methods, options for a method that does not run, an invalid range or card, or scores that can be
            logits or probabilities; `top` for a model that returns no boxes.
        LayerError, DtypeError, DeviceError: as for `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attributions(net, torch.rand(2, 1, 8, 8), methods=["gradcam", "saliency"]).pixels.shape
        torch.Size([3, 17, 26])
    """
    images = as_batch(images)
    more: dict[str, Any] = {"additional_forward_args": additional_forward_args, "keywords": keywords}
    asked, methods = methods, ("gradcam",) if methods is None else methods
    classes, targets = names_of(classes), None if targets is None else listed(targets)
    cells = len(images) * len(methods) * (1 if targets is None else len(set(targets)))
    if cells > _CELLS:
        raise ShapeError(f"{cells} heatmaps are too many, a sheet shows {_CELLS}; pass fewer images or methods.")
    units = unit_images(images, value_range, card)
    published = () if card is None else card.classes
    said = card.answer if answer is None and card is not None else answer
    told: dict[str, Any] = {"named": bool(classes or published) or targets is not None}
    try:
        known = answered(model, images, said=said, names=classes, published=published, **told, **more)
    except (DtypeError, ShapeError):
        named_classes = classes or published or names_in(model)
        if not is_detector(model, Inputs.of(images, **more), said, len(named_classes)):
            raise
        more["classes"] = named_classes
        given: dict[str, Any] = {"layer": layer, "answer": said, **({} if top is None else {"top": top}), **more}
        ways = [(method, (options or {}).get(method, {})) for method in asked or (DEFAULT,)]
        chosen = [None] if targets is None else targets
        whys = [
            attribute(model, images, method=method, target=target, **{**given, **extra})
            for method, extra in ways
            for target in chosen
        ]
        return boxes_sheet(units, whys, named_classes, clipped(units, value_range, card), title)
    if top is not None:
        raise OptionError("top is how many boxes of a detector are drawn; for classes pass targets=[...].")
    names = known.names(classes, published)
    why = reasons(
        model,
        images,
        methods,
        targets,
        answer=known,
        classes=names,
        layer=layer,
        baselines=baselines,
        options=options,
        faithful=faithful,
        **more,
    )
    counts, hints = clipped(units, value_range, card)
    ranked = why.ranked
    shares = [_shares(reason) for reason in ranked]
    counts = total_of([counts, *(count(_UNIT(each).flatten(0, 1)[:, None]) for each in shares)])
    grid = _Grid.of(len(images), 1 + sum(each.shape[1] for each in shares))
    small = shrunk(units, grid.room)
    limit = max(_SIDE, *small.shape[2:])
    over = isinstance(known, Segmented)
    zoom = max(1, round(_SIDE / max(small.shape[2:]))) if over else 1  # the edge of a mask is a line of one pixel
    columns = [_Column("", enlarge(rgb(small, _CMAP), zoom), [""] * len(images))]
    for reason, values in zip(ranked, shares, strict=True):
        overlays = laid(small, shrunk(values, grid.room, None), scale=_UNIT, cmap=_CMAP)
        if reason.masks is not None:
            overlays = outlined(bare(overlays, small, reason), reason.masks, zoom)
        heading = reason.method if reason.verdict is None else f"{reason.verdict.mark} {reason.method}"
        for k in range(overlays.shape[1]):
            of_class = "" if targets is None else f": {names[int(why.classes[0, k])]}"
            captions = _captions(reason.worth[k]) if reason.worth else [""] * len(images)
            if over:
                captions = captions_over(why, reason, k, captions, [named(name, limit // 2) for name in names])
            columns.append(_Column(named(heading + of_class, limit), overlays[:, k], captions))
    answers = [named(_answer(why, i, names), limit) for i in range(len(images))]
    none = why.none_better and f": {why.none_better}"
    title = title or f"What speaks for the answer (red) and against it (blue){none}"
    notes = (*_notes(why, targets is None), *drawn_at(units, small), *hints)
    return grid.sheet(columns, answers, Legend(_UNIT, _CMAP, counts, notes, OF_IMAGES, said=_RANGES), title)


class _Column(NamedTuple):
    heading: str
    cells: Tensor
    captions: list[str]


class _Grid(NamedTuple):
    """How many images stand beside each other, and how many pixels each has.

    Where one image has more heatmaps than a row can hold, they fill rows of their own, each with its heading above it.
    """

    images: int
    columns: int
    across: int
    room: int

    @classmethod
    def of(cls, images: int, columns: int) -> _Grid:
        across = -(-images // _ROWS) if columns <= _WIDEST else 1
        rows = -(-images // across) * -(-columns // _WIDEST)
        return cls(images, columns, across, room(min(columns, _WIDEST) * across, rows, _LINES))

    def sheet(self, columns: Sequence[_Column], answers: Sequence[str], legend: Legend, title: str) -> Sheet:
        cells = torch.stack([column.cells for column in columns], dim=1)
        captions = [[column.captions[i] for column in columns] for i in range(self.images)]
        wide = self.columns > _WIDEST
        labels = [[each, *(column.heading if wide else "" for column in columns[1:])] for each in answers]
        places = -(-self.columns // _WIDEST) * _WIDEST if wide else self.columns
        bare = places - self.columns
        cells = F.pad(cells, (0, 0, 0, 0, 0, 0, 0, bare))
        return Sheet(
            cells.flatten(0, 1),
            legend,
            title=title,
            ncols=_WIDEST if wide else places * self.across,
            columns=() if wide else tuple(column.heading for column in columns),
            labels=tuple(words for row in labels for words in (*row, *[""] * bare)),
            captions=tuple(words for row in captions for words in (*row, *[""] * bare)),
            group=places if self.across > 1 else 1,
            zoom=max(1, round(_SIDE / max(cells.shape[3:]))),
            empty=frozenset(i * places + k for i in range(self.images) for k in range(self.columns, places)),
        )


def _shares(reason: Reason) -> Tensor:
    """Heatmaps in shares of the method's reach, clamped: `b k h w`."""
    return (reason.heatmaps / (reason.reach or 1.0)).clamp(-1, 1)


def _answer(why: Reasons, image: int, names: Sequence[str]) -> str:
    """The class predicted, and its probability; or the highest figure. Of a segmenter, the first class explained."""
    if isinstance(why.answer, Segmented):
        return names[int(why.classes[image, 0])] if why.classes.shape[1] == 1 else ""
    k = int(why.predicted[image])
    value = float(why.probabilities[image, k])
    return f"{names[k]} {number(value) if why.answer.kind == 'figures' else f'{100 * value:.0f} %'}"


def _captions(worth: Faithfulness) -> list[str]:
    """The verdict on each heatmap, what kept it from a better one, and the areas.

    Example:
        >>> figures = [torch.tensor([value]) for value in (0.2, 0.6, 0.3, 0.4)]
        >>> print(_captions(Faithfulness(*figures, torch.zeros(1, 1), deviation=torch.tensor([0.25])))[0])
        = no better than chance
        gain 0.15, needs 0.50
        ins 0.60 (0.40), del 0.20 (0.30)
    """
    columns = (worth.insertion, worth.random_insertion, worth.deletion, worth.random_deletion)
    lacks = [
        lacking(gain, least) for gain, least in zip(worth.gain.tolist(), needed(worth.spread).tolist(), strict=True)
    ]
    verdicts = [f"{words}\n{lack}".strip() for words, lack in zip(worth.words, lacks, strict=True)]
    rows = zip(verdicts, *(column.tolist() for column in columns), strict=True)
    return [f"{verdict}\nins {a:.2f} ({b:.2f}), del {c:.2f} ({d:.2f})" for verdict, a, b, c, d in rows]


def _notes(why: Reasons, predicted: bool) -> tuple[str, ...]:
    looked_at = sorted({f"{reason.method} looks at layer {reason.where}" for reason in why.methods if reason.where})
    over = isinstance(why.answer, Segmented)
    explained = [f"explained: {EXPLAINED if over else _EXPLAINED[why.answer.kind]}"] if predicted else []
    notes = [
        *([why.none_better] if why.none_better else []),
        *(["; ".join(looked_at)] if looked_at else []),
        *explained,
        *([NOTE, WITHIN.format("mask")] if over else []),
    ]
    if why.methods[0].worth:
        what = "score" if over else "output"
        what = (what if why.answer.kind == "figures" else "probability") + " over the mask" * over
        notes.append(MEANING)
        patch = next(worth.patch for worth in why.methods[0].worth if len(worth.gain))
        own = (
            f"top patches of {' × '.join(map(str, patch))} pixels, the model's own,"
            if max(patch, default=1) > 1
            else ""
        )
        notes.append(f"ins, del: mean {what} while {own or 'top pixels'} go in, out (chance); good: ins high, del low")
    notes += [reason.note for reason in why.methods if reason.note]
    if unmoved := sorted(reason.method for reason in why.methods if reason.unmoved):
        notes.append(f"{', '.join(unmoved)}: hardly changes with random weights; do not trust it")
    return tuple(notes)
