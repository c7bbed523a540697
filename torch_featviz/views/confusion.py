"""Which classes are taken for which."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.answer import named_both
from torch_featviz.picture import Picture, Scale, Sheet, paint


def confusion(
    counts: Tensor | Sequence[Sequence[int]], classes: Sequence[str], *, cmap: str = "viridis", title: str = ""
) -> Picture:
    """A confusion matrix: counts in the cells, each row's shares as colours, the accuracy above.

    Args:
        counts: `n n` whole numbers; rows are the true classes, columns the predicted ones.
        classes: their `n` names; of two classes also that of the second alone.
        cmap: a sequential colour map, such as `"Blues"`.
        title: above everything, before the accuracy.
    Raises:
        ShapeError: `counts` is not square, or does not fit `classes`.
        DtypeError: `counts` are not whole numbers.
        OptionError: a count is negative, or `cmap` is not offered or diverges.
    Example:
        >>> confusion([[3, 1], [0, 4]], ["circle", "cross"]).title
        'Accuracy 87.5 % (7 of 8)'
    """
    table = torch.as_tensor(counts, device="cpu").detach()
    classes = named_both(classes) if table.shape == (2, 2) else classes
    n = len(classes)
    if tuple(table.shape) != (n, n) or not n:
        raise ShapeError(f"counts must be 'n n' for {n} classes, got shape {tuple(table.shape)}.")
    if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise DtypeError(f"counts must be whole numbers, got {table.dtype}; shares are worked out here.")
    if bool((table < 0).any()):
        raise OptionError(f"counts must be at least 0, got {int(table.min())}.")
    total, right = int(table.sum()), int(table.diagonal().sum())
    accuracy = f"Accuracy {100 * right / total:.1f} % ({right:,} of {total:,})" if total else "No example counted"
    rows = table.sum(1, keepdim=True)
    shares = table.double() / rows.clamp(min=1)
    cells, legend = paint(shares.reshape(n * n, 1, 1, 1), Scale(vmin=0, vmax=1), cmap=cmap, notes=_notes(classes, rows))
    readable = n <= 30
    return Sheet(
        cells,
        legend,
        title=f"{title}: {accuracy}" if title else accuracy,
        ncols=n,
        inside=tuple(f"{int(v):,}" for v in table.flatten()) if readable else (),
        rows=tuple(classes),
        columns=tuple(classes),
        corner="true ↓  predicted →",
        empty=frozenset(i * n + j for i in range(n) if not rows[i] for j in range(n)),
        zoom=36 if n <= 12 else 20 if readable else 13,
    )


def _notes(classes: Sequence[str], rows: Tensor) -> tuple[str, ...]:
    none = [name for name, total in zip(classes, rows.flatten().tolist(), strict=True) if not total]
    return ("colour: share of each true class", *([f"no example of: {', '.join(none)}"] if none else []))
