"""AlexNet, and any other classifier, detector or segmenter of torchvision by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torch_featviz.errors import OptionError
from torch_featviz.model.held import base_of

from .card import ModelCard

PREFIX = "torchvision:"
# Old nets that warn unless told how to begin, and whose published weights expect TensorFlow's input range.
_PORTED = {"init_weights": False, "transform_input": True}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _PORTED, "inception_v3": _PORTED}
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


@lru_cache(maxsize=8)
def torchvision_card(name: str) -> ModelCard:
    """Return the card of a torchvision classifier, detector or segmenter; nothing is downloaded or allocated.

    The images of a segmenter keep their proportions, so that its `input_size` is `(3, 0, 0)`.

    Args:
        name: as in `torchvision.models`, for example `"resnet18"`, or with the name of its weights,
            `"resnet50.IMAGENET1K_V1"`. Default: torchvision's default weights.
    Raises:
        OptionError: torchvision has no such network or weights; the error lists the nearest names.
    Example:
        >>> torchvision_card("resnet18").low
        'conv1'
    """
    from torchvision import models  # type: ignore[import-untyped]  # noqa: PLC0415  slow to import

    detectors = models.list_models(module=models.detection)
    listed = [*models.list_models(module=models), *detectors, *models.list_models(module=models.segmentation)]
    known, (net, _, tag) = listed, name.partition(".")
    if net not in known:
        close = ", ".join(repr(n) for n in get_close_matches(net, known, 3, 0.4))
        raise OptionError(
            f"no model {net!r} in torchvision; close: {close or 'none'}. All: torchvision.models.list_models()."
        )
    published: Any = models.get_model_weights(net)
    if tag and tag not in published.__members__:
        raise OptionError(
            f"no weights {tag!r} of {net!r} in torchvision; there are {', '.join(published.__members__)}."
        )
    weights = published[tag or "DEFAULT"].value
    build = partial(models.get_model, net, weights=None, **_options(net, weights))
    low, middle, high = landmarks(build)
    if net in detectors:  # they size and normalise images themselves: these keep their size, and lie in [0, 1]
        return ModelCard(
            name=PREFIX + name,
            build=build,
            input_size=(3, 0, 0),
            classes=tuple(weights.meta["categories"]),
            low=low,
            middle=middle,
            high=high,
            weights=weights.url,
        )
    preset = weights.transforms()
    side = getattr(preset, "crop_size", (0,))[0]  # where nothing is cut out, images have any proportions
    return ModelCard(
        name=name if name == "alexnet" else PREFIX + name,
        build=build,
        input_size=(3, side, side),
        classes=tuple(weights.meta["categories"] or ()),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        low=low,
        middle=middle,
        high=high,
        weights=weights.url,
        resize=preset.resize_size[0] if side else None,
        rename=_modern_key if name.startswith("densenet") else None,
        transform=preset,
    )


def _options(name: str, weights: Any) -> dict[str, Any]:
    """How the net that these weights fit is built, without a download.

    Some builders download the weights of a backbone even where none are asked for, and some leave out a head whose
    weights are published.
    """
    from torchvision.models import get_model_builder  # type: ignore[import-untyped]  # noqa: PLC0415

    takes = signature(get_model_builder(name)).parameters
    whole = {key: value for key, value in (("weights_backbone", None), ("aux_loss", True)) if key in takes}
    size = {"image_size": weights.meta["min_size"][0]} if name.startswith("vit_") else {}
    return {**_OPTIONS.get(name, {}), **whole, **size}


class _Weightless(TorchFunctionMode):
    """Weights on the meta device; unlike `torch.device("meta")` it lets a net compute its own widths."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def landmarks(build: Callable[[], nn.Module]) -> tuple[str, str, str]:
    """First, middle and last convolution on the way to the main output; empty names where there is none."""
    with _Weightless():
        return landmarks_of(build())


def landmarks_of(model: nn.Module) -> tuple[str, str, str]:
    """The same, of a net that is built already."""
    adapted = {part for module in model.modules() if base_of(module) is not None for part in module.modules()}
    convs = [
        name
        for name, module in model.named_modules()
        if _is_conv(module)
        and (module not in adapted or base_of(module) is not None)
        and not name.lower().startswith("aux")
    ] or [""]
    return convs[0], convs[len(convs) // 2], convs[-1]


def _is_conv(module: nn.Module) -> bool:
    """Whether a module is a convolution over two dimensions, or an adapter around one."""
    base = base_of(module)
    return isinstance(module, nn.Conv2d) if base is None else _is_conv(base)


def _modern_key(key: str) -> str:
    return _OLD_DENSENET_KEY.sub(r"\1\2", key)
