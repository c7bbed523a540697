"""The squared norm of all gradients of a step: on a GPU by one launch."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from torch_featviz.capture.reduce.tables import KINDS
from torch_featviz.launching import gpu
from torch_featviz.torch_private import norm_each

from .updates import norms_of

PART = 2**15  # values that a program adds up
_STEPS = 256  # that share memory for their sums


class Squares:
    """Sums of squares of gradients, one a step; nothing is waited for."""

    def __init__(self) -> None:
        self._programs: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}
        self._addresses: dict[tuple[torch.device, int], tuple[list[int], Tensor]] = {}
        self._sums: dict[torch.device, tuple[Tensor, int]] = {}  # and how many are used

    @torch.no_grad()
    def of(self, gradients: Sequence[Tensor]) -> list[Tensor | float]:
        """The squared norm, as parts to be added up: numbers of what is on the CPU, else 0-d float64 tensors."""
        parts, others = list[Tensor | float](), list[Tensor]()
        by_kind: dict[tuple[torch.device, int], list[Tensor]] = {}
        for each in gradients:
            if each.numel() and each.dtype in KINDS and gpu.available(each.device) and _is_dense(each):
                by_kind.setdefault((each.device, KINDS[each.dtype]), []).append(each)
            elif each.numel():
                others.append(each)
        devices = {device: self._next(device) for device, _ in by_kind}
        for (device, kind), several in by_kind.items():
            sums, at = devices[device]
            programs = self._programs_of(device, tuple(each.numel() for each in several))
            addresses = self._addresses_of(device, kind, several)
            gpu.launch("training.kernels:squares", len(programs), addresses, programs, sums, at, KIND=kind)
        parts += [sums[at] for sums, at in devices.values()]
        narrow = [each.device.type == "cpu" and each.dtype != torch.float64 for each in others]
        here = [each for each, fast in zip(others, narrow, strict=True) if fast]
        norms = norms_of([each for each, fast in zip(others, narrow, strict=True) if not fast])
        return [*parts, *_on_cpu(here), *(norm.square() for norm in norms)]

    def _next(self, device: torch.device) -> tuple[Tensor, int]:
        """Memory for the sums of steps, and a place in it that is 0."""
        sums, used = self._sums.get(device, (None, _STEPS))
        if sums is None or used == _STEPS:
            sums, used = torch.zeros(_STEPS, dtype=torch.float64, device=device), 0
        self._sums[device] = sums, used + 1
        return sums, used

    def _programs_of(self, device: torch.device, sizes: tuple[int, ...]) -> Tensor:
        if (device, sizes) not in self._programs:
            rows = [
                (i, start, min(start + PART, size)) for i, size in enumerate(sizes) for start in range(0, size, PART)
            ]
            self._programs = {(device, sizes): gpu.upload(np.array(rows, dtype=np.int64), device)} | self._programs
            while len(self._programs) > _KEPT:
                self._programs.popitem()
        return self._programs[device, sizes]

    def _addresses_of(self, device: torch.device, kind: int, gradients: list[Tensor]) -> Tensor:
        """Their table, sent anew where an optimizer's gradients are elsewhere than in the step before."""
        now = gpu.pointers(gradients)
        before, table = self._addresses.get((device, kind), ([], None))
        if table is None or before != now:
            table = gpu.upload(np.array(now, dtype=np.int64), device)
            self._addresses[device, kind] = now, table
        return table


def _on_cpu(gradients: list[Tensor]) -> list[float]:
    """In float32, which is many times faster, and if that overflows in float64."""
    if not gradients:
        return []
    total = float(torch.linalg.vector_norm(torch.stack(list(norm_each(gradients, torch.float32)))))
    if not isfinite(total):
        total = float(torch.linalg.vector_norm(torch.stack(norms_of(gradients))))
    return [total**2]


_KEPT = 16  # tables of programs


def _is_dense(gradient: Tensor) -> bool:
    """Whether its values fill one stretch of memory."""
    if gradient.is_contiguous():
        return True
    return gradient.dim() == 4 and gradient.is_contiguous(memory_format=torch.channels_last)
