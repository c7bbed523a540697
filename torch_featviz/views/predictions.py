"""What a classifier says to some images, and how sure it is."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.answer import chances
from torch_featviz.picture import Chart, Legend, Picture, count, rgb
from torch_featviz.picture.images import ValueRange, unit_image
from torch_featviz.picture.scale import as_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT = 64
_RIGHT, _WRONG, _BAR = "#1b6e3c", "#b3261e", "#7d97b8"


def predictions(
    images: Tensor,
    logits: Tensor,
    classes: Sequence[str],
    *,
    k: int = 3,
    targets: Tensor | Sequence[int] | None = None,
    value_range: ValueRange = "unit",
    title: str = "",
) -> Picture:
    """Each image with its most probable classes; right and wrong are told by sign, word and colour.

    Args:
        images: `b c h w`, one or three channels.
        logits: `b n`, as the model returned them: before any softmax, or probabilities already.
        classes: the `n` names.
        k: classes shown per image.
        targets: `b` true classes, by number.
        value_range: what the values of images mean: `"unit"` 0 to 1, `"signed"`, `"byte"`, `"imagenet"`, or a function
            that brings them to 0 to 1, such as a card's `denormalize`.
        title: above everything.
    Raises:
        DtypeError: images or logits are not tensors of real values.
        ShapeError: numbers of images, logits, classes and targets do not agree, or there are too many images.
        OptionError: `k` is below 1, a target has no name, or there is no such range.
    Example:
        >>> picture = predictions(torch.rand(2, 1, 8, 8), torch.randn(2, 3), ["a", "b", "c"], targets=[0, 1])
        >>> len(picture.figure().axes)
        4
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

    truth = _check(images, logits, classes, k, targets)
    probabilities = chances(as_float(logits)).cpu()
    units = torch.stack([unit_image(image, value_range) for image in images])
    pictures = rgb(units).permute(0, 2, 3, 1).cpu().numpy()
    k, b = min(k, len(classes)), len(pictures)
    across = min(b, 1 if b == 1 else 2 if b <= 6 else 3 if b <= 15 else 4)
    down = -(-b // across)
    figure = Figure(figsize=(4.6 * across, max(1.9, 0.5 + 0.42 * k) * down), dpi=100)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
    if marks := Legend(counts=count(units)).marks():
        figure.supxlabel(", ".join(words for _, words in marks), fontsize=9)
    grid = figure.add_gridspec(down, 2 * across, width_ratios=[1, 1.5] * across)
    for i in range(b):
        row, column = divmod(i, across)
        picture = figure.add_subplot(grid[row, 2 * column])
        picture.imshow(pictures[i], interpolation="nearest")
        picture.set_axis_off()
        best = probabilities[i].topk(k)
        bars = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        _bars(figure.add_subplot(grid[row, 2 * column + 1]), bars, classes, truth[i] if truth else None)
    return Chart(figure)


def _check(images: Tensor, logits: Tensor, classes: Sequence[str], k: int, targets: object) -> list[int]:
    """The targets as numbers, once everything is known to fit."""
    if not (isinstance(images, Tensor) and isinstance(logits, Tensor)):
        raise DtypeError(f"images and logits must be tensors, got {type(images)} and {type(logits)}.")
    if images.dim() != 4 or not 1 <= len(images) <= LIMIT:
        raise ShapeError(f"images must be 'b c h w' with b from 1 to {LIMIT}, got shape {tuple(images.shape)}.")
    if tuple(logits.shape) != (len(images), len(classes)):
        expected = (len(images), len(classes))
        raise ShapeError(f"logits must be {expected} (images, classes), got shape {tuple(logits.shape)}.")
    if len(classes) < 2:
        raise ShapeError(f"logits must be of two classes or more, got {len(classes)}; one has nothing to compare with.")
    if k < 1:
        raise OptionError(f"k must be at least 1, got {k}.")
    if targets is None:
        return []
    truth = [int(t) for t in torch.as_tensor(targets).flatten()]
    if len(truth) != len(images):
        raise ShapeError(f"targets must hold {len(images)} classes, one per image, got {len(truth)}.")
    if not all(0 <= t < len(classes) for t in truth):
        raise OptionError(f"targets must be from 0 to {len(classes) - 1}, got {truth}.")
    return truth


def _bars(axes: "Axes", bars: list[tuple[int, float]], classes: Sequence[str], truth: int | None) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(bars) - 0.35, -0.75)
    if any(math.isnan(chance) for _, chance in bars):
        axes.set_title("✗ logits are not finite", loc="left", fontsize=10, color=_WRONG)
        return
    if truth is not None:
        right = bars[0][0] == truth
        said = "✓ right" if right else f"✗ wrong, it is {_short(classes[truth], 20)}"
        axes.set_title(said, loc="left", fontsize=10, color=_RIGHT if right else _WRONG, weight="bold")
    for y, (index, chance) in enumerate(bars):
        color = _RIGHT if index == truth else _BAR
        axes.barh(y, 1, height=0.28, color="0.93")
        axes.barh(y, chance, height=0.28, color=color)
        name = _short(classes[index], 26) + (" ✓" if index == truth else "")
        axes.text(0, y - 0.22, name, fontsize=9, va="bottom")
        axes.text(1, y - 0.22, f"{100 * chance:.1f} %", fontsize=9, va="bottom", ha="right")


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
