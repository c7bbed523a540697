"""How a check becomes a claim: what it finds wrong fails it, and what it cannot know leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from torch_featviz.errors import FeatvizError
from torch_featviz.model.untouched import Kept, evaluating, isolated

from .claims import Claim


class Wrong(Exception):
    """What the library answered is not so."""


class Unknown(Exception):
    """The check cannot be made, for this reason."""


def judged(name: str, words: str, check: Callable[[], str]) -> Claim:
    """The claim of this name, which holds where `check()` returns what it found.

    `Wrong` fails it, and so does an error that is not this library's own. `Unknown`, an error of this library, which
    says why it refuses, and too little memory leave it open.
    """
    try:
        holds, found = True, check()
    except Wrong as error:
        holds, found = False, str(error)
    except (Unknown, FeatvizError, torch.OutOfMemoryError, MemoryError) as error:
        return Claim(name, words, None, _line(error))
    except Exception as error:  # of whatever class a fault of the library has
        holds, found = False, f"{type(error).__name__}: {_line(error)}"
    return Claim(name, words, holds, found)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def by_other_means() -> Iterator[None]:
    """What fails within is the check, and not what it checks."""
    try:
        yield
    except (Wrong, Unknown):
        raise
    except Exception as error:
        raise Unknown(f"the check itself failed: {type(error).__name__}: {_line(error)}") from error


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Run the model itself within, in evaluation mode; modes, buffers and generators are restored on exit."""
    with isolated(), evaluating(model), Kept(model).restored():
        yield


def many(count: int, word: str) -> str:
    """A number of things.

    Example:
        >>> many(1, "layer"), many(2, "layer")
        ('1 layer', '2 layers')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first three.

    Example:
        >>> listed(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
