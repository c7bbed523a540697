"""How often a model and its copies run, and are differentiated, within a call of which that is not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torch_featviz.model.layers import unwrap
from torch_featviz.model.values import tensors

from .subject import Subject


@contextmanager
def counted(subject: Subject) -> Iterator[None]:
    """Count within the forwards of the model and of its copies, and the backwards from what these return.

    Forwards on the meta device compute nothing, and do not count.
    """
    net = unwrap(subject.model)
    kind, parts = type(net), [name for name, _ in net.named_modules()]
    running: list[nn.Module] = []
    backwards: list[list[int]] = []  # of each forward, by the tensors that it returned

    def is_it(module: nn.Module) -> bool:
        return type(module) is kind and [name for name, _ in module.named_modules()] == parts

    def enter(module: nn.Module, _given: Any) -> None:
        if (running and module is running[0]) or (not running and is_it(module)):
            running.append(module)

    def leave(module: nn.Module, _given: Any, output: Any) -> None:
        if not running or module is not running[0]:
            return
        running.pop()
        if not running and not any(tensor.is_meta for tensor in tensors(output)):
            subject.spent(forwards=1)
            backwards.append(_followed(output))

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        subject.spent(backwards=sum(max(times, default=0) for times in backwards))


def _followed(output: Any) -> list[int]:
    """How often a gradient comes to each tensor that was returned, as that goes on."""
    roots = [tensor for tensor in tensors(output) if tensor.requires_grad]
    times = [0] * len(roots)

    def come(number: int, _gradient: Tensor) -> None:
        times[number] += 1

    for number, root in enumerate(roots):
        root.register_hook(partial(come, number))  # type: ignore[no-untyped-call]
    return times
