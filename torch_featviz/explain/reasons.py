"""Heatmaps of images by method and class, with their faithfulness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torch_featviz.displayed import Displayed
from torch_featviz.errors import DtypeError, OptionError
from torch_featviz.gate import gate, gated
from torch_featviz.model.answer import Answer, Kind, answer_of, classes_of, ending
from torch_featviz.model.inputs import Inputs, batch_of, check_images
from torch_featviz.model.masks import Segmented, Told, is_segmenters
from torch_featviz.model.names import known_names, listed, numbered
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.picture import Scale
from torch_featviz.picture.images import Card

from .attribute import OneOrMore, attribute
from .attribution import Attribution
from .faithfulness import Faithfulness, faithfulness, filled
from .masked import segments_of
from .methods import LAYERED, method_of
from .verdict import Verdict, judge

_HELD = 0.995  # share of a method's values within its reach


@dataclass(frozen=True, eq=False, repr=False)
class Reason(Displayed):
    """The heatmaps of one method.

    Args:
        method: name of the method.
        layer: names of the layers used, joined by `+`; empty if there are none.
        where: the same in words, with how tokens became a map.
        heatmaps: `b k h w`, for each image and each of its classes, signed, in the units of the method; 0 where a class
            has no pixel to explain.
        worth: faithfulness for each of the `k` classes, of the images that are `explained`; empty if it was not
            measured.
        masks: of a segmenter the pixels of each class explained, `b k h w` bool, at the size of its output; else None.
        note: what else is to be known of the heatmaps, in words, as for `Attribution`.
    """

    method: str
    layer: str
    where: str
    heatmaps: Tensor
    worth: tuple[Faithfulness, ...]
    masks: Tensor | None = None
    note: str = ""

    @property
    def explained(self) -> Tensor:
        """`b k` bool, False where a segmenter's class has no pixel in an image, so that there is nothing to explain."""
        if self.masks is None:
            return torch.ones(self.heatmaps.shape[:2], dtype=torch.bool, device=self.heatmaps.device)
        return self.masks.flatten(2).any(2)

    @gated
    def worth_of(self, image: int, column: int) -> tuple[Faithfulness, int] | None:
        """The faithfulness of one heatmap, as the figures of its class and its place in them; None without one."""
        here = self.explained[:, column]
        return (self.worth[column], int(here[:image].sum())) if self.worth and bool(here[image]) else None

    @property
    def reach(self) -> float:
        """End of one symmetric scale for all images and classes, which holds 99.5 % of the values."""
        fitted = Scale(symmetric=True, quantile=_HELD).fit(self.heatmaps).vmax
        return float(fitted or self.heatmaps.abs().nan_to_num(0).max())

    @property
    def gain(self) -> float:
        """Mean gain of the heatmaps over the same heatmaps at other places; 0 if not measured."""
        return float(torch.cat([figures.gain for figures in self.worth]).mean()) if self.worth else 0.0

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on all heatmaps together, by the rule for one; None if not measured.

        Never better than the best of them, nor worse than the worst.
        """
        if not self.worth:
            return None
        weak = all(bool(figures.weak.all()) for figures in self.worth)
        gain, spread = (torch.tensor([value], device="cpu") for value in (self.gain, self.spread))
        together = judge(gain, torch.tensor([weak or self.unmoved], device="cpu"), spread)[0]
        single = [verdict for figures in self.worth for verdict in figures.verdict]
        return min(max(together, min(single)), max(single))

    @property
    def spread(self) -> float:
        """By how much the mean gain at other places differs, as a standard deviation; 0 unmeasured.

        Those of several images are independent of each other, those of the classes of one image are not.
        """
        spreads = [figures.spread for figures in self.worth if len(figures.spread)]
        each = [spread.square().sum().sqrt() / len(spread) for spread in spreads]
        return float(torch.stack(each).mean()) if each else 0.0

    @property
    def unmoved(self) -> bool:
        """Whether the heatmaps of any class stay alike when all weights are random."""
        return any(figures.unmoved for figures in self.worth)


@dataclass(frozen=True, eq=False, repr=False)
class Reasons(Displayed):
    """Heatmaps by method and class, with their faithfulness.

    Args:
        answer: the model's answer for each image.
        classes: `b k`, the classes explained for each image.
        methods: one entry per method, in the order of the arguments.
    """

    answer: Answer
    classes: Tensor
    methods: tuple[Reason, ...]

    @property
    def ranked(self) -> tuple[Reason, ...]:
        """The methods sorted by verdict and gain, best first; in the order of the arguments if not measured."""
        return tuple(sorted(self.methods, key=lambda reason: (-(reason.verdict or 0), -reason.gain)))

    @property
    def none_better(self) -> str:
        """That no heatmap is better than chance, or what holds back those that are.

        Empty if one has the verdict "better", or none was measured.
        """
        worths = [worth for reason in self.ranked for worth in reason.worth]
        words = list(dict.fromkeys(each for worth in worths for each in worth.words))
        if not words or str(Verdict.BETTER) in words:
            return ""
        if not any(any(worth.held_back) for worth in worths):
            return "no heatmap is better than chance"
        return f"no heatmap is a reason: {', '.join(each.partition(' ')[2] for each in words)}"

    @property
    def probabilities(self) -> Tensor:
        """Of all classes or labels, `b n`; where the answer is figures, these."""
        return self.answer.values

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, `b`."""
        return self.probabilities.argmax(1)


def answered(
    model: nn.Module,
    images: Tensor,
    *,
    said: Kind | None = None,
    named: bool = True,
    names: Sequence[str] = (),
    published: Sequence[str] = (),
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Answer:
    """What a model answers; it runs once, on a copy, and once more on one image where values do not tell enough.

    Args:
        model: any that returns a row of scores for each image, or each pixel.
        images: `b c h w`, as it takes them.
        said: what the scores are.
        named: whether classes were named or asked for; else a single column is a figure.
        names: of all classes, in the order of the outputs; may be empty.
        published: names that come with the model, as for `Answer.names`.
        additional_forward_args: as for `attribute`.
        keywords: likewise.
    Raises:
        ShapeError, DtypeError: it returns no row of scores for each image.
        OptionError: nobody can tell what they are, or they are not what was said.
    """
    with isolated(), torch.no_grad():
        images = batch_of(model, images)
        net, inputs = twin(model), Inputs.of(images, additional_forward_args, keywords).copied()
        ended = partial(ending, net, inputs.rows(slice(1)))
        hint = "attribute() takes a callable as target="
        output = run(net, inputs)
        if is_segmenters(output, inputs.images):
            return segments_of(net, inputs, output, Told(said, names, published), asked=named)
        return answer_of(output, len(images), said=said, named=named, ended=ended, hint=hint)


@gate("targets")
def reasons(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str] = ("gradcam",),
    targets: Sequence[int] | Sequence[str] | int | str | None = None,
    *,
    likeliest: int = 1,
    answer: Answer | Kind | None = None,
    classes: Sequence[str] = (),
    card: Card | None = None,
    layer: OneOrMore = None,
    baselines: Tensor | float | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    faithful: bool = True,
    steps: int = 6,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Reasons:
    """Compute the heatmaps of each method for each class, and their faithfulness; the model is unchanged.

    A segmenter's class is explained in the images where it has a pixel.

    Args:
        model: any module that returns one row of scores per image; it is unchanged.
        images: `b c h w`, or one image `c h w`, as the model takes them.
        methods: names of methods, as for `attribute`.
        targets: the classes to explain, by number or name, each for every image.
        likeliest: without targets, how many of each image's most probable classes to explain.
        answer: the model's answer, if it is already known, or the meaning of its scores, as for `attribute`.
        classes: class names in the order of the outputs, for targets that are names. Default: those of the card.
        card: card of the model, likewise.
        layer: for methods on a layer, as for `attribute`.
        baselines: what replaces a pixel, for methods that need it and for the faithfulness: a value, or a tensor that
            expands to the images. Default: as in `attribute` and `faithfulness`.
        options: options of each method by its name, as for `attribute`.
        faithful: measure the faithfulness of each heatmap.
        steps: number of equal parts of the pixels, as for `faithfulness`.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
        progress: show a bar.
    Raises:
        OptionError: no methods or targets, `likeliest` below 1, options for a method that does not run, a layer for
            methods that use none, or no class has a pixel in any image.
        ShapeError: the model returns no row of scores per image, or baselines do not expand to the images.
        LayerError, DtypeError: as for `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> why = reasons(net, torch.rand(3, 1, 8, 8), ["gradcam", "saliency"], [1, 0])
        >>> why.methods[0].heatmaps.shape, why.classes.tolist(), len(why.methods[1].worth)
        (torch.Size([3, 2, 8, 8]), [[1, 0], [1, 0], [1, 0]], 2)
    """
    methods = methods if isinstance(methods, str) else list(methods)
    options, targets = options or {}, None if targets is None else listed(targets)
    _check(methods, targets, layer, options)
    if likeliest < 1:
        raise OptionError(f"likeliest must be at least 1, got {likeliest}.")
    images = batch_of(model, images)
    check_images(images, (3, 4, 5))
    more: dict[str, Any] = {"additional_forward_args": additional_forward_args, "keywords": keywords}
    if not isinstance(answer, Answer):
        said, published = getattr(card, "answer", None) if answer is None else answer, getattr(card, "classes", ())
        told: dict[str, Any] = {"said": said, "named": targets is not None, "names": classes, "published": published}
        answer = answered(model, images, **told, **more)
    names = known_names(classes, card, answer.kind)
    explained = _explained(answer, numbered(targets, names), likeliest)
    nothing = filled(images, baselines) if isinstance(baselines, Tensor) else baselines
    masks = _masks(answer, explained)
    given = _Given(model, Inputs.of(images, **more), nothing, steps if faithful else None)
    results: list[Reason] = []
    for method in tqdm(methods, desc="why", disable=not progress, leave=False):
        asked: dict[str, Any] = {"layer": layer if method in LAYERED else None, "answer": answer.kind}
        asked |= {"classes": classes, "method": method, **options.get(method, {})}
        if nothing is not None and "baselines" in method_of(method).takes:
            asked.setdefault("baselines", nothing)
        columns = _columns(given, explained, masks, asked)
        looked = next(column.why for column in columns if column.why is not None)
        heatmaps = torch.stack([column.heatmaps for column in columns], dim=1)
        worth = tuple(column.worth for column in columns if column.worth is not None)
        notes = dict.fromkeys(column.why.note for column in columns if column.why is not None and column.why.note)
        results.append(Reason(method, looked.layer, looked.where, heatmaps, worth, masks, "; ".join(notes)))
    return Reasons(answer, explained, tuple(results))


class _Given(NamedTuple):
    """What all methods are given; `steps` of the faithfulness, or None where it is not measured."""

    model: nn.Module
    inputs: Inputs
    nothing: Tensor | float | None
    steps: int | None


class _Column(NamedTuple):
    """One class of each image: heatmaps `b h w`; `why` is of the images that it is explained in, and so is `worth`."""

    heatmaps: Tensor
    why: Attribution | None
    worth: Faithfulness | None


def _columns(given: _Given, explained: Tensor, masks: Tensor | None, asked: Mapping[str, Any]) -> list[_Column]:
    """Each class, in the images where it has a pixel; in all of them if there is no such class."""
    there = torch.ones_like(explained, dtype=torch.bool) if masks is None else masks.flatten(2).any(2).cpu()
    if not bool(there.any()):
        there = ~there  # `attribute` says which classes there are
    return [
        _column(given, target, here, asked) for target, here in zip(explained.unbind(1), there.unbind(1), strict=True)
    ]


def _column(given: _Given, target: Tensor, here: Tensor, asked: Mapping[str, Any]) -> _Column:
    model, inputs, nothing, steps = given
    images, count = inputs.images, len(inputs.images)
    none = torch.zeros(0, device=images.device)
    heatmaps = torch.zeros(count, *images.shape[2:], device=images.device)
    if not bool(here.any()):
        return _Column(heatmaps, None, None if steps is None else Faithfulness(none, none, none, none, none[None]))
    if not bool(here.all()):
        numbers = here.nonzero().flatten().to(images.device)
        inputs, target = inputs.rows(numbers), target[here.to(target.device)]
        asked = {name: _part_of(value, numbers, count) for name, value in asked.items()}
        nothing = _part_of(nothing, numbers, count)
    why = attribute(
        model, inputs.images, target=target, additional_forward_args=inputs.args, keywords=inputs.keywords, **asked
    )
    worth = None
    if steps is not None:
        worth = faithfulness(model, inputs.images, why, steps=steps, stages=1, baselines=nothing)
    heatmaps[here.to(images.device)] = why.heatmaps
    return _Column(heatmaps, why, worth)


def _part_of(value: Any, numbers: Tensor, count: int) -> Any:
    """The share of these images in what may hold an entry for each of them."""
    is_each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
    return value[numbers.to(value.device)] if is_each else value


def _masks(answer: Answer, explained: Tensor) -> Tensor | None:
    """The pixels of each class that a segmenter is asked for, `b k h w`; None where it is none.

    Raises:
        OptionError: it has no such class.
    """
    if not isinstance(answer, Segmented):
        return None
    classes = [classes_of(target, answer.scores, len(explained), answer.kind) for target in explained.unbind(1)]
    return torch.stack([answer.mask(each) for each in classes if each is not None], dim=1)


def _explained(answer: Answer, targets: Sequence[int] | None, likeliest: int) -> Tensor:
    """The classes that are explained for each image, `b k`."""
    if targets is not None:
        wanted = list(dict.fromkeys(targets))
        try:
            return torch.tensor(wanted, device="cpu").expand(len(answer.scores), -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DtypeError(f"targets must be class numbers, got {wanted!r:.80}.") from error
    if isinstance(answer, Segmented):
        return answer.largest(likeliest)
    values = answer.values
    return values.topk(min(likeliest, values.shape[1]), dim=1).indices


def _check(methods: Sequence[str], targets: object, layer: OneOrMore, options: Mapping[str, object]) -> None:
    if isinstance(methods, str):
        raise OptionError(f"methods must be a list of names, got a string; write methods=[{methods!r}].")
    if not methods or targets == []:
        raise OptionError(f"methods and targets must not be empty, got {methods=} and {targets=}.")
    if foreign := sorted(set(options) - set(methods)):
        raise OptionError(f"options are for {', '.join(foreign)}, but the methods are {', '.join(methods)}.")
    if layer is not None and not set(methods) & set(LAYERED):
        raise OptionError(f"none of {', '.join(methods)} uses a layer; leave layer={layer!r} out.")
