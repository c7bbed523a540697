"""Scales from values to the unit range: declared, fitted once, used for many pictures."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torch_featviz.displayed import Displayed
from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_fields, check_tensor, gated

_RANK = {"kernel": 2, "filter": 3}
_LEAST = 0.75  # of the range is for what `quantile` holds, or the rest are outliers
_NEAR = 0.25  # of the other end: so far from 0 an end is taken to be 0
_ROUNDING = 2.0**-17  # of a value: what sums of many float32 products differ by
_WORDS = {"kernel": "each map on its own scale", "filter": "each filter on its own scale"}


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Displayed):
    """A display range: which values are shown as the lowest and the highest colour.

    Given ends are kept; missing ends are fitted to the finite values. Nothing else is guessed: a scale is symmetric
    about 0 (and has diverging colours) only if `symmetric` says so.

    Args:
        symmetric: 0 is the middle, `vmin == -vmax`.
        vmin: the value shown as 0; a tensor if the scale was fitted per kernel or filter.
        vmax: the value shown as 1.
        quantile: share of the values that a fitted range holds, in (0, 1]; the rest is clipped.
        by: what `quantile` counts. `"count"`: values; `"mass"`: the sum of absolute values (Captum's rule), cut at that
            absolute value; `"outliers"`: as `"count"`, but nothing is clipped if all values leave the others 75 % of
            the range, and an end near 0 is 0.
        per: one range per `"kernel"` (an `h w` plane), per `"filter"` (`c h w`) or for the whole `"layer"`.
    Raises:
        OptionError: an end, `quantile`, `by` or `per` is invalid.
    Example:
        >>> scale = Scale(symmetric=True).fit(torch.tensor([[-1.0, 4.0]]))
        >>> scale(torch.tensor([[-4.0, 0.0, 2.0, 8.0]]))
        tensor([[0.0000, 0.5000, 0.7500, 1.5000]])
    """

    symmetric: bool = False
    vmin: float | Tensor | None = None
    vmax: float | Tensor | None = None
    quantile: float = 1.0
    by: Literal["count", "mass", "outliers"] = "count"
    per: Literal["kernel", "filter", "layer"] = "layer"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.quantile <= 1:
            raise OptionError(f"quantile must be in (0, 1], got {self.quantile}; 98 % is quantile=0.98.")
        self._check_ends()

    def _check_ends(self) -> None:
        for name, end in (("vmin", self.vmin), ("vmax", self.vmax)):
            if isinstance(end, (int, float)) and not math.isfinite(end):
                raise OptionError(f"{name} must be finite, got {end}; leave it out to fit it.")
        low, high = self.vmin, self.vmax
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return
        if self.symmetric and low is not None and high is not None and low != -high:
            raise OptionError(f"a symmetric scale has vmin == -vmax, got {low} and {high}; give vmax alone.")
        if self.symmetric and ((high is not None and high < 0) or (low is not None and low > 0)):
            raise OptionError(f"a symmetric scale has vmin <= 0 <= vmax, got vmin={low}, vmax={high}.")
        if low is not None and high is not None and low > high:
            raise OptionError(f"vmin must be at most vmax, got {low} and {high}.")

    @property
    def fitted(self) -> bool:
        """Whether both ends are known."""
        return (self.vmin is not None and self.vmax is not None) or (
            self.symmetric and not (self.vmin is None and self.vmax is None)
        )

    def fit(self, *tensors: Tensor) -> "Scale":
        """Return the same scale with both ends known; several tensors share one range.

        Args:
            tensors: the values to fit; of one shape, unless `per="layer"`.
        Returns:
            A new scale; its ends are scalars, or broadcast to the values if `per` is not `"layer"`.
        Raises:
            ShapeError: no tensor, a tensor is empty or has too few axes, or shapes differ.
            DtypeError: a tensor is complex or quantised.
            DeviceError: it is on the meta device.
        Example:
            >>> Scale(vmin=0).fit(torch.arange(5)).vmax
            4.0
        """
        if not tensors:
            raise ShapeError("fit needs at least one tensor, got none.")
        values = [as_float(t, "x") for t in tensors]
        if self.fitted:
            return self._with(self.vmin, self.vmax)
        low, high = _ends(_groups(values, self.per), self)
        if self.per == "layer":
            return self._with(low.item(), high.item())
        lead = values[0].shape[: -_RANK[self.per]]
        shape = (*lead, *[1] * _RANK[self.per])
        return self._with(low.reshape(shape), high.reshape(shape))

    def _with(self, low: Any, high: Any) -> "Scale":
        """Both ends, each from its partner where the scale is symmetric; the ends that were given win."""
        low = low if self.vmin is None else self.vmin
        high = high if self.vmax is None else self.vmax
        if self.symmetric:
            high = -low if self.vmax is None and self.vmin is not None else high
            return replace(self, vmin=-high, vmax=high)
        if self.vmax is None:
            high = high.clamp(min=low) if isinstance(high, Tensor) else max(high, low)
        elif self.vmin is None:
            low = low.clamp(max=high) if isinstance(low, Tensor) else min(low, high)
        return replace(self, vmin=low, vmax=high)

    def __call__(self, x: Tensor) -> Tensor:
        """Map values to the unit range: `vmin` to 0, `vmax` to 1, and on a symmetric scale 0 to exactly 0.5.

        Values outside the range stay outside, NaN and infinities stay, so that they can be marked. A range of one value
        shows it as 0, or as 0.5 on a symmetric scale.

        Args:
            x: any real dtype; half precision and integers are computed in float32.
        Returns:
            A new tensor of the same shape, float32 or float64. A scale that is not fitted is fitted to `x`.
        Raises:
            ShapeError: `x` is empty, or the scale was fitted to another number of kernels or filters.
            DtypeError: `x` is complex or quantised.
            DeviceError: `x` is on the meta device.
        """
        x = as_float(x, "x")
        scale = self.fit(x)
        low, high = _end(scale.vmin, x), _end(scale.vmax, x)
        fits = all(a in (1, b) for a, b in zip(low.shape, x.shape, strict=False))
        if low.dim() and (low.dim() != x.dim() or not fits):
            raise ShapeError(
                f"this scale was fitted per {self.per} on {tuple(low.shape)}, got {tuple(x.shape)}; "
                f"fit it on a tensor of that shape, or use per='layer'."
            )
        return _unit(x, low, high, self.symmetric)

    def describe(self) -> str:
        """The scale in words, for a legend."""
        words = ["symmetric about 0"] if self.symmetric else []
        words.append(_WORDS.get(self.per, "one scale for all"))
        if self.quantile < 1:
            share, rest = f"{100 * self.quantile:g} %", f"{100 * (1 - self.quantile):g} %"
            words.append(
                f"outliers clipped, at most {rest} of the values"
                if self.by == "outliers"
                else f"holds {share} of the {'values' if self.by == 'count' else 'absolute mass'}"
            )
        return ", ".join(words)


def as_float(x: Tensor, name: str = "values") -> Tensor:
    """A tensor that can be drawn, detached, as float32 (float64 stays).

    Args:
        x: real values.
        name: what it is called in errors.
    Raises:
        DtypeError: it is complex, or none that the gate lets pass.
        DeviceError: it is on the meta device.
        ShapeError: it is empty.
    """
    check_tensor(name, x)
    if x.is_complex():
        raise DtypeError(f"{name}: expected real values, got {x.dtype}; draw {name}.abs() or {name}.real.")
    if x.numel() == 0:
        raise ShapeError(f"expected at least one value, got an empty tensor of shape {tuple(x.shape)}.")
    x = x.detach()
    return x if x.dtype == torch.float64 else x.float()


def _groups(values: list[Tensor], per: str) -> Tensor:
    """All values that share one range in a row each: `g m`."""
    if per == "layer":
        return _join([v.reshape(1, -1) for v in values])
    rank = _RANK[per]
    for v in values:
        if v.dim() < rank:
            axes = "h w" if per == "kernel" else "c h w"
            got = tuple(v.shape)
            raise ShapeError(f"a scale per {per} needs '... {axes}', got shape {got}; use per='layer'.")
        if v.shape[:-rank] != values[0].shape[:-rank]:
            raise ShapeError(
                f"tensors that share one scale per {per} must agree before their last {rank} axes, "
                f"got {tuple(values[0].shape)} and {tuple(v.shape)}."
            )
    return _join([v.reshape(math.prod(v.shape[:-rank]), -1) for v in values])


def _join(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]


def _ends(rows: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each row, non-finite ones left out, cut as `quantile` says."""
    if scale.quantile < 1:
        return {"mass": _by_mass, "count": _by_count, "outliers": _but_outliers}[scale.by](rows, scale)
    low, high = rows.amin(1), rows.amax(1)  # several times faster than aminmax(dim=1)
    if not bool((low.isfinite() & high.isfinite()).all()):  # both keep NaN, and infinities are extreme
        finite, inf = rows.isfinite(), float("inf")
        low = rows.masked_fill(~finite, inf).amin(1)
        high = rows.masked_fill(~finite, -inf).amax(1)
    return _balance(*_defined(low, high), scale)


def _defined(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without one finite value get the range 0 to 0."""
    none = ~(low.isfinite() & high.isfinite())
    return low.masked_fill(none, 0), high.masked_fill(none, 0)


def _balance(low: Tensor, high: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    if not scale.symmetric:
        return low, high
    reach = torch.maximum(low.abs(), high.abs())
    return -reach, reach


def _by_count(rows: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Each fitted end leaves out its part of `1 - quantile`; sorting has no limit on the number of values."""
    finite = rows.isfinite()
    count = finite.sum(1, keepdim=True)
    if scale.symmetric:
        ordered = rows.abs().masked_fill(~finite, float("inf")).sort(dim=1).values
        reach = ordered.gather(1, _rank(count, scale.quantile) - 1).squeeze(1)
        reach = reach.masked_fill(~reach.isfinite(), 0)
        return -reach, reach
    sides = (scale.vmin is None) + (scale.vmax is None)
    inside = _rank(count, 1 - (1 - scale.quantile) / sides)
    ordered = rows.masked_fill(~finite, float("inf")).sort(dim=1).values
    low = ordered.gather(1, (count - inside).clamp(min=0)).squeeze(1)
    return _defined(low, ordered.gather(1, inside - 1).squeeze(1))


def _but_outliers(rows: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """All values, or what `quantile` holds where the rest would leave it too little of the range.

    What differs by no more than rounding does is shown as the same.
    """
    low, high = _ends(rows, replace(scale, quantile=1.0))
    inner_low, inner_high = _by_count(rows, scale)
    inner = inner_high - inner_low
    far = (inner < _LEAST * (high - low)) & (inner > 0)
    low, high = torch.where(far, inner_low, low), torch.where(far, inner_high, high)
    low, high = (
        low.masked_fill((low > 0) & (low < _NEAR * high), 0),
        high.masked_fill((high < 0) & (high > _NEAR * low), 0),
    )
    least = torch.maximum(low.abs(), high.abs()) * _ROUNDING
    return low, torch.maximum(high, low + least)


def _rank(count: Tensor, share: float) -> Tensor:
    """How many values are `share` of `count`: at least that share, and at least one."""
    return (count.double() * share - 1e-9).ceil().long().clamp(min=1)


def _by_mass(rows: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """The absolute value at which the cumulative sum of absolute values reaches `quantile` of their total."""
    finite = rows.isfinite()
    ordered = rows.abs().masked_fill(~finite, 0).sort(dim=1).values
    heap = ordered.double().cumsum(1)
    at = (heap < heap[:, -1:] * scale.quantile).sum(1, keepdim=True).clamp(max=rows.shape[1] - 1)
    reach = ordered.gather(1, at).squeeze(1)
    if scale.symmetric:
        return -reach, reach
    low, high = _ends(rows, replace(scale, quantile=1.0))
    return torch.maximum(low, -reach), torch.minimum(high, reach)


def _end(end: Any, x: Tensor) -> Tensor:
    """An end as a finite tensor like `x`: what exceeds its dtype becomes the largest value."""
    most = torch.finfo(x.dtype).max
    if isinstance(end, Tensor):
        return end.to(x).clamp(-most, most)
    return torch.tensor(min(max(float(end), -most), most), dtype=x.dtype, device=x.device)


def _unit(x: Tensor, low: Tensor, high: Tensor, symmetric: bool) -> Tensor:
    """`(x - low) / (high - low)` that neither overflows nor loses tiny ranges.

    Multiplying by a power of two first is exact: the result is what unbounded exponents would give.
    """
    size = torch.maximum(low.abs(), high.abs())
    if bool(((size > 2.0**60) | ((size < 2.0**-60) & (size > 0))).any()):
        one = torch.ones_like(size)
        factor = torch.where(size > 2.0**60, one * 2.0**-64, torch.where(size < 2.0**-60, one * 2.0**64, one))
        scaled, low, high = x * factor, low * factor, high * factor
    else:
        scaled = x
    span, limit = high - low, torch.finfo(x.dtype)
    flat = span == 0
    unit = (scaled - low).div_(span.masked_fill(flat, limit.tiny))
    if symmetric:
        unit.add_(0.5 * flat)
    if bool(unit.sum().isfinite()):
        return unit
    return torch.where(x.isinf(), x, unit.clamp_(-limit.max, limit.max))  # far outside must not look infinite


@gated
def normalize(x: Tensor, scale: Scale | None = None, **declared: Any) -> Tensor:
    """Map values to the unit range and clip them to it; NaN stays NaN.

    Args:
        x: any real tensor.
        scale: a `Scale`, fitted to `x` if it is not fitted yet. Default: `Scale(**declared)`.
        declared: fields of `Scale`, instead of `scale`.
    Returns:
        A new tensor of the same shape, float32 or float64.
    Raises:
        OptionError: both `scale` and its fields are given.
        ShapeError: `x` is empty, or does not fit the scale.
        DtypeError: `x` is complex or quantised.
        DeviceError: `x` is on the meta device.
    Example:
        >>> normalize(torch.tensor([2.0, 3.0, 6.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """
    if scale is not None and declared:
        raise OptionError(f"pass either scale or its fields, got scale and {', '.join(declared)}.")
    return (Scale(**declared) if scale is None else scale)(x).clamp_(0, 1)


class KernelNormalizer(nn.Module):
    """`normalize` as a module: each call fits its scale to its input.

    Raises:
        OptionError, ShapeError, DtypeError: as for `Scale` and `normalize`.
    Example:
        >>> KernelNormalizer(per="filter")(torch.randn(8, 3, 5, 5)).amax((1, 2, 3)).unique()
        tensor([1.])
    """

    @gated
    def __init__(
        self,
        *,
        symmetric: bool = False,
        quantile: float = 1.0,
        by: Literal["count", "mass", "outliers"] = "count",
        per: Literal["kernel", "filter", "layer"] = "kernel",
    ) -> None:
        super().__init__()
        self.scale = Scale(symmetric=symmetric, quantile=quantile, by=by, per=per)

    def extra_repr(self) -> str:
        s = self.scale
        return f"symmetric={s.symmetric}, quantile={s.quantile:g}, by={s.by!r}, per={s.per!r}"

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.scale)
