"""What `first_nonfinite()` says: an output that is not finite, and what its layer had to make it of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from torch_featviz.displayed import Displayed
from torch_featviz.printable import printable


@dataclass(frozen=True)
class Given:
    """One input tensor of a layer: shape, dtype, and its minimum and maximum.

    A side of a nested tensor's shape is -1 where its parts differ. The minimum and maximum are NaN if the tensor
    contains NaN, and None if it is empty or complex.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    min: float | None
    max: float | None
    finite: bool

    def __str__(self) -> str:
        size = f"{' '.join(map(str, self.shape)) or 'scalar'}, {_name(self.dtype)}"
        span = "" if self.min is None else f", from {self.min:.4g} to {self.max:.4g}"
        return f"{size}{span}, {'finite' if self.finite else 'NOT FINITE'}"


@dataclass(frozen=True, repr=False)
class NonFinite(Displayed):
    """The first layer output that contains NaN or infinity, with the layer's inputs and parameters.

    Attributes:
        layer: name of the layer; `""` is the model itself, in code between its layers. `"input"` with `call` 0: the
            model's own input contains NaN or +inf.
        call: number of the call of that layer in this forward, from 1.
        nan, inf, numel: number of NaN values, of +inf and -inf values, and of all values.
        dtype: dtype of the output.
        inputs: the layer's input tensors, as they were before the call.
        parameters: names of the layer's own parameters and buffers that contain NaN or infinity. A buffer whose only
            non-finite values are -inf counts as an attention mask and is left out.
    """

    layer: str
    call: int
    nan: int
    inf: int
    numel: int
    dtype: torch.dtype
    inputs: tuple[Given, ...]
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.nan} NaN and {self.inf} inf among {self.numel} values ({_name(self.dtype)})"
        if not self.call:
            return "\n".join([f"the model's input holds {counts}:", *self._given()])
        where = f"layer {self.layer!r}" if self.layer else "the model's own code, after its last layer,"
        lines = [f"{where} returned {counts} at call {self.call}:", *self._given()]
        if self.parameters:
            lines.append(f"  parameters NOT FINITE: {', '.join(self.parameters)}")
        elif all(given.finite for given in self.inputs):
            lines.append("  inputs and parameters are finite: it arises in this layer (overflow, x / 0, log(0), ...)")
        else:
            lines.append(
                "  no layer returned such an input: look at the code before this call (-inf in a mask is no fault)"
            )
        return "\n".join(map(printable, lines))

    def _given(self) -> Iterator[str]:
        return (f"  input {position}: {given}" for position, given in enumerate(self.inputs))


_UNCOMPARED = (torch.uint16, torch.uint32, torch.uint64)  # torch has no minimum of them


class Span(NamedTuple):
    """What becomes a `Given`, without waiting for the device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    extremes: tuple[Tensor, Tensor] | None


def span_of(tensor: Tensor) -> Span:
    values = _values(tensor)
    known = not (values.is_meta or values.is_complex()) and values.numel() > 0
    extremes = torch.aminmax(values) if known else None
    return Span(_shape(tensor), tensor.dtype, extremes)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Its sides; -1 where those of the parts of a nested tensor differ."""
    if not tensor.is_nested:
        return tuple(tensor.shape)
    sides = zip(*(part.shape for part in tensor.unbind()), strict=True)
    return tensor.size(0), *(each[0] if len(set(each)) == 1 else -1 for each in sides)


def _given(span: Span) -> Given:
    if span.extremes is None:
        return Given(span.shape, span.dtype, None, None, True)
    low, high = (float(extreme) for extreme in span.extremes)
    return Given(span.shape, span.dtype, low, high, isfinite(low) and isfinite(high))


def report(
    layer: str, call: int, outputs: Iterable[Tensor], spans: Iterable[Span], parameters: Iterable[str]
) -> NonFinite:
    held = [tensor for tensor in outputs if tensor.is_floating_point() or tensor.is_complex()]
    nan = sum(int(_values(tensor).isnan().sum()) for tensor in held)
    inf = sum(int(_values(tensor).isinf().sum()) for tensor in held)
    numel = sum(_values(tensor).numel() for tensor in held)
    dtype = next(tensor.dtype for tensor in held if not finite(tensor))
    return NonFinite(layer, call, nan, inf, numel, dtype, tuple(map(_given, spans)), tuple(parameters))


def finite(tensor: Tensor, *, but_below: bool = False) -> bool:
    """Whether no value is NaN or infinite; `but_below` lets -inf pass, which masks hold by design."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    values = _values(tensor)
    fine = values.isfinite()
    if but_below and not values.is_complex():
        fine |= values.isneginf()
    return bool(fine.all())


def _values(tensor: Tensor) -> Tensor:
    """The values that are stored, in a dtype that can be compared."""
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.is_nested:
        parts = [part.flatten() for part in tensor.unbind()]
        tensor = torch.cat([torch.empty(0, dtype=tensor.dtype, device=tensor.device), *parts])
    if tensor.dtype in _UNCOMPARED:
        return tensor.double()
    if tensor.layout is not torch.strided:
        tensor = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
