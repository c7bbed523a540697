"""Networks, their cards, data sets, and training."""

from __future__ import annotations

from torch_featviz.choices import MODELS, check_model
from torch_featviz.gate import gated

from . import cifar, filters, lite, xo
from .augment import Augmentation, augment, probabilities
from .card import ModelCard
from .data import XO, ImageFiles, augment_marks, channel_stats, cifar10, mnist, write_image_folder
from .filters import FOUR_EDGES, SOBEL_X, SOBEL_Y, VERTICAL_EDGE, FilterBank, FilterMaps
from .fit import Evaluation, evaluate, fit
from .imagenet import torchvision_card
from .images import from_pil, read_image
from .progress import TrainingCurves
from .recipe import train_xo
from .timm_nets import timm_card

__all__ = [
    "FOUR_EDGES",
    "SOBEL_X",
    "SOBEL_Y",
    "VERTICAL_EDGE",
    "XO",
    "Augmentation",
    "Evaluation",
    "FilterBank",
    "FilterMaps",
    "ImageFiles",
    "ModelCard",
    "TrainingCurves",
    "augment",
    "augment_marks",
    "card",
    "channel_stats",
    "cifar10",
    "evaluate",
    "fit",
    "from_pil",
    "mnist",
    "names",
    "probabilities",
    "read_image",
    "train_xo",
    "write_image_folder",
]

_CARDS = {known.name: known for known in (*filters.CARDS, *xo.CARDS, *cifar.CARDS)}


def names() -> list[str]:
    """List the names that `card` knows, besides `torchvision:NAME` and `timm:NAME`.

    Example:
        >>> names()[:3]
        ['filters', 'xo', 'xo_deep']
    """
    return list(MODELS)


@gated
def card(name: str) -> ModelCard:
    """Return the card of a network by its name: one of `names()`, `torchvision:NAME` or `timm:NAME`.

    Names of torchvision and timm can include the weights: `torchvision:resnet50.IMAGENET1K_V1`,
    `timm:resnet18.a1_in1k`. The card's `preprocess` is the transform published with the weights.

    Raises:
        OptionError: no such network; the error lists the nearest names.
        MissingError: timm is needed and not installed.
    Example:
        >>> card("xo_deep").classes
        ('circle', 'cross')
    """
    check_model(name)
    if name in _CARDS:
        return _CARDS[name]
    if name == lite.NAME:
        return lite.lite0_card()
    house, _, rest = name.partition(":")
    return timm_card(rest) if house == "timm" else torchvision_card(rest or name)
