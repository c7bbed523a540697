"""What is proven something of: a model, what its forward is called with, and what all checks have cost so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from torch_featviz.model.inputs import Inputs
from torch_featviz.model.run import run

from .claims import Claim


@dataclass(eq=False)
class Subject:
    """A model and the arguments of its forward.

    Args:
        model: the user's own; whoever runs it puts back what that changes.
        images: `b c h w`, or whatever comes first in its forward.
        additional_forward_args: further positional arguments, one value or a tuple.
        keywords: arguments by name.
        forwards: how many have been run; `backwards` as well.
    """

    model: nn.Module
    images: Tensor
    additional_forward_args: Any = None
    keywords: Mapping[str, Any] | None = None
    forwards: int = 0
    backwards: int = 0

    @cached_property
    def inputs(self) -> Inputs:
        """The arguments as the library hands them on."""
        return Inputs.of(self.images, self.additional_forward_args, self.keywords)

    def forward(self, net: nn.Module | None = None, inputs: Inputs | None = None) -> Any:
        """What the model, or `net`, returns for copies of the arguments, or for `inputs` as they are; counted."""
        self.forwards += 1
        return run(self.model if net is None else net, self.inputs.copied() if inputs is None else inputs)

    def spent(self, forwards: int = 0, backwards: int = 0) -> None:
        """Count what a public call ran by itself."""
        self.forwards += forwards
        self.backwards += backwards


def checked(subject: Subject, check: Callable[[Subject], Claim | Iterable[Claim]]) -> list[Claim]:
    """The claims that `check(subject)` answers; the first of them bears what the check cost."""
    forwards, backwards, began = subject.forwards, subject.backwards, perf_counter()
    answer = check(subject)
    first, *others = [answer] if isinstance(answer, Claim) else answer
    first = replace(
        first,
        forwards=subject.forwards - forwards,
        backwards=subject.backwards - backwards,
        seconds=perf_counter() - began,
    )
    return [first, *others]
