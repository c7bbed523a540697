"""The optimizers of a model, seen as they step, and the parameters that each of them holds."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torch_featviz.errors import OptionError


class Listener(Protocol):
    """What looks at gradients and at what a step does."""

    def measure(self, optimizer: Optimizer) -> None:
        """Gradients are there, and nothing has moved."""

    def stepped(self, optimizer: Optimizer) -> None:
        """Parameters have moved."""


class Group(NamedTuple):
    """A group of an optimizer that has stepped, as in its last step."""

    optimizer: int  # its id
    rate: Tensor | float | None
    parameters: tuple[int, ...]  # ids of the model's
    reached: frozenset[int]  # of these, those with a gradient in any step


class Optimizers:
    """Tells a listener of each step of an optimizer that holds parameters of one model.

    PyTorch's hooks for all optimizers are used, so that one made later, behind a GradScaler or with a scheduler around
    it, is seen as well. They are there from `listen` to `stop`.

    Args:
        given: the model's optimizers, where they are known.
    Raises:
        OptionError: one is no optimizer of torch.
    """

    def __init__(self, given: Optimizer | Sequence[Optimizer] | None = None) -> None:
        several: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given] if given is not None else []
        for each in several:
            if not isinstance(each, Optimizer):
                raise OptionError(f"optimizer must be a torch.optim.Optimizer, or several, got {each!r:.80}.")
        self.given = bool(several)
        self.known: WeakSet[Optimizer] = WeakSet(several)
        self.groups: list[Group] = []  # that have stepped since `begin`
        self.others: list[Optimizer] = []  # that hold nothing of the model
        self.ever = False  # whether one of the model's has stepped
        self.stepped = False  # whether an optimizer of the model has stepped since `begin`
        self._ids: frozenset[int] = frozenset()
        self._listeners: Sequence[Listener] = ()
        self._fully = False
        self._hooks: list[Any] = []
        self._measured: set[int] = set()  # optimizers whose closure was called in this step

    def of(self, parameters: Collection[Tensor]) -> None:
        """The model's parameters, as they are now."""
        self._ids = frozenset(map(id, parameters))

    def begin(self) -> None:
        """What is seen from here on is of the next step."""
        self.groups, self.others, self.stepped = [], [], False

    def listen(self, listeners: Sequence[Listener], *, fully: bool) -> None:
        """Begin to listen, if not yet; `fully` also to what a step leaves, and to which parameters it was given."""
        self._listeners, self._fully = listeners, fully
        if not self._hooks:
            self._hooks = [register_optimizer_step_pre_hook(self._about_to_step)]
            if fully:
                self._hooks.append(register_optimizer_step_post_hook(self._stepped))

    def stop(self) -> None:
        """Listen no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._listeners = [], ()
        self._measured.clear()

    def holders(self, of: Iterable[Tensor] | None = None) -> dict[int, str]:
        """The class of the optimizer that holds each parameter: one that was given, has stepped, or is alive at all.

        Args:
            of: tensors that are asked about, which an optimizer that was not given may hold; default: the model's
                parameters.
        """
        ids = self._ids if of is None else set(map(id, of))
        alive = list(self.known)
        if not self.given or of is not None:  # rarely asked, as each object is looked at
            alive += [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
        return {
            id(parameter): type(each).__name__
            for each in alive
            for group in each.param_groups
            for parameter in group["params"]
            if id(parameter) in ids
        }

    def _about_to_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if not self._is_ours(optimizer):
            self.others.append(optimizer)
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._measure(optimizer)
            return None

        def measured() -> Any:
            loss = closure()  # only now are there gradients
            if id(optimizer) not in self._measured:  # LBFGS calls it again when parameters have moved
                self._measured.add(id(optimizer))
                self._measure(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, {**kwargs, "closure": measured}

    def _measure(self, optimizer: Optimizer) -> None:
        self.ever = self.stepped = True
        before = [group for group in self.groups if group.optimizer == id(optimizer)]
        self.groups = [group for group in self.groups if group.optimizer != id(optimizer)]
        once = frozenset[int]().union(*(group.reached for group in before))
        for group in optimizer.param_groups if self._fully else ():
            ours = [each for each in group["params"] if id(each) in self._ids]
            reached = frozenset(id(each) for each in ours if each.grad is not None or id(each) in once)
            rate = group.get("lr")
            self.groups.append(Group(id(optimizer), rate, tuple(map(id, ours)), reached))
        if self._fully:
            self.known.add(optimizer)
        for each in self._listeners:
            each.measure(optimizer)

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        self._measured.discard(id(optimizer))
        if self._is_ours(optimizer):
            for each in self._listeners:
                each.stepped(optimizer)

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(id(each) in self._ids for group in optimizer.param_groups for each in group["params"])
