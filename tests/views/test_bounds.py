"""The largest picture of any view at its defaults: 4,000 pixels a side.

A view is drawn of as much as a person has: 1,000 classes, 64 images, 2,048 channels, 200 layers, large images.
"""

from collections import OrderedDict
from functools import lru_cache

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.models import VisionTransformer

import torch_featviz as fv
from torch_featviz import views
from torch_featviz.picture.bounds import SIDE
from torch_featviz.survey import Patches

NAMES = [f"American Staffordshire terrier, Staffordshire terrier, number {i}" for i in range(1000)]


class Classes(Dataset):
    classes = NAMES

    def __init__(self, size, count=1000):
        self.size, self.targets = size, list(range(count)) * 10

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.zeros(3, *self.size), self.targets[i]


def patches(n, side):
    """As of an unpadded layer that sees `side` pixels."""
    images = torch.rand(1, 1, 1, side, side).expand(n, 9, 1, side, side)
    return Patches(
        tuple(range(n)),
        images,
        images - 0.5,
        torch.ones(n, 9, side, side, dtype=torch.bool),
        values=torch.ones(n, 9, dtype=torch.float64),
        numbers=torch.zeros(n, 9, dtype=torch.int64),
        layer="layer4.2.conv3",
        total=2048,
        seen=50_000,
        method="guided_backprop",
        switches=False,
        cosine=torch.ones(n, dtype=torch.float64),
    )


def confused(n):
    return torch.eye(n, dtype=torch.int64) * 50 + torch.randint(0, 3, (n, n))


def net(classes=1000):
    """Of images of any size."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, classes)
    return nn.Sequential(*layers).eval()


def deep(layers, size):
    """So many convolutions with long names."""
    torch.manual_seed(0)
    parts = [(f"a_block_with_a_long_name_{i}_conv", nn.Conv2d(3, 3, 3, padding=1)) for i in range(layers)]
    return views.overview(nn.Sequential(OrderedDict(parts)), torch.rand(1, 3, size, size))


def images_of(n, *size):
    return torch.rand(1, 3, *size).expand(n, -1, -1, -1)


def explained(n, targets, *size):
    """Measured only where that is quick."""
    few = {"methods": ["saliency"], "targets": targets, "classes": NAMES, "faithful": max(size) < 40}
    return views.attributions(net(), images_of(n, *size), **few)


def transformer(layers, heads, size=64):
    torch.manual_seed(0)
    return VisionTransformer(size, 16, layers, heads, 4 * heads, 8, num_classes=2)


CASES = {
    "attention 12 x 12": lambda: views.attention(transformer(12, 12), images_of(1, 64, 64)),
    "attention 4 images": lambda: views.attention(transformer(2, 16), images_of(4, 64, 64), queries=[0, (1, 2)]),
    "attention 24 images": lambda: views.attention(transformer(3, 3), images_of(24, 64, 64)),
    "attention 40 heads": lambda: views.attention(transformer(30, 40), images_of(1, 64, 64)),
    "attention large": lambda: views.attention(transformer(1, 2, 1024), images_of(1, 1024, 1024), rollout=True),
    "attention_distance 50": lambda: views.attention_distance(transformer(50, 1), images_of(1, 64, 64)),
    "adversarial 32": lambda: views.adversarial(net(), images_of(32, 128, 96), classes=NAMES, steps=1),
    "adversarial large": lambda: views.adversarial(net(), images_of(1, 900, 1200), classes=NAMES, steps=1),
    "attributions 64": lambda: explained(64, None, 224, 160),
    "attributions 8 x 8": lambda: explained(8, range(8), 24, 36),
    "attributions 1 x 64": lambda: explained(1, range(64), 224, 224),
    "augmentations": lambda: views.augmentations(
        torch.rand(3, 224, 300), dict.fromkeys(NAMES[:24], torch.Tensor.clone), n=16
    ),
    "confusion 30": lambda: views.confusion(confused(30) * 100_000, NAMES[:30]),
    "confusion 31": lambda: views.confusion(confused(31), NAMES[:31]),
    "confusion 1000": lambda: views.confusion(confused(1000), NAMES),
    "curves 200 layers": lambda: views.curves({name: {"train": [1.0], "valid": [2.0]} for name in NAMES[:200]}),
    "curves 200 lines": lambda: views.curves({"std": {name: [1.0, 2.0] for name in NAMES[:200]}}),
    "effective_field": lambda: views.effective_field(
        fv.receptive_field(nn.Conv2d(3, 1, 3), "", (224, 224), effective=True)
    ),
    "exemplars 16": lambda: views.exemplars(patches(16, 224)),
    "exemplars 2048": lambda: views.exemplars(patches(2048, 8)),
    "feature_maps 2048": lambda: views.feature_maps(torch.rand(1, 56, 56).expand(2048, -1, -1)),
    "feature_maps 512": lambda: views.feature_maps(torch.randn(512, 13, 13)),
    "feature_maps images": lambda: views.feature_maps({name: torch.randn(512, 28, 28) for name in NAMES[:64]}),
    "images 64": lambda: views.images(torch.zeros(64, 1, 400, 300), NAMES[:64]),
    "images 1000": lambda: views.images(torch.zeros(1000, 1, 28, 28), range(1000), classes=NAMES),
    "images one": lambda: views.images(torch.zeros(1, 1000, 5000), "a photograph"),
    "images list": lambda: views.images([torch.zeros(1, 100 * i, 900) for i in range(1, 9)]),
    "kernels 2048 x 512": lambda: views.kernels(torch.randn(1).expand(2048, 512, 3, 3)),
    "kernels 2048 in colour": lambda: views.kernels(torch.randn(2048, 3, 7, 7)),
    "kernels by planes": lambda: views.kernels(torch.randn(2048, 3, 7, 7), planes=True),
    "kernels with values": lambda: views.kernels(torch.randn(2048, 3, 3, 3), values=True),
    "kernels depthwise": lambda: views.kernels(nn.Conv2d(512, 512, 3, groups=512)),
    "look": lambda: views.look(net(), torch.rand(3, 500, 700), classes=NAMES),
    "overview 200": lambda: deep(200, 48),
    "overview large": lambda: deep(20, 224),
    "pixels": lambda: views.pixels(-1234.567 * torch.rand(3, 64, 64), scale=fv.Scale()),
    "predictions 64": lambda: views.predictions(torch.zeros(64, 3, 64, 64), torch.randn(64, 1000), NAMES),
    "projection 32": lambda: views.projection(net(), torch.rand(3, 224, 224), "0", range(32)),
    "samples 1000": lambda: views.samples(Classes((64, 64))),
    "samples large": lambda: views.samples(Classes((100, 450), 10), title="ten classes of large images"),
    "samples many": lambda: views.samples(Classes((28, 28), 2), n=64),
    "segments 32": lambda: views.segments(
        torch.randn(1, 1000, 8, 8).expand(32, -1, -1, -1), NAMES, images_of(32, 224, 224)
    ),
    "tokens 64": lambda: views.tokens(net(), images_of(64, 224, 160), "0"),
    "tokens wide": lambda: views.tokens(net(), images_of(3, 100, 1500), "0", by="norm"),
    "tokens large": lambda: views.tokens(nn.Conv2d(3, 4, 3), images_of(1, 60, 2400), ""),
    "segments large": lambda: views.segments(torch.randn(1, 1000, 90, 120), NAMES, images_of(1, 1800, 2400)),
}


def test_no_view_is_forgotten():
    assert {name.partition(" ")[0] for name in CASES} == {name for name in views.__all__ if name.islower()}


@lru_cache
def drawn(name):
    return CASES[name]()


SLOW = {"attributions 64", "attributions 1 x 64", "augmentations", "look", "predictions 64"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_no_picture_is_larger(name):
    height, width = drawn(name).numpy().shape[:2]
    assert max(height, width) <= SIDE, (height, width)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("attention 24 images", "1 of 3 layers"),
        ("attention 40 heads", "the first 32 of 40 heads"),
        ("attention 40 heads", "24 of 30 layers"),
        ("attention large", "images of 1024 × 1024 pixels are drawn at"),
        ("confusion 1000", "1,000 classes"),
        ("curves 200 layers", "40 of 200 panels"),
        ("curves 200 lines", "189 more lines in grey"),
        ("exemplars 2048", "64 of 2048 channels"),
        ("exemplars 16", "patches of 224 × 224 pixels are drawn at"),
        ("images 1000", "the first 64 of 1,000 images"),
        ("images 64", "images of 400 × 300 pixels are drawn at"),
        ("samples 1000", "40 of 1,000 classes"),
    ],
)
def test_what_is_left_out_is_said(name, words):
    picture = drawn(name)
    if name.startswith("curves"):
        figure = picture.figure()
        said = [figure.get_supxlabel(), *(axes.get_title(loc="right") for axes in figure.axes)]
    else:
        sheet = picture.rows[0][0] if name.startswith("confusion") else picture
        said = [*sheet.legend.notes, *sheet.labels]
    assert any(words in line for line in said)
