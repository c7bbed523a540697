"""Images with a classifier's answers and their probabilities."""

import math
from collections.abc import Sequence
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.model.answer import LABELS, Answer, Kind, answer_of, end_of, scores_of
from torch_featviz.model.labels import labels_of, names_of
from torch_featviz.picture import Chart, Legend, Picture, rgb
from torch_featviz.picture.bounds import SIDE
from torch_featviz.picture.figures import as_written, fit
from torch_featviz.picture.images import ValueRange, clipped, unit_image
from torch_featviz.picture.scale import as_float
from torch_featviz.zoo import ModelCard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = 64
_RIGHT, _WRONG, _BAR = "#1b6e3c", "#b3261e", "#7d97b8"


@gate("images", "logits", "targets")
def predictions(
    images: Tensor,
    logits: Any,
    classes: Sequence[str],
    *,
    k: int = 3,
    targets: Tensor | Sequence[int] | Sequence[str] | None = None,
    answer: Kind | None = None,
    value_range: ValueRange | None = None,
    card: ModelCard | None = None,
    title: str = "",
) -> Picture:
    """Draw each image with its most probable classes; right and wrong answers differ in sign, word and colour.

    Args:
        images: `b c h w`, or one image `c h w`, with one or three channels; at most 64.
        logits: the model's output: `b n`, or `b` or `b 1` for two classes; for one image also `n`. Rows within 0 and 1
            that sum to 1 are taken as probabilities.
        classes: the `n` class names; for a single logit or probability two names, or that of the class it belongs to.
        k: classes shown per image.
        targets: `b` true classes: numbers, names or one-hot rows.
        answer: meaning of `logits`, if the values do not tell: `"logits"`, `"probabilities"`, or, for independent
            labels, `"label_logits"` or `"label_probabilities"`. Default: that of the card.
        value_range: range of the values of images: `"unit"` (0 to 1), `"signed"` (-1 to 1), `"byte"` (0 to 255),
            `"imagenet"` or `{"mean": ..., "std": ...}` (normalised), or a function that maps them to 0 to 1. Default:
            the range of the card, or `"unit"`.
        card: card of the model, if the images are preprocessed for it.
        title: heading of the picture.
    Raises:
        DtypeError: images or logits are not tensors of real values, or a target is not a class.
        ShapeError: the numbers of images, logits, classes and targets do not agree, or there are too many images.
        OptionError: `k` is below 1, a target has no name, the range or card is invalid, or values within 0 and 1 can be
            logits or probabilities.
    Example:
        >>> picture = predictions(torch.rand(2, 1, 8, 8), torch.randn(2, 3), ["a", "b", "c"], targets=[0, 1])
        >>> len(picture.figure().axes)
        4
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

    images, logits = _batch(images, logits)
    classes = names_of(classes)
    scores = _check(images, logits, classes, k)
    units = torch.stack([unit_image(image, value_range, card) for image in images])
    counts, hints = clipped(units, value_range, card)
    answer = card.answer if answer is None and card is not None else answer
    said = answer_of(scores, len(images), said=answer, ended=partial(end_of, scores))
    probabilities, names, truth = _read(said, classes, targets)
    pictures = rgb(units).permute(0, 2, 3, 1).cpu().numpy()
    shown = [len(names) - 1] if len(classes) == 1 else list(range(len(names)))
    k, b = min(k, len(shown)), len(pictures)
    across = min(b, 1 if b == 1 else 2 if b <= 6 else 3 if b <= 15 else 4)
    down = -(-b // across)
    notes = [words for _, words in Legend(counts=counts).marks()]
    notes += ["independent labels: several may be true"] if said.kind in LABELS else []
    lines = [line for part in (", ".join(notes), *hints) for line in wrap(part, 60 * across)]
    size = (4.6 * across, max(1.9, 0.5 + 0.42 * k) * down + 0.16 * len(lines))
    figure = Figure(figsize=size, dpi=min(100, int(SIDE / max(size))))
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=9)
    grid = figure.add_gridspec(down, 2 * across, width_ratios=[1, 1.5] * across)
    for i in range(b):
        row, column = divmod(i, across)
        picture = figure.add_subplot(grid[row, 2 * column])
        picture.imshow(pictures[i], interpolation="nearest")
        picture.set_axis_off()
        best = probabilities[i].topk(len(names)).indices.tolist()
        bars = [(each, float(probabilities[i, each])) for each in best if each in shown][:k]
        axes = figure.add_subplot(grid[row, 2 * column + 1])
        _bars(axes, bars, names, None if truth is None else (truth[i], truth[i] == best[0]))
    return Chart(as_written(figure))


def _batch(images: Any, logits: Any) -> tuple[Any, Any]:
    """One image `c h w` and its row of scores as a batch of one."""
    if not isinstance(images, Tensor) or images.dim() != 3:
        return images, logits
    return images[None], logits[None] if isinstance(logits, Tensor) and logits.dim() <= 1 else logits


def _check(images: Tensor, logits: Any, classes: Sequence[str], k: int) -> Tensor:
    """The scores, `b n`, once everything is known to fit."""
    if not isinstance(images, Tensor):
        raise DtypeError(f"images and logits must be tensors, got {type(images)} and {type(logits)}.")
    check_tensor("images", images)
    if isinstance(logits, Tensor):
        check_tensor("logits", logits)
    if images.dim() <= 2 and isinstance(logits, Tensor) and logits.dim() in (3, 4):
        raise ShapeError(
            f"images come first and logits second: predictions(images, logits, classes); got shapes "
            f"{tuple(images.shape)} and {tuple(logits.shape)}."
        )
    if images.dim() != 4 or not 1 <= len(images) <= LIMIT:
        raise ShapeError(f"images must be 'b c h w' with b from 1 to {LIMIT}, got shape {tuple(images.shape)}.")
    try:
        scores = scores_of(logits, len(images))
    except DtypeError as error:
        raise DtypeError(f"images and logits must be tensors, got {type(images)} and {type(logits)}.") from error
    except ShapeError as error:
        raise _unfit(images, classes, logits) from error
    as_float(scores, "logits")
    if len(classes) not in ((1, 2) if scores.shape[1] == 1 else (scores.shape[1],)):
        raise _unfit(images, classes, scores)
    if k < 1:
        raise OptionError(f"k must be at least 1, got {k}.")
    return scores


def _unfit(images: Tensor, classes: Sequence[str], logits: Any) -> ShapeError:
    expected, shape = (len(images), len(classes)), tuple(getattr(logits, "shape", ()))
    hint = "; segments() draws a class for each pixel" if len(shape) == 4 else ""
    return ShapeError(f"logits must be {expected} (images, classes), got shape {shape}{hint}.")


def _read(answer: Answer, classes: Sequence[str], targets: Any) -> tuple[Tensor, tuple[str, ...], list[int] | None]:
    """Probabilities, the names of their columns, and the true classes."""
    if answer.kind == "figures":
        raise OptionError("predictions() shows probabilities of classes, got answer='figures'; leave answer= out.")
    names, count = answer.names(classes), len(answer.scores)
    if targets is None:
        return answer.values.detach().cpu(), names, None
    truth = labels_of(targets, count, names=names, what="target", hint="pass a class number or name").tolist()
    if not all(0 <= each < len(names) for each in truth):
        raise OptionError(f"targets must be from 0 to {len(names) - 1}, got {truth}.")
    return answer.values.detach().cpu(), names, truth


def _bars(axes: "Axes", bars: list[tuple[int, float]], classes: Sequence[str], truth: tuple[int, bool] | None) -> None:
    """The most probable classes; `truth` is the true class, and whether it is the most probable of all."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(bars) - 0.35, -0.75)
    if any(math.isnan(chance) for _, chance in bars):
        axes.set_title("✗ logits are not finite", loc="left", fontsize=10, color=_WRONG)
        return
    if truth is not None:
        true, right = truth
        said = "✓ right" if right else f"✗ wrong, it is {fit(classes[true], 170, 14, bold=True)}"
        axes.set_title(said, loc="left", fontsize=10, color=_RIGHT if right else _WRONG, weight="bold")
    for y, (index, chance) in enumerate(bars):
        is_true = truth is not None and index == truth[0]
        color = _RIGHT if is_true else _BAR
        axes.barh(y, 1, height=0.28, color="0.93")
        axes.barh(y, chance, height=0.28, color=color)
        name = fit(classes[index], 185, 13) + (" ✓" if is_true else "")
        axes.text(0, y - 0.22, name, fontsize=9, va="bottom")
        axes.text(1, y - 0.22, f"{100 * chance:.1f} %", fontsize=9, va="bottom", ha="right")
