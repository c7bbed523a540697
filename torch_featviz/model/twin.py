"""A copy of a model that shares the memory of its weights and nothing else.

Methods that explain a model put hooks into it, switch its modes and differentiate through it. They are given a twin to
do that to, so that whatever happens the model itself was never touched.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FunctionType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.errors import DtypeError, LayerError
from torch_featviz.model.layers import check_module, unwrap

_OWN = frozenset(vars(nn.Module()))  # what every module has; hooks in it are part of what the model computes


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` to work on, in evaluation mode; it costs no memory for the weights.

    Parameters are views of the model's and want no gradient; buffers are copies. Wrappers (compiled, DDP) are taken
    off, and layers that would work in place no longer do. Hooks stay: they are part of what the model computes.

    Args:
        model: any module that can be copied.
    Raises:
        DtypeError: `model` is no module, or holds something that cannot be copied: a `forward` put in its place, too,
            that remembers the model itself.
        LayerError: a lazy layer has no weights yet.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
        >>> other = twin(net)
        >>> other[0].weight.data_ptr() == net[0].weight.data_ptr(), other[1].inplace, net[1].inplace
        (True, False, True)
    """
    check_module(model)
    model = unwrap(model)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise LayerError(f"{type(model).__name__} has lazy layers that were never called; run it on an input first.")
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    for module in model.modules():
        held = (*module._buffers.values(), *vars(module).values())
        memo |= {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and id(t) not in memo}
        for name, function in vars(module).items():
            if name not in _OWN and _remembers(function, model):
                raise DtypeError(
                    f"the {name} of {type(module).__name__} is a function that holds on to the model itself "
                    "and would run that, not a copy; write it as a method of the class, or take it off first."
                )
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise DtypeError(
            f"{type(model).__name__} cannot be copied, and is not to be touched itself ({error}); give the module "
            "inside of it that computes the answer."
        ) from error
    for module in list(copied.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = unwrap(child)
        module.training = False  # and not eval(), which modules may override to change their weights
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return copied


def _remembers(forward: object, model: nn.Module) -> bool:
    """Whether a function, which a copy of the model shares, reaches a part of it without being given it."""
    if not isinstance(forward, FunctionType):
        return False
    held: list[object] = [*(forward.__defaults__ or ()), *(forward.__kwdefaults__ or {}).values()]
    for cell in forward.__closure__ or ():
        with suppress(ValueError):  # of a name that is not bound yet
            held.append(cell.cell_contents)
    parts = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    return any(id(getattr(each, "__self__", each)) in parts for each in held)


@contextmanager
def apart(seed: int = 0) -> Iterator[None]:
    """Gradients are on, and random numbers begin at `seed`; afterwards all that is as it was.

    Also inside `torch.inference_mode()`, whose tensors have to be cloned in here before they are used.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    numbers, plain = np.random.get_state(), random.getstate()  # captum draws from numpy too
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            begin_at(seed)
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(plain)


def begin_at(seed: int) -> None:
    """All random numbers begin at `seed`; CUDA's only where it is in use, lest its own first seed be replaced."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
