"""An account of every parameter: who trains it, and if nobody does, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.model.layers import names_of, unwrap
from torch_featviz.torch_private import DROPOUTS, NORMS

from .accumulation import Accumulation
from .criterion import Criterion
from .hidden import hidden
from .initial import ENOUGH, alike, drawn, twins
from .optimizers import Optimizers
from .records import StepRecord
from .updates import norms_now
from .watched import About, Watched


@dataclass(frozen=True)
class Account:
    """What is known of a step beside its figures, in plain words and numbers.

    Parameters are named as in the model. What needs a longer look is there at the first step only.
    """

    about: Mapping[str, About] = field(default_factory=dict)  # of every parameter
    stepped: bool = True  # whether an optimizer of the model did
    thrown_away: bool = False  # whether gradients came and went without an optimizer's step
    unheld: tuple[str, ...] = ()  # trainable, and in no optimizer
    hidden: tuple[str, ...] = ()  # with a gradient, in a list or a dictionary of Python, and in no optimizer
    optimizers: int = 1  # of the model, that stepped
    skipped: int = 0  # blocks whose gradients were not finite, where no optimizer has ever stepped
    switched: tuple[str, ...] = ()  # norms and dropouts of parts in evaluation that were in training mode at first
    uncleared: bool = False  # whether a gradient was added to the one that an earlier step had used
    others: tuple[str, ...] = ()  # classes of optimizers that stepped and hold nothing of the model
    copies: bool = False  # whether these hold tensors of the same shapes
    unreached: tuple[str, ...] = ()  # without any gradient when their optimizer stepped
    rates: Mapping[str, float] = field(default_factory=dict)  # learning rates of those whose optimizer stepped
    groups: tuple[float, ...] = ()  # learning rates, of each group that stepped
    before: Mapping[str, float] = field(default_factory=dict)  # norms before the first step
    drawn: tuple[str, ...] = ()  # frozen, and as they were drawn at random
    alike: tuple[str, ...] = ()  # of which all rows are equal
    idle_norms: tuple[str, ...] = ()  # layers that normalise by statistics which were never gathered
    leaves: tuple[str, ...] = ()  # layers without layers in them, in the model's order
    criterion: Criterion | None = None  # a mistake in how the loss is put together
    records: tuple[StepRecord, ...] = ()  # of each step since the last look, this one included


_DRAWN = 0.75  # ours: of the frozen weights; a few look so in a network that was trained shortly
_MODAL = (*NORMS, *DROPOUTS)


class Accounts:
    """Makes the account of one look after the other.

    Args:
        model: whose parameters these are.
        watched: its layers and parameters.
        optimizers: that step.
    """

    def __init__(self, model: nn.Module, watched: Watched, optimizers: Optimizers) -> None:
        self._model, self._watched, self._optimizers = model, watched, optimizers
        self._before: dict[str, Tensor] | None = None  # norms, until an optimizer is seen
        self._looked = False
        self._trained = False  # whether norms had gathered statistics before the first look: the model is no new one
        self._in_training: dict[nn.Module, str] = {}  # at the first look, those to which it matters,
        self._parts: list[nn.Module] = []  # and those that hold them
        self._missed = set[str]()  # parameters that no optimizer that stepped held,
        self._without = set[str]()  # and those of them that none holds

    @torch.no_grad()
    def begin(self) -> None:
        """A step begins that is looked at."""
        self._before = None if self._optimizers.ever else norms_now(self._watched.parameters)
        if not self._looked:
            norms = [each for each in self._model.modules() if isinstance(each, NORMS)]
            self._trained = any(isinstance(each.running_mean, Tensor) and each.running_mean.any() for each in norms)

    @torch.no_grad()
    def end(self, gradients: Accumulation, criterion: Criterion | None) -> Pending:
        """The step is over: what is known of it, but for the numbers that are still on the device."""
        watched, optimizers = self._watched, self._optimizers
        everything = {name: each for name, each in watched.everything.items() if each.requires_grad}
        names = {id(each): name for name, each in everything.items()}
        held = {name for group in optimizers.groups for each in group.parameters if (name := names.get(each))}
        unheld = self._unheld(everything, held)
        groups = [
            (group.rate, [names[each] for each in group.parameters if each in names]) for group in optimizers.groups
        ]
        facts: dict[str, Any] = {
            "about": watched.about,
            "stepped": optimizers.stepped,
            "optimizers": len({group.optimizer for group in optimizers.groups}),
            "uncleared": gradients.uncleared,
            "thrown_away": gradients.thrown_away,
            "skipped": gradients.skipped,
            "switched": self._switched(),
            "unheld": unheld,
            "others": tuple(dict.fromkeys(type(each).__name__ for each in optimizers.others)),
            "copies": bool(unheld) and self._copied(everything),
            "unreached": tuple(
                names[each]
                for group in optimizers.groups
                for each in group.parameters
                if each not in group.reached and each in names
            ),
            "leaves": watched.leaves,
            "criterion": criterion,
        }
        if not self._looked:
            facts |= self._first_look(everything)
            self._looked = optimizers.stepped or gradients.thrown_away
        return Pending(facts, groups, self._before or {})

    def _unheld(self, everything: Mapping[str, Tensor], held: set[str]) -> tuple[str, ...]:
        """Those that no optimizer holds, searched for when one is missing for the first time.

        A teacher that follows its pupil is moved by hand.
        """
        missing = [name for name in everything if name not in held]
        came = any(each.grad is not None for each in everything.values())
        asked = self._optimizers.ever or self._optimizers.given or (self._optimizers.others and came)
        if asked and not self._missed.issuperset(missing):
            self._missed.update(missing)
            holders = self._optimizers.holders()
            found = {name: everything[name] for name in missing if id(everything[name]) not in holders}
            by_hand = {name: each for name, each in found.items() if each.grad is None}
            of_a_twin = twins(by_hand, [each for name, each in everything.items() if name not in found])
            self._without = found.keys() - of_a_twin
        return tuple(name for name in missing if name in self._without)

    def _hidden(self) -> tuple[str, ...]:
        with_gradient = {name: each for name, each in hidden(self._model).items() if each.grad is not None}
        holders = self._optimizers.holders(with_gradient.values()) if with_gradient else {}
        return tuple(name for name, each in with_gradient.items() if id(each) not in holders)

    def _switched(self) -> tuple[str, ...]:
        """What was in training mode at the first look, of parts that an optimizer moves and that are not any more.

        Norms alone may be put into evaluation mode on purpose, and a part that learns no more.
        """
        moved = {each for group in self._optimizers.groups for each in group.reached}
        parts = [each for each in self._parts if _is_evaluated(each) and any(id(p) in moved for p in each.parameters())]
        within = {each for part in parts for each in part.modules()}
        return tuple(name for each, name in self._in_training.items() if each in within)

    def _copied(self, everything: Mapping[str, Tensor]) -> bool:
        """Whether the other optimizers hold as many tensors of each shape as the model has."""
        theirs = Counter(
            each.shape for other in self._optimizers.others for group in other.param_groups for each in group["params"]
        )
        ours = Counter(each.shape for each in everything.values())
        return bool(ours) and all(theirs[shape] >= count for shape, count in ours.items())

    def _first_look(self, everything: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
        watched = self._watched
        names = names_of(self._model)
        self._in_training = {each: name for each, name in names.items() if isinstance(each, _MODAL) and each.training}
        self._parts = [
            each
            for each in names
            if each.training
            and each not in self._in_training
            and not self._in_training.keys().isdisjoint(each.modules())
        ]
        frozen = {
            name: each
            for name, each in watched.everything.items()
            if not each.requires_grad and each.dim() > 1 and each.numel() >= ENOUGH
        }
        if self._trained:
            frozen = {}
        random = drawn(frozen)
        of_a_twin = twins({name: frozen[name] for name in random}, everything.values()) if random else set()
        rows = {
            name: everything[name] for name, about in watched.about.items() if about.rows > 1 and name in everything
        }
        norms = names_of(unwrap(self._model)).items()
        return {
            "drawn": tuple(name for name in random if name not in of_a_twin)
            if len(random) > _DRAWN * len(frozen)
            else (),
            "hidden": self._hidden(),
            "alike": tuple(alike(rows, {name: watched.about[name].rows for name in rows})),
            "idle_norms": tuple(
                name for module, name in norms if isinstance(module, NORMS) and _never_gathered(module)
            ),
        }


class Pending:
    """An account whose numbers are to be fetched: `tensors` go to the CPU, `read` is given what became of them."""

    def __init__(
        self, facts: dict[str, Any], groups: list[tuple[Tensor | float | None, list[str]]], before: Mapping[str, Tensor]
    ) -> None:
        self._facts, self._before = facts, list(before)
        rates = [rate.detach().reshape(()) for rate, _ in groups if isinstance(rate, Tensor)]
        self.tensors = [*before.values(), *rates]
        known = [(rate, names) for rate, names in groups if rate is not None]
        self._groups = [(None if isinstance(rate, Tensor) else float(rate), names) for rate, names in known]

    def read(self, numbers: Iterator[Any], records: list[StepRecord]) -> Account:
        """The account, from the numbers of the tensors in their order."""
        before = {name: float(next(numbers)) for name in self._before}
        groups = [(float(next(numbers)) if rate is None else float(rate), names) for rate, names in self._groups]
        rates = {name: rate for rate, names in groups for name in names}
        return Account(
            **self._facts, before=before, rates=rates, groups=tuple(rate for rate, _ in groups), records=tuple(records)
        )


def _is_evaluated(part: nn.Module) -> bool:
    return not any(each.training for each in part.modules())


def _never_gathered(norm: nn.Module) -> bool:
    """Whether it normalises by running statistics that are as they begin: it divides by 1, as if it were not there."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return False
    return not mean.any() and bool((var == 1).all())
