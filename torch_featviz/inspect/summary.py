"""`summary()`: the layers of a model as a table: what they are, what they return, what they hold and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError
from torch_featviz.gate import check_tensor, gate
from torch_featviz.model.inputs import Inputs, check_numel, placement
from torch_featviz.model.layers import names_of, unwrap
from torch_featviz.printable import escaped
from torch_featviz.table import html_table, text_table

from .layer import Layer
from .walk import walk

_MB = 2**20
_HEADINGS = ("layer", "kind", "output", "parameters", "MB", "multiply-adds", "sees", "calls")
_NUMBERS = frozenset((3, 4, 5, 7))  # columns set flush right


@dataclass(frozen=True)
class LayerSummary:
    """One row of a `Summary`: one layer.

    Args:
        name: the name as `capture` takes it; empty for the model itself.
        kind: class name.
        shape: shape of the first output tensor at the first call, batch axis first; empty if there is none.
        parameters: number of trainable values; a parameter shared by several layers counts where it comes first.
        megabytes: size of parameters and buffers, in 2^20 bytes.
        multiply_adds: of all calls, for one image; None if an operator has no formula.
        receptive_field: size in pixels; None if a place sees the whole input, or it is unknown.
        calls: number of calls in one forward.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    megabytes: float
    multiply_adds: int | None
    receptive_field: tuple[int, ...] | None
    calls: int


@dataclass(frozen=True, repr=False)
class Summary(Displayed):
    """The layers of a model in order of execution. `print` shows a table; so does a notebook.

    Args:
        model: class name of the model.
        input_shape: shape of the input, batch axis first.
        layers: the layers that ran and that compute or hold something.
        not_run: names of layers that the forward never called.
        parameters: number of parameters of the whole model.
        trainable: number of those that require a gradient.
        megabytes: size of all parameters and buffers, in 2^20 bytes.
        multiply_adds: of one forward of one image.
    """

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerSummary, ...]
    not_run: tuple[str, ...]
    parameters: int
    trainable: int
    megabytes: float
    multiply_adds: int

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, strings and lists, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        table = text_table(_HEADINGS, [*map(_cells, self.layers)], right=_NUMBERS)
        return "\n".join([table, "", *self._totals()])

    def _repr_html_(self) -> str:
        table = html_table(_HEADINGS, [*map(_cells, self.layers)], right=_NUMBERS)
        return f"{table}<p>{'<br>'.join(map(escaped, self._totals()))}</p>"

    def _totals(self) -> list[str]:
        size = "×".join(map(str, self.input_shape))
        frozen = "" if self.trainable == self.parameters else f" ({self.trainable:,} trainable)"
        lines = [
            f"{self.model}: {self.parameters:,} parameters{frozen}, {self.megabytes:.2f} MB with its buffers",
            f"{self.multiply_adds:,} multiply-adds for an input of {size}; 1 MB is 2^20 bytes",
        ]
        if self.not_run:
            lines.append(f"did not run: {', '.join(self.not_run)}")
        return lines


@gate("size")
def summary(
    model: nn.Module,
    size: Sequence[int] | Tensor,
    *,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Summary:
    """Summarise a model as a table: layers in order of execution, output shapes, parameters, compute, receptive fields,
    calls.

    A copy of the model runs once on one input of random noise, in evaluation mode; the model is unchanged.

    Args:
        model: any module.
        size: size of one input without the batch axis, such as `(3, 224, 224)`; or an input tensor with a batch axis,
            if its values matter (token ids, for instance).
        additional_forward_args: further positional arguments of `forward`, one value or a tuple.
        keywords: keyword arguments of `forward`.
    Raises:
        OptionError: `size` is neither, or far too large, or `forward` takes other arguments.
        ShapeError: the model does not accept an input of that size.
        LayerError: no layer of the model runs, or it is TorchScript.
        DtypeError: the model cannot be copied.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 10))
        >>> print(summary(net, (3, 32, 32)))
        layer  kind     output     parameters    MB  multiply-adds  sees  calls
        -----------------------------------------------------------------------
        0      Conv2d   1×8×30×30         224  0.00        194,400  3×3       1
        1      ReLU     1×8×30×30                                   3×3       1
        2      Flatten  1×7200                                                1
        3      Linear   1×10           72,010  0.27         72,000            1
        <BLANKLINE>
        Sequential: 72,234 parameters, 0.28 MB with its buffers
        266,400 multiply-adds for an input of 1×3×32×32; 1 MB is 2^20 bytes
    """
    inputs = Inputs.of(_input(model, size), additional_forward_args, keywords)
    seen = walk(model, inputs, values=False)
    inner = unwrap(model)
    calls: dict[str, list[Layer]] = {}
    for call in sorted([*seen.layers[1:], *seen.idle], key=lambda call: call.order):
        if call.module is not None:
            calls.setdefault(call.layer, []).append(call)
    held = _held_by(inner, calls)
    layers = tuple(_summarised(name, calls[name], held[name]) for name in calls)
    tensors = {id(tensor): tensor for tensor in (*inner.parameters(), *inner.buffers())}
    return Summary(
        model=type(inner).__name__,
        input_shape=tuple(inputs.images.shape),
        layers=layers,
        not_run=tuple(seen.not_run),
        parameters=sum(_numel(parameter) for parameter in inner.parameters()),
        trainable=sum(_numel(parameter) for parameter in inner.parameters() if parameter.requires_grad),
        megabytes=_megabytes(tensors.values()),
        multiply_adds=seen.multiply_adds,
    )


def _input(model: nn.Module, size: Sequence[int] | Tensor) -> Tensor:
    if isinstance(size, Tensor):
        check_tensor("size", size)
        return size
    if not isinstance(size, Sequence) or not size or not all(isinstance(n, int) and n > 0 for n in size):
        raise OptionError(f"size must be the size of one input, such as (3, 224, 224), or a tensor; got {size!r:.80}.")
    check_numel(size)
    noise = torch.rand((1, *size), generator=torch.Generator().manual_seed(0), device="cpu")
    return noise.to(**placement(model))


def _held_by(model: nn.Module, names: Mapping[str, object]) -> dict[str, list[Tensor]]:
    """The parameters and buffers of each layer listed: its own, and those of parts of it that are not listed."""
    held: dict[str, list[Tensor]] = {name: [] for name in names}
    seen: set[int] = set()
    for module, name in names_of(model).items():
        owner = name
        while owner not in held and owner:
            owner = owner.rpartition(".")[0]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen and owner in held:
                seen.add(id(tensor))
                held[owner].append(tensor)
    return held


def _summarised(name: str, calls: list[Layer], held: list[Tensor]) -> LayerSummary:
    first = calls[0]
    costs = [call.multiply_adds for call in calls]
    field = first.field
    return LayerSummary(
        name=name,
        kind=first.kind,
        shape=first.shape,
        parameters=sum(_numel(tensor) for tensor in held if isinstance(tensor, nn.Parameter)),
        megabytes=_megabytes(held),
        multiply_adds=None if None in costs else sum(cost for cost in costs if cost is not None),
        receptive_field=field.size if field is not None and field.map_size and field.kind != "whole" else None,
        calls=len(calls),
    )


def _numel(tensor: Tensor) -> int:
    return 0 if is_lazy(tensor) else tensor.numel()


def _megabytes(tensors: Iterable[Tensor]) -> float:
    return float(sum(_numel(tensor) * tensor.element_size() for tensor in tensors)) / _MB


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    return (
        layer.name or "(model)",
        layer.kind,
        "×".join(map(str, layer.shape)),
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.megabytes:.2f}" if layer.megabytes else "",
        "?" if layer.multiply_adds is None else f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        "" if layer.receptive_field is None else "×".join(map(str, layer.receptive_field)),
        str(layer.calls),
    )
