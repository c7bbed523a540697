"""What a segmenter says of each pixel, and what that is over one mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError, ShapeError

from .answer import LABELS, Answer, End, Kind, answer_of, fields_of
from .inputs import Inputs
from .run import wrapped

_COARSEST = 8  # times smaller than the image, of a tensor that nothing else tells of
_MASK = "torch_featviz: mask"  # among keywords: no argument of a function can be called so
_QUERIES = ("class_queries_logits", "masks_queries_logits")


def pixel_scores(output: Any, images: Tensor) -> Tensor | None:
    """The scores of each class at each pixel in what a model returned, `b n h w`; None where it is no segmenter's.

    The rules, in this order; all else is no segmenter's:

    1. A dictionary, dataclass or named tuple with `out` (torchvision's FCN, DeepLab, LRASPP; `aux` is left out) or
       `logits` (transformers' SegFormer, UperNet, DPT, BEiT) that is `b n h w`. It may be smaller than the image.
    2. One with `class_queries_logits` `b q n+1` and `masks_queries_logits` `b q h w` (transformers' MaskFormer,
       Mask2Former, OneFormer): the probability of each class but the last, "no object", times that of the pixel, summed
       over queries (Cheng et al. 2021, section 3.4). These scores are figures: no logits, and no probabilities.
    3. A tensor `b n h w` that is at most 8 times smaller than the image on each side: coarser ones are feature maps.

    `b` is that of the images, `n` at least 1, and there is more than one pixel. A single channel belongs to the second
    of two classes.

    Args:
        output: what the model returned.
        images: `b c h w`.
    Example:
        >>> pixel_scores({"out": torch.zeros(1, 21, 8, 8)}, torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 21, 8, 8])
        >>> pixel_scores(torch.zeros(1, 512, 7, 7), torch.zeros(1, 3, 224, 224)) is None
        True
    """
    if images.dim() != 4:
        return None
    if isinstance(output, Tensor):
        near = output.dim() == 4 and all(
            _COARSEST * side >= whole for side, whole in zip(output.shape[2:], images.shape[2:], strict=True)
        )
        return output if near and _are_scores(output) and _is_for(output, images) else None
    scores = scores_within(output)
    return scores if scores is not None and _is_for(scores, images) else None


def _is_for(scores: Tensor, images: Tensor) -> bool:
    return len(scores) == len(images) and scores.shape[2:].numel() > 1


def scores_within(output: Any) -> Tensor | None:
    """The scores of pixels, `b n h w`, in a container, by the first two rules of `pixel_scores`; else None."""
    fields = fields_of(output)
    for name in ("out", "logits"):
        if _are_scores(fields.get(name)):
            return fields[name]  # type: ignore[no-any-return]
    kinds, masks = (fields.get(name) for name in _QUERIES)
    if isinstance(kinds, Tensor) and isinstance(masks, Tensor) and kinds.dim() == 3 and _are_scores(masks):
        chances = Answer(kinds.flatten(0, 1), "logits").values.view_as(kinds)[..., :-1]
        return torch.einsum("bqn,bqhw->bnhw", chances, masks.sigmoid())
    return None


def _are_scores(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return False
    return bool(value.numel())


class PixelsFound(Exception):
    """The output has a row of scores for each pixel, and not for each image."""


def is_segmenters(output: Any, images: Tensor) -> bool:
    """Whether that is what a segmenter returns, by the rules of `pixel_scores`."""
    rows = isinstance(output, Tensor) and output.dim() <= 2
    return not rows and pixel_scores(output, images) is not None


@dataclass(frozen=True, eq=False)
class Segmented(Answer):
    """What a segmenter says of some images.

    Args:
        scores: `b n`, the mean of each channel.
        kind: what the scores of a pixel are, as for `Answer`.
        pixels: `b n h w`, as the model returned them.
        background: the class that is what no other class is; None where none is known to be.
    """

    pixels: Tensor
    background: int | None = None

    @property
    def values(self) -> Tensor:
        """The share of the pixels that has each class, `b k`; of independent labels these may overlap."""
        k = 2 if self.binary else self.scores.shape[1]
        if self.kind in LABELS or self.binary:
            shares = [self.mask(torch.full((len(self.scores),), c, device=self.scores.device)) for c in range(k)]
            return torch.stack([share.flatten(1).float().mean(1) for share in shares], dim=1)
        labels = self._labels().flatten(1)
        counts = torch.zeros(len(labels), k + 1, device=labels.device)
        counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=counts.dtype))
        return counts[:, :k] / labels.shape[1]

    def mask(self, classes: Tensor) -> Tensor:
        """The pixels of one class in each image, `b h w`: where its score is the highest.

        A single channel, and an independent label, has the pixels where its logit is above 0, or its probability above
        one half; the opposite of a single channel has the others. A pixel whose scores are not numbers has no class.

        Args:
            classes: `b`, columns of `values`.
        """
        known = ~self.pixels.isnan().any(1)
        if self.kind not in LABELS and not self.binary:
            return known & (self._labels() == classes[:, None, None])
        edge = 0.5 if self.kind.endswith("probabilities") else 0.0
        column = torch.zeros_like(classes) if self.binary else classes
        own = self.pixels.gather(1, column[:, None, None, None].expand(-1, 1, *self.pixels.shape[2:]))[:, 0] > edge
        if self.binary:
            own = torch.where(classes[:, None, None] == 1, own, ~own)
        return known & own

    def _labels(self) -> Tensor:
        """`b h w`; one more than there are where a score is not a number."""
        return self.pixels.argmax(1).masked_fill(self.pixels.isnan().any(1), self.pixels.shape[1])

    def largest(self, count: int = 1) -> Tensor:
        """The classes of each image that have the most pixels, `b k`; the background comes after all others that occur.

        `k` is `count`, or the number of classes that occur in each of the images, if that is less.
        """
        shares = self.values
        occurring = int((shares > 0).sum(1).amin())
        if self.background is not None:
            shares[:, self.background] /= 2 * self.pixels.shape[2:].numel()  # less than that of a single pixel
        return shares.topk(max(1, min(count, occurring)), dim=1).indices


class Told(NamedTuple):
    """What is known of a segmenter's scores.

    Args:
        kind: what the scores of a pixel are, as for `Answer`; None to tell it from their values.
        names: of all classes; may be empty.
        published: names that come with the model, as for `Answer.names`.
    """

    kind: Kind | None = None
    names: Sequence[str] = ()
    published: Sequence[str] = ()


def segmented(
    output: Any, images: Tensor, *, net: nn.Module, told: Told, ended: Callable[[], End | None] | None = None
) -> Segmented:
    """What a segmenter answered.

    A class named "background" is that, as is class 0 of torchvision's segmenters and of a single channel.

    Args:
        output: what it returned, `is_segmenters`.
        images: `b c h w`.
        net: the model.
        told: what is known of it.
        ended: as for `answer_of`.
    Raises:
        OptionError: nobody can tell what the scores are, they are not what was said, or there are no classes.
        ShapeError: the number of names is wrong.
    """
    pixels = pixel_scores(output, images)
    assert pixels is not None
    pixels = pixels.detach()
    if not isinstance(output, Tensor) and _QUERIES[0] in fields_of(output):
        kind: Kind = "figures"
    else:
        rows = pixels.movedim(1, -1).flatten(0, 2)
        kind = answer_of(rows, len(rows), said=told.kind, ended=ended).kind
    if kind == "figures" and pixels.shape[1] == 1:
        hint = "pass target= a callable that returns shape 'b', one value per image"
        raise OptionError(f"answer='figures' of a single channel has no classes; {hint}.")
    found = Segmented(pixels.flatten(2).mean(2), kind, pixels)
    words = found.names(told.names, told.published)
    background = next((i for i, name in enumerate(words) if is_background(name)), None)
    unnamed = words == found.names() and type(net).__module__.startswith("torchvision.models.segmentation")
    return replace(found, background=0 if background is None and (found.binary or unnamed) else background)


def is_background(name: str) -> bool:
    """Whether a class is called background.

    Example:
        >>> is_background("__background__"), is_background("backgrounds")
        (True, False)
    """
    return name.strip("_ ").lower() == "background"


def mask_of(inputs: Inputs | None) -> Tensor | None:
    """The mask that inputs carry for each image, `b h w` bool; None where they carry none."""
    return None if inputs is None else inputs.keywords.get(_MASK)


def with_mask(inputs: Inputs, mask: Tensor) -> Inputs:
    """The same inputs, which carry a mask `b h w` for each image; `over_mask` makes a model take them."""
    return replace(inputs, keywords={**inputs.keywords, _MASK: mask}, rowwise=())


def over_mask(net: nn.Module, inputs: Inputs, chances: Kind | None = None) -> nn.Module:
    """Make a twin return the mean of each class's score over the mask that the inputs carry, `b n`.

    The mean, not the sum of Vinogradova et al. 2020, which differs by a factor: so it has the units of a score, and a
    large mask can be compared with a small one. The mask stays the same however the images are changed.

    Args:
        net: a twin, which is changed; untouched where inputs carry no mask.
        inputs: perhaps `with_mask`.
        chances: what the scores of a pixel are, to have the mean of its probabilities instead.
    """
    if mask_of(inputs) is None:
        return net
    taken: list[Tensor] = []

    def take(_module: nn.Module, args: Any, keywords: dict[str, Any]) -> Any:
        taken[:] = [keywords[_MASK]]
        return args, {name: value for name, value in keywords.items() if name != _MASK}

    def reduce(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        mask = taken.pop()
        scores = pixel_scores(output, mask[:, None])
        if scores is None:
            raise ShapeError("the model returns no scores for each pixel any more.")
        if scores.shape[2:] != mask.shape[1:]:
            raise ShapeError(f"the model returns {tuple(scores.shape[2:])} pixels, and {tuple(mask.shape[1:])} before.")
        if chances is not None:
            rows = scores.movedim(1, -1).flatten(0, 2)
            values = Answer(rows, chances).values
            scores = values.view(len(mask), *mask.shape[1:], -1).movedim(-1, 1)
        own = torch.where(mask[:, None], scores, 0).flatten(2)
        return own.sum(2) / mask.flatten(1).sum(1, keepdim=True)

    return wrapped(net, take, reduce)


def chances_of(kind: Kind | None) -> Kind:
    """What means of the probabilities of pixels are, of whose scores this is the kind."""
    if kind == "figures":
        return kind
    return "label_probabilities" if kind in LABELS else "probabilities"
