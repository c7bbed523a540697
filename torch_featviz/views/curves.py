"""How training went."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.picture import Chart, Picture, number
from torch_featviz.picture.figures import as_written, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#1f5fa8", "#c8511b", "#3f7f3f", "#7a4a9e")
_DASHES, _MARKS = ("-", "--", ":", "-."), "os^D"
_Line: TypeAlias = list[float | None]  # a value for each epoch that has one
_PREFIXES = ("train", "valid", "val", "test")


def curves(
    history: Mapping[str, Mapping[str, Sequence[float | None]] | Sequence[float | None]], *, title: str = ""
) -> Picture:
    """Loss, accuracy and the like over epochs, one panel each, with every line's last value beside it.

    Args:
        history: panels by name, each with its lines by name, as in `{"loss": {"train": [...]}}`, or
            one line alone; flat names such as `train_loss` and `valid_loss` are brought together. None is an epoch
            without a value, as where validation is done now and then; a line that has none at all, as of a validation
            that was not, is left out. NaN is a value, of a training that failed, and is said.
        title: above everything.
    Raises:
        ShapeError: there is nothing to draw, or lines of one panel have different lengths.
        OptionError: a value is neither a number nor None.
    Example:
        >>> picture = curves({"loss": {"train": [2.0, 1.0], "valid": [2.1, 1.4]}})
        >>> picture.figure().axes[0].get_title(loc="left")
        'loss'
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

    panels = _panels(history)
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.4), dpi=110)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
    for axes, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw(axes, name, lines)
    return Chart(as_written(figure))


def _panels(history: Mapping[str, Any]) -> dict[str, dict[str, _Line]]:
    panels: dict[str, dict[str, _Line]] = {}
    for name, lines in history.items():
        if isinstance(lines, Mapping):
            panels.setdefault(name, {}).update({key: _numbers(f"{name}/{key}", v) for key, v in lines.items()})
            continue
        prefix, _, rest = name.partition("_")
        panel, key = (rest, prefix) if rest and prefix in _PREFIXES else (name, "")
        panels.setdefault(panel, {})[key] = _numbers(name, lines)
    drawn = {name: {key: line for key, line in group.items() if _known(line)} for name, group in panels.items()}
    drawn = {name: group for name, group in drawn.items() if group}
    for name, group in panels.items():
        lengths = {key or name: len(values) for key, values in group.items()}
        if not drawn or len({length for length in lengths.values() if length}) > 1:
            raise ShapeError(f"the lines of {name!r} must have one length of at least 1, got {lengths}.")
    if not panels:
        raise ShapeError("history must hold at least one line, got none.")
    return drawn


def _known(line: _Line) -> list[tuple[int, float]]:
    """The epochs that have a value, from 1, with it."""
    return [(epoch, value) for epoch, value in enumerate(line, 1) if value is not None]


def _numbers(name: str, values: Sequence[Any]) -> _Line:
    try:
        return [None if v is None else float(v) for v in values]
    except (TypeError, ValueError) as e:
        raise OptionError(f"{name!r} must be a sequence of numbers, got {values!r}.") from e


def _draw(axes: "Axes", name: str, lines: dict[str, _Line]) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    count = len(next(iter(lines.values())))
    axes.set_title(fit(name, 380, 17), loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for i, line in enumerate(lines.values()):
        epochs, values = zip(*_known(line), strict=True)
        style: dict[str, Any] = {
            "color": _COLORS[i % 4],
            "linestyle": _DASHES[i % 4],
            "marker": _MARKS[i % 4],
        }
        axes.plot(epochs, values, markersize=4, markevery=_marks(values), **style)
    if count == 1:
        axes.set_xlim(0.5, 1.5)
        axes.set_xticks([1])
    _label(axes, lines)


def _marks(values: Sequence[float]) -> list[int]:
    """Marks: all points of a short line; else the last one, and those that stand alone."""
    fine = [False, *map(math.isfinite, values), False]
    alone = {i for i in range(len(values)) if fine[i : i + 3] == [False, True, False]}
    return list(range(len(values))) if len(values) <= 20 else sorted({*alone, len(values) - 1})


def _label(axes: "Axes", lines: dict[str, _Line]) -> None:
    """Each line's name and last value at its end, moved apart where they would touch."""
    low, high = axes.get_ylim()
    ends: list[tuple[float, str, str]] = []
    for i, (key, line) in enumerate(lines.items()):
        values = [value for _, value in _known(line)]
        end = values[-1]
        at = (next((v for v in reversed(values) if math.isfinite(v)), high) - low) / (high - low)
        word = number(end) if math.isfinite(end) else "NaN" if math.isnan(end) else "∞" if end > 0 else "−∞"
        ends.append((at, f"{fit(key, 160, 15)} {word}".strip(), _COLORS[i % 4]))
    ends.sort()
    places = [max(0.02, ends[0][0])]
    for at, *_ in ends[1:]:
        places.append(max(at, places[-1] + 0.085))
    down = max(0.0, places[-1] - 0.98)
    for place, (_, words, color) in zip(places, ends, strict=True):
        at_end = (1.02, place - down)
        axes.annotate(words, at_end, xycoords="axes fraction", va="center", color=color, annotation_clip=False)
