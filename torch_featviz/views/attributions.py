"""Why a model decided, in one picture: images by methods, or by classes, with what each heatmap is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.errors import ShapeError
from torch_featviz.explain import Faithfulness, Reason, Reasons, Verdict, reasons
from torch_featviz.explain.attribute import OneOrMore
from torch_featviz.explain.reasons import answered
from torch_featviz.explain.verdict import MEANING
from torch_featviz.model.answer import Kind
from torch_featviz.model.inputs import as_batch
from torch_featviz.picture import Legend, Picture, Scale, Sheet, count, number, rgb
from torch_featviz.picture.bounds import drawn_at, named, room, shrunk
from torch_featviz.picture.color import total_of
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.picture.legend import OF_IMAGES
from torch_featviz.picture.overlay import laid
from torch_featviz.zoo import ModelCard

_CELLS = 64
_SIDE = 200  # pixels, about, of a cell
_ROWS, _WIDEST = 10, 10  # images above each other, and cells of one image beside each other
_LINES = 3  # of text above and below a cell
_UNIT, _CMAP = Scale(symmetric=True, vmin=-1, vmax=1), "RdBu_r"
_CLASS, _OF_LABEL = "the class explained is the one predicted", "the label explained is the most probable one"
_EXPLAINED: dict[Kind, str] = {
    "logits": _CLASS,
    "probabilities": _CLASS,
    "label_logits": _OF_LABEL,
    "label_probabilities": _OF_LABEL,
    "figures": "what is explained is the output, of several the highest",
}


def attributions(
    model: nn.Module,
    images: Tensor,
    *,
    methods: Sequence[str] = ("gradcam",),
    targets: Sequence[int] | int | None = None,
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
    title: str = "",
) -> Picture:
    """Each image with what it was taken for, and beside it what speaks for (red) and against (blue) each class.

    Below each heatmap stands whether it is better than chance. Methods stand in that order, best first; a heading's
    mark is the verdict on all heatmaps of that method.

    Args:
        model: any that returns a row of scores for each image; untouched.
        images: `b c h w`, or one `c h w`, as the model takes them, one or three channels.
        methods: names that `attribute` knows.
        targets: the classes to explain, each for every image; default the one predicted for each.
        layer: for methods of one layer, as for `attribute`; default the map that the answer depends on. The legend
            names it.
        classes: names, in the order of the outputs; of a single logit or probability two, or the one it speaks for.
        answer: what the model's scores are, as for `attribute`; default: told by their values and how the model makes
            them. One figure for each image is a logit if classes are named, and else itself.
        value_range: what the values of images mean: `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`,
            `{"mean": ..., "std": ...}`, or a function that brings them to 0 to 1; default the card's, or `"unit"`.
        card: of the model, if images are as it takes them; what `classes` and `answer` leave out is the card's.
        baselines: what a pixel is when there is nothing, for the methods that ask and for measuring: a value, or a
            tensor that can be expanded to the images; default as in `attribute` and `faithfulness`.
        options: for each method by its name, as `attribute` takes them.
        faithful: measure each heatmap (some forwards more, and each method once more with random weights).
        additional_forward_args: what `forward` takes after the images, as for `attribute`.
        keywords: what it takes by name, likewise.
        title: above everything.
    Raises:
        ShapeError: images have other axes, more than 64 heatmaps are asked for, the model returns no row of scores
            for each image, or classes are not as many.
        OptionError: no methods, an option of a method that is not asked for, no such range or card, or scores that may
            be logits or probabilities.
        LayerError, DtypeError, DeviceError: as `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attributions(net, torch.rand(2, 1, 8, 8), methods=["gradcam", "saliency"]).pixels.shape
        torch.Size([3, 17, 26])
    """
    images = as_batch(images)
    cells = len(images) * len(methods) * (1 if targets is None or isinstance(targets, int) else len(set(targets)))
    if cells > _CELLS:
        raise ShapeError(f"{cells} heatmaps are more than a sheet of {_CELLS} can show; give fewer images or methods.")
    more: dict[str, Any] = {"additional_forward_args": additional_forward_args, "keywords": keywords}
    units = unit_images(images, value_range, card)
    published = () if card is None else card.classes
    said = card.answer if answer is None and card is not None else answer
    known = answered(model, images, said=said, named=bool(classes or published) or targets is not None, **more)
    names = known.names(classes, published)
    why = reasons(
        model,
        images,
        methods,
        targets,
        answer=known,
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
    columns = [_Column("", rgb(small, _CMAP), [""] * len(images))]
    for reason, values in zip(ranked, shares, strict=True):
        overlays = laid(small, shrunk(values, grid.room, None), scale=_UNIT, cmap=_CMAP)
        heading = reason.method if reason.verdict is None else f"{reason.verdict.mark} {reason.method}"
        for k in range(overlays.shape[1]):
            of_class = "" if targets is None else f": {names[int(why.classes[0, k])]}"
            captions = _captions(reason.worth[k]) if reason.worth else [""] * len(images)
            columns.append(_Column(named(heading + of_class, limit), overlays[:, k], captions))
    answers = [named(_answer(why, i, names), limit) for i in range(len(images))]
    none = ": no heatmap is better than chance" if _none_better(why) else ""
    title = title or f"What speaks for the answer (red) and against it (blue){none}"
    notes = (*_notes(why, targets is None), *drawn_at(units, small), *hints)
    return grid.sheet(columns, answers, Legend(_UNIT, _CMAP, counts, notes, OF_IMAGES), title)


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


def _none_better(why: Reasons) -> bool:
    """Whether all heatmaps were measured, and none is better than chance."""
    verdicts = [verdict for reason in why.methods for worth in reason.worth for verdict in worth.verdict]
    return bool(verdicts) and max(verdicts) < Verdict.BETTER


def _shares(reason: Reason) -> Tensor:
    """Heatmaps in shares of the method's reach, clamped: `b k h w`."""
    return (reason.heatmaps / (reason.reach or 1.0)).clamp(-1, 1)


def _answer(why: Reasons, image: int, names: Sequence[str]) -> str:
    """The class predicted, and its probability; or the highest figure."""
    k = int(why.predicted[image])
    value = float(why.probabilities[image, k])
    return f"{names[k]} {number(value) if why.answer.kind == 'figures' else f'{100 * value:.0f} %'}"


def _captions(worth: Faithfulness) -> list[str]:
    columns = (worth.insertion, worth.random_insertion, worth.deletion, worth.random_deletion)
    verdicts = [f"{verdict}\n{why}".strip() for verdict, why in zip(worth.verdict, worth.held_back, strict=True)]
    rows = zip(verdicts, *(column.tolist() for column in columns), strict=True)
    return [f"{verdict}\nins {a:.2f} ({b:.2f}), del {c:.2f} ({d:.2f})" for verdict, a, b, c, d in rows]


def _notes(why: Reasons, predicted: bool) -> tuple[str, ...]:
    looked_at = sorted({f"{reason.method}: {reason.where}" for reason in why.methods if reason.where})
    notes = [
        *(["no heatmap on this sheet is better than chance"] if _none_better(why) else []),
        *([f"layer looked at, {'; '.join(looked_at)}"] if looked_at else []),
        "in shares of each method's own range, which is the same for all images and classes and holds 99.5 % of its "
        "values; what is beyond is drawn as ±1",
        *([_EXPLAINED[why.answer.kind]] if predicted else []),
    ]
    if why.methods[0].worth:
        what = "figure" if why.answer.kind == "figures" else "class's probability"
        notes.append(MEANING)
        notes.append(
            f"ins, del: area under the {what} while pixels are put in or taken out, most important first; "
            "in brackets in random order. A good map has a high ins and a low del"
        )
        if len(why.methods) > 1:
            notes.append("methods stand in the order of their verdicts, best first, and then of the mean difference")
    if unmoved := sorted(reason.method for reason in why.methods if reason.unmoved):
        notes.append(f"{', '.join(unmoved)}: hardly changes when all weights are made random; do not trust it")
    return tuple(notes)
