"""The layout of a captured output, by one more forward of a copy, on zeros of the shapes that the model was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_featviz.errors import LayerError
from torch_featviz.model.inputs import placement
from torch_featviz.model.layers import module_at, split_call
from torch_featviz.model.layout import Layout, LayoutTracer
from torch_featviz.model.run import hooked
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.model.values import map_tensors, tensors


def without_values(given: Any) -> Any:
    """Arguments with tensors that have shape and dtype alone; None where one is nested, and has no such shape."""
    if any(tensor.is_nested for tensor in tensors(given)):
        return None
    return map_tensors(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), given)


def layout_in(model: nn.Module, given: Any, key: str) -> Layout:
    """Where images, channels and places are in what one call of a layer returns.

    Args:
        model: whose forward was captured.
        given: its arguments, positional and by name.
        key: as the capture has it, `"relu#2"` for one of several calls.
    Raises:
        LayerError: it is a functional call, or does not depend on the inputs.
    """
    name, call = split_call(key)
    with isolated(), torch.no_grad():
        net = twin(model)
        device = placement(net)["device"]
        args, kwargs = map_tensors(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device), given)
        tracer, layouts = LayoutTracer(*tensors((args, kwargs))), list[Layout | None]()
        note = lambda _module, _inputs, output: layouts.append(tracer.layout(output))
        with hooked([module_at(net, name)], after=note), tracer:
            net(*args, **kwargs)
    number = (call or 1) - 1
    layout = layouts[number] if number < len(layouts) else None
    if layout is None:
        raise LayerError(
            f"the output of {key!r} does not depend on the model's inputs, so "
            f"its axes are unknown; pass layout=Layout(...)."
        )
    return layout
