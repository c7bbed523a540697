"""Adversarial perturbations: too small to be seen, but they change the model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError
from torch_featviz.gate import gated
from torch_featviz.model.answer import LABELS, Answer, Kind, answer_of, classes_of, ending, scores_of
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.names import check_named, known_names, numbered
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.picture.images import Card, ValueRange, unit_images, unit_steps

from .explained import chunks, rows_at_once

_OFF = 0.01  # by which rounding may miss 0 and 1
_PATH = 5  # of all steps together, in eps: enough to cross the ball of 2 eps more than twice


@dataclass(frozen=True, eq=False)
class Adversarial:
    """Images, perturbed so that the model gives another answer.

    Args:
        images: `b c h w`, perturbed, as the model takes them.
        perturbation: `b c h w`, the added values, on the unit range; at most `eps` each.
        before: `b k`, probability of each class or label for the original images.
        after: `b k`, the same for the perturbed images.
        classes: `b`, the target class; without a target the original answer, which the attack leaves.
        targeted: whether `classes` is a target.
        kind: meaning of the model's scores, as in `attribute(answer=)`.
        eps: the `eps` argument.
        steps: the `steps` argument.
        seed: the `seed` argument.
    """

    images: Tensor
    perturbation: Tensor = field(repr=False)
    before: Tensor
    after: Tensor
    classes: Tensor
    targeted: bool
    kind: Kind
    eps: float
    steps: int
    seed: int

    def __repr__(self) -> str:
        what = "to a target" if self.targeted else "away from the answer"
        share = f"{int(self.moved.sum())} of {len(self.images)}"
        return f"Adversarial({share} images moved {what}, eps={self.eps}, steps={self.steps})"

    @property
    def reached(self) -> Tensor:
        """Whether the attack succeeded, per image: `b` bool.

        With a target: the target is the most probable class. Without: the most probable class has changed. An
        independent label counts if its probability crosses one half.
        """
        return self._is_sought(self.after)

    @property
    def moved(self) -> Tensor:
        """Whether each image has the answer that was sought, and had it not before, `b` bool."""
        return self.reached & ~self._is_sought(self.before)

    def _is_sought(self, values: Tensor) -> Tensor:
        if self.kind in LABELS:
            chance = values.gather(1, self.classes[:, None])[:, 0]
            return chance >= 0.5 if self.targeted else chance < 0.5
        same = values.argmax(1) == self.classes
        return same if self.targeted else ~same


@gated
def attack(
    model: nn.Module,
    images: Tensor,
    *,
    target: int | str | Sequence[int | str] | Tensor | None = None,
    eps: float = 0.005,
    steps: int = 40,
    seed: int = 0,
    classes: Sequence[str] = (),
    answer: Kind | None = None,
    value_range: ValueRange | None = None,
    card: Card | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Adversarial:
    """Perturb images by at most `eps` per value so that the model gives another answer.

    Projected gradient descent: from a random start, each step moves every value by the sign of the gradient of the
    class's log probability, and clips it to within `eps` and to [0, 1]. `steps=1` is the fast gradient sign method: one
    step of `eps` without a random start. Values already outside [0, 1] move no further out. The model is unchanged: a
    copy that shares its weights runs, in evaluation mode.

    Args:
        model: any module that returns one row of scores per image; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them, with one or three channels.
        target: the class to reach, by number or name, or one per image. Default: any class other than the predicted
            one.
        eps: largest change of a value, where images are in [0, 1]; 0.005 is about one of 255 levels.
        steps: steps of projected gradient descent.
        seed: seed of the random start, which is the same for each image.
        classes: class names in the order of the outputs, for a target that is a name. Default: those of the card.
        answer: meaning of the model's scores, as for `attribute`. Default: that of the card, or derived from their
            values and from the model.
        value_range: range of the values of images, as for `adversarial`.
        card: card of the model, if the images are preprocessed for it.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
    Raises:
        OptionError: `eps` or `steps` is out of range, the model has no such class or its answer is `"figures"`, no
            gradient reaches the images, or the range, card or answer is invalid.
        ShapeError: images are not `b c h w`, the model returns no row of scores per image, or a target is a name and
            the number of class names is wrong.
        DtypeError, DeviceError: as for `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        >>> found = attack(net, torch.rand(2, 1, 8, 8), target=1, eps=0.5)
        >>> found.reached.tolist(), bool(found.perturbation.abs().max() <= 0.5)
        ([True, True], True)

    Reference: Goodfellow et al. 2015; Madry et al. 2018.
    """
    images = as_batch(images)
    if not 0 < eps <= 1 or steps < 1:
        raise OptionError(f"eps must be above 0 and at most 1, and steps at least 1, got {eps} and {steps}.")
    said = getattr(card, "answer", None) if answer is None else answer
    with isolated(seed), torch.no_grad():
        inputs, net = Inputs.of(images, additional_forward_args, keywords).copied(), twin(model)
        units = unit_images(inputs.images, value_range, card)[:, : images.shape[1]]
        _check_range(units, value_range, card)
        search = _Search(net, unit_steps(inputs.images, value_range, card), eps, steps, target is not None)
        ended = partial(ending, net, inputs.rows(slice(1)))
        before = answer_of(run(net, inputs), len(images), said=said, ended=ended)
        sought = _classes(before, _numbered(target, before, classes, card))
        start = torch.rand(images.shape[1:], generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        start = (2 * eps * start - eps if steps > 1 else torch.zeros_like(start)).to(units)
        low, high = (-units).clamp(max=0).clamp(min=-eps), (1 - units).clamp(min=0).clamp(max=eps)
        parts = [
            search.of(
                inputs.rows(part),
                sought[part],
                before.kind,
                start.clamp(low[part], high[part]),
                (low[part], high[part]),
            )
            for part in chunks(len(images), rows_at_once(net, inputs.rows(slice(1)), len(images)))
        ]
        moved, change, scores = map(torch.cat, zip(*parts, strict=True))
    after = Answer(scores, before.kind)
    return Adversarial(
        moved, change, before.values, after.values, sought, target is not None, before.kind, eps, steps, seed
    )


def _check_range(units: Tensor, value_range: ValueRange | None, card: Card | None) -> None:
    """Raise where a card's transform normalises images by a mean and std that the card does not tell."""
    if value_range is not None or getattr(card, "transform", None) is None:
        return
    plain = getattr(card, "mean", None) == (0.0,) and getattr(card, "std", None) == (1.0,)
    low, high = (float(end) for end in units.aminmax())
    if plain and (low < -_OFF or high > 1 + _OFF):
        raise OptionError(
            f"images lie from {low:.3g} to {high:.3g}, and the card, which has a transform, tells no mean and std, so "
            "that eps cannot be of values in [0, 1]; give the card the mean and std of its transform, or pass "
            "value_range={'mean': ..., 'std': ...}."
        )


def _numbered(target: Any, before: Answer, classes: Sequence[str], card: Card | None) -> Any:
    """The target with numbers in the places of names, if the names are of the classes that the model returns."""
    names = known_names(classes, card, before.kind)
    wanted = numbered(target, names)
    if wanted is not target:
        check_named(names, before.values.shape[1])
    return wanted


def _classes(before: Answer, target: Any) -> Tensor:
    """The class that is sought for each image; else its answer."""
    if before.kind == "figures":
        raise OptionError("an attack needs classes, got answer='figures'; leave answer= out.")
    known = None if target is None else classes_of(target, before.scores, len(before.scores), before.kind)
    return before.values.argmax(1) if known is None else known


class _Search:
    """What does not change from image to image."""

    def __init__(self, net: nn.Module, unit: Tensor, eps: float, steps: int, targeted: bool) -> None:
        self.net, self.unit, self.steps = net, unit, steps
        stride = min(eps, _PATH * eps / steps)
        self.stride = stride if targeted else -stride

    def of(
        self, inputs: Inputs, classes: Tensor, kind: Kind, change: Tensor, ends: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The changed images, what was added on the unit range, and the scores."""
        for _ in range(self.steps):
            change = (change + self.stride * self._uphill(inputs, classes, kind, change)).clamp(*ends)
        moved = self._moved(inputs.images, change)
        return moved, change, scores_of(run(self.net, inputs.with_images(moved)), len(moved))

    def _moved(self, images: Tensor, change: Tensor) -> Tensor:
        return (images + change / self.unit).to(images.dtype)

    def _uphill(self, inputs: Inputs, classes: Tensor, kind: Kind, change: Tensor) -> Tensor:
        """The sign of the gradient of each image's log probability of its class, by way of the log odds."""
        with torch.enable_grad():
            change = change.clone().requires_grad_()
            output = run(self.net, inputs.with_images(self._moved(inputs.images, change)))
            figures = Answer(scores_of(output, len(classes)), kind).log_odds(classes)
            gradient = None
            if figures.requires_grad:
                (gradient,) = torch.autograd.grad(figures.sum(), change, allow_unused=True)
        if gradient is None:
            raise OptionError(
                "no gradient flows from the model's output to the images, as an attack needs; an argmax, a round() or "
                "no_grad() stops it."
            )
        return gradient.nan_to_num(0).sign()
