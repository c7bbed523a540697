"""What layers returned, noted as each call returns: by Python's own profiling, and by nothing that capture uses.

A hook would not do: capture takes another way around a layer that has hooks, and it is the way without that is to be
witnessed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

from torch_featviz.model.layers import unwrap
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import no_modes

_CALL: CodeType = nn.Module.__call__.__code__


class Witness:
    """Notes copies of all tensors that the modules of `model` return.

    Args:
        model: as it is before anything stands in for its methods.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(unwrap(model).named_modules())
        self._names = {module: name for name, module in modules}
        forwards = (getattr(module, "forward", None) for _, module in modules)
        codes = (getattr(getattr(forward, "__func__", forward), "__code__", None) for forward in forwards)
        self._codes = {code for code in codes if code is not None and code.co_varnames} | {_CALL}
        self._under_way: list[tuple[FrameType, nn.Module]] = []
        self.calls: list[tuple[str, list[Tensor]]] = []

    def of(self, name: str) -> list[list[Tensor]]:
        """What each call of a layer returned, in order."""
        return [values for called, values in self.calls if called == name]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note all calls within, in this thread; those of earlier blocks are forgotten."""
        self.calls, self._under_way = [], []
        before = sys.getprofile()
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _see(self, frame: FrameType, event: str, returned: Any) -> None:
        if frame.f_code not in self._codes or event not in ("call", "return"):
            return
        if event == "call":
            module = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(module, nn.Module) and module in self._names:
                self._under_way.append((frame, module))
            return
        if not self._under_way or self._under_way[-1][0] is not frame:
            return
        _, module = self._under_way.pop()
        if frame.f_code is not _CALL and self._under_way and self._under_way[-1][1] is module:
            return  # a forward inside of its call, after which hooks may change what it returned
        with no_modes():
            self.calls.append((self._names[module], [tensor.detach().clone() for tensor in tensors(returned)]))
