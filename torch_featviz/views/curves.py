"""Training curves."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.gate import check, gate
from torch_featviz.picture import Chart, Picture, number
from torch_featviz.picture.figures import as_written, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#1f5fa8", "#c8511b", "#3f7f3f", "#7a4a9e")
_DASHES, _MARKS = ("-", "--", ":", "-."), "os^D"
_Line: TypeAlias = list[float | None]  # a value for each epoch that has one
_SPLITS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid"}
_SPLITS |= {"test": "test"}
_ACROSS, _DOWN = 4, 10  # panels, at most
_NAMED = 11  # lines of a panel, at most


@gate("history", "x")
def curves(
    history: Mapping[str, Mapping[str, Sequence[float | None]] | Sequence[float | None]] | Sequence[float | None],
    *,
    x: Sequence[float] | None = None,
    xlabel: str | None = None,
    title: str = "",
) -> Picture:
    """Plot loss, accuracy and other metrics over epochs, one panel each; lines end with their last value.

    Args:
        history: panels by name, each a mapping of lines by name, as in `{"loss": {"train": [...]}}`, or a single line,
            which needs no name. Flat names are grouped into panels: `train_loss` and `valid_loss`, `train/loss` and
            `val/loss`, `loss` and `val_loss`. None is an epoch without a value, for instance without validation; a line
            without any value is left out. NaN, as of a training that failed, is a value: it is written as the last
            value. At most 40 panels are drawn; beyond 11 lines in a panel, lines are grey and have no name.
        x: position of each value, such as the number of steps. Default: 1, 2, 3, ...
        xlabel: name of the x axis. Default: `"epoch"`, or nothing if `x` is given.
        title: heading of the picture.
    Raises:
        ShapeError: there is nothing to draw, the lines of a panel differ in length, or `x` has another length.
        OptionError: a value is neither a number nor None.
    Example:
        >>> picture = curves({"train/loss": [2.0, 1.0], "val/loss": [2.1, 1.4]}, x=[100, 200], xlabel="step")
        >>> picture.figure().axes[0].get_title(loc="left")
        'loss'
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  no matplotlib on import

    panels = _panels(history if isinstance(history, Mapping) else {"": history})
    places = None if x is None else _places(x, panels)
    shown = list(panels.items())[: _ACROSS * _DOWN]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(4.6 * across + 0.4, 3.4 * down), dpi=110)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
    if len(shown) < len(panels):
        figure.supxlabel(f"{len(shown)} of {len(panels)} panels", x=0.01, ha="left", fontsize=9)
    label = xlabel if xlabel is not None else "epoch" if x is None else ""
    for i, (name, lines) in enumerate(shown):
        _draw(figure.add_subplot(down, across, i + 1), name, lines, places, label)
    return Chart(as_written(figure))


def _panels(history: Mapping[str, Any]) -> dict[str, dict[str, _Line]]:
    panels: dict[str, dict[str, _Line]] = {}
    for name, lines in history.items():
        check("a name in history", name, str)
        if isinstance(lines, Mapping):
            panels.setdefault(name, {}).update({key: _numbers(f"{name}/{key}", v) for key, v in lines.items()})
            continue
        panel, key = _split(name)
        key = name if key in panels.get(panel, {}) else key  # as of "val_loss" beside "valid_loss"
        panels.setdefault(panel, {})[key] = _numbers(name, lines)
    for group in panels.values():
        if "" in group and len(group) > 1 and "train" not in group:  # as Keras names them: loss, val_loss
            renamed = {key or "train": values for key, values in group.items()}
            group.clear()
            group.update(renamed)
    drawn = {name: {key: line for key, line in group.items() if _known(line)} for name, group in panels.items()}
    drawn = {name: group for name, group in drawn.items() if group}
    for name, group in panels.items():
        lengths = {key or name: len(values) for key, values in group.items()}
        if not drawn or len({length for length in lengths.values() if length}) > 1:
            raise ShapeError(f"the lines of {name!r} must have one length of at least 1, got {lengths}.")
    if not panels:
        raise ShapeError("history must hold at least one line, got none.")
    return drawn


def _split(name: str) -> tuple[str, str]:
    """Panel and line in a flat name, where either end of it says which data it is of.

    Example:
        >>> _split("validation/loss"), _split("Loss/train"), _split("learning_rate")
        (('loss', 'valid'), ('Loss', 'train'), ('learning_rate', ''))
    """
    for first, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
        parts = re.split(r"([_/. -])", name)
        if len(parts) > 2 and (key := _SPLITS.get(parts[first].lower())):
            return "".join(parts[rest]).strip("_/. -") or name, key
    return name, ""


def _places(x: Sequence[float], panels: Mapping[str, Mapping[str, _Line]]) -> list[float]:
    """Where values are, one for each of any line."""
    places = _numbers("x", x)
    if any(place is None or not math.isfinite(place) for place in places):
        raise OptionError(f"x must hold finite numbers, got {x!r:.80}.")
    for name, group in panels.items():
        for values in group.values():
            if len(values) != len(places):
                raise ShapeError(f"x must be as long as the lines, got {len(places)} for {len(values)} of {name!r}.")
    return [place for place in places if place is not None]


def _known(line: _Line) -> list[tuple[int, float]]:
    """The epochs that have a value, from 1, with it."""
    return [(epoch, value) for epoch, value in enumerate(line, 1) if value is not None]


def _numbers(name: str, values: Sequence[Any]) -> _Line:
    try:
        return [None if v is None else float(v) for v in values]
    except (TypeError, ValueError, RuntimeError) as e:
        what = repr(name) if name else "history"
        raise OptionError(f"{what} must be a sequence of numbers, got {values!r:.200}.") from e


def _draw(axes: "Axes", name: str, lines: dict[str, _Line], x: list[float] | None, xlabel: str) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    count = len(next(iter(lines.values())))
    axes.set_title(fit(name, 380, 17), loc="left", fontsize=11)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    if x is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for i, line in enumerate(lines.values()):
        numbers, values = zip(*_known(line), strict=True)
        at = numbers if x is None else [x[number - 1] for number in numbers]
        if i >= _NAMED:
            axes.plot(at, values, color="0.75", linewidth=0.8, zorder=1)
            continue
        style: dict[str, Any] = {
            "color": _COLORS[i % 4],
            "linestyle": _DASHES[i % 4],
            "marker": _MARKS[i % 4],
        }
        axes.plot(at, values, markersize=4, markevery=_marks(values), **style)
    if len(lines) > _NAMED:
        axes.set_title(f"{len(lines) - _NAMED} more lines in grey", loc="right", fontsize=8)
    if count == 1 and x is None:
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
    for i, (key, line) in enumerate(islice(lines.items(), _NAMED)):
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
