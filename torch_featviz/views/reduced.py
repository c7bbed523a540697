"""All channels of a layer as one map, and how much of their variance is lost."""

from __future__ import annotations

from torch import Tensor

from torch_featviz.inspect.components import REDUCTIONS, kept_by, reduced_by
from torch_featviz.picture import Picture, Scale, Sheet, paint
from torch_featviz.picture.bounds import arranged, named
from torch_featviz.picture.color import is_diverging
from torch_featviz.picture.contrast import contrast, joined, signed
from torch_featviz.picture.legend import share

_NAME = 200  # pixels of the name of an image, at most
_FEW, _ZOOMED = 24, 224  # so many maps may be so many pixels large


def reduced(
    maps: Tensor,
    how: str,
    *,
    names: tuple[str, ...],
    scale: Scale | None,
    cmap: str | None,
    ncols: int | None,
    title: str,
    notes: tuple[str, ...],
) -> Picture:
    """Draw one map for each image, all on one scale.

    Args:
        maps: `b c h w`.
        how: one of `REDUCTIONS`.
        names: of the images; a single one may have none.
        scale: as for `feature_maps`, and so are the others.
        cmap: likewise.
        ncols: likewise.
        title: likewise.
        notes: further lines for the legend.
    """
    count, channels, height, width = maps.shape
    maps = maps.cpu()
    one = reduced_by(maps, how)
    lost = 1 - kept_by(maps, one)
    told = scale is None and cmap is None
    if scale is None:
        scale = contrast(is_diverging(cmap) if cmap else bool(signed(one[None])), per="layer")
        scale = Scale(vmin=0, quantile=scale.quantile, by=scale.by) if how == "rms" and not scale.symmetric else scale
    labels = tuple(named(name, max(width, _NAME)) for name in names)
    shown, columns = arranged(count, height, width, labels)
    cells, legend = paint(one[:shown, None], scale.fit(one), cmap=cmap)
    words = (
        f"{REDUCTIONS[how]} of {channels} channels: {share(lost)} of their variance is lost",
        *(("0 is the mean; the largest loading is positive",) if how == "pc1" else ()),
        *((f"{shown} of {count} images",) if shown < count else ()),
        *notes,
    )
    return Sheet(
        cells,
        joined([legend], words, told=told),
        title=title or f"{REDUCTIONS[how].capitalize()} of {channels} feature maps of {height} × {width}",
        ncols=min(ncols or columns, shown),
        zoom=max(1, _ZOOMED // max(height, width)) if shown <= _FEW else None,
        labels=labels[:shown] if any(labels) else (),
    )
