"""The layers of a walk as the page is given them, within the room that is left."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from torch_featviz.capture.reduce.moments import Whole
from torch_featviz.errors import OptionError
from torch_featviz.inspect.layer import Layer, spans
from torch_featviz.inspect.walk import Walk
from torch_featviz.picture import Scale
from torch_featviz.picture.contrast import contrast, signed

from .pack import Blobs, exponent_of

_BYTES = 2  # of a value
MODEL = "(model)"  # the name of a model that is one layer
_SMALL = 2**17  # bytes of what is whole wherever there is room for it
_LETTERS = 4 / 3  # base64 makes of a byte
_DEFLATED = (0.65, 0.75, 0.85, 1.0)  # what is left of a byte, as is tried: values of real networks keep 0.6 to 0.8
_LONGEST = 400  # letters of a layer's description


def put_layers(
    blobs: Blobs, seen: Walk, letters: float, *, progress: bool = False
) -> tuple[list[dict[str, Any]], bool]:
    """All layers, and whether something of them had to be left out.

    Args:
        blobs: where their values go.
        seen: what to put there.
        letters: that the page may still take for it. Small layers are whole; of the others the same number of channels
            stays of each: those with the highest values, and their filters.
        progress: show a bar.
    Raises:
        OptionError: there is no room for one channel of each layer.
    """
    parts = [_Part(values) for layer in seen.layers if (values := _shown(layer)) is not None]
    parts += [_Part(layer.kernels, filters=True) for layer in seen.layers if layer.kernels is not None]
    before, large = len(blobs.texts), 0
    for ratio in _DEFLATED:
        total = int(letters / _LETTERS / ratio)
        large = min(_SMALL, total // (2 * len(parts)))
        most = _channels_in(parts, total, large)
        fields: dict[Any, dict[str, Any]] = {}
        blobs.cut(before)
        layers = tqdm(seen.layers, desc="layers", disable=not progress, leave=False)
        found = [_layer(blobs, layer, seen, _Limit(most, large), fields) for layer in layers]
        if blobs.letters(before) <= letters:
            return found, any(part.kept(_Limit(most, large)) < part.channels for part in parts)
    raise OptionError(
        f"{letters / 1e6:.1f} MB cannot hold one channel of each of {len(seen.layers)} layers; give more megabytes, or "
        "fewer images."
    )


class _Limit(NamedTuple):
    """What stays of a part: all that is no larger than `small` bytes, of others so many channels."""

    channels: int
    small: int


class _Part:
    """What `_shown` gives, or filters `k c h w`: what can be cut by channels."""

    def __init__(self, values: Tensor, filters: bool = False) -> None:
        self.channels = len(values) if filters else values.shape[-1 if values.dim() == 3 else 1]
        self.bytes = values.numel() * _BYTES // self.channels  # of a channel

    def kept(self, limit: _Limit) -> int:
        """How many channels stay."""
        return self.channels if self.channels * self.bytes <= limit.small else min(self.channels, limit.channels)


def _channels_in(parts: list[_Part], total: int, small: int) -> int:
    """How many channels large parts can keep, one at least."""
    low, high = 1, max(part.channels for part in parts)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(part.kept(_Limit(middle, small)) * part.bytes for part in parts) <= total:
            low = middle
        else:
            high = middle - 1
    return low


def _shown(layer: Layer) -> Tensor | None:
    """Maps `b k h w`, tokens whose places are not known `b t k`, or a row `b k`."""
    if layer.values is None or layer.values.dim() > 4:
        return None
    return layer.maps if layer.values.dim() == 3 and layer.maps is not None else layer.values


def _layer(blobs: Blobs, layer: Layer, seen: Walk, limit: _Limit, fields: dict[Any, Any]) -> dict[str, Any]:
    values = _shown(layer)
    peaks = None if values is None else peaks_of(values)
    found: dict[str, Any] = {
        "name": layer.name or MODEL,
        "kind": "Input" if layer is seen.layers[0] else layer.kind,
        "says": "what the model is given" if layer is seen.layers[0] else _says(layer),
        "shape": None if layer.values is None else list(layer.shape[1:]),
        "parameters": layer.parameters,
        "multiply_adds": layer.multiply_adds,
        "share": None
        if layer.multiply_adds is None or not seen.multiply_adds
        else layer.multiply_adds / seen.multiply_adds,
        "dead": None,
        "field": _field(layer, fields),
        "stats": [_stats(figures) for figures in layer.figures],
        "scale": None,
        "maps": None,
        "fed_by": layer.fed_by,
        "kernels": None if layer.kernels is None else _kernels(blobs, layer, layer.kernels, peaks, limit),
        "units": None,
    }
    if values is None or peaks is None:
        axes = f"its output has {layer.values.dim() - 1} axes" if layer.values is not None else ""
        return {**found, "why_not": layer.why_not or axes}
    if values.dim() == 4 or (layer.positive and values.dim() == 2):
        found["dead"] = float((peaks <= 0).double().mean())
    maps = _maps(blobs, values, peaks, limit)
    if layer.layout is not None and values is not layer.values:
        maps["apart"] = layer.unplaced
    shown = values[:, maps["channels"]] if values.dim() == 4 else values
    return {**found, "scale": _scale(shown, layer.positive), "maps": maps}


def _stats(figures: Whole) -> dict[str, float]:
    """Figures under the names that the page knows."""
    kept = ("mean", "std", "min", "max", "nan", "inf")
    return {"zero": figures.zero_share, **{name: getattr(figures, name) for name in kept}}


def _says(layer: Layer) -> str:
    words = "a functional call" if layer.module is None else repr(layer.module)
    words = " ".join(words.split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."


def peaks_of(values: Tensor) -> Tensor:
    """Each channel's highest value in any image; for tokens `b t d` a column's."""
    channels = values if values.dim() == 2 else values.flatten(2).amax(2) if values.dim() == 4 else values.amax(1)
    return channels.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0)


def _scale(values: Tensor, positive: bool) -> dict[str, Any]:
    """One for all; that of maps by their signs, between robust ends, as `feature_maps` draws them."""
    if values.dim() == 4:
        fitted = contrast(bool(signed(values[None])), per="layer").fit(values)
    else:
        fitted = (Scale(vmin=0) if positive else Scale(symmetric=True)).fit(values)
    return {"symmetric": fitted.symmetric, "vmin": float(fitted.vmin or 0), "vmax": float(fitted.vmax or 0)}


def strongest(peaks: Tensor, count: int) -> list[int]:
    """The numbers of so many channels with the highest values, ascending."""
    return sorted(peaks.argsort(descending=True, stable=True)[: max(1, count)].tolist())


def _maps(blobs: Blobs, values: Tensor, peaks: Tensor, limit: _Limit) -> dict[str, Any]:
    of = len(peaks)
    kept = strongest(peaks, _Part(values).kept(limit))
    tokens = values.dim() == 3
    shown = values[..., kept] if tokens else values[:, kept]
    exponent = exponent_of(shown)
    found = {
        "form": {4: "maps", 3: "tokens", 2: "units"}[values.dim()],
        "channels": [0] if tokens else kept,
        "of": 1 if tokens else of,
        "height": values.shape[-2] if values.dim() == 4 else values.shape[1] if tokens else 1,
        "width": len(kept) if tokens else values.shape[-1] if values.dim() == 4 else 1,
        "exponent": exponent,
        "blobs": [blobs.numbers(each, exponent) for each in shown],
    }
    return {**found, "columns": kept, "columns_of": of} if tokens else found


def _kernels(blobs: Blobs, layer: Layer, weight: Tensor, peaks: Tensor | None, limit: _Limit) -> dict[str, Any]:
    if peaks is None or len(peaks) != len(weight):
        peaks = weight.abs().flatten(1).amax(1).nan_to_num(0)
    kept = strongest(peaks, _Part(weight, filters=True).kept(limit))
    exponent = exponent_of(weight[kept])
    reach = float(Scale(symmetric=True).fit(weight).vmax or 0)
    return {
        "shape": list(weight.shape),
        "groups": layer.groups,
        "notes": list(layer.kernel_notes),
        "filters": kept,
        "scale": {"symmetric": True, "vmin": -reach, "vmax": reach},
        "exponent": exponent,
        "blob": blobs.numbers(weight[kept], exponent),
    }


def _field(layer: Layer, known: dict[Any, Any]) -> dict[str, Any] | None:
    """What each place sees; layers that see the same share one table, which costs the time to make it once."""
    seen = layer.field
    if seen is None or len(seen.input_size) != 2:
        return None
    key = (seen.map_size, seen.size, seen.stride, seen.start, seen.kind, seen.along)
    if None in (*seen.stride, *seen.start) or key not in known:
        rows, columns = spans(seen)
        stride = None if None in seen.stride else list(seen.stride)
        told = {"kind": seen.kind, "size": list(seen.size), "stride": stride, "along": list(seen.along)}
        known[key] = {**told, "rows": rows, "columns": columns}
    found: dict[str, Any] = known[key]
    return found
