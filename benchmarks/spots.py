"""Does the default heatmap lie where the answer is? Small networks of twelve families learn the colour of a spot.

pip install -e '.[timm]' && python benchmarks/spots.py spots.png

The spot is all that tells the classes apart, and its place is known. For each family the sheet shows images, the
heatmaps of the default layer, and those of the map before it; printed is the share of images whose largest heat lies on
the spot (the "pointing game", Zhang et al. 2018), give or take the cells of the map that its last layer puts together.

Of two transformers the heat is often elsewhere, and no layer of theirs does much better: their attention has told all
tokens of the spot, or the class token alone, before the last map.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.models import VisionTransformer, create_model
from torch import Tensor, nn
from torchvision import models
from torchvision.models import convnext, mobilenetv3, resnet
from torchvision.models.googlenet import Inception
from torchvision.models.regnet import BlockParams

if not __package__:
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch_featviz as fv
from torch_featviz.inspect.walk import walk
from torch_featviz.model.inputs import Inputs

SIDE, SPOT = 96, 20  # pixels
_SHOWN = 4  # images of a family on the sheet
COLOURS = torch.tensor([[1.0, 0.2, 0.2], [0.2, 0.9, 0.2], [0.25, 0.35, 1.0], [0.95, 0.85, 0.1]])
REACH = {"ConvNeXt": 3}  # cells to each side that the last layer puts together: of 7 × 7; of others 3 × 3, or none
CLASSES = len(COLOURS) + 1  # the last: there is no spot
RATES = {"SqueezeNet": 1e-3, "Swin": 3e-3}  # of learning, where 0.002 is too fast or too slow


class Spots(NamedTuple):
    """Images with a spot each, or without.

    Args:
        images: `b 3 h w`, 0 to 1 less 0.5.
        classes: `b`, numbers of colours; one more where there is no spot.
        corners: `b 2`, row and column of the upper left corner.
    """

    images: Tensor
    classes: Tensor
    corners: Tensor


def spots(count: int, seed: int, *, without: bool = False) -> Spots:
    """Grey clouds with a coloured, striped spot each; or some without, lest a class be what the others are not."""
    generator = torch.Generator().manual_seed(seed)
    clouds = F.interpolate(torch.rand(count, 1, 12, 12, generator=generator), (SIDE, SIDE), mode="bicubic")
    images = (0.3 + 0.4 * clouds + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)
    classes = torch.randint(CLASSES if without else CLASSES - 1, (count,), generator=generator)
    corners = torch.randint(SIDE - SPOT + 1, (count, 2), generator=generator)
    stripes = 0.75 + 0.25 * (torch.arange(SPOT) % 4 < 2).float()
    for image, colour, (row, column) in zip(images, classes.tolist(), corners.tolist(), strict=True):
        if colour < len(COLOURS):
            image[:, row : row + SPOT, column : column + SPOT] = COLOURS[colour][:, None, None] * stripes
    return Spots(images - 0.5, classes, corners)


class GoogLeNet(nn.Module):
    """The beginning of a GoogLeNet, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inception1 = Inception(16, 8, 8, 12, 4, 8, 4)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.inception2 = Inception(32, 16, 12, 24, 6, 16, 8)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inception2(self.pool(self.inception1(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def _resnet() -> nn.Module:
    net = models.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    net.layer4 = nn.Identity()
    net.fc = nn.Linear(256, CLASSES)
    return net


def _vgg() -> nn.Module:
    net = models.VGG(models.vgg.make_layers([16, "M", 32, "M", 48, "M", 64], batch_norm=True))
    net.avgpool = nn.AdaptiveAvgPool2d(6)
    net.classifier = nn.Sequential(nn.Linear(64 * 36, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    return net


def _squeezenet() -> nn.Module:
    net = models.SqueezeNet("1_1", num_classes=CLASSES)
    net.classifier = nn.Sequential(nn.Conv2d(512, CLASSES, 1), nn.AdaptiveAvgPool2d(1))  # without the ReLU, which dies
    return net


def _mobilenet() -> nn.Module:
    rows = [(16, 3, 32, 16, True, "RE", 2, 1), (16, 3, 64, 24, False, "HS", 2, 1), (24, 5, 72, 32, True, "HS", 1, 1)]
    setting = [mobilenetv3.InvertedResidualConfig(*row, 1.0) for row in rows]
    return models.MobileNetV3(setting, 128, num_classes=CLASSES, dropout=0, norm_layer=nn.BatchNorm2d)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": _resnet,
    "VGG": _vgg,
    "GoogLeNet": GoogLeNet,
    "DenseNet": lambda: models.DenseNet(12, (3, 3, 3), 24, num_classes=CLASSES),
    "SqueezeNet": _squeezenet,
    "ShuffleNet": lambda: models.ShuffleNetV2([1, 2, 1], [16, 32, 48, 64, 96], num_classes=CLASSES),
    "MobileNetV3": _mobilenet,
    "EfficientNet": lambda: create_model("test_efficientnet", num_classes=CLASSES),
    "ConvNeXt": lambda: models.ConvNeXt(
        [convnext.CNBlockConfig(24, 48, 1), convnext.CNBlockConfig(48, None, 1)], num_classes=CLASSES
    ),
    "ViT": lambda: VisionTransformer(
        *(SIDE, 8, 3, CLASSES), "avg", embed_dim=48, depth=3, num_heads=4, mlp_ratio=2, class_token=False
    ),
    "RegNet": lambda: models.RegNet(BlockParams([1, 1], [32, 64], [16, 16], [1, 1], [2, 2], 0.25), num_classes=CLASSES),
    "MobileNetV2": lambda: models.MobileNetV2(
        CLASSES, inverted_residual_setting=[[1, 16, 1, 2], [4, 24, 2, 2], [4, 32, 2, 1]], dropout=0
    ),
}  # fmt: skip
MIXED: dict[str, Callable[[], nn.Module]] = {
    "Swin": lambda: models.SwinTransformer(
        [8, 8], 32, [2, 2], [2, 4], [3, 3], stochastic_depth_prob=0, num_classes=CLASSES
    ),
    "ViT, class token": lambda: models.VisionTransformer(SIDE, 8, 4, 4, 48, 96, num_classes=CLASSES),
}


def learn(name: str, *, steps: int = 400, batch: int = 32) -> tuple[nn.Module, float]:
    """A network of this family that knows the colours, and the share of new images that it is right on."""
    torch.manual_seed(0)
    net = {**FAMILIES, **MIXED}[name]()
    optimizer = torch.optim.AdamW(net.parameters(), RATES.get(name, 2e-3))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 20)
    rights: list[float] = []
    for step in range(steps):
        given = spots(batch, step, without=True)
        answers = net(given.images)
        F.cross_entropy(answers, given.classes).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        rights.append(float((answers.argmax(1) == given.classes).double().mean()))
        if step >= 100 and min(rights[-30:]) == 1:
            break
    net.eval()
    new = spots(128, 10**6)
    with torch.no_grad():
        return net, float((net(new.images).argmax(1) == new.classes).double().mean())


def hits(found: fv.Attribution, given: Spots, cells: int = 1) -> Tensor:
    """Whether the largest heat of each image lies on its spot, give or take so many cells of the layer's map: `b`."""
    at, cell = found.heatmaps.flatten(1).argmax(1), cells * SIDE / found.attributions.shape[-1]
    places = torch.stack([at // SIDE, at % SIDE], 1)
    return ((places >= given.corners - cell) & (places < given.corners + SPOT + cell)).all(1)


def before(net: nn.Module, image: Tensor, layer: str) -> str | None:
    """The module that returned another map last before this one."""
    calls = [call for call in walk(net, Inputs.of(image)).layers[1:] if call.maps is not None]
    at = next((i for i, call in enumerate(calls) if call.name == layer), None)
    if at is None:  # a container, which returns what the last layer in it does, or a layer that does nothing
        at = max((i for i, call in enumerate(calls) if call.name.startswith(f"{layer}.")), default=len(calls) - 1)
    earlier = [call.name for call in calls[:at] if call.module is not None]
    return earlier[-1] if earlier else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a PNG")
    parser.add_argument("--families", nargs="*", default=[*FAMILIES, *MIXED])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    new = spots(128, 10**6)
    figure = Figure((1.1 * 3 * _SHOWN + 2, 1.15 * len(given.families) + 0.4), layout="constrained")
    axes = figure.subplots(len(given.families), 3 * _SHOWN, squeeze=False)
    for row, name in zip(axes, given.families, strict=True):
        net, right = learn(name)
        found = fv.attribute(net, new.images)
        earlier = before(net, new.images[:1], found.layer)
        there = float(hits(found, new, REACH.get(name, 1)).double().mean())
        print(f"{name}: {right:.1%} right, {there:.1%} on the spot; {found.where}; before it {earlier}", flush=True)
        images = new.images[:_SHOWN] + 0.5
        heats = [found.heatmaps[:_SHOWN]]
        heats += [fv.attribute(net, new.images[:_SHOWN], layer=earlier).heatmaps] if earlier else []
        drawn = [images, *(fv.overlay(images, heat, scale=fv.Scale(symmetric=True, per="kernel")) for heat in heats)]
        for i in range(_SHOWN):
            for ax, pictures in zip(row[3 * i : 3 * i + 3], drawn, strict=False):
                ax.imshow(pictures[i].permute(1, 2, 0).numpy())
        row[0].set_ylabel(f"{name}\n{there:.0%}", fontsize=8)
        for ax, title in zip(row, ("image", found.layer, earlier or ""), strict=False):
            ax.set_title(title, fontsize=6)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(given.out, dpi=120)


if __name__ == "__main__":
    main()
