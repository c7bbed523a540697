"""A plain training loop and an honest evaluation, for any classifier and any loader of (inputs, labels)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from torch_featviz.errors import FeatvizError, OptionError, ShapeError

Loader = DataLoader[Any]
Augment = Callable[[Tensor], Tensor]
Around = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class TrainingCurves:
    """One number per epoch in each field; validation is NaN where there was none."""

    train_loss: tuple[float, ...] = ()
    train_accuracy: tuple[float, ...] = ()
    valid_loss: tuple[float, ...] = ()
    valid_accuracy: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a classifier does on a loader.

    `loss` is the mean cross entropy, `accuracy` is in [0, 1], `confusion` is `n n` int64 with a row per true
    class and a column per answer, `logits` is `b n` in the loader's order.
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
    progress: bool = True,
) -> TrainingCurves:
    """Train in place by cross entropy; the model's train and eval flags are put back afterwards.

    Args:
        model: gives `b n` logits, trained on the device where its first parameter is.
        train_loader: yields inputs and int64 labels.
        valid_loader: measured after every epoch, never learnt from.
        epochs: times through the loader.
        lr: highest rate of a one-cycle schedule with AdamW.
        optimizer: used instead, at its own constant rate.
        augment: applied to each batch of training inputs.
        around: what each step is done in, as `Monitor(model).step`.
        progress: a bar on stderr with loss and accuracy as they are.
    Raises:
        OptionError: fewer than one epoch, or a rate that is not above 0.
        ShapeError: the loader is empty.
        FeatvizError: the loss is no longer finite.
    """
    if epochs < 1 or lr <= 0:
        raise OptionError(f"epochs must be at least 1 and lr above 0, got {epochs} and {lr}.")
    if not len(train_loader):
        raise ShapeError("train_loader must yield at least one batch, got none.")
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
            tested = evaluate(model, valid_loader) if valid_loader is not None else None
            valid = (tested.loss, tested.accuracy) if tested else (nan, nan)
            rows.append((*trained, *valid, time.perf_counter() - start))
    finally:
        bar.close()
        optimizer.zero_grad()
    return TrainingCurves(*zip(*rows, strict=True))


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
    device = _device(model)
    loss_sum, right, seen = 0.0, 0, 0
    for inputs, labels in loader:
        images, truth = inputs.to(device), labels.to(device)
        with around():
            logits = model(images if augment is None else augment(images))
            loss = F.cross_entropy(logits, truth)
            if not isfinite(value := loss.item()):
                raise FeatvizError(f"the loss became {value}; lower lr, or look for NaN in the inputs.")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if schedule is not None:
            schedule.step()
        loss_sum, seen = loss_sum + value * len(truth), seen + len(truth)
        right += int((logits.argmax(1) == truth).sum())
        bar.set_postfix(loss=f"{loss_sum / seen:.3f}", accuracy=f"{right / seen:.3f}", refresh=False)
        bar.update()
    return loss_sum / seen, right / seen


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader) -> Evaluation:
    """Loss, accuracy and confusion in eval mode; the model's flags are put back afterwards.

    Args:
        model: gives `b n` logits.
        loader: yields inputs and int64 labels below `n`.
    Raises:
        ShapeError: the loader is empty, or the logits are not `b n`.
    """
    device = _device(model)
    with _flags(model, training=False):
        batches = [(model(inputs.to(device)), labels.to(device)) for inputs, labels in loader]
    if not batches:
        raise ShapeError("loader must yield at least one batch, got none.")
    logits, truth = (torch.cat(part) for part in zip(*batches, strict=True))
    if logits.ndim != 2:
        raise ShapeError(f"the model must give 'b n' logits, got shape {tuple(logits.shape)}.")
    n, answer = logits.shape[1], logits.argmax(1)
    confusion = torch.bincount(truth * n + answer, minlength=n * n).reshape(n, n)
    accuracy = (answer == truth).double().mean().item()
    return Evaluation(F.cross_entropy(logits, truth).item(), accuracy, confusion, logits)


@contextmanager
def _flags(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _fusible(model: nn.Module) -> bool:
    return all(p.is_floating_point() for p in model.parameters()) and _device(model).type in ("cpu", "cuda")
