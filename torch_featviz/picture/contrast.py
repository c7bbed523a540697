"""The scale on which maps are drawn where none is given."""

from typing import Literal

from torch import Tensor

from torch_featviz.picture.color import is_diverging
from torch_featviz.picture.scale import Scale, as_float

_HELD = 0.995  # of the values, at least


def contrast(*maps: Tensor, cmap: str | None = None, per: Literal["kernel", "filter", "layer"] = "kernel") -> Scale:
    """The scale of maps by a fixed rule: of one sign from lowest to highest, of both signs symmetric about 0.

    A symmetric scale is drawn in diverging colours, the other in sequential ones. The ends leave out outliers, at most
    0.5 % of the values.

    Args:
        maps: all that are drawn on the scale; it is not fitted to them yet.
        cmap: a colour map that was asked for; its kind decides instead of the signs.
        per: as for `Scale`.
    Raises:
        OptionError: `cmap` or `per` is not offered.
        ShapeError, DtypeError: maps are empty, or without values.
    Example:
        >>> contrast(torch.rand(2, 3, 3)).symmetric, contrast(torch.tensor([[-1.0, 2.0]])).symmetric
        (False, True)
    """
    if cmap is not None:
        signed = is_diverging(cmap)
    else:
        finite = [x[x.isfinite()] for x in map(as_float, maps)]
        signed = any(bool((x < 0).any()) for x in finite) and any(bool((x > 0).any()) for x in finite)
    return Scale(symmetric=signed, quantile=_HELD, by="outliers", per=per)


def rule(scale: Scale) -> str:
    """Why a scale by this rule is as it is, for a legend."""
    return "values of both signs: diverging colours" if scale.symmetric else "values of one sign: sequential colours"
