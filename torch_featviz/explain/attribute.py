"""`attribute()`: which pixels speak for a model's answer, by any of Captum's methods. The model is unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from torch_featviz.choices import METHODS, check_method
from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.gate import gate
from torch_featviz.inspect.cut import AnswerMap, answer_map, map_of, remembered
from torch_featviz.model.answer import KINDS, Kind, Target
from torch_featviz.model.boxes import names_in
from torch_featviz.model.inputs import Inputs, batch_of, check_images
from torch_featviz.model.labels import names_of
from torch_featviz.model.layers import find, layer_name
from torch_featviz.model.masks import PixelsFound, Told, mask_of, over_mask
from torch_featviz.model.names import known_names, numbered
from torch_featviz.model.run import one_call
from torch_featviz.model.twin import twin
from torch_featviz.model.untouched import isolated, seed_all
from torch_featviz.picture.images import Card

from .attribution import Attribution, heatmaps_of
from .box_runs import Asked
from .boxes import DEFAULT, ON_PIXELS, OPTIONS, box_heatmaps, is_detector, known_detector
from .explained import Explained, check_rows, chunks, rows_at_once
from .masked import map_of_mask, own_masks
from .methods import Job, method_of

OneOrMore: TypeAlias = str | nn.Module | Sequence[str | nn.Module] | None


@gate("target", "method")
def attribute(
    model: nn.Module,
    images: Tensor,
    *others: object,
    target: Target = None,
    method: str | None = None,
    layer: OneOrMore = None,
    answer: Kind | None = None,
    classes: Sequence[str] = (),
    card: Card | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Attribution:
    """Compute which parts of the images speak for (positive) or against (negative) the output that `target` selects.

    The model is unchanged: a copy that shares its weights runs, in evaluation mode. It works inside
    `torch.inference_mode()`, under autocast, and in a training step.

    Args:
        model: any module, wrapped or compiled or not.
        images: `b c h w` (or `b c l`, `b c d h w`), as the model takes them. One image `c h w` is a batch of one, also
            in the result.
        others: not used; all other arguments are keywords.
        target: a class, by its number or its name; one class per image; a callable from the model's output to `b`
            values (for regression, or outputs with several tensors); or None for the predicted class, and for a
            detector's best boxes: each is explained by its own class logit before suppression. For a detector a class
            chooses the boxes of that class. If the model returns one
            value per image, None selects that value; if the value is the logit or probability of two classes, it
            belongs to class 1, and class 0 is its negative. For a segmenter (torchvision's, transformers', or any that
            returns `b n h w`), the class's mean score over its own mask in the image (Vinogradova et al. 2020); None is
            the class with the most pixels, the background last.
        method: one of `saliency`, `input_x_gradient`, `integrated_gradients`, `smoothgrad`, `deep_lift`,
            `gradient_shap`, `guided_backprop`, `deconvolution`, `occlusion`, `feature_ablation`, `lrp`,
            `layer_activation`, `gradcam`, `hirescam`, `layercam`, `guided_gradcam`. Default: `gradcam`; for boxes
            `layercam`, beside which there are `gradcam`, `hirescam`, `saliency` and `input_x_gradient`. `hirescam` is 0
            by construction where the next layer is a norm layer, as at the default layer of a ViT with a class token;
            the result's `note` says so.
        layer: for the last five methods: a layer, one of its calls (`"relu#2"`), or a functional call as
            `capture(ops=True)` names it (`"cat"`). The maps of a list of layers are joined: each is divided by its
            largest magnitude, then the larger value is taken. Default: the latest map that the whole answer depends on
            and whose gradient is not 0 at more than one place; for a transformer, the tokens that enter its last block.
            If only several maps together carry the whole answer, they are joined. For boxes: the maps that enter the
            head. For a segmenter: the end of the encoder, joined with the earlier maps that its decoder reads.
        answer: meaning of the model's scores: `"logits"`, `"probabilities"`, `"label_logits"` or
            `"label_probabilities"` (independent labels), or `"figures"` (numbers that are not probabilities). Default:
            derived from their values and from the last operators of the model.
        classes: class names in the order of the outputs, for a target that is a name; in torchvision's detectors the
            background is the first. Default: those of the card, or of the configuration of a model of transformers.
        card: card of the model: its class names, and the meaning of its scores.
        additional_forward_args: further positional arguments of `forward`, one value or a tuple. A tensor as long as
            the images has one row per image.
        keywords: keyword arguments of `forward`, likewise.
        seed: seed of the noise of `smoothgrad` and `gradient_shap`. The noise of an image does not depend on the other
            images.
        internal_batch_size: rows per forward. Default: as many as fit into half of the free memory of a GPU, or 256
            MiB on a CPU, by a measurement of one row. A detector may run fewer at once.
        progress: show a bar.
        options: options of the method, with Captum's names: `baselines`, `n_steps`, `sliding_window_shapes`, `strides`,
            `feature_mask`, `nt_samples`, `stdevs`, `multiply_by_inputs`, ...; `reshape_transform` for the maps of
            transformers. Defaults are Captum's, except: occlusion uses a window of an eighth of each side and moves it
            by half its size; feature ablation an 8 × 8 grid; smoothgrad 25 samples with 15 % noise (Smilkov et al.
            2017); gradient_shap baselines of zeros. For boxes: `top`, how many of each image (5), and `min_score`,
            the lowest score (0.25 where the model returns all candidates; any where it returns final boxes).
    Returns:
        The attributions, and heatmaps `b h w`; for a detector a heatmap for each box, `n h w`, and `boxes`.
    Raises:
        DtypeError: the model cannot be copied, images are not floats or not of its dtype, or the output needs a
            callable target.
        DeviceError: the inputs are on another device than the model.
        ShapeError: images are empty or have a shape that the model does not accept, the layer returns no map, target
            does not fit, or the model's output has no row per image.
        LayerError: no such layer, the method has no rule for a layer, or the answer depends on no map.
        OptionError: more than two positional arguments, no such method, option, answer or class, several classes of one
            name, a segmenter's class without a pixel, `forward` takes other arguments, or no gradient reaches the
            output.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> attribute(net, torch.rand(5, 3, 8, 8), target=1).heatmaps.shape
        torch.Size([5, 8, 8])
    """
    if others:
        raise OptionError(
            f"attribute takes the model and the images by position, and all else by name: {_by_name(others[0])}."
        )
    if method is not None:
        check_method(method)
    inputs = Inputs.of(batch_of(model, images), additional_forward_args, keywords)
    check_images(inputs.images, (3, 4, 5))
    answer = getattr(card, "answer", None) if answer is None else answer
    told = names_of(classes) or names_of(getattr(card, "classes", ())) or names_in(model)
    boxes = partial(_of_boxes, model, inputs, method or DEFAULT, target=target, names=told, layer=layer, answer=answer)
    boxes = partial(boxes, seed=seed, rows=internal_batch_size, options=options)
    if not callable(target) and (known_detector(model) or OPTIONS & options.keys()) and (found := boxes()):
        return found
    names, published = known_names(classes, None, answer), known_names((), card, answer)
    wanted = numbered(target, names or published or told)
    try:
        return explain(
            model,
            inputs,
            target=wanted,
            method=method or "gradcam",
            layer=layer,
            answer=answer,
            names=names or (published if wanted is not target else ()),
            published=published,
            seed=seed,
            internal_batch_size=internal_batch_size,
            progress=progress,
            **options,
        )
    except (DtypeError, ShapeError):
        if callable(target) or (found := boxes()) is None:
            raise
        return found


def _by_name(value: object) -> str:
    """How an argument that was given by position is written."""
    text = isinstance(value, str)
    name = "method" if text and value in METHODS else "layer" if text or isinstance(value, nn.Module) else "target"
    return f"write {name}={value!r:.80}"


def _of_boxes(
    model: nn.Module,
    inputs: Inputs,
    method: str,
    *,
    target: Target,
    names: Sequence[str],
    layer: OneOrMore,
    answer: Kind | None,
    seed: int,
    rows: int | None,
    options: Mapping[str, Any],
) -> Attribution | None:
    """Heatmaps of a detector's boxes; None where the model returns none."""
    with isolated(seed):
        if inputs.images.dim() != 4 or not is_detector(model, inputs, answer, len(names)):
            return None
        check_method(method)
        if unknown := sorted(options.keys() - OPTIONS):
            raise OptionError(
                f"{method} of boxes has no option {', '.join(map(repr, unknown))}; it takes "
                f"{', '.join(sorted(OPTIONS))}."
            )
        if layer is not None and method in ON_PIXELS:
            raise OptionError(f"{method} uses no layer; leave layer out.")
        layers = tuple(_names(model, layer))
        only = tuple(_chosen(target, names, len(inputs.images)))
        asked = Asked(method, layers, answer=answer, named=len(names), only=only, rows=rows, **options)
        try:
            found = box_heatmaps(model, inputs, asked)
        except LayerError:
            for name in layers:
                layer_name(model, name)  # which says what is close to a name that is no layer's
            raise
    if found is None:
        return None
    maps, boxes = found.heatmaps, found.boxes
    how: tuple[Any, ...] = (method, found.layers, found.where, target, dict(options), inputs, answer, boxes)
    return Attribution(maps[:, None], maps, boxes.classes, *how)


def _chosen(target: Target, names: Sequence[str], count: int) -> list[int]:
    """The class whose boxes are asked for in each image; empty for all."""
    if target is None:
        return []
    given = _as_many(numbered(target, names), count)
    chosen = torch.as_tensor(given, device="cpu")
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise DtypeError(f"target must be a class, or one for each image, by number or name; got {target!r:.80}.")
    wanted: list[int] = chosen.expand(count).tolist()
    last = f" to {len(names) - 1}" if names else ""
    if min(wanted) < 0 or (names and max(wanted) >= len(names)):
        raise OptionError(f"target must be a class from 0{last}, by number or name; got {target!r:.80}.")
    return wanted


def explain(
    model: nn.Module,
    inputs: Inputs,
    *,
    target: Target = None,
    method: str = "gradcam",
    layer: OneOrMore = None,
    answer: Kind | None = None,
    names: Sequence[str] = (),
    published: Sequence[str] = (),
    **more: Any,
) -> Attribution:
    """`attribute`, of inputs as one object, and of a class by its number; a segmenter's is explained over its mask."""
    check_images(inputs.images, (3, 4, 5))
    given: dict[str, Any] = {"method": method, "layer": layer, **more}
    with suppress(PixelsFound):
        return _explain(model, inputs, target=target, answer=answer, names=names, **given)
    with isolated():
        masked, classes, kind = own_masks(twin(model), inputs.copied(), target, Told(answer, names, published))
    return replace(_explain(model, masked, target=classes, answer=kind, **given), target=target)


def _explain(
    model: nn.Module,
    inputs: Inputs,
    *,
    target: Target,
    method: str,
    layer: OneOrMore,
    answer: Kind | None,
    names: Sequence[str] = (),
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Attribution:
    check_method(method)
    known = method_of(method)
    if unknown := sorted(set(options) - known.takes):
        takes = f"it takes {', '.join(sorted(known.takes))}" if known.takes else "it takes none"
        raise OptionError(f"{method} has no option {', '.join(map(repr, unknown))}; {takes}.")
    if layer is not None and not known.layered:
        raise OptionError(f"{method} uses no layer; leave layer out.")
    if answer is not None and answer not in KINDS:
        raise OptionError(f"answer must be one of {', '.join(KINDS)}, got {answer!r}.")
    check_rows(internal_batch_size)
    layers = _names(model, layer)
    given, count = inputs, len(inputs.images)
    with isolated(seed):
        inputs, net = given.copied(), over_mask(twin(model), given)
        where, at = AnswerMap((), ()), ""
        if known.layered:
            one, of = inputs.rows(slice(1)), _part_of(_as_many(target, count), slice(1), count)
            where = _named(model, net, one, layers) if layers else _answer_map(model, net, one, of)
        if len(where.layers) == 1 and find(net, where.layers[0].partition("#")[0]) is not None:
            net, at = one_call(net, where.layers[0])
        rows = internal_batch_size or rows_at_once(net, inputs.rows(slice(1)), count * known.rows(options))
        explained, wanted = Explained(net, inputs, target, answer), _as_many(target, count)
        explained.names = names
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
    found = Attribution(attributions, heatmaps, every, method, where.layers, str(where), target, options, given, answer)
    return replace(found, note=explained.note) if explained.note else found


def _names(model: nn.Module, layer: OneOrMore) -> list[str]:
    """The names asked for; of a functional call as it was given, since it is known once it runs."""
    entries = [] if layer is None else [layer] if isinstance(layer, (str, nn.Module)) else list(layer)
    if layer is not None and not entries:
        raise OptionError("layer is empty; give a layer, or leave it out for the map that the answer depends on.")
    names = []
    for entry in entries:
        try:
            names.append(layer_name(model, entry))
        except LayerError:
            if not isinstance(entry, str):
                raise
            names.append(entry)  # of a functional call, perhaps
    return names


def _answer_map(model: nn.Module, net: nn.Module, one: Inputs, target: Target) -> AnswerMap:
    """The map that the answer of one image depends on; that of a callable's figure may be another at each call."""

    def seek() -> AnswerMap:
        explained = Explained(net, one, target)
        return answer_map(net, one, explained.figures) if mask_of(one) is None else map_of_mask(explained)

    return seek() if callable(target) else remembered(model, one, "class", seek)


def _named(model: nn.Module, net: nn.Module, one: Inputs, names: list[str]) -> AnswerMap:
    """The layers of these names, or functional calls."""
    try:
        return remembered(model, one, tuple(names), partial(map_of, net, one, names))
    except LayerError:
        for name in names:
            layer_name(model, name)  # which says what is close to a name that is no layer's
        raise


def _as_many(target: Target, n: int) -> Target:
    """One class, or one for each image, before the images are cut into parts."""
    if target is None or callable(target) or isinstance(target, int):
        return target
    try:
        chosen = target if isinstance(target, Tensor) else torch.as_tensor(target, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(f"target must be a class number, or one for each image, got {target!r:.80}.") from error
    if chosen.dim() and chosen.shape != (n,):
        raise ShapeError(f"target must be one class, or {n} classes, one per image; got shape {tuple(chosen.shape)}.")
    return chosen


def _part_of(value: Any, part: slice, n: int) -> Any:
    """The share of these images in what may hold an entry for each of them."""
    if isinstance(value, Tensor):
        return value[part] if value.dim() and len(value) == n else value
    return value[part] if isinstance(value, (list, tuple)) and len(value) == n else value
