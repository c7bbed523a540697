"""How much of its colours a map uses on the sheets that `feature_maps` and `overview` draw by default.

python benchmarks/contrast.py --out sheets

Read back from the pixels alone: which colour of matplotlib's table each one is, and so how far up its scale. A map
spans what lies between the lowest and highest 0.5 % of its pixels. The networks: XO's, trained for a moment, on a drawn
cross; SqueezeNet and ResNet-18 with random weights, and EfficientNet-Lite0 with its own, on a cat. `--out` writes the
sheets, and beside each what tutorials draw: matplotlib's `imshow` of each map.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import torch_featviz as fv

LEAST, MOST = 0.6, 0.005  # of the colours, of the values


@dataclass
class Used:
    """What the cells of a sheet use of their colours.

    Args:
        spans: of each cell, 0 to 1; a cell of one colour is 0.
        clipped: share of the values above or below their scale.
        told: what the legend says of that.
    """

    spans: list[float]
    clipped: float
    told: list[str]

    @property
    def median(self) -> float:
        return float(np.median(self.spans))

    @property
    def good(self) -> bool:
        """Whether the sheet is as it should be."""
        return self.median >= LEAST and self.clipped <= MOST and bool(self.told)


def used(sheet) -> Used:
    """What the pixels of a sheet's cells say, by matplotlib's tables and the reserved colours."""
    legends = [sheet.legend, *([sheet.legend.also] if sheet.legend.also else [])]
    tables, reserved = [], {}
    for legend in legends:
        n = 255 if legend.cmap.startswith("RdBu") else 256
        colors = matplotlib.colormaps[legend.cmap].resampled(n)(np.arange(n), bytes=True)[:, :3]
        tables.append({tuple(color): i / (n - 1) for i, color in enumerate(colors.tolist())})
        marks = fv.picture.reserved(legend.cmap)
        reserved |= {marks["over"]: 1.0, marks["under"]: 0.0}
    spans, clipped, total = [], 0, 0
    for cell in sheet.cells.permute(0, 2, 3, 1).reshape(len(sheet.cells), -1, 3).tolist():
        pixels = [tuple(pixel) for pixel in cell if tuple(pixel) != (255, 255, 255)]
        table = max(tables, key=lambda table: sum(pixel in table for pixel in pixels))
        units = [table.get(pixel, reserved.get(pixel)) for pixel in pixels]
        known = np.array([unit for unit in units if unit is not None])
        spans.append(float(np.subtract(*np.percentile(known, [99.5, 0.5]))))
        clipped += sum(pixel in reserved and pixel not in table for pixel in pixels)
        total += len(pixels)
    told = [line for legend in legends for line in legend.lines() if line.startswith("clipped")]
    return Used(spans, clipped / total, told)


def networks(*, real: bool = True) -> Iterator[tuple[str, nn.Module, torch.Tensor, list[str]]]:
    """Each network with its image `1 c h w` and the layers whose maps are drawn."""
    import torchvision  # noqa: PLC0415
    from skimage import data  # noqa: PLC0415

    torch.manual_seed(0)
    marks = fv.zoo.XO("test")
    xo = fv.zoo.card("xo_deep").build()
    _train(xo)
    cross = next(image for image, label in marks if label == 1)
    yield "xo_deep", xo.eval(), cross[None], ["features.conv1", "features.relu1", "features.relu2", "features.relu3"]
    photo = Image.fromarray(data.chelsea())
    for name, layers in (
        ("squeezenet1_1", ["features.0", "features.1", "features.4", "features.12"]),
        ("resnet18", ["conv1", "relu", "layer1", "layer2", "layer3", "layer4"]),
    ):
        net = torchvision.models.get_model(name, weights=None).eval()
        yield name, net, fv.zoo.card("efficientnet_lite0").preprocess(photo) if real else _cat(photo), layers
    if real:
        info = fv.zoo.card("efficientnet_lite0")
        layers = ["_conv_stem", "_blocks.0._swish", "_blocks.2._expand_conv", "_blocks.5", "_blocks.10", "_blocks.15"]
        yield "efficientnet_lite0", info.load(), info.preprocess(photo), layers


def _cat(photo) -> torch.Tensor:
    return (torch.from_numpy(np.array(photo.resize((224, 224)))).permute(2, 0, 1)[None] / 255 - 0.45) / 0.225


def _train(net: nn.Module, steps: int = 20) -> None:
    """A few steps on drawings, so that kernels are no mere noise."""
    drawn = fv.zoo.XO("train")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(steps):
        batch = [drawn[i * 97 % len(drawn)] for i in range(step * 16, step * 16 + 16)]
        images, labels = torch.stack([image for image, _ in batch]), torch.tensor([label for _, label in batch])
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def sheets(net: nn.Module, image: torch.Tensor, layers: list[str]) -> Iterator[tuple[str, object, list[np.ndarray]]]:
    """Each default sheet with its name, and the maps on it as a tutorial would draw them."""
    with torch.no_grad(), fv.capture(net, layers) as acts:
        net(image)
    for layer, output in acts.items():
        sheet = fv.feature_maps(output[0], title=layer)
        yield f"maps {layer}", sheet, list(output[0].numpy())
    yield "overview", fv.overview(net, image), []


def tutorial(maps: list[np.ndarray], file: Path) -> None:
    """Each map by itself, between its lowest and highest value, as `imshow` has it."""
    columns = int(np.ceil(np.sqrt(len(maps))))
    figure = Figure(figsize=(10, 10))
    for i, each in enumerate(maps):
        axes = figure.add_subplot(columns, columns, i + 1)
        axes.imshow(each)
        axes.set_axis_off()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the sheets")
    arguments = parser.parse_args()
    print("| network | sheet | maps | median span | clipped | good |\n|---|---|---|---|---|---|", flush=True)
    for name, net, image, layers in networks():
        for what, sheet, maps in sheets(net, image, layers):
            found = used(sheet)
            told = f"{found.clipped:.2%}"
            print(f"| {name} | {what} | {len(found.spans)} | {found.median:.0%} | {told} | {found.good} |", flush=True)
            if arguments.out is not None:
                arguments.out.mkdir(parents=True, exist_ok=True)
                file = arguments.out / f"{name}-{what.replace(' ', '-')}.png"
                sheet.save(file)
                if maps and len(maps) <= 64:
                    tutorial(maps, file.with_suffix(".tutorial.png"))


if __name__ == "__main__":
    main()
