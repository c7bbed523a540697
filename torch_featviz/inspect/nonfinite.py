"""`first_nonfinite()`: where in a forward NaN or infinity comes up first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.capture.eager import uncompiled
from torch_featviz.capture.stopping import Stopped
from torch_featviz.capture.tap import Taps, function_of, put, take_back
from torch_featviz.gate import check_runs, gated
from torch_featviz.model.layers import names_of
from torch_featviz.model.run import device_told
from torch_featviz.model.untouched import Kept
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import CALL, any_global_hook

from .finite import NonFinite, Span, finite, report, span_of


@gated
def first_nonfinite(model: nn.Module, *inputs: Any, **keywords: Any) -> NonFinite | None:
    """Run `model(*inputs, **keywords)` and return the first layer whose output contains NaN or infinity.

    The forward stops there. Layers are ordered by the end of their calls: a layer comes before the block that contains
    it, and a block is named only if the outputs of all layers in it are finite. Grad mode stays as the caller set it. A
    compiled model runs uncompiled. Buffers (running statistics of batch norm) and random states are restored.

    Returns:
        The layer with its inputs and parameters (see `NonFinite`); None if every output is finite.

    Raises:
        DtypeError: `model` is not a module, or has no `forward`.
        DeviceError: the inputs are on another device than the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> first_nonfinite(model, torch.ones(1, 2)) is None
        True
        >>> with torch.no_grad():
        ...     _ = model[0].weight.fill_(float("inf"))
        >>> found = first_nonfinite(model, torch.ones(1, 2))
        >>> print(found)
        layer '0' returned 0 NaN and 2 inf among 2 values (float32) at call 1:
          input 0: 1 2, float32, from 1 to 1, finite
          parameters NOT FINITE: weight
    """
    check_runs("model", model)
    search = _Search(model)
    given = [*tensors(inputs), *tensors(keywords)]
    with torch.no_grad():
        spans = [span_of(tensor) for tensor in given]
        spoilt = [tensor for tensor in given if not finite(tensor, but_below=True)]
        blamed = report("input", 0, spoilt, spans, ()) if spoilt else None
    taps = Taps()
    try:
        search.look_at(names_of(model), taps)
        with search.kept.restored(), uncompiled(), suppress(Stopped), device_told(model, (inputs, keywords)):
            model(*inputs, **keywords)
    finally:
        take_back(taps)
    return blamed if search.found is not None and blamed is not None else search.found


class _Search:
    """One forward: what was found in it, and the buffers as they were before."""

    def __init__(self, model: nn.Module) -> None:
        self.found: NonFinite | None = None
        self._calls: Counter[str] = Counter()
        self.kept = Kept(model)

    def look_at(self, names: dict[nn.Module, str], taps: Taps) -> None:
        """Have each output looked at; where a module has hooks, after these."""
        hooked = any_global_hook()
        for module, name in names.items():
            if not isinstance(module, torch.jit.ScriptModule):
                where = CALL if hooked or module._forward_hooks or module._backward_hooks else "forward"
                around = self._around(function_of(module, where), module, name)
                put(module, where, MethodType(around, module), taps)

    def _around(self, inner: Callable[..., Any], module: nn.Module, name: str) -> Callable[..., Any]:
        def forward(self_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self_ is not module:
                return inner(self_, *args, **kwargs)
            with torch.no_grad():  # before the call, which may overwrite what it is given
                spans = [span_of(tensor) for tensor in (*tensors(args), *tensors(kwargs))]
            output = inner(self_, *args, **kwargs)
            self._calls[name] += 1
            if self.found is None:
                with torch.no_grad():
                    self._judge(name, module, spans, list(tensors(output)))
            return output

        return forward

    def _judge(self, name: str, module: nn.Module, spans: list[Span], outputs: list[Tensor]) -> None:
        if all(map(finite, outputs)):
            return
        parameters = [key for key, tensor in module.named_parameters() if not finite(tensor)]
        for key, tensor in module.named_buffers():
            before = self.kept.before(tensor)
            if not finite(before, but_below=True):
                parameters.append(key)
        self.found = report(name, self._calls[name], outputs, spans, parameters)
        raise Stopped
