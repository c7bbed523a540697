"""`attribute()`: why a model gave the answer it gave, by any of Captum's methods, and the model never touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from torch_featviz.displayed import Displayed
from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.inspect.cut import AnswerMap, answer_map, map_of, remembered
from torch_featviz.model.answer import KINDS, Kind, Target
from torch_featviz.model.inputs import Inputs, check_images
from torch_featviz.model.layers import find, layer_name
from torch_featviz.model.run import one_call
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated, seed_all

from .cam import MODES
from .explained import Explained, chunks, rows_at_once
from .methods import Job, method_of

OneOrMore: TypeAlias = str | nn.Module | Sequence[str | nn.Module] | None


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Displayed):
    """What one method found, for each image.

    Args:
        attributions: as the method gives them: `b c ...` per value of the input, or `b k ...` on a layer's maps.
        heatmaps: the same reduced over channels by their sum, at the size of the images: `b ...` (`b h w`), float32,
            signed, in the method's own units and never rescaled, so that images and classes can be compared.
        classes: the class explained for each image, `b`; None where the target is no class.
        method: its name.
        layers: those looked at, in order of execution; empty where there are none.
        where: the same in words, with what became of tokens, and how several were joined.
        target: as it was given.
        options: likewise.
        inputs: what the model was given.
        answer: what its scores are, as it was said.
    """

    attributions: Tensor
    heatmaps: Tensor
    classes: Tensor | None
    method: str
    layers: tuple[str, ...] = ()
    where: str = ""
    target: Target = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs | None = field(default=None, repr=False)
    answer: Kind | None = None

    @property
    def layer(self) -> str:
        """The layers in one word, joined by `+`; empty where there are none."""
        return "+".join(self.layers)


def attribute(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = None,
    method: str = "gradcam",
    layer: OneOrMore = None,
    answer: Kind | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Attribution:
    """What in the images speaks for (positive) or against (negative) the figure that `target` names.

    The model is in evaluation mode for it and untouched: all is done on a copy that shares its weights. It works within
    `torch.inference_mode()`, under autocast, in a training step.

    Args:
        model: any module, wrapped or compiled, too.
        images: `b c h w` (or `b c l`, `b c d h w`), as the model takes them.
        target: a class; one for each image; a callable from the model's output to `b` figures (for regression,
            segmentation, detection, or outputs that hold several tensors); or None for the class predicted. Where the
            model returns one figure for each image, None is that figure; as the logit or probability of two classes
            it is that of class 1, and class 0 is its negative.
        method: one of `saliency`, `input_x_gradient`, `integrated_gradients`, `smoothgrad`, `deep_lift`,
            `gradient_shap`, `guided_backprop`, `deconvolution`, `occlusion`, `feature_ablation`, `lrp`,
            `layer_activation`, `gradcam`, `hirescam`, `layercam`, `guided_gradcam`.
        layer: for the last five, by its name, or that of one of its calls (`"relu#2"`), or of a functional call, as
            `capture(ops=True)` gives it (`"cat"`). Several, in a list, are joined: each map divided by its own largest
            magnitude, then the larger value. Default: the latest map through which all passes that the answer knows of
            the image, and at more than one place of which its gradient is not 0; of a transformer the tokens that enter
            its last block. Several are joined where only together they are that.
        answer: what the model's scores are: `"logits"`, `"probabilities"`, `"label_logits"` or `"label_probabilities"`
            (of labels that may be true together), or `"figures"` (no probabilities at all); default: told by their
            values and how the model makes them.
        additional_forward_args: what `forward` takes after the images, one value or a tuple. A tensor as long as the
            images has a row for each of them.
        keywords: what `forward` takes by name, likewise.
        seed: of the noise of `smoothgrad` and `gradient_shap`, which each image draws as if it were alone.
        internal_batch_size: rows that the model is given at once; default: what autograd needs for one row is
            measured, and half of the free memory of a GPU, or 1 GiB, is used.
        progress: show a bar.
        options: as Captum names them: `baselines`, `n_steps`, `sliding_window_shapes`, `strides`, `feature_mask`,
            `nt_samples`, `stdevs`, `multiply_by_inputs`, ...; `reshape_transform` for maps of transformers.
            Defaults are Captum's, but: occlusion slides a window of an eighth of each side by half of itself, ablation
            takes an 8 × 8 grid, smoothgrad 25 samples of 15 % noise (Smilkov et al. 2017), gradient_shap zeros.
    Returns:
        The attributions, and heatmaps `b h w`.
    Raises:
        DtypeError: the model cannot be copied, images are no floats or not of its dtype, or the
            output needs a callable.
        DeviceError: the inputs are on another device than the model.
        ShapeError: images are empty or of a shape that the model refuses, the layer returns no map, target does not
            fit, or the rows of what the model returns are not the images.
        LayerError: no such layer, one that the method has no rule for, or no map through which the answer passes.
        OptionError: no such method, option, answer or class, `forward` takes other inputs, or no gradient reaches the
            output.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attribute(net, torch.rand(5, 3, 8, 8), target=1).heatmaps.shape
        torch.Size([5, 8, 8])
    """
    inputs = Inputs.of(images, additional_forward_args, keywords)
    return explain(
        model,
        inputs,
        target=target,
        method=method,
        layer=layer,
        answer=answer,
        seed=seed,
        internal_batch_size=internal_batch_size,
        progress=progress,
        **options,
    )


def explain(
    model: nn.Module,
    inputs: Inputs,
    *,
    target: Target = None,
    method: str = "gradcam",
    layer: OneOrMore = None,
    answer: Kind | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Attribution:
    """`attribute`, of inputs as one object."""
    check_images(inputs.images, (3, 4, 5))
    known = method_of(method)
    if unknown := sorted(set(options) - known.takes):
        takes = f"it takes {', '.join(sorted(known.takes))}" if known.takes else "it takes none"
        raise OptionError(f"{method} has no option {', '.join(map(repr, unknown))}; {takes}.")
    if layer is not None and not known.layered:
        raise OptionError(f"{method} looks at no layer; leave layer= out.")
    if answer is not None and answer not in KINDS:
        raise OptionError(f"answer must be one of {', '.join(KINDS)}, got {answer!r}.")
    if internal_batch_size is not None and internal_batch_size < 1:
        raise OptionError(f"internal_batch_size must be at least 1, got {internal_batch_size}.")
    names = _names(model, layer)
    given, count = inputs, len(inputs.images)
    with isolated(seed):
        inputs, net = given.copied(), twin(model)
        where, at = AnswerMap((), ()), ""
        if known.layered:
            one = Explained(net, inputs.rows(slice(1)), _part_of(_as_many(target, count), slice(1), count))
            where = _named(model, one, names) if names else _answer_map(model, one)
        if len(where.layers) == 1 and find(net, where.layers[0].partition("#")[0]) is not None:
            net, at = one_call(net, where.layers[0])
        rows = internal_batch_size or rows_at_once(net, inputs.rows(slice(1)), count * known.rows(options))
        explained, wanted = Explained(net, inputs, target, answer), _as_many(target, count)
        per_image = {"feature_mask"} | ({"baselines"} if method != "gradient_shap" else set())  # there they are samples
        size = 1 if known.alone else max(1, min(rows // known.at_once, count))
        parts, classes = [], []
        for part in tqdm(list(chunks(count, size)), disable=not progress, unit="batch"):
            if known.alone:
                seed_all(seed)
            explained.inputs, explained.target = inputs.rows(part), _part_of(wanted, part, count)
            here = {k: _part_of(v, part, count) if k in per_image else v for k, v in options.items()}
            parts.append(known.run(Job(explained, where, at, here, rows)).detach())
            if explained.classes is not None:
                classes.append(explained.classes)
        attributions = torch.cat(parts) if len(parts) > 1 else parts[0]
        heatmaps = heatmaps_of(attributions, inputs.images)
    every = torch.cat(classes) if len(classes) > 1 else classes[0] if classes else None
    return Attribution(attributions, heatmaps, every, method, where.layers, str(where), target, options, given, answer)


def _names(model: nn.Module, layer: OneOrMore) -> list[str]:
    """The names asked for; of a functional call as it was given, since it is known once it runs."""
    entries = [] if layer is None else [layer] if isinstance(layer, (str, nn.Module)) else list(layer)
    if layer is not None and not entries:
        raise OptionError("layer= names no layer; leave it out for the map that the answer depends on.")
    names = []
    for entry in entries:
        try:
            names.append(layer_name(model, entry))
        except LayerError:
            if not isinstance(entry, str):
                raise
            names.append(entry)  # of a functional call, perhaps
    return names


def _answer_map(model: nn.Module, one: Explained) -> AnswerMap:
    """The map that the answer of one image depends on; that of a callable's figure may be another at each call."""
    seek = partial(answer_map, one.model, one.inputs, one.figures)
    return seek() if callable(one.target) else remembered(model, one.inputs, "class", seek)


def _named(model: nn.Module, one: Explained, names: list[str]) -> AnswerMap:
    """The layers of these names, or functional calls."""
    try:
        return remembered(model, one.inputs, tuple(names), lambda: map_of(one.model, one.inputs, names))
    except LayerError:
        for name in names:
            layer_name(model, name)  # which says what is close to a name that is no layer's
        raise


def _as_many(target: Target, n: int) -> Target:
    """One class, or one for each image, before the images are cut into parts."""
    if target is None or callable(target) or isinstance(target, int):
        return target
    chosen = target if isinstance(target, Tensor) else torch.as_tensor(target, device="cpu")
    if chosen.dim() and chosen.shape != (n,):
        raise ShapeError(f"target must be one class or {n}, one for each image, got shape {tuple(chosen.shape)}.")
    return chosen


def _part_of(value: Any, part: slice, n: int) -> Any:
    """The share of these images in what may hold an entry for each of them."""
    if isinstance(value, Tensor):
        return value[part] if value.dim() and len(value) == n else value
    return value[part] if isinstance(value, (list, tuple)) and len(value) == n else value


def heatmaps_of(attributions: Tensor, images: Tensor) -> Tensor:
    """Attributions summed over channels, at the size of the images: `b c ... -> b ...`, float32, sign kept."""
    maps = attributions.detach().float()
    maps = maps.sum(1, keepdim=True) if maps.shape[1] > 1 else maps
    if maps.shape[2:] == images.shape[2:]:
        maps = maps.clone() if attributions.shape[1] == 1 else maps  # memory of its own
    else:
        maps = F.interpolate(maps, images.shape[2:], mode=MODES[images.dim() - 2])
    return maps[:, 0]
