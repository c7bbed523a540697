"""Networks for CIFAR-10 (3x32x32, ten classes): one without convolutions, a small one, a good one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .card import ModelCard

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
THREE = ("airplane", "automobile", "ship")
INPUT_SIZE = (3, 32, 32)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class CifarMLP(nn.Module):
    """Linear 3072-1024-512-128-10 with tanh between: `b 3 32 32 -> b classes`; 3,738,506 parameters.

    Example:
        >>> CifarMLP()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(3072, 1024), nn.Tanh()),
            *(nn.Linear(1024, 512), nn.Tanh()),
            *(nn.Linear(512, 128), nn.Tanh()),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(images)
        return scores


class SmallCifarCNN(nn.Module):
    """Two 3x3 convolutions, 3-16-8, then 512-32-10: `b 3 32 32 -> b classes`; tanh and pooling are functions.

    Example:
        >>> SmallCifarCNN(num_classes=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 8, 3, padding=1)
        self.fc1 = nn.Linear(8 * 8 * 8, 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.tanh(self.conv1(images)), 2)
        maps = F.max_pool2d(F.tanh(self.conv2(maps)), 2)
        hidden = F.tanh(self.fc1(maps.flatten(1)))
        scores: Tensor = self.fc2(hidden)
        return scores


class CifarCNN(nn.Module):
    """Three blocks of two 3x3 convolutions to 256x4x4, then 4096-1024-512-10: `b 3 32 32 -> b classes`.

    Example:
        >>> CifarCNN().features(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 256, 4, 4])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 32, 64), *_block(64, 128, 128), nn.Dropout2d(0.05), *_block(128, 256, 256)
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.1),
            *(nn.Linear(4096, 1024), nn.ReLU()),
            *(nn.Linear(1024, 512), nn.ReLU()),
            nn.Dropout(0.1),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return scores


def _block(before: int, middle: int, after: int) -> list[nn.Module]:
    first = [nn.Conv2d(before, middle, 3, padding=1), nn.BatchNorm2d(middle), nn.ReLU()]
    return [*first, nn.Conv2d(middle, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]


def _card(
    name: str,
    build: Callable[[], nn.Module],
    layers: tuple[str, str, str],
    classes: tuple[str, ...] = CLASSES,
) -> ModelCard:
    low, middle, high = layers
    return ModelCard(name, build, INPUT_SIZE, classes, MEAN, STD, low, middle, high)


_SMALL = ("conv1", "conv2", "conv2")
CARDS = (
    _card("cifar_mlp", CifarMLP, ("classifier.1", "classifier.3", "classifier.5")),
    _card("cifar_cnn", SmallCifarCNN, _SMALL),
    _card("cifar_cnn_3", partial(SmallCifarCNN, 3), _SMALL, THREE),
    _card("cifar_cnn_large", CifarCNN, ("features.0", "features.6", "features.16")),
)
