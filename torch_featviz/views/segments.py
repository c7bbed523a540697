"""Segmentation: the class of each pixel, as a colour over the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.model.answer import Kind, answer_of, fields_of, named_both
from torch_featviz.model.labels import names_of
from torch_featviz.model.masks import is_background, scores_within
from torch_featviz.picture import Counts, Legend, Picture, Sheet, enlarge, grid_columns, reserved, rgb
from torch_featviz.picture.bounds import fitted
from torch_featviz.picture.images import Card, ValueRange, clipped, unit_image, unit_images
from torch_featviz.picture.legend import SIZE
from torch_featviz.picture.text import Color, shorten

LIMIT = 32
_GOAL = 320  # pixels of a cell
_OTHER: Color = (96, 96, 96)
_UNKNOWN, _IGNORED = -2, -1  # where scores are not finite, and the label that says nothing
_NONE: Color = (255, 255, 255)
_BACKGROUND: Color = (225, 225, 225)  # where there is no image
_LIFT = 0.3  # of the range of an image's grey, that coloured parts are lifted by
_LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601

# Found by search: at least 17 apart (CIE76) from each other, and from black, white, the grey of other classes and the
# colour of NaN, in normal vision and in simulated deuteranopia and protanopia. The first ones are furthest apart.
PALETTE: tuple[Color, ...] = (
    *((238, 85, 34), (238, 238, 0), (221, 238, 153), (34, 68, 136), (204, 153, 204), (136, 34, 17), (0, 0, 255)),
    *((119, 170, 119), (102, 0, 187), (238, 204, 85), (204, 85, 68), (136, 102, 153), (119, 221, 187), (85, 102, 204)),
    *((255, 136, 255), (255, 204, 255), (170, 187, 102), (255, 136, 0), (85, 170, 153), (136, 34, 51)),
)


@gate("image")
def segments(
    logits: Any,
    classes: Sequence[str] = (),
    image: Tensor | None = None,
    *,
    alpha: float = 0.6,
    ignore: int = 255,
    answer: Kind | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    title: str = "",
) -> Picture:
    """Draw the class of each pixel as a colour over the image, with the names and shares of the classes that occur.

    With at most 20 classes a class has the same colour in every picture; with more, the 20 most frequent classes of the
    picture have colours and the others are grey. The class "background" shows the image. Black lines separate segments.

    Args:
        logits: the model's output, `n h w`, `1 n h w` or `b n h w`, or a dictionary or dataclass with `out` or
            `logits` (torchvision's and transformers' segmenters), or with the queries of MaskFormer or Mask2Former; or
            class numbers `h w` or `b h w`. A single channel belongs to the second of two classes.
        classes: the `n` class names; for a single channel two names, or that of the class it belongs to. Default: those
            of the card, or numbers.
        image: `c h w` or `b c h w`, of any size; segments are resized to it (nearest pixel).
        alpha: opacity of the colours, 0 to 1.
        ignore: the label of pixels without a class; they are white.
        answer: meaning of a single channel, if its values do not tell: `"logits"` or `"probabilities"`.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        title: heading of the picture. Default: the number of classes that occur.
    Raises:
        ShapeError: logits or images have other axes, there are more than 32, or the numbers of images or classes do not
            agree.
        DtypeError: logits are not a tensor of real values, or classes are not names.
        OptionError: a label has no name, `alpha`, the range or the card is invalid, or a single channel can be logits
            or probabilities.
    Example:
        >>> segments(torch.randn(1, 3, 8, 8), ["sky", "road", "car"], torch.rand(3, 32, 32)).columns
        ('image', 'segments')
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha must be an opacity from 0 to 1, got {alpha}.")
    labels, names = _labels(logits, names_of(classes) or names_of(getattr(card, "classes", ())), ignore, answer)
    under, counts, hints = _under(image, labels, value_range, card)
    b, pair = len(labels), 1 if image is None else 2
    groups = grid_columns(b, under.shape[2] / (pair * under.shape[3]))
    under, zoom, notes = fitted(under, pair * groups, -(-b // groups), goal=_GOAL)
    known = _Dyes.of(labels, names)
    under, drawn = enlarge(under, zoom), enlarge(_nearest(labels, under.shape[2:]), zoom)  # lines are one pixel wide
    alpha = 1.0 if image is None else alpha
    cells = _dyed(under, drawn, known, alpha)
    if image is not None:
        cells = torch.stack([rgb(under), cells], 1).flatten(0, 1)
    nan = int((labels == _UNKNOWN).sum())
    return Sheet(
        cells,
        Legend(
            counts=replace(counts, nan=counts.nan + nan),
            swatches=known.swatches(alpha),
            notes=(*known.notes(), *notes, *hints),
        ),
        title=title or known.title(),
        ncols=pair * groups,
        columns=("image", "segments") if image is not None else (),
        group=pair,
        zoom=1,
    )


def _labels(logits: Any, classes: Sequence[str], ignore: int, answer: Kind | None) -> tuple[Tensor, tuple[str, ...]]:
    """`b h w` int64, each pixel's class, `_IGNORED` or `_UNKNOWN`; and the names of the classes."""
    if not isinstance(logits, Tensor):
        fields, scores = fields_of(logits), scores_within(logits)
        if scores is not None or fields:
            logits = fields.get("out", fields.get("logits")) if scores is None else scores
    if not isinstance(logits, Tensor) or logits.is_complex():
        what = getattr(logits, "dtype", type(logits).__name__)
        raise DtypeError(f"logits must be a tensor 'n h w' or 'b n h w', or labels 'h w' or 'b h w', got {what}.")
    check_tensor("logits", logits)
    shape = tuple(logits.shape)
    whole = not logits.is_floating_point()
    batch = logits[None] if logits.dim() == (2 if whole else 3) else logits
    if batch.dim() != (3 if whole else 4) or not batch.numel() or len(batch) > LIMIT:
        expected = "labels must be 'h w' or 'b h w'" if whole else "logits must be 'n h w' or 'b n h w'"
        raise ShapeError(f"{expected}, not empty, with b at most {LIMIT}, got shape {shape}.")
    if whole:
        classes = classes or _words(1 + int(batch.masked_fill(batch == ignore, 0).amax()))
        return _numbered(batch.long(), len(classes), ignore), tuple(classes)
    n = batch.shape[1]
    classes = classes or _words(max(2, n))
    if len(classes) not in ((1, 2) if n == 1 else (n,)):
        raise ShapeError(f"logits {shape} have {n} classes, got {len(classes)} names; pass one per class.")
    scores = batch
    if n == 1:
        column = batch.reshape(-1, 1)
        values = answer_of(column, len(column), said=answer).values
        scores = values.reshape(len(batch), *batch.shape[2:], 2).movedim(-1, 1)
    labels = scores.argmax(1).masked_fill(batch.isnan().any(1), _UNKNOWN)
    return labels, named_both(classes) if n == 1 else tuple(classes)


def _words(count: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(count))


def _numbered(labels: Tensor, n: int, ignore: int) -> Tensor:
    """Labels, if each is of a class that has a name."""
    odd = labels[((labels < 0) | (labels >= n)) & (labels != ignore)]
    if odd.numel():
        raise OptionError(
            f"labels must be from 0 to {n - 1}, one for each name, or ignore={ignore}, got {int(odd[0])}."
        )
    return labels.masked_fill(labels == ignore, _IGNORED)


def _under(
    image: Any, labels: Tensor, value_range: ValueRange | None, card: Card | None
) -> tuple[Tensor, Counts, tuple[str, ...]]:
    """What lies below the colours, `b 3 h w` on the unit range; light grey where there is no image."""
    if image is None:
        bare = torch.full((len(labels), 3, *labels.shape[1:]), _BACKGROUND[0] / 255, device=labels.device)
        return bare, Counts(), ()
    if isinstance(image, Tensor) and image.dim() == 4:
        units = unit_images(image, value_range, card)
    else:
        units = unit_image(image, value_range, card)[None]
    if len(units) != len(labels):
        raise ShapeError(f"there must be one image per class map ({len(labels)}), got {len(units)}.")
    counts, hints = clipped(units, value_range, card)
    return units.to(labels.device), counts, hints


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at another size: each pixel has that of the nearest one, so that no class is made up."""
    return F.interpolate(labels[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()


@dataclass(frozen=True)
class _Dyes:
    """The classes that occur, most frequent first, with the share of the pixels and the colour of each.

    A class called background has no colour over an image.
    """

    names: tuple[str, ...]
    shares: dict[int, float]

    @classmethod
    def of(cls, labels: Tensor, names: tuple[str, ...]) -> _Dyes:
        counts = torch.bincount(labels.flatten() - _UNKNOWN, minlength=len(names) - _UNKNOWN).tolist()
        shares = [(k + _UNKNOWN, count / labels.numel()) for k, count in enumerate(counts) if count]
        return cls(names, dict(sorted(shares, key=lambda pair: (-pair[1], pair[0]))))

    @property
    def _classes(self) -> list[int]:
        return [k for k in self.shares if k >= 0]

    @property
    def _colored(self) -> dict[int, Color]:
        """The same colour in every picture where there is one for each class, else by rank in this one."""
        classes = [k for k in range(len(self.names)) if not self._is_background(k)]
        if len(classes) > len(PALETTE):
            classes = [k for k in self._classes if not self._is_background(k)][: len(PALETTE)]
        return dict(zip(classes, PALETTE, strict=False))

    def _is_background(self, k: int) -> bool:
        return k >= 0 and is_background(self.names[k])

    def table(self, alpha: float) -> tuple[list[Color], list[float]]:
        """The colour and the opacity of each label; `_UNKNOWN` and `_IGNORED` come first."""
        colors, classes = self._colored, range(len(self.names))
        bare = [self._is_background(k) for k in classes]
        dyes = [colors.get(k, _OTHER) for k in classes]
        opacities = [0.0 if bare[k] else alpha for k in classes]
        return [reserved()["nan"], _NONE, *dyes], [1.0, alpha, *opacities]

    def swatches(self, alpha: float) -> tuple[tuple[Color, str], ...]:
        """A colour, as it is over mid-grey, with the name and the share of each class."""
        colors, entries = self._colored, []
        dyes, _ = self.table(alpha)
        other = [k for k in self._classes if k not in colors and not self._is_background(k)]
        for k in (k for k in self.shares if k != _UNKNOWN and k not in other):
            name = "no class" if k == _IGNORED else shorten(self.names[k], 260, SIZE)
            dye = _BACKGROUND if self._is_background(k) else _mixed(dyes[k + 2], alpha)
            entries.append((dye, f"{name} {_percent(self.shares[k])}"))
        if other:
            share = sum(self.shares[k] for k in other)
            entries.append((_mixed(_OTHER, alpha), f"{len(other)} other classes {_percent(share)}"))
        return tuple(entries)

    def notes(self) -> tuple[str, ...]:
        """What the shares are of, and what has no colour."""
        return (
            "% of all pixels",
            *(f"{self.names[k]} has no colour" for k in self._classes if self._is_background(k)),
        )

    def title(self) -> str:
        n = len(self._classes)
        return f"Class of each pixel: {n} of {len(self.names)} occur{'s' if n == 1 else ''}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _mixed(dye: Color, alpha: float) -> Color:
    """A colour over the mid-grey of an image."""
    gray = 255 * (_LIFT + (1 - _LIFT) / 2)
    red, green, blue = (round(alpha * value + (1 - alpha) * gray) for value in dye)
    return red, green, blue


def _dyed(units: Tensor, labels: Tensor, dyes: _Dyes, alpha: float) -> Tensor:
    """Colours of classes over images in grey, with black lines between segments: `b 3 h w` uint8."""
    colors, opacities = dyes.table(alpha)
    table = torch.tensor(colors, dtype=torch.float32, device=labels.device)
    share = torch.tensor(opacities, dtype=torch.float32, device=labels.device)[labels + 2][:, None]
    gray = units.float().nan_to_num(0).clamp(0, 1)
    gray = (gray * gray.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    gray = 255 * torch.where(share > 0, _LIFT + (1 - _LIFT) * gray, gray)  # else colours drown in what is dark
    mixed = share * table[labels + 2].movedim(-1, 1) + (1 - share) * gray
    line = torch.zeros_like(labels, dtype=torch.bool)
    line[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    line[:, :, :-1] |= labels[:, :, :-1] != labels[:, :, 1:]
    return mixed.masked_fill(line[:, None], 0).round().to(torch.uint8)
