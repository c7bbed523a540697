"""A plain training loop and an honest evaluation, for any classifier and any loader of (inputs, labels)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from torch_featviz.displayed import Displayed
from torch_featviz.errors import FeatvizError, OptionError, ShapeError
from torch_featviz.model.answer import Answer, Kind, answer_of, end_of, ending, scores_of
from torch_featviz.model.inputs import Inputs, device_of
from torch_featviz.model.labels import labels_of, pair_of

from .augment import OverViews, Views

Loader = DataLoader[Any]
Augment = Callable[[Tensor], Tensor]
Around = Callable[[], AbstractContextManager[object]]

_HINT = "a row of scores for each image, 'b n', is needed"


@dataclass(frozen=True, repr=False)
class TrainingCurves(Displayed):
    """One number per epoch in each field; those of validation are empty where there was none."""

    train_loss: tuple[float, ...] = ()
    train_accuracy: tuple[float, ...] = ()
    valid_loss: tuple[float, ...] = ()
    valid_accuracy: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Displayed):
    """How a classifier does on a loader.

    `loss` is the mean cross entropy, `accuracy` is in [0, 1], `confusion` is `n n` int64 with a row per true
    class and a column per answer (2 by 2 for a single logit or probability), `logits` is `b n` in the loader's order,
    as the model returned them; of an evaluation over several views the mean probabilities.
    """

    loss: float
    accuracy: float
    confusion: Tensor
    logits: Tensor


def fit(
    model: nn.Module,
    train_loader: Loader,
    valid_loader: Loader | None = None,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    augment: Augment | None = None,
    around: Around = nullcontext,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> TrainingCurves:
    """Train in place by cross entropy; the model's train and eval flags are put back afterwards.

    Args:
        model: gives `b n` logits or probabilities, or a single one for two classes.
        train_loader: yields inputs and labels: numbers of classes, or one-hot rows.
        valid_loader: measured after every epoch, never learnt from.
        epochs: times through the loader.
        lr: highest rate of a one-cycle schedule with AdamW.
        optimizer: used instead, at its own constant rate.
        augment: applied to each batch of training inputs.
        around: what each step is done in, as `Monitor(model).step`.
        device: where it is trained: the model is moved there and stays there, and each batch follows. Default: where
            the model is. What an `optimizer` holds is not moved.
        progress: a bar on stderr with loss and accuracy as they are.
    Raises:
        OptionError: fewer than one epoch, or a rate that is not above 0.
        ShapeError: the loader is empty, or the model returns no row of scores for each image.
        DtypeError: a label is no class.
        FeatvizError: the loss is no longer finite.
    """
    if epochs < 1 or lr <= 0:
        raise OptionError(f"epochs must be at least 1 and lr above 0, got {epochs} and {lr}.")
    if not len(train_loader):
        raise ShapeError("train_loader must yield at least one batch, got none.")
    model.to(device)
    schedule = None
    if optimizer is None:
        optimizer = AdamW((p for p in model.parameters() if p.requires_grad), lr, fused=_fusible(model))
        steps = max(10, epochs * len(train_loader))  # a shorter cycle has no way up
        schedule = OneCycleLR(optimizer, lr, steps, pct_start=0.2)
    rows: list[tuple[float, ...]] = []
    bar = tqdm(total=epochs * len(train_loader), unit="batch", mininterval=0.5, disable=not progress)
    try:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
            with _flags(model, training=True):
                trained = _epoch(model, train_loader, bar, optimizer, schedule, augment=augment, around=around)
            valid = None if valid_loader is None else evaluate(model, valid_loader)
            rows.append((*trained, *((valid.loss, valid.accuracy) if valid else ()), time.perf_counter() - start))
    finally:
        bar.close()
        optimizer.zero_grad()
    names = [name for name in TrainingCurves.__dataclass_fields__ if valid_loader is not None or "valid" not in name]
    return TrainingCurves(**dict(zip(names, zip(*rows, strict=True), strict=True)))


def _epoch(
    model: nn.Module,
    loader: Loader,
    bar: tqdm[Any],
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    *,
    augment: Augment | None,
    around: Around,
) -> tuple[float, float]:
    """One pass; the mean loss and the accuracy while learning."""
    device = device_of(model)
    loss_sum, right, seen = 0.0, 0, 0
    kind: Kind | None = None  # judged by the first batch: what the scores are does not change
    for inputs, labels in _batches(loader):
        images, truth = inputs.to(device), labels.to(device)
        with around() as step:
            scores = scores_of(model(images if augment is None else augment(images)), len(truth), _HINT)
            kind = kind or answer_of(scores, len(truth), ended=partial(end_of, scores), unsure="logits").kind
            loss = _loss(Answer(scores, kind), _fitting(truth, Answer(scores, kind), seen))
            if not isfinite(value := loss.item()):
                raise FeatvizError(f"the loss became {value}; lower lr, or look for NaN in the inputs.")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (log := getattr(step, "log", None)) is not None:  # of a Monitor
                log(loss=loss)
        if schedule is not None:
            schedule.step()
        loss_sum, seen = loss_sum + value * len(truth), seen + len(truth)
        right += int((Answer(scores.detach(), kind).values.argmax(1) == truth).sum())
        bar.set_postfix(loss=f"{loss_sum / seen:.3f}", accuracy=f"{right / seen:.3f}", refresh=False)
        bar.update()
    return loss_sum / seen, right / seen


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, *, augment: Views | None = None) -> Evaluation:
    """Loss, accuracy and confusion in eval mode; the model's flags are put back afterwards.

    Args:
        model: gives `b n` logits or probabilities, or a single one for two classes; each batch is moved to its device.
        loader: yields inputs and labels below `n`: numbers of classes, or one-hot rows.
        augment: `augment("flip", "crops")`, or any function from images to a list of views: an answer is then the mean
            of the probabilities over all views of an image, and `logits` holds these means.
    Raises:
        ShapeError: the loader is empty, the model returns no row of scores for each image, or a view has fewer images.
        DtypeError: a label is no class, or a view is no tensor.
        OptionError: a label is of a class that the model does not have.
    """
    device = device_of(model)
    batches, one = [], None
    judge = lambda scores, images: answer_of(
        scores, len(images), ended=partial(ending, model, Inputs(images[:1])), unsure="logits", hint=_HINT
    )
    look = model if augment is None else OverViews(model, augment, judge)
    with _flags(model, training=False):
        for inputs, labels in _batches(loader):
            images = inputs.to(device)
            one = images[:1] if one is None else one
            batches.append((scores_of(look(images), len(labels), _HINT), labels.to(device)))
        if one is None:
            raise ShapeError("loader must yield at least one batch, got none.")
        scores, truth = (torch.cat(part) for part in zip(*batches, strict=True))
        kind = look.said if isinstance(look, OverViews) else None
        answer = answer_of(scores, len(scores), said=kind, ended=partial(ending, model, Inputs(one)), unsure="logits")
    truth, values = _fitting(truth, answer, 0), answer.values
    n, said = values.shape[1], values.argmax(1)
    confusion = torch.bincount(truth * n + said, minlength=n * n).reshape(n, n)
    accuracy = (said == truth).double().mean().item()
    return Evaluation(_loss(answer, truth).item(), accuracy, confusion, scores)


def _batches(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, and the numbers of their classes."""
    seen = 0
    for i, batch in enumerate(loader):
        inputs, labels = pair_of(batch, f"batch {i}")
        yield inputs, labels_of(labels, len(inputs), first=seen)
        seen += len(inputs)


def _fitting(truth: Tensor, answer: Answer, first: int) -> Tensor:
    """The labels, if the model has these classes."""
    n = 2 if answer.binary else answer.scores.shape[1]
    if len(beyond := ((truth < 0) | (truth >= n)).nonzero()):
        i = int(beyond[0])
        raise OptionError(
            f"labels must be from 0 to {n - 1}, as the model's classes, got {int(truth[i])} of item {first + i}."
        )
    return truth


def _loss(answer: Answer, truth: Tensor) -> Tensor:
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
