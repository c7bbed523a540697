"""Confusion matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import gate
from torch_featviz.model.answer import named_both
from torch_featviz.model.labels import names_of
from torch_featviz.picture import Legend, Picture, Poster, Scale, Sheet, paint
from torch_featviz.picture.bounds import listed, named

READABLE = 30  # classes, at most, whose counts are written in the cells
PAIRS = 20
_MATRIX = 800  # pixels, about, of the matrix as an image
_LARGEST = 2000  # at most
_SHARES = Scale(vmin=0, vmax=1)


@gate("counts")
def confusion(
    counts: Tensor | Sequence[Sequence[int]], classes: Sequence[str], *, cmap: str = "viridis", title: str = ""
) -> Picture:
    """Draw a confusion matrix: counts in the cells, the share of each true class as colour, the accuracy in the title.

    With more than 30 classes the matrix has no names, and a table lists the 20 most confused pairs of classes.

    Args:
        counts: `n n` whole numbers; rows are true classes, columns are predicted classes.
        classes: the `n` class names; for two classes also the name of the second alone.
        cmap: a sequential colour map, such as `"Blues"`.
        title: heading of the picture, before the accuracy.
    Raises:
        ShapeError: `counts` is not square, or does not fit `classes`.
        DtypeError: `counts` are not whole numbers, or `classes` are not names.
        OptionError: a count is negative, or `cmap` is unknown or diverging.
    Example:
        >>> confusion([[3, 1], [0, 4]], ["circle", "cross"]).title
        'Accuracy 87.5 % (7 of 8)'
    """
    table, classes = _table(counts), names_of(classes)
    classes = named_both(classes) if table.shape == (2, 2) else classes
    n = len(classes)
    if tuple(table.shape) != (n, n) or not n:
        hint = "; zoo.evaluate(...).confusion is such a table" * (table.dim() == 1)
        raise ShapeError(f"counts must be 'n n' for {n} classes, got shape {tuple(table.shape)}{hint}.")
    if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise DtypeError(f"counts must be whole numbers, got {table.dtype}; pass counts, not shares.")
    if bool((table < 0).any()):
        raise OptionError(f"counts must be at least 0, got {int(table.min())}.")
    total, right = int(table.sum()), int(table.diagonal().sum())
    accuracy = f"Accuracy {100 * right / total:.1f} % ({right:,} of {total:,})" if total else "No example counted"
    title = f"{title}: {accuracy}" if title else accuracy
    if n > READABLE:
        return Poster(((_image(table, classes, cmap), _pairs(table, classes, cmap)),), title)
    rows = table.sum(1, keepdim=True)
    cells, legend = paint(_shares(table).reshape(n * n, 1, 1, 1), _SHARES, cmap=cmap, notes=_notes(classes, rows))
    names = tuple(named(name) for name in classes)
    return Sheet(
        cells,
        legend,
        title=title,
        ncols=n,
        inside=tuple(f"{int(v):,}" for v in table.flatten()),
        rows=names,
        columns=names,
        corner="true ↓  predicted →",
        empty=frozenset(i * n + j for i in range(n) if not rows[i] for j in range(n)),
        zoom=36 if n <= 12 else 20,
    )


def _table(counts: object) -> Tensor:
    try:
        return torch.as_tensor(counts, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"counts must be a table 'n n' of whole numbers, got {counts!r:.80}.") from error


def _shares(table: Tensor) -> Tensor:
    """Of each row, which may sum to 0."""
    return table.double() / table.sum(1, keepdim=True).clamp(min=1)


def _image(table: Tensor, classes: Sequence[str], cmap: str) -> Sheet:
    """The matrix with no names: a few pixels for a cell, or one for several classes where they are too many."""
    n, rows = len(classes), table.sum(1)
    block = -(-n // _LARGEST)
    size = -(-n // block)
    padded = torch.zeros(size * block, size * block, dtype=torch.int64, device="cpu")
    padded[:n, :n] = table
    blocks = padded.view(size, block, size, block).sum((1, 3))
    notes = _notes(classes, rows) if block == 1 else (*_notes(classes, rows), f"a pixel is {block} × {block} classes")
    cells, legend = paint(_shares(blocks)[None, None], _SHARES, cmap=cmap, notes=notes)
    cells.masked_fill_((blocks.sum(1) == 0)[:, None], 255)
    return Sheet(cells, legend, labels=(f"{n:,} classes: true ↓  predicted →",), zoom=max(1, _MATRIX // size))


def _pairs(table: Tensor, classes: Sequence[str], cmap: str) -> Sheet:
    """The pairs that are confused most: their counts, and what share of the true class these are."""
    n = len(classes)
    wrong = table.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:PAIRS]
    order = order[wrong[order] > 0]
    if not len(order):
        blank = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8, device="cpu")
        return Sheet(blank, title="No class was confused with another", empty=frozenset({0}))
    found = [(i // n, i % n, int(wrong[i])) for i in order.tolist()]
    shares = _shares(table).flatten()[order]
    cells, _ = paint(shares.repeat_interleave(2).view(-1, 1, 1, 1).expand(-1, 1, 1, 2), _SHARES, cmap=cmap)
    left, pairs = int(wrong.sum()) - sum(count for *_, count in found), int((wrong > 0).sum())
    rest = (f"{left:,} more examples in {pairs - len(found):,} other pairs",) if left else ()
    return Sheet(
        cells,
        Legend(notes=("share: part of the true class", *rest)),
        title=f"The {len(found)} most confused pairs",
        ncols=2,
        inside=tuple(
            words
            for (_, _, count), share in zip(found, shares.tolist(), strict=True)
            for words in (f"{count:,}", f"{100 * share:.0f} %")
        ),
        rows=tuple(f"{named(classes[i], 240)} → {named(classes[j], 240)}" for i, j, _ in found),
        columns=("count", "share"),
        corner="true → predicted",
        zoom=22,
    )


def _notes(classes: Sequence[str], rows: Tensor) -> tuple[str, ...]:
    none = [name for name, total in zip(classes, rows.flatten().tolist(), strict=True) if not total]
    return ("colour: share of each true class", *([f"no example of: {listed(none)}"] if none else []))
