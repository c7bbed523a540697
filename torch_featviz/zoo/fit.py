"""A training loop and an evaluation for any classifier and any loader of (inputs, labels)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset

from torch_featviz.displayed import Displayed
from torch_featviz.errors import DtypeError, FeatvizError, OptionError, ShapeError
from torch_featviz.gate import check_runs, gate, gated
from torch_featviz.model.answer import Answer, Kind, answer_of, end_of, ending, scores_of
from torch_featviz.model.inputs import Inputs, device_of
from torch_featviz.model.labels import labels_of, pair_of
from torch_featviz.model.reading import read_batches, unread, warn_of

from .augment import OverViews, Views
from .loss import Criterion, loss_of, per_image
from .progress import NAMES, Log, Progress, TrainingCurves

Loader = DataLoader[Any]
Augment = Callable[[Tensor], Tensor]
Around = Callable[[], AbstractContextManager[object]]

_HINT = "a row of scores for each image, 'b n', is needed"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Displayed):
    """The result of `evaluate`.

    `loss` is the mean cross entropy (or the mean of `criterion`), `accuracy` is in [0, 1], `confusion` is `n n` int64
    with true classes as rows and predicted classes as columns (2 by 2 for a single logit or probability), `logits` is
    `b n` in the loader's order, as the model returned them. Images whose files could not be read are in none of these:
    `left_out` has their numbers in the data set, each with the reason, and `unread` tells them in words.
    """

    loss: float
    accuracy: float
    confusion: Tensor
    logits: Tensor
    left_out: Mapping[int, str] = field(default_factory=dict)
    unread: str = ""

    def __repr__(self) -> str:
        right, total = int(self.confusion.diagonal().sum()), int(self.confusion.sum())
        told = f"; {self.unread}" if self.unread else ""
        return f"Evaluation(accuracy {100 * self.accuracy:.1f} % ({right:,} of {total:,}), loss {self.loss:.4g}{told})"


@gate("log", "optimizer")
def fit(
    model: nn.Module,
    train_loader: Loader,
    valid_loader: Loader | None = None,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    criterion: Criterion | None = None,
    augment: Augment | None = None,
    around: Around = nullcontext,
    device: str | torch.device | None = None,
    progress: bool = True,
    log: Log | None = None,
    every: int | None = None,
) -> TrainingCurves:
    """Train a classifier in place, by default with cross entropy and AdamW; its train and eval flags are restored.

    Args:
        model: returns `b n` logits or probabilities, or a single one for two classes.
        train_loader: yields inputs and labels: class numbers or one-hot rows.
        valid_loader: evaluated after every epoch, never trained on.
        epochs: number of passes over the loader.
        lr: highest learning rate of a one-cycle schedule with AdamW.
        optimizer: used instead, with its own constant learning rate.
        criterion: the loss, called with the model's scores and `b` class numbers, such as
            `nn.CrossEntropyLoss(label_smoothing=0.1)` or a function; a module is moved to the model's device.
            `nn.MSELoss`, `L1Loss`, `BCEWithLogitsLoss` and similar losses get one-hot rows. Validation uses it, too. Of
            one with `reduction="sum"` the curves show the mean per image.
        augment: applied to each batch of training inputs.
        around: a context manager for each step, such as `Monitor(model).step`.
        device: the device of the training: the model is moved there and stays there, and each batch is moved. Default:
            the model's device. The state of an `optimizer` is not moved.
        progress: show a bar with loss and accuracy.
        log: called with one line per epoch, for instance `log=print`:
            `Epoch 1/10 | loss 1.528 | train 45.2 % | valid 47.1 % | 12.3 s`.
        every: also one line per this number of batches, with their loss and accuracy.
    Raises:
        OptionError: fewer than one epoch, a rate that is not above 0, no trainable parameters, `optimizer` is not an
            optimizer, a `criterion` that does not accept its arguments, `log` that is not a function, `every` below 1
            or without `log`, or `around` that returns no context manager.
        ShapeError: the loader is empty, the model returns no row of scores per image, or `criterion` not one number.
        DtypeError: a label is not a class, the model has no `forward`, or the loader is a data set or has no length.
        FeatvizError: the loss is not finite.
    Example:
        >>> data, lines = [(torch.rand(2, 4), torch.tensor([0, 1]))], []
        >>> history = fit(nn.Linear(4, 2), data, epochs=2, progress=False, log=lines.append)
        >>> [line.split(" | ")[0] for line in lines]
        ['Epoch 1/2', 'Epoch 2/2']
    """
    if epochs < 1 or lr <= 0:
        raise OptionError(f"epochs must be at least 1 and lr above 0, got {epochs} and {lr}.")
    _check(model, train_loader, optimizer)
    if not len(train_loader):
        raise ShapeError("train_loader must yield at least one batch, got none.")
    _move(model, device)
    schedule = None
    if optimizer is None:
        optimizer = AdamW((p for p in model.parameters() if p.requires_grad), lr, fused=_fusible(model))
        steps = max(10, epochs * len(train_loader))  # a shorter cycle has no way up
        schedule = OneCycleLR(optimizer, lr, steps, pct_start=0.2)
    if isinstance(criterion, nn.Module):
        criterion.to(device_of(model))
    rows: list[tuple[float, ...]] = []
    shown = Progress(epochs, len(train_loader), bar=progress, log=log, every=every)
    learn = _Learn(model, optimizer, schedule, criterion, augment, around)
    try:
        for epoch in range(1, epochs + 1):
            shown.begin(epoch)
            with _flags(model, training=True):
                learn.epoch(train_loader, shown)
            valid = None if valid_loader is None else evaluate(model, valid_loader, criterion=criterion)
            rows.append(shown.end((valid.loss, valid.accuracy) if valid else None))
    finally:
        shown.close()
        optimizer.zero_grad()
    names = [name for name in NAMES if valid_loader is not None or "valid" not in name]
    return TrainingCurves(**dict(zip(names, zip(*rows, strict=True), strict=True)))


def _move(model: nn.Module, device: str | torch.device | None) -> None:
    """Move the model to a device, if there is one of that name."""
    try:
        where = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device must be cpu, cuda, cuda:1, mps and the like, got {device!r:.80}.") from error
    model.to(where)


def _block(around: Any) -> AbstractContextManager[Any]:
    """What `around` returned, if a step can run in it."""
    if not (hasattr(around, "__enter__") and hasattr(around, "__exit__")):
        raise OptionError(f"around must return a context manager, such as monitor.step(), got {type(around).__name__}.")
    return around  # type: ignore[no-any-return]


def _check(model: nn.Module, loader: Any, optimizer: Any) -> None:
    """Raise what is wrong with these before anything is trained."""
    check_runs("model", model)
    if isinstance(loader, Dataset) or not hasattr(loader, "__len__"):
        what = type(loader).__name__
        raise DtypeError(
            f"train_loader must yield batches and have a length, got {what}; DataLoader(dataset, 64) is one."
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise OptionError(f"optimizer must be one, such as AdamW(model.parameters(), 1e-3), got {optimizer!r:.80}.")
    if not any(p.requires_grad for p in model.parameters()):
        raise OptionError("the model has no parameters that learn; set requires_grad_(True) on those that shall.")


@dataclass
class _Learn:
    """What a step of training needs."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None
    criterion: Criterion | None
    augment: Augment | None
    around: Around

    def epoch(self, loader: Loader, shown: Progress) -> None:
        """One pass."""
        device, seen = device_of(self.model), 0
        kind: Kind | None = None  # judged by the first batch: what the scores are does not change
        for inputs, labels in _batches(loader):
            images, truth = inputs.to(device), labels.to(device)
            with _block(self.around()) as step:
                images = images if self.augment is None else self.augment(images)
                scores = scores_of(self.model(images), len(truth), _HINT)
                kind = kind or answer_of(scores, len(truth), ended=partial(end_of, scores), unsure="logits").kind
                loss = loss_of(Answer(scores, kind), _fitting(truth, Answer(scores, kind), seen), self.criterion)
                if not isfinite(value := loss.item()):
                    raise FeatvizError(f"the loss became {value}; lower lr, or look for NaN in the inputs.")
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                if (log := getattr(step, "log", None)) is not None:  # of a Monitor
                    log(loss=loss)
            if self.schedule is not None:
                self.schedule.step()
            seen += len(truth)
            value = per_image(value, self.criterion, len(truth))
            shown.step(value, int((Answer(scores.detach(), kind).values.argmax(1) == truth).sum()), len(truth))


@gated
def evaluate(
    model: nn.Module, loader: Loader, *, criterion: Criterion | None = None, augment: Views | None = None
) -> Evaluation:
    """Compute loss, accuracy and confusion in evaluation mode; the model's train and eval flags are restored.

    An image of a DataLoader's data set whose file cannot be read (an OSError) is left out, with a warning.

    Args:
        model: returns `b n` logits or probabilities, or a single one for two classes; batches are moved to its device.
        loader: yields inputs and labels below `n`: class numbers or one-hot rows.
        criterion: the loss, as for `fit`. Default: cross entropy.
        augment: `augment("flip", "crops")`, or any function from images to a list of views. The answer is then the mean
            of the probabilities over all views of an image, and `logits` holds these means.
    Raises:
        ShapeError: the loader is empty, the model returns no row of scores per image, or a view has fewer images.
        DtypeError: a label is not a class, a view is not a tensor, or the model has no `forward`.
        OptionError: a label is not a class of the model.
    """
    check_runs("model", model)
    device = device_of(model)
    batches, one, left_out = [], None, dict[int, str]()
    judge = lambda scores, images: answer_of(
        scores, len(images), ended=partial(ending, model, Inputs(images[:1])), unsure="logits", hint=_HINT
    )
    look = model if augment is None else OverViews(model, augment, judge)
    with _flags(model, training=False), torch.no_grad():
        for inputs, labels in _batches(read_batches(loader, left_out)):
            images = inputs.to(device)
            one = images[:1] if one is None else one
            batches.append((scores_of(look(images), len(labels), _HINT), labels.to(device)))
        if one is None:
            told = f" ({unread(loader, left_out)})" if left_out else ""
            raise ShapeError(f"loader must yield at least one batch, got none{told}.")
        scores, truth = (torch.cat(part) for part in zip(*batches, strict=True))
        kind = look.said if isinstance(look, OverViews) else None
        answer = answer_of(scores, len(scores), said=kind, ended=partial(ending, model, Inputs(one)), unsure="logits")
    warn_of(left_out)
    truth, values = _fitting(truth, answer, 0), answer.values
    n, said = values.shape[1], values.argmax(1)
    confusion = torch.bincount(truth * n + said, minlength=n * n).reshape(n, n)
    accuracy = (said == truth).double().mean().item()
    loss = per_image(loss_of(answer, truth, criterion).item(), criterion, len(truth))
    return Evaluation(loss, accuracy, confusion, scores, dict(sorted(left_out.items())), unread(loader, left_out))


def _batches(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, and the numbers of their classes."""
    seen = 0
    for i, batch in enumerate(loader):
        inputs, labels = pair_of(batch, f"batch {i}")
        if not isinstance(inputs, Tensor) or inputs.is_nested or not inputs.dim():
            raise DtypeError(f"batch {i} must be a tensor of inputs and their labels, got {type(inputs).__name__}.")
        yield inputs, labels_of(labels, len(inputs), first=seen)
        seen += len(inputs)


def _fitting(truth: Tensor, answer: Answer, first: int) -> Tensor:
    """The labels, if the model has these classes."""
    n = 2 if answer.binary else answer.scores.shape[1]
    if len(beyond := ((truth < 0) | (truth >= n)).nonzero()):
        i = int(beyond[0])
        raise OptionError(
            f"labels must be from 0 to {n - 1}, the model's classes, got {int(truth[i])} in item {first + i}."
        )
    return truth


@contextmanager
def _flags(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


def _fusible(model: nn.Module) -> bool:
    return all(p.is_floating_point() for p in model.parameters()) and device_of(model).type in ("cpu", "cuda")
