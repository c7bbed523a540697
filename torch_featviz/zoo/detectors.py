"""torchvision's detectors by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .card import ModelCard


def detector_card(
    name: str, weights: Any, landmarks: Callable[[Callable[[], nn.Module]], tuple[str, str, str]]
) -> ModelCard:
    """The card of a detector, which sizes and normalises images itself: they keep their size, and lie in [0, 1].

    Args:
        name: as in `torchvision.models`, with or without that of its weights.
        weights: one of its published weights.
        landmarks: finds its first, middle and last convolution.
    """
    from torchvision import models  # type: ignore[import-untyped]  # noqa: PLC0415  slow to import

    build = partial(
        models.get_model, name.partition(".")[0], weights=None, weights_backbone=None
    )  # nothing is downloaded
    low, middle, high = landmarks(build)
    return ModelCard(
        name=f"torchvision:{name}",
        build=build,
        input_size=(3, 0, 0),
        classes=tuple(weights.meta["categories"]),
        low=low,
        middle=middle,
        high=high,
        weights=weights.url,
    )
