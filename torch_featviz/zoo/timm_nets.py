"""Any network of timm by its name, with the input and classes of timm's own configuration."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache, partial
from math import floor
from typing import Any

import torch
from torch import Tensor

from torch_featviz.errors import OptionError, WeightsError
from torch_featviz.optional import needs

from .card import ModelCard
from .imagenet import landmarks
from .weights import State, why

PREFIX = "timm:"


@lru_cache(maxsize=8)
def timm_card(name: str) -> ModelCard:
    """Return the card of a timm network; nothing is downloaded.

    Args:
        name: as in `timm.list_models()`, for example `"resnet18"`, with or without a tag (`"resnet18.a1_in1k"`).
    Raises:
        OptionError: timm has no such network; the error lists the nearest names.
        MissingError: timm is not installed.
    """
    timm = needs("timm", repr(PREFIX + name), "torch_featviz[timm]")
    config = _config(timm, name)
    build = partial(timm.create_model, name)
    low, middle, high = landmarks(build)
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    side = min(data["input_size"][1:])
    return ModelCard(
        name=PREFIX + name,
        build=build,
        input_size=data["input_size"],
        classes=_classes(timm, config),
        mean=data["mean"],
        std=data["std"],
        low=low,
        middle=middle,
        high=high,
        weights=partial(_pretrained, timm, name) if config.has_weights else None,
        resize=None if data["crop_mode"] == "squash" else floor(side / data["crop_pct"]),
        transform=partial(_transformed, timm.data.create_transform(**data, is_training=False)),
    )


def _transformed(published: Any, image: Any) -> Tensor:
    """What timm's own transform makes of an image; bytes are given to it as PIL images, since it takes no others."""
    if not isinstance(image, Tensor) or image.is_floating_point():
        made: Tensor = published(image)
        return made
    from torchvision.transforms.functional import to_pil_image  # type: ignore[import-untyped]  # noqa: PLC0415

    return torch.stack([published(to_pil_image(each)) for each in image]).to(image.device)


def _config(timm: Any, name: str) -> Any:
    if timm.is_model(name):
        try:
            return timm.get_pretrained_cfg(name)
        except RuntimeError:  # a tag that it does not have; what it has is told below
            pass
    known = [*timm.list_models(), *timm.list_pretrained()]
    close = ", ".join(repr(n) for n in get_close_matches(name, known, 3, 0.4))
    raise OptionError(f"no model {name!r} in timm; close: {close or 'none'}. All: timm.list_models().")


def _classes(timm: Any, config: Any) -> tuple[str, ...]:
    """The first of each class's names; none where timm does not know the data set."""
    subset = timm.data.infer_imagenet_subset({"num_classes": config.num_classes})
    if subset is None:
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(i).partition(",")[0] for i in range(config.num_classes))


def _pretrained(timm: Any, name: str) -> State:
    try:
        state: State = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the hub, of the network, of a checksum, each with classes of its own
        raise WeightsError(
            f"no weights for {PREFIX + name!r}: {why(error)}; download them elsewhere and pass the file."
        ) from error
    return state
