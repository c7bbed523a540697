"""How long the gradients of single ranks are, and that of all of them: seen before and after they are averaged."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from torch_featviz.capture.reduce.reducer import wide
from torch_featviz.capture.tap import Taps, function_of, put
from torch_featviz.model.layers import names_of
from torch_featviz.model.values import tensors
from torch_featviz.torch_private import at_end_of_backward, in_backward
from torch_featviz.training.updates import norm_of

from .learnt import Learnt, Told, learning_in, total


class ByRank:
    """Contexts around the forwards and backwards of one step: squared norms of each rank's gradient and of their mean.

    A rank's own gradient is in `.grad` from when it was added there until DistributedDataParallel replaces it by the
    mean, at the end of the backward. No example needs a gradient of its own, so batch normalisation does no harm.

    Args:
        model: any module, whose gradients DistributedDataParallel averages.
        group: the ranks, whose batches are equally large.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup) -> None:
        self._group = group
        names = names_of(model)
        self._root = next(iter(names))
        self.left_out: dict[str, str] = {}
        self._learnt: dict[str, list[Learnt]] = {}
        known = set[int]()
        for module, name in names.items():
            own = [each for each in learning_in(module).values() if id(each) not in known]
            known |= {id(each) for each in own}
            if any(hasattr(each, "full_tensor") for each in own):
                self.left_out[name] = "its weight is sharded: no rank has a gradient of its own"
            elif own:
                self._learnt[name] = [Learnt(each) for each in own]
        self._open, self._queued = False, False
        self._handles: list[RemovableHandle] = []
        self._examples, self._scaled = 0, False
        self._of_all: list[Tensor] = []

    def enter(self, taps: Taps) -> None:
        """Begin to look at gradients; what was put into modules is in `taps`."""
        self._open = True
        for learnt in self._all():
            self._handles += learnt.hooks()
            hook = learnt.tensor.register_post_accumulate_grad_hook(self._added)  # type: ignore[no-untyped-call]
            self._handles.append(hook)
        around = self._around_model(function_of(self._root, "forward"))
        put(self._root, "forward", MethodType(around, self._root), taps)

    def leave(self) -> None:
        """What then comes is not seen."""
        self._open = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def end(self) -> Told | str:
        """What the step tells, or why it tells nothing. All ranks ask at once."""
        why_not = self._why_not()
        counted = [each for each in self._all() if each.norm is not None]
        device = next((each.tensor.device for each in self._all()), torch.device("cpu"))
        own = torch.full((), torch.nan, dtype=wide(device), device=device)
        if not why_not:
            own = total([each.norm.square() for each in counted if each.norm is not None])
        dist.all_reduce(own, group=self._group)  # also of a rank that knows nothing: the others wait for it
        if why_not:
            return why_not
        ranks = dist.get_world_size(self._group)
        of_all = total([norm.square() for norm in self._of_all])
        before = [each.before for each in counted if each.before is not None]
        layers = tuple(name for name, several in self._learnt.items() if any(each.count for each in several))
        return Told(
            self._examples,
            own / ranks,
            self._examples * ranks,
            of_all,
            self._scaled,
            total(before) if before else torch.zeros_like(of_all),
            layers,
            {**self.left_out, **{name: "got no gradient" for name in self._learnt if name not in layers}},
        )

    def _why_not(self) -> str:
        if not self._of_all:
            return "no backward reached its weights"
        if not self._examples:
            return "its forward was given no batch"
        if any(each.changed for each in self._all()):
            return "gradients were averaged, changed or dropped between two backwards of one step; use no_sync()"
        return ""

    def _all(self) -> Iterable[Learnt]:
        return (each for several in self._learnt.values() for each in several)

    @torch.no_grad()
    def _added(self, _parameter: Tensor) -> None:
        """The first gradient of a backward was added: look again when it has ended."""
        if not self._queued and self._open:
            self._queued = True
            at_end_of_backward(lambda: at_end_of_backward(self._ended))  # after all that others do at the end

    @torch.no_grad()
    def _ended(self) -> None:
        self._queued = False
        counted = [each for each in self._all() if each.tensor.grad is not None and each.norm is not None]
        self._of_all = [norm_of(each.tensor.grad) for each in counted if each.tensor.grad is not None]

    def _around_model(self, inner: Any) -> Any:
        def forward(self_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = inner(self_, *args, **kwargs)
            learns = self._open and torch.is_grad_enabled() and self_.training and not in_backward()
            if self_ is self._root and learns:
                batch = next((len(each) for each in tensors((args, kwargs)) if each.dim()), 0)
                self._count_when_reached(output, batch)
            return output

        return forward

    def _count_when_reached(self, output: Any, batch: int) -> None:
        """Count the examples of a forward once a backward comes to it."""
        counted = False

        def reached(grad: Tensor) -> None:
            nonlocal counted
            if not counted and self._open:
                counted = True
                self._examples += batch
                self._scaled |= grad.dtype == torch.float16

        for part in tensors(output):
            if part.requires_grad:
                part.register_hook(reached)  # type: ignore[no-untyped-call]
