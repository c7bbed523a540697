"""The loss that a classifier is trained by: cross entropy of what its scores are, or one of the caller's choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_featviz.errors import FeatvizError, OptionError, ShapeError
from torch_featviz.model.answer import Answer

Criterion = Callable[[Tensor, Tensor], Tensor]
OF_VALUES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


def loss_of(answer: Answer, truth: Tensor, criterion: Criterion | None = None) -> Tensor:
    """The mean loss of a batch.

    Args:
        answer: of the model.
        truth: `b` numbers of classes.
        criterion: called with scores and truth; those of `OF_VALUES` are given one-hot rows. Default: cross entropy.
    Raises:
        OptionError: `criterion` does not take them.
        ShapeError: it does not return one number.
    """
    if criterion is None:
        return cross_entropy(answer, truth)
    scores = answer.scores
    wanted = _rows(answer, truth) if isinstance(criterion, OF_VALUES) else truth
    try:
        loss = criterion(scores, wanted)
    except (FeatvizError, torch.cuda.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise OptionError(
            f"criterion is called with scores {tuple(scores.shape)} and class numbers ({len(truth)},), got "
            f"{type(error).__name__}: {error}".rstrip(".")
            + "."
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ShapeError(f"criterion must return one number, got {got}; take the mean over the batch.")
    return loss.reshape(())


def per_image(loss: float, criterion: Criterion | None, count: int) -> float:
    """The loss as a mean over so many images, so that batches of any size can be compared: `reduction="sum"` is not."""
    return loss / count if getattr(criterion, "reduction", None) == "sum" else loss


def cross_entropy(answer: Answer, truth: Tensor) -> Tensor:
    """Mean cross entropy; of labels, of each against all others."""
    scores = answer.scores
    if answer.kind == "logits" and not answer.binary:
        return F.cross_entropy(scores, truth)
    if answer.kind == "logits":
        return F.binary_cross_entropy_with_logits(scores[:, 0], truth.to(scores))
    if answer.kind == "probabilities":
        values = answer.values
        return F.nll_loss(values.clamp(min=torch.finfo(values.dtype).tiny).log(), truth)
    return F.binary_cross_entropy(answer.values, F.one_hot(truth, scores.shape[1]).to(answer.values))


def _rows(answer: Answer, truth: Tensor) -> Tensor:
    """What the scores should be: 1 for the true class, 0 for the others; one column for two classes."""
    rows = truth[:, None] if answer.binary else F.one_hot(truth, answer.scores.shape[1])
    return rows.to(answer.scores)
