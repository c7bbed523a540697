"""Networks of the circle-and-cross tutorial: 116x116 grey in, circle or cross out."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from torch_featviz.errors import OptionError

from .card import ModelCard

CLASSES = ("circle", "cross")
INPUT_SIZE = (1, 116, 116)


class XONet(nn.Module):
    """Convolutions 3x3, each with ReLU and (by default) 2x2 max-pool, then linear layers: `b 1 h w -> b 2`.

    Args:
        channels: channels of the input and after each convolution.
        hidden: sizes of the linear layers before the last.
        pool: max-pool after each convolution.
        size: height and width of the input.
    Raises:
        OptionError: the input is too small for the number of convolutions.
    Example:
        >>> XONet((1, 9, 5), (1200, 64))(torch.zeros(1, 1, 116, 116)).shape
        torch.Size([1, 2])
    """

    def __init__(self, channels: tuple[int, ...], hidden: tuple[int, ...], *, pool: bool = True, size: int = 116):
        super().__init__()
        features: OrderedDict[str, nn.Module] = OrderedDict()
        side = size
        for i, (before, after) in enumerate(pairwise(channels), 1):
            features[f"conv{i}"], features[f"relu{i}"] = nn.Conv2d(before, after, 3), nn.ReLU()
            side = side - 2
            if pool:
                features[f"pool{i}"], side = nn.MaxPool2d(2), side // 2
        if side < 1:
            raise OptionError(f"{len(channels) - 1} convolutions need a larger input, got {size}x{size}.")
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        sizes = (channels[-1] * side * side, *hidden, len(CLASSES))
        for i, (before, after) in enumerate(pairwise(sizes), 1):
            classifier[f"fc{i}"] = nn.Linear(before, after)
            if i <= len(hidden):
                classifier[f"relu{i}"] = nn.ReLU()
        self.features = nn.Sequential(features)
        self.classifier = nn.Sequential(classifier)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return scores


xo = partial(XONet, (1, 9, 5), (1200, 64))
xo_deep = partial(XONet, (1, 9, 5, 5), (480, 320))
xo_nopool = partial(XONet, (1, 9, 5), (4000, 2400), pool=False)
xo_wide = partial(XONet, (1, 18, 5), (1200, 64))


def _card(name: str, build: partial[XONet], middle: str, high: str) -> ModelCard:
    conv = "features.conv{}".format
    return ModelCard(name, build, INPUT_SIZE, CLASSES, low=conv(1), middle=conv(middle), high=conv(high))


CARDS = (
    _card("xo", xo, "2", "2"),
    _card("xo_deep", xo_deep, "2", "3"),
    _card("xo_nopool", xo_nopool, "2", "2"),
    _card("xo_wide", xo_wide, "2", "2"),
)
