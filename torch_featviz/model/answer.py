"""What is to be explained: one figure for each image, out of whatever the model returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torch_featviz.errors import DtypeError, OptionError, ShapeError

Target: TypeAlias = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None


def classes_of(target: Target, output: Any, n: int) -> Tensor | None:
    """The class to explain for each of `n` images; None where the output is one figure an image already.

    Args:
        target: a class, one for each image, a callable on the output, or None for the class predicted.
        output: what the model returned for these images.
        n: how many images there are.
    Returns:
        `n` int64, or None.
    Raises:
        ShapeError: the output has no classes, or there are fewer or more targets than images.
        OptionError: a class that the output does not have.
        DtypeError: `target` or the output is of a wrong type.
    """
    if callable(target):
        return None
    if not isinstance(output, Tensor):
        raise DtypeError(
            f"the model returns a {type(output).__name__}; give target= a callable that makes 'b' figures of it."
        )
    single = output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1)
    if target is None and single:
        return None
    if output.dim() != 2:
        raise ShapeError(
            f"the model returns shape {tuple(output.shape)}; give target= a callable that makes 'b' figures of it."
        )
    if target is None:
        return output.argmax(1)
    chosen = torch.as_tensor(target, device=output.device)
    if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
        raise DtypeError(f"target must be a class number, or one for each image, got {target!r}.")
    chosen = chosen.long().expand(n) if chosen.dim() == 0 else chosen.long()
    if chosen.shape != (n,):
        raise ShapeError(f"target must be one class or {n}, one for each image, got shape {tuple(chosen.shape)}.")
    if bool(((chosen < 0) | (chosen >= output.shape[1])).any()):
        raise OptionError(f"target must be from 0 to {output.shape[1] - 1}, got {chosen.tolist()}.")
    return chosen


def figures(output: Any, target: Target, classes: Tensor | None, rows: int) -> Tensor:
    """One figure for each of so many rows of the output, `b`: the class's, or what the callable makes.

    Raises:
        ShapeError: the callable returns another shape than `b`.
        DtypeError: the callable returns no tensor of floats.
    """
    if not callable(target):
        scores: Tensor = output
        return scores.reshape(-1) if classes is None else scores.gather(1, classes[:, None])[:, 0]
    made = target(output)
    if not isinstance(made, Tensor) or not made.is_floating_point():
        raise DtypeError(f"the target callable must return a tensor 'b' of floats, got {type(made).__name__}.")
    if made.dim() == 2 and made.shape[1] == 1:
        made = made[:, 0]
    if made.shape != (rows,):
        raise ShapeError(f"the target callable must return 'b' figures, one for each image, got {tuple(made.shape)}.")
    return made


def chances(output: Tensor) -> Tensor:
    """Probabilities `b k` of what a classifier returns: of logits, unless they are probabilities already."""
    scores = output.float()
    if scores.shape[1] == 1 or bool(((scores >= 0).all(1) & ((scores.sum(1) - 1).abs() < 1e-3)).all()):
        return scores
    return scores.softmax(1)
