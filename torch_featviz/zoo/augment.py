"""Test-time augmentation: average a model's probabilities over several views of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import check_runs, gate, gated
from torch_featviz.model.answer import LABELS, Answer, Kind, answer_of, ending, scores_of
from torch_featviz.model.inputs import Inputs, as_batch
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated

from .card import ModelCard

Views: TypeAlias = Callable[[Tensor], Tensor | Sequence[Tensor]]

NAMES = ("flip", "crops")
_SHARE = 7 / 8  # of a side, that a crop keeps: 224 of 256
_HINT = "a row of scores for each image, 'b n', is needed"


class Augmentation:
    """The result of `augment`: a function from images `b c h w` to a list of views of them."""

    def __init__(self, names: tuple[str, ...], draws: tuple[Callable[[Tensor], Tensor], ...], n: int) -> None:
        self.names, self.draws, self.n = names, draws, n

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The images, then the other views, each `b c h w`."""
        return list(self.views(images))

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """The same, one at a time, so that only one is held in memory."""
        for view in self._crops(images):
            yield view
            if "flip" in self.names:
                yield view.flip(3)
        for draw in self.draws:
            for _ in range(self.n):
                yield draw(images)

    def _crops(self, images: Tensor) -> Iterator[Tensor]:
        yield images
        if "crops" not in self.names:
            return
        sides = images.shape[2:]
        height, width = (max(1, round(_SHARE * side)) for side in sides)
        down, right = sides[0] - height, sides[1] - width
        for y, x in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
            cut = images[:, :, y : y + height, x : x + width]
            yield F.interpolate(cut, tuple(sides), mode="bilinear", align_corners=False)

    def __repr__(self) -> str:
        given = [*map(repr, self.names), *(f"{getattr(draw, '__name__', type(draw).__name__)}" for draw in self.draws)]
        return f"augment({', '.join([*given, *([f'n={self.n}'] if self.draws else [])])})"


@gated
def augment(*ways: str | Callable[[Tensor], Tensor], n: int = 4) -> Augmentation:
    """Build a test-time augmentation: a function that returns several views of each image, the original first.

    Args:
        ways: `"flip"`: each view is also mirrored; `"crops"`: the four corners and the centre, 7/8 of each side,
            resized to the original size; both give twelve views. Or a random function of images `b c h w`, such as a
            transform of torchvision or kornia.
        n: number of views by each function.
    Raises:
        OptionError: no such way, no way at all, or `n` is below 1.
    Example:
        >>> views = augment("flip", "crops")
        >>> views, len(views(torch.rand(2, 3, 16, 16)))
        (augment('flip', 'crops'), 12)

    Reference: Krizhevsky et al. 2012, section 4.1, which averages over ten crops.
    """
    names = tuple(dict.fromkeys(way for way in ways if isinstance(way, str)))
    unknown = [way for way in ways if not callable(way) and way not in NAMES]
    if not ways or unknown:
        got = ", ".join(map(repr, unknown)) or "none"
        raise OptionError(f"augment takes {', '.join(map(repr, NAMES))} and functions of images, got {got}.")
    if n < 1:
        raise OptionError(f"n must be at least 1, got {n}.")
    return Augmentation(names, tuple(way for way in ways if callable(way)), n)


@gate("augment")
def probabilities(
    model: nn.Module,
    images: Tensor,
    *,
    augment: Views | None = None,
    answer: Kind | None = None,
    card: ModelCard | None = None,
    seed: int = 0,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Tensor:
    """Compute the probability of each class or label for each image; with `augment`, the mean over several views.

    The model is unchanged: a copy that shares its weights runs, in evaluation mode, one view at a time.

    Args:
        model: any module that returns one row of scores per image; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them.
        augment: `augment("flip", "crops")`, or any function from images to a list of views.
        answer: meaning of the model's scores, as for `attribute`. Default: that of the card, or derived from their
            values and from the model.
        card: card of the model.
        seed: seed of random views.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
    Returns:
        `b n`, floats; for a single logit or probability `b 2`.
    Raises:
        ShapeError: images are not `b c h w`, the model returns no row of scores per image, or a view has fewer images.
        DtypeError: images are not floats, or a view is not a tensor.
        OptionError: the answer is `"figures"`, or the scores can be logits or probabilities.
    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        >>> probabilities(net, torch.rand(2, 3, 8, 8), augment=augment("flip")).shape
        torch.Size([2, 5])
    """
    images = as_batch(images)
    said = card.answer if answer is None and card is not None else answer
    with isolated(seed), torch.no_grad():
        net, inputs = twin(model), Inputs.of(images, additional_forward_args, keywords).copied()
        ended = partial(ending, net, inputs.rows(slice(1)))
        judge = lambda output, view: answer_of(output, len(view), said=said, ended=ended)
        return OverViews(lambda view: run(net, inputs.with_images(view)), augment, judge)(inputs.images)


class OverViews:
    """A model that answers with the mean of its probabilities over several views of each image, `b k`.

    What its scores are is told by the first view that it is shown.

    Args:
        look: what the model returns for images `b c h w`.
        augment: what makes views; None for the images alone.
        judge: says what the scores of the first view are, given these and the view.
    """

    def __init__(
        self,
        look: nn.Module | Callable[[Tensor], Any],
        augment: Views | None,
        judge: Callable[[Any, Tensor], Answer],
    ) -> None:
        self.look, self.augment, self.judge = look, augment, judge
        self.kind: Kind | None = None

    @property
    def said(self) -> Kind:
        """What the means are."""
        return "label_probabilities" if self.kind in LABELS else "probabilities"

    def __call__(self, images: Tensor) -> Tensor:
        total, count = None, 0
        for view in _views(images, self.augment):
            output = self.look(view)
            known = (
                self.judge(output, view)
                if self.kind is None
                else Answer(scores_of(output, len(images), _HINT), self.kind)
            )
            self.kind, count = known.kind, count + 1
            total = known.values if total is None else total + known.values
        if self.kind == "figures":
            raise OptionError("probabilities() needs classes, got answer='figures'; leave answer= out.")
        assert total is not None  # _views yields one at least
        return total / count


def _views(images: Tensor, augment: Views | None) -> Iterator[Tensor]:
    """Each view, once it is known to be one."""
    if augment is None:
        yield images
        return
    if not callable(augment):
        raise OptionError(
            f"augment= must be a function of images, such as augment('flip', 'crops'), got {augment!r:.80}."
        )
    if isinstance(augment, nn.Module):
        check_runs("augment", augment)
    views: Any = augment.views(images) if isinstance(augment, Augmentation) else augment(images)
    if not isinstance(views, Iterable):
        raise DtypeError(f"augment= must return tensors 'b c h w', got {type(views).__name__}.")
    count = 0
    for view in [views] if isinstance(views, Tensor) else views:
        count += 1
        if not isinstance(view, Tensor):
            raise DtypeError(f"augment= must return tensors 'b c h w', got {type(view).__name__}.")
        if view.dim() != 4 or len(view) != len(images):
            raise ShapeError(
                f"augment= must return views 'b c h w' of all {len(images)} images, got shape {tuple(view.shape)}."
            )
        yield view
    if not count:
        raise ShapeError("augment= must return at least one view of the images, got none.")
