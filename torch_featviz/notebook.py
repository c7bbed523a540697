"""How results show themselves in a notebook: as a table, a picture, or a film.

Nothing here runs a model. Text is escaped: names of layers, classes and files can be anything.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from .capture import Activations, Histogram, Moments, Recent, TopK
from .capture.reduce import Reducer
from .capture.reduce.several import parts_of
from .capture.session import Capture
from .capture.statistics import Statistics
from .displayed import part, shown_fields
from .errors import FeatvizError
from .explain import Attribution
from .picture import Legend, Picture, Scale, Sheet, number, paint, rgb
from .picture.images import clipped, unit_images
from .printable import escaped
from .survey import Patches, TopPatches
from .survey.unread import patches_alone
from .training import Monitor
from .training.film import Film
from .training.history import History
from .views import confusion, curves, exemplars, samples
from .zoo import XO, Evaluation, TrainingCurves
from .zoo.data import ImageFiles

ROWS = 40  # of a table, at most
IMAGES, HITS, CHANNELS, BINS, CLASSES = 8, 4, 20, 16, 30  # that are shown, at most
_NOTHING = 225  # light grey, where there is no image
_NUMBER = re.compile("|[−∞]?[0-9.,e−]*( %)?|nan|−?inf")  # what is set flush right
Rows = Sequence[Sequence[str]]


@singledispatch
def html(result: object) -> str | None:
    """The HTML that a notebook shows; None if the repr is enough.

    Example:
        >>> print(html(Moments()))
        <p>Moments(dim=None, nothing seen yet)</p>
    """
    pairs = [[name, part(value)] for name, value in shown_fields(result)]
    return f"{_line(type(result).__name__)}{table(('field', 'value'), pairs)}" if pairs else None


def table(head: Sequence[str], rows: Rows) -> str:
    """A table with numbers on the right; after 40 rows it tells the total.

    Example:
        >>> table(["layer"], [["a<b"]]).count("a&lt;b")
        1
    """
    right = [all(_NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(head))]
    body = "".join(f"<tr>{_cells(row, 'td', right)}</tr>" for row in rows[:ROWS])
    more = _line(f"{ROWS} of {len(rows):,} rows") if len(rows) > ROWS else ""
    return f"<table><thead><tr>{_cells(head, 'th', right)}</tr></thead><tbody>{body}</tbody></table>{more}"


def picture(data: bytes, kind: str, says: str) -> str:
    """An image of these bytes, with an alternative text."""
    source = base64.b64encode(data).decode("ascii")
    return f'<img src="data:image/{kind};base64,{source}" alt="{escaped(says)}" style="max-width:100%">'


def _cells(row: Iterable[str], tag: str, right: Sequence[bool]) -> str:
    styles = ("text-align:right; white-space:nowrap" if flush else "text-align:left" for flush in right)
    return "".join(
        f'<{tag} style="{style}; padding:0 .7em">{escaped(cell)}</{tag}>'
        for cell, style in zip(row, styles, strict=True)
    )


def _line(words: str) -> str:
    return f"<p>{escaped(words)}</p>"


def _drawn(sheet: Picture, says: str) -> str:
    return picture(sheet.png(), "png", says)


# What a capture leaves


@html.register
def _(acts: Activations) -> str:
    return _recorded(acts, acts.described())


@html.register
def _(acts: Recent) -> str:
    return _recorded(acts, acts.described())


def _recorded(acts: Activations | Recent, described: Mapping[str, str]) -> str:
    missing = _line(f"did not run: {', '.join(acts.not_run)}") if acts.not_run else ""
    return table(("layer", "output"), [[key, words] for key, words in described.items()]) + missing


@html.register
def _(block: Capture) -> str:
    names = [[name, type(layer).__name__] for name, layer in block.chosen.items()]
    return _line(f"{block!r}: use `with ... as acts`, then run the model; these layers are kept") + table(
        ("layer", "kind"), names
    )


@html.register
def _(stats: Statistics) -> str:
    found = {name: {"layer": name, **_figures(reducer)} for name, reducer in stats.items()}
    head = list(dict.fromkeys(key for row in found.values() for key in row))
    notes = [f"{name} is left out: {why}" for name, why in stats.left_out.items()]
    notes += [f"did not run: {', '.join(stats.not_run)}"] if stats.not_run else []
    return table(head, [[row.get(key, "") for key in head] for row in found.values()]) + "".join(map(_line, notes))


def _figures(reducer: Reducer) -> dict[str, str]:
    """The figures of a whole layer, by what they are."""
    figures: dict[str, str] = {}
    for each in parts_of(reducer) if reducer.empty else _seen_parts(reducer):
        if isinstance(each, Moments):
            whole = each.whole
            figures |= {"channels": f"{len(each.mean):,}", "dead": f"{int(each.dead.sum()):,}"}
            figures |= {name: number(getattr(whole, name)) for name in ("mean", "std", "min", "max")}
            figures |= {"zeros": f"{100 * whole.zero_share:.1f} %", "NaN": f"{whole.nan:,}", "inf": f"{whole.inf:,}"}
        elif isinstance(each, Histogram):
            edges = each.edges.tolist()
            figures |= {"values": f"{int(each.counts.sum()):,}", "from": number(edges[0]), "to": number(edges[-1])}
        elif isinstance(each, TopK):
            figures |= {"images": f"{each.seen:,}", "highest": number(float(each.values[:, 0].max()))}
    return figures


def _seen_parts(reducer: Reducer) -> list[Any]:
    return list(reducer) if len(parts_of(reducer)) > 1 else [reducer]  # type: ignore[call-overload]


@html.register
def _(reducer: Reducer) -> str:
    if reducer.empty:
        return _line(repr(reducer))
    return _line(repr(reducer)) + "".join(_by_channel(each) for each in _seen_parts(reducer))


def _by_channel(reducer: Reducer) -> str:
    if isinstance(reducer, Histogram):
        return _bars(reducer)
    if isinstance(reducer, Moments):
        figures = [reducer.mean, reducer.std, reducer.min, reducer.max, 100 * reducer.zero_share]
        head: tuple[str, ...] = ("channel", "mean", "std", "min", "max", "zeros, %", "NaN", "inf")
        counts = [reducer.nan, reducer.inf]
    elif isinstance(reducer, TopK):
        shown = range(min(5, reducer.k))
        images = reducer.images.double()
        images[images < 0] = math.nan  # fewer were seen
        figures, counts = [each[:, i] for each in (reducer.values, images) for i in shown], []
        head = ("channel", *(f"value {i + 1}" for i in shown), *(f"image {i + 1}" for i in shown))
    else:
        return ""
    rows = [
        [f"{i}", *(_known(each[i]) for each in figures), *(f"{int(each[i]):,}" for each in counts)]
        for i in range(min(CHANNELS, len(figures[0])))
    ]
    more = _line(f"{len(rows)} of {len(figures[0]):,} channels") if len(rows) < len(figures[0]) else ""
    return table(head, rows) + more


def _known(value: Tensor) -> str:
    return "" if value.isnan() else number(float(value))


def _bars(histogram: Histogram) -> str:
    """Neighbouring bins together, so that there are at most 16, from the first that holds something to the last."""
    counts, edges = histogram.counts.tolist(), histogram.edges.tolist()
    filled = [i for i, held in enumerate(counts) if held] or [0]
    first, last = filled[0], filled[-1] + 1
    step = -(-(last - first) // BINS)
    starts = range(first, last, step)
    sums = [sum(counts[i : i + step]) for i in starts]
    bars = ["█" * round(20 * held / max(1, *sums)) for held in sums]
    ends = [(number(edges[i]), number(edges[min(i + step, len(counts))])) for i in starts]
    rows = [[*end, f"{held:,}", bar] for end, held, bar in zip(ends, sums, bars, strict=True)]
    return table(("from", "to", "values", ""), rows)


# Why, and what excites


@html.register
def _(why: Attribution) -> str:
    heatmaps = why.heatmaps.detach()[:IMAGES]
    says = f"{why.method}{f' on {why.layer}' if why.layer else ''}"
    if heatmaps.dim() != 3:
        return _line(f"{says}: heatmaps {part(why.heatmaps)}")
    more = (f"{IMAGES} of {len(why.heatmaps)} images",) if len(heatmaps) < len(why.heatmaps) else ()
    classes = [None] * len(heatmaps) if why.classes is None else why.classes.tolist()
    cells, legend = paint(heatmaps[:, None].float(), Scale(symmetric=True), notes=more)
    labels = [f"image {i}{'' if of is None else f': class {of}'}" for i, of in zip(range(len(cells)), classes)]  # noqa: B905
    title = f"{says}: red speaks for it, blue against it"
    return _drawn(Sheet(cells, legend, title=title, labels=tuple(labels)), title)


@html.register
def _(best: TopPatches) -> str:
    try:
        read = next(iter(best._crops), None)
        if read is not None:  # by patches() or exemplars(): they are kept
            projection = read[0]
            kept = [channel for by, channel in best._crops if by == projection]
            return _drawn(exemplars(best, kept[:IMAGES], projection=projection), repr(best))
        if (sheet := _patches(best)) is not None:
            return _drawn(sheet, repr(best)) + _line("fv.exemplars(best) adds what in them activates the channel")
    except FeatvizError:  # images of other than 1 or 3 channels, say
        pass
    return _strongest(best)


def _patches(best: TopPatches) -> Picture | None:
    """The strongest patches of the first channels, a channel a row."""
    channels = range(min(IMAGES, len(best.values)))
    found = patches_alone(best, channels, min(HITS, best.values.shape[1]))
    if found is None:
        return None
    images, inside = (each.flatten(0, 1) for each in found)
    units = unit_images(images, None, None)
    counts, hints = clipped(torch.where(inside[:, None], units, 0), None, None)
    values = best.values[: len(channels), : found[0].shape[1]]
    cells = torch.where(inside[:, None], rgb(units), _NOTHING).to(torch.uint8)
    more = (f"{len(channels)} of {len(best.values)} channels",) if len(channels) < len(best.values) else ()
    unread = (best.unread,) if best.unread else ()
    return Sheet(
        cells,
        Legend(counts=counts, notes=("light grey: beyond the image's border, or no patch", *more, *unread, *hints)),
        title=f"{best.layer or 'model'}: top-activating patches of each channel; {best.seen:,} images",
        ncols=values.shape[1],
        labels=tuple(number(value) if value > 0 else "" for value in values.flatten().tolist()),
        rows=tuple(f"channel {channel}" for channel in channels),
    )


def _strongest(best: TopPatches) -> str:
    numbers = best.values.shape[1]
    rows = [[f"{c}", *map(_known, best.values[c, :5])] for c in range(min(CHANNELS, len(best.values)))]
    head = ("channel", *(f"value {i + 1}" for i in range(min(5, numbers))))
    return _line(repr(best)) + table(head, rows) + _line("fv.exemplars(best) draws the patches")


@html.register
def _(patches: Patches) -> str:
    try:
        return _drawn(exemplars(patches), repr(patches))
    except FeatvizError:
        return table(("field", "value"), [[name, part(value)] for name, value in shown_fields(patches)])


# Training


@html.register
def _(film: Film) -> str:
    return picture(film.animation("webp"), "webp", repr(film))


@html.register
def _(watch: Monitor) -> str:
    findings = [[f"{each.step:,}", each.kind, each.text] for each in watch._log.findings.all]
    layers = watch._log.history[-1].layers if len(watch._log.history) else {}
    rows = [
        [name, number(of.mean), number(of.std), f"{100 * of.zero_share:.1f} %", f"{of.dead} of {of.channels}"]
        for name, of in layers.items()
    ]
    unseen = [[name, "", "", "", ""] for name in watch._watched.layers if name not in layers]
    return (
        _line(repr(watch))
        + table(("layer", "mean", "std", "zeros", "dead"), rows + unseen)
        + (table(("step", "finding", "what"), findings) if findings else _line("nothing found"))
    )


@html.register
def _(history: History) -> str:
    rows = []
    for name in history.scalars:
        known = [value for value in history.line(name) if value is not None]
        rows.append([name, number(known[0]), number(known[-1])])
    return _line(repr(history)) + (table(("scalar", "first", "last"), rows) if rows else "")


@html.register
def _(made: TrainingCurves) -> str:
    lines = {name: list(value) for name, value in shown_fields(made) if value and name != "seconds"}
    return _drawn(curves(lines), repr(made)) if lines else _line(repr(made))


@html.register
def _(done: Evaluation) -> str:
    n = len(done.confusion)
    told = f"; {done.unread}" if done.unread else ""
    says = f"accuracy {100 * done.accuracy:.1f} %, loss {number(done.loss)}, {n} classes{told}"
    drawn = _drawn(confusion(done.confusion, [str(i) for i in range(n)]), says) if 0 < n <= CLASSES else ""
    return _line(says) + drawn


# Data


@html.register
def _(drawings: XO) -> str:
    return _drawn(samples(drawings, n=IMAGES), repr(drawings))


@html.register
def _(files: ImageFiles) -> str:
    left_out = [[str(path), why] for path, why in files.left_out.items()]
    more = _line("left out:") + table(("file", "because"), left_out) if left_out else ""
    return _line(repr(files)) + table(("image",), [[str(path)] for path in files.paths]) + more


__all__ = ["html", "picture", "table"]
