"""Faithfulness of heatmaps: deletion, insertion, and randomised weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.displayed import Displayed
from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.gate import gate
from torch_featviz.inspect.cut import remembered
from torch_featviz.inspect.patches import patch_of
from torch_featviz.model.answer import Answer, Kind, figures, scores_of
from torch_featviz.model.inputs import Inputs, check_images
from torch_featviz.model.masks import chances_of, over_mask
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated

from .attribute import explain
from .attribution import Attribution
from .explained import Explained, check_rows, chunks, rows_at_once
from .verdict import ALIKE, LEAST, LITTLE, MARGIN, PLACES, Verdict, judge

UNMOVED = 0.5
MOST = 100_000  # steps or stages
_FIRST = (1, 3, 2)  # of 7 parts of each side: how far the heatmap is moved to the first of the other places
_Figure = Callable[[Tensor, Tensor], Tensor]  # of rows, and of which image each is a variant


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Displayed):
    """Faithfulness of one method's heatmaps, per image; areas are means over the share of pixels, from 0 to 1.

    Chance is the same heatmap at other places: moved along the image and round its edges. It is as smooth and has the
    same values, so that only where it lies tells them apart.

    Args:
        deletion: `b`, area under the explained value while pixels are deleted, most important first; the lower, the
            more the model needs these pixels (Petsiuk et al. 2018).
        insertion: `b`, the same while pixels are inserted; the higher, the more these pixels suffice.
        random_deletion: `b`, the same for the heatmap at other places, mean of six.
        random_insertion: `b`, likewise.
        similarity: `stages b`, Spearman's correlation of the heatmap, sign kept, with that of the model with random
            weights in its last layers, then in ever more layers, and in all layers at the last stage (Adebayo et al.
            2018). Pixels that are 0 in both are left out.
        whole: `b`, the explained value for the image itself; None if it was not measured.
        scattered: `b`, the same for the image with its pixels shuffled, likewise.
        span: `b`, the range from the lowest to the highest value met; None for probabilities, which lie in [0, 1].
        deviation: `b`, standard deviation of half of insertion less deletion over the other places; None if it was not
            measured.
        patch: pixels that are deleted and inserted together, along each axis of the image; all 1 for single pixels,
            empty if it was not measured.
    """

    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor
    similarity: Tensor
    whole: Tensor | None = None
    scattered: Tensor | None = None
    span: Tensor | None = None
    deviation: Tensor | None = None
    patch: tuple[int, ...] = ()

    @property
    def gain(self) -> Tensor:
        """`b`, gain of each heatmap over the same heatmap at other places, mean of insertion and deletion.

        In units of probability, or as a share of the span.
        """
        return self._shares((self.insertion - self.random_insertion + self.random_deletion - self.deletion) / 2)

    @property
    def spread(self) -> Tensor:
        """`b`, by how much the gains at other places differ, as a standard deviation; 0 where it is not known."""
        return torch.zeros_like(self.insertion) if self.deviation is None else self._shares(self.deviation)

    def _shares(self, figures: Tensor) -> Tensor:
        return figures if self.span is None else torch.where(self.span > 0, figures / self.span, 0.0)

    @property
    def weak(self) -> Tensor:
        """`b`, whether there is too little to explain.

        That is: the class is below 5 %, or the image with shuffled pixels is at most 3 % below the image itself.
        """
        none = torch.zeros_like(self.insertion, dtype=torch.bool)
        if self.whole is None or self.span is not None:
            return none
        blind = none if self.scattered is None else self.scattered > self.whole - MARGIN
        return (self.whole < LEAST) | blind

    @property
    def verdict(self) -> tuple[Verdict, ...]:
        """Whether each heatmap is better than chance.

        Better: a gain of at least 3 % of the probability (or of the span) and of twice the `spread` over other places;
        worse: as much below 0. A heatmap that stays alike with random weights, or whose answer is `weak`, is never
        better.

        Example:
            >>> figures = [torch.tensor([value]) for value in (0.2, 0.6, 0.3, 0.4)]
            >>> str(Faithfulness(*figures, torch.zeros(1, 1)).verdict[0])
            '✓ better than chance'
        """
        alike = self.alike if len(self.similarity) else torch.zeros_like(self.weak)
        return judge(self.gain, alike | self.weak, self.spread)

    @property
    def held_back(self) -> tuple[str, ...]:
        """For each heatmap whose figures are better than chance and whose verdict is not: why; else nothing."""
        alike = self.alike if len(self.similarity) else torch.zeros_like(self.weak)
        uncapped = judge(self.gain, torch.zeros_like(self.weak), self.spread)
        words = [ALIKE if same else LITTLE for same in alike.tolist()]
        return tuple(
            word if figures is Verdict.BETTER and verdict is not Verdict.BETTER else ""
            for word, figures, verdict in zip(words, uncapped, self.verdict, strict=True)
        )

    @property
    def words(self) -> tuple[str, ...]:
        """The verdict on each heatmap in words; of one that is held back, what holds it back.

        Example:
            >>> figures = [torch.tensor([value]) for value in (0.2, 0.6, 0.3, 0.4)]
            >>> Faithfulness(*figures, torch.ones(1, 1)).words
            ('= alike with random weights',)
        """
        return tuple(
            f"{verdict.mark} {held_back}" if held_back else str(verdict)
            for verdict, held_back in zip(self.verdict, self.held_back, strict=True)
        )

    @property
    def alike(self) -> Tensor:
        """`b`, whether each heatmap stays alike (a correlation above 0.5) when all weights are random."""
        return self.similarity[-1:].flatten() > UNMOVED

    @property
    def unmoved(self) -> bool:
        """Whether the heatmaps stay alike (a mean correlation above 0.5) when all weights are random.

        Then they show the image, not what the model has learnt.
        """
        return bool(len(self.similarity)) and float(self.similarity[-1].mean()) > UNMOVED


@gate("why")
def faithfulness(
    model: nn.Module,
    images: Tensor,
    why: Attribution,
    *,
    steps: int = 6,
    stages: int = 3,
    baselines: Tensor | float | None = None,
    patch: int | Sequence[int] | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
) -> Faithfulness:
    """Measure the faithfulness of a result of `attribute`: deletion, insertion and randomised weights.

    Deletion and insertion say whether the model uses the pixels of the heatmap, beside those of the same heatmap at six
    other places. Randomised weights say whether the heatmap depends on what the model has learnt. It takes
    `14 * (steps - 1) + 4` forwards of each image, and the stages.

    Args:
        model: the model that was explained.
        images: the images that were explained, `b c h w`, or one image `c h w`.
        why: the result of `attribute(model, images, ...)`.
        steps: number of equal parts of the pixels, for deletion and insertion.
        stages: stages of randomised weights; 0 skips them. Each stage explains the images once more.
        baselines: what replaces a pixel: a value, or a tensor that expands to the images. Default: 0 for deletion, the
            blurred image for insertion (Petsiuk et al. 2018).
        patch: pixels that are deleted and inserted together, along each axis of the image. Default: the patches of a
            network whose tokens they are, such as 16 × 16 pixels in a ViT (of the heatmap the mean in each counts);
            single pixels for other networks.
        seed: seed of the order of equal pixels and of the random weights.
        internal_batch_size: rows per forward, as for `attribute`.
    Returns:
        The measures. If a class is explained, areas are of its probability, otherwise of the target's value; for a
        segmenter, of the class's mean probability over its mask in the image itself. The meaning of the model's scores
        is derived once, from its output for the images.
    Raises:
        DtypeError: `why` is not a result of `attribute`, or images are not floats.
        ShapeError: `why` is about other images, or baselines do not expand to these.
        LayerError: `why` is about another model, whose layer this one does not have.
        OptionError: `steps` or `internal_batch_size` is below 1, `stages` below 0, or one of them above 100,000; the
            image is not made of whole patches, or `why` is about boxes.
    Example:
        >>> from torch_featviz.explain import attribute
        >>> net, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.rand(3, 1, 4, 4)
        >>> worth = faithfulness(net, images, attribute(net, images, method="input_x_gradient"), stages=2)
        >>> worth.deletion.shape, worth.similarity.shape
        (torch.Size([3]), torch.Size([2, 3]))
    """
    if not isinstance(why, Attribution):
        raise DtypeError(f"why must be a result of attribute(model, images), got {type(why).__name__}.")
    check_images(images, (3, 4, 5))
    if why.boxes is not None:
        raise OptionError(
            "the faithfulness of boxes is not measured: changed images have other boxes; explain one figure of the "
            "output by a callable, attribute(model, images, target=...)."
        )
    if images.dim() == why.heatmaps.dim() and len(why.heatmaps) == 1:
        images = images[None]
    if why.heatmaps.shape[:1] + why.heatmaps.shape[1:] != images.shape[:1] + images.shape[2:]:
        raise ShapeError(
            f"why must be about these images, of shape {tuple(images.shape)}; got heatmaps {tuple(why.heatmaps.shape)}."
        )
    if steps < 1 or stages < 0:
        raise OptionError(f"steps must be at least 1 and stages at least 0, got {steps} and {stages}.")
    check_rows(internal_batch_size)
    if max(steps, stages) > MOST:
        raise OptionError(f"steps and stages must be at most {MOST:,}, got {steps} and {stages}.")
    inputs = (why.inputs or Inputs(images)).with_images(images)
    size = _patch_of(model, inputs) if patch is None else _checked(patch, images)
    with isolated(seed):
        inputs = inputs.copied()
        images, net = inputs.images, over_mask(twin(model), inputs, why.answer)
        explained = Explained(net, inputs, why.target, why.answer if why.mask is None else chances_of(why.answer))
        rows = internal_batch_size or rows_at_once(net, inputs.rows(slice(1)), len(images) * (PLACES + 1) * steps)
        kind = None if why.classes is None else explained.kind(rows)
        zero, blurred = (
            (torch.zeros_like(images), blur(images)) if baselines is None else (filled(images, baselines),) * 2
        )
        heat, random = _by_patch(why.heatmaps, size), torch.rand_like(why.heatmaps.flatten(1))
        figure = partial(_figure, explained, why, kind)
        whole, empty, dim = (_figures(figure, end, rows) for end in (images, zero, blurred))
        ways = (((images, zero), (whole, empty)), ((blurred, images), (dim, whole)))  # deletion, insertion
        orders = torch.stack([_by_pixel(_order(each, random), size) for each in (heat, *_elsewhere(heat))])
        curves = [_curves(figure, orders, *way, steps=steps, rows=rows) for way in ways]
        deletion, insertion = (torch.trapezoid(each, dx=1 / steps, dim=2) for each in curves)  # here, and elsewhere
        scattered = _figures(figure, _scattered(images, random), rows)
        similarity = [_alike(why, other) for other in _randomised(model, inputs, why, stages, internal_batch_size)]
    span = None
    if kind is None or kind == "figures":
        values = torch.cat(curves, dim=2)
        span = values.amax((0, 2)) - values.amin((0, 2))
    stages_seen = torch.stack(similarity) if similarity else torch.zeros(0, len(images), device=images.device)
    return Faithfulness(
        *(deletion[0], insertion[0], deletion[1:].mean(0), insertion[1:].mean(0)),
        *(stages_seen, whole, scattered, span),
        deviation=(insertion - deletion)[1:].std(0) / 2,
        patch=size,
    )


def blur(images: Tensor) -> Tensor:
    """Images smoothed twice over about a sixth of their sides: `b c ... -> b c ...`."""
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[images.dim() - 3]
    half = max(1, min(images.shape[2:]) // 12)
    for axis in [*range(images.dim() - 2)] * 2:  # a mean over squares is one over rows, then over columns
        wide = [1] * (images.dim() - 2)
        wide[axis] = 2 * half + 1
        images = pool(images, wide, 1, [side // 2 for side in wide], count_include_pad=False)
    return images


def _scattered(images: Tensor, random: Tensor) -> Tensor:
    """The same pixels in other places, colours together."""
    order = random.argsort(dim=1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, order).view_as(images)


def filled(images: Tensor, baselines: Tensor | float) -> Tensor:
    """The baselines in the shape of the images.

    Raises:
        ShapeError: they do not expand to it.
        DtypeError: they are complex.
    """
    if isinstance(baselines, Tensor) and baselines.is_complex():
        raise DtypeError(f"baselines must be real, got {baselines.dtype}.")
    try:
        return torch.as_tensor(baselines, dtype=images.dtype, device=images.device).expand_as(images)
    except RuntimeError as error:
        got = tuple(baselines.shape) if isinstance(baselines, Tensor) else baselines
        raise ShapeError(f"baselines must expand to images of shape {tuple(images.shape)}, got {got}.") from error


def _patch_of(model: nn.Module, inputs: Inputs) -> tuple[int, ...]:
    """The pixels of a patch of the model's own grid along each axis of the image; sought once."""
    with isolated():
        one = inputs.rows(slice(1)).copied()
        return remembered(model, one, "patch", lambda: patch_of(over_mask(twin(model), one), one))


def _checked(patch: int | Sequence[int], images: Tensor) -> tuple[int, ...]:
    """The pixels asked for along each axis of the image."""
    sides = tuple(images.shape[2:])
    size = (patch,) * len(sides) if isinstance(patch, int) else tuple(patch)
    if len(size) != len(sides) or any(p < 1 or side % p for p, side in zip(size, sides, strict=True)):
        raise OptionError(f"patch must divide the sides of the images, {' × '.join(map(str, sides))}; got {patch!r}.")
    return size


def _by_patch(heatmaps: Tensor, patch: tuple[int, ...]) -> Tensor:
    """The mean of each patch: `b h w -> b rows columns`."""
    for axis, size in enumerate(patch, 1):
        if size > 1:
            shape = heatmaps.shape
            heatmaps = heatmaps.reshape(*shape[:axis], -1, size, *shape[axis + 1 :]).mean(axis + 1)
    return heatmaps


def _by_pixel(values: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Each patch's value at each of its pixels: `b rows columns -> b h w`."""
    for axis, size in enumerate(patch, 1):
        values = values.repeat_interleave(size, axis) if size > 1 else values
    return values


def _elsewhere(heat: Tensor) -> list[Tensor]:
    """The same heatmaps at other places, evenly spread and far from each other, round the edges of the image."""
    sides, dims = heat.shape[1:], tuple(range(1, heat.dim()))
    parts = PLACES + 1
    moves = [[round(k * first % parts * side / parts) for first, side in zip(_FIRST, sides)] for k in range(1, parts)]  # noqa: B905
    return [heat.roll(move, dims) for move in moves]


def _order(heat: Tensor, random: Tensor) -> Tensor:
    """When each place comes, highest first and equal ones by chance: from 0 to 1, of the shape of `heat`."""
    flat = heat.flatten(1)
    mixed = random[:, : flat.shape[1]].argsort(dim=1)
    order = mixed.gather(1, flat.gather(1, mixed).argsort(dim=1, descending=True, stable=True))
    numbers = torch.arange(flat.shape[1], device=heat.device).expand_as(order)
    places = torch.empty_like(order).scatter_(1, order, numbers)
    return ((places + 0.5) / flat.shape[1]).view_as(heat)


def _figures(figure: _Figure, images: Tensor, rows: int) -> Tensor:
    """The figure of each image: `b`."""
    numbers = torch.arange(len(images), device=images.device)
    return torch.cat([figure(images[part], numbers[part]) for part in chunks(len(images), rows)])


def _curves(
    figure: _Figure, orders: Tensor, ends: tuple[Tensor, Tensor], known: tuple[Tensor, Tensor], *, steps: int, rows: int
) -> Tensor:
    """The figures on the way from one end to the other, where they are known, in each order: `o b h w -> o b n`."""
    (start, end), (first, last) = ends, known
    count, n, between = len(orders), len(start), steps - 1
    shares, orders = torch.linspace(0, 1, steps + 1, device=start.device)[1:-1], orders.flatten(0, 1)
    values = [first.new_empty(0)]
    for part in chunks(len(orders) * between, rows):
        flat = torch.arange(part.start, part.stop, device=start.device)
        image, share = flat // between % n, shares[flat % between]
        changed = orders[flat // between, None] < share.view(-1, *[1] * (start.dim() - 1))
        values.append(figure(torch.where(changed, end[image], start[image]), image))
    inside = torch.cat(values).view(count, n, between)
    return torch.cat([first.expand(count, n)[..., None], inside, last.expand(count, n)[..., None]], dim=2)


def _figure(explained: Explained, why: Attribution, kind: Kind | None, rows: Tensor, image: Tensor) -> Tensor:
    """The figure explained: a class's probability, or the target's own; all rows are read as the images were."""
    with torch.no_grad():
        output = explained.answer(rows, image)
    if why.classes is None or kind is None:
        return figures(output, why.target, None, len(rows)).float()
    return Answer(scores_of(output, len(rows)), kind).values.gather(1, why.classes[image, None])[:, 0].float()


def _randomised(model: nn.Module, inputs: Inputs, why: Attribution, stages: int, rows: int | None) -> list[Attribution]:
    """The same explanation of models with ever more random layers; each layer's weights are shuffled."""
    random = twin(model)
    layers = [module for module in random.modules() if any(True for _ in module.parameters(recurse=False))][::-1]
    target = why.target if why.classes is None else why.classes
    explanations, done = [], 0
    for stage in range(1, stages + 1):
        until = -(-len(layers) * stage // stages)
        for module in layers[done:until]:
            for name, weight in module._parameters.items():
                if weight is not None:  # a new one: the twin's lies in the model's own memory
                    mixed = weight.flatten()[torch.randperm(weight.numel(), device=weight.device)].view_as(weight)
                    module._parameters[name] = nn.Parameter(mixed, requires_grad=False)
        done = until
        again = explain(
            random,
            inputs,
            target=target,
            method=why.method,
            layer=why.layers or None,
            answer=why.answer,
            internal_batch_size=rows,
            **why.options,
        )
        explanations.append(again)
    return explanations


def _alike(why: Attribution, other: Attribution) -> Tensor:
    """Spearman's correlation where one of them is not 0: `b`; 0 where one is constant.

    What no map can show (a pixel that is its own baseline, times anything) would make any two of them alike.
    """
    correlations = []
    for a, b in zip(why.heatmaps.flatten(1), other.heatmaps.flatten(1), strict=True):
        shown = (a != 0) | (b != 0)
        ranks = _ranks(torch.stack([a[shown], b[shown]]))
        ranks = ranks - ranks.mean(1, keepdim=True)
        correlations.append(ranks.prod(0).sum() / ranks.square().sum(1).prod().sqrt())
    return torch.stack(correlations).nan_to_num(0).float()


def _ranks(values: Tensor) -> Tensor:
    """Ranks within each row, equal values sharing their mean rank: `b n`, float64."""
    ordered, _ = values.sort(dim=1)
    ordered = ordered.contiguous()
    low, high = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (low + high).double() / 2
