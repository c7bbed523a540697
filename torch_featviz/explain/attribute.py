"""`attribute()`: why a model gave the answer it gave, by any of Captum's methods, and the model never touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.answer import KINDS, Kind, Target
from torch_featviz.model.inputs import Inputs, check_images
from torch_featviz.model.layers import layer_name
from torch_featviz.model.run import one_call
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated, seed_all

from .cam import last_map
from .explained import Explained, chunks, rows_at_once
from .methods import Job, method_of

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Attribution:
    """What one method found, for each image.

    Args:
        attributions: as the method gives them: `b c ...` per value of the input, or `b k ...` on a layer's maps.
        heatmaps: the same reduced over channels by their sum, at the size of the images: `b ...` (`b h w`), float32,
            signed, in the method's own units and never rescaled, so that images and classes can be compared.
        classes: the class explained for each image, `b`; None where the target is no class.
        method: its name.
        layer: the layer looked at; empty where there is none.
        target: as it was given.
        options: likewise.
        inputs: what the model was given.
        answer: what its scores are, as it was said.
    """

    attributions: Tensor
    heatmaps: Tensor
    classes: Tensor | None
    method: str
    layer: str = ""
    target: Target = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs | None = field(default=None, repr=False)
    answer: Kind | None = None


def attribute(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = None,
    method: str = "gradcam",
    layer: str | nn.Module | None = None,
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
        layer: for the last five, by its name, or that of one of its calls (`"relu#2"`); default: the convolution that
            runs last and still has a map.
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
        LayerError: no such layer, or one that the method has no rule for.
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
    layer: str | nn.Module | None = None,
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
    name = layer_name(model, layer) if layer is not None else ""
    given, count = inputs, len(inputs.images)
    with isolated(seed):
        inputs, net = given.copied(), twin(model)
        if known.layered and not name:
            name = last_map(net, inputs.rows(slice(1)))
        net, at = one_call(net, name) if name else (net, "")
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
            parts.append(known.run(Job(explained, at, here, rows)).detach())
            if explained.classes is not None:
                classes.append(explained.classes)
        attributions = torch.cat(parts)
        heatmaps = heatmaps_of(attributions, inputs.images)
    every = torch.cat(classes) if classes else None
    return Attribution(attributions, heatmaps, every, method, name, target, options, given, answer)


def _as_many(target: Target, n: int) -> Target:
    """One class, or one for each image, before the images are cut into parts."""
    if target is None or callable(target) or isinstance(target, int):
        return target
    chosen = torch.as_tensor(target)
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
    maps = attributions.detach().float().sum(1, keepdim=True)
    if maps.shape[2:] != images.shape[2:]:
        maps = F.interpolate(maps, images.shape[2:], mode=_MODES[images.dim() - 2])
    return maps[:, 0]
