"""Why a model decided: heatmaps of some images, by method and class, and what each of them is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.answer import chances
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.run import run
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated
from torch_featviz.picture import Scale

from .attribute import attribute
from .faithfulness import Faithfulness, faithfulness
from .methods import LAYERED, method_of

_HELD = 0.995  # share of a method's values within its reach


@dataclass(frozen=True, eq=False)
class Reason:
    """The heatmaps of one method.

    Args:
        method: its name.
        layer: the layer looked at; empty where there is none.
        heatmaps: `b k h w`, of each image for each of its classes, signed, in the method's own units.
        worth: the figures of each of the `k` classes; empty where they were not asked for.
    """

    method: str
    layer: str
    heatmaps: Tensor
    worth: tuple[Faithfulness, ...]

    @property
    def reach(self) -> float:
        """The end of one symmetric scale for all images and classes, which holds 99.5 % of the values."""
        fitted = Scale(symmetric=True, quantile=_HELD).fit(self.heatmaps).vmax
        return float(fitted or self.heatmaps.abs().nan_to_num(0).max())

    @property
    def unmoved(self) -> bool:
        """Whether the heatmaps of any class stay alike when all weights are random."""
        return any(figures.unmoved for figures in self.worth)


@dataclass(frozen=True, eq=False)
class Reasons:
    """Why a classifier gave its answers.

    Args:
        probabilities: `b n`, of all classes.
        classes: `b k`, those explained, for each image.
        methods: one entry for each method, in the order asked for.
    """

    probabilities: Tensor
    classes: Tensor
    methods: tuple[Reason, ...]

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, `b`."""
        return self.probabilities.argmax(1)


def probabilities_of(
    model: nn.Module,
    images: Tensor,
    *,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
) -> Tensor:
    """What a classifier answers, as probabilities `b n`; it runs once, on a copy.

    Raises:
        ShapeError: the model returns no row of scores of two classes or more for each image.
    """
    with isolated(), torch.no_grad():
        output = run(twin(model), Inputs.of(images, additional_forward_args, keywords).copied())
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(f"model must be a classifier that returns 'b k', got {got}; attribute() takes any target.")
        return chances(output)


def reasons(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str] = ("gradcam",),
    targets: Sequence[int] | int | None = None,
    *,
    likeliest: int = 1,
    probabilities: Tensor | None = None,
    layer: str | None = None,
    baselines: Tensor | float | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    faithful: bool = True,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Reasons:
    """The heatmaps of each method for each class, and what they are worth; the model is untouched.

    Args:
        model: a classifier.
        images: `b c h w`, as the model takes them.
        methods: names that `attribute` knows.
        targets: the classes to explain, each for every image.
        likeliest: without targets, how many of each image's most probable classes are explained.
        probabilities: `b n`, the model's answer where it is known already.
        layer: for methods of one layer; default as in `attribute`.
        baselines: what a pixel is when there is nothing, for the methods that ask and for measuring: a value, or a
            tensor that can be expanded to the images; default as in `attribute` and `faithfulness`.
        options: for each method by its name, as `attribute` takes them.
        faithful: measure each heatmap.
        additional_forward_args: as for `attribute`.
        keywords: likewise.
        progress: show a bar.
    Raises:
        OptionError: no methods or targets, an option of a method that is not asked for, a layer for methods of none.
        ShapeError: the model is no classifier.
        LayerError, DtypeError: as `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> why = reasons(net, torch.rand(3, 1, 8, 8), ["gradcam", "saliency"], [1, 0])
        >>> why.methods[0].heatmaps.shape, why.classes.tolist(), len(why.methods[1].worth)
        (torch.Size([3, 2, 8, 8]), [[1, 0], [1, 0], [1, 0]], 2)
    """
    wanted = None if targets is None else [targets] if isinstance(targets, int) else list(dict.fromkeys(targets))
    options = options or {}
    _check(methods, wanted, layer, options)
    more: dict[str, Any] = {"additional_forward_args": additional_forward_args, "keywords": keywords}
    if probabilities is None:
        probabilities = probabilities_of(model, images, **more)
    if wanted is None:
        classes = probabilities.topk(min(likeliest, probabilities.shape[1]), dim=1).indices
    else:
        classes = torch.tensor(wanted).expand(len(images), -1)
    nothing = baselines.expand_as(images) if isinstance(baselines, Tensor) else baselines
    results = []
    for method in tqdm(methods, desc="why", disable=not progress, leave=False):
        given: dict[str, Any] = {"layer": layer if method in LAYERED else None, **more, **options.get(method, {})}
        if nothing is not None and "baselines" in method_of(method).takes:
            given.setdefault("baselines", nothing)
        columns = [attribute(model, images, method=method, target=target, **given) for target in classes.unbind(1)]
        worth = [faithfulness(model, images, why, stages=1, baselines=nothing) for why in columns] if faithful else []
        heatmaps = torch.stack([why.heatmaps for why in columns], dim=1)
        results.append(Reason(method, columns[0].layer, heatmaps, tuple(worth)))
    return Reasons(probabilities, classes, tuple(results))


def _check(methods: Sequence[str], targets: list[int] | None, layer: str | None, options: Mapping[str, object]) -> None:
    if isinstance(methods, str) or not methods or targets == []:
        raise OptionError(f"methods and targets must name at least one each, got {methods=} and {targets=}.")
    if foreign := sorted(set(options) - set(methods)):
        raise OptionError(f"options for {', '.join(foreign)}, which is not among the methods {', '.join(methods)}.")
    if layer is not None and not set(methods) & set(LAYERED):
        raise OptionError(f"none of {', '.join(methods)} looks at a layer; leave layer={layer!r} out.")
