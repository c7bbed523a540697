"""A small detector of discs and squares: how its images are drawn, how it is built, and how it was trained.

python examples/shapes.py trains it within some minutes on one core, and writes examples/shapes.safetensors.
"""

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

SIDE, SMALLEST, LARGEST = 96, 13, 20  # of an image; half of a shape's size
NAMES = ("nothing", "disc", "square")
WEIGHTS = Path(__file__).with_suffix(".safetensors") if "__file__" in globals() else Path("shapes.safetensors")


def scene(seed: int, labels: tuple[int, ...] = (1, 2)) -> tuple[Tensor, dict[str, Tensor]]:
    """Shapes of these classes that do not touch, and bars of all colours, on noise: `3 96 96`, and what torchvision's
    detectors are trained with."""
    dice, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    image = 0.5 * torch.rand(3, SIDE, SIDE, generator=noise)
    for _ in range(5):
        x, y, long = dice.randint(2, SIDE - 20), dice.randint(2, SIDE - 20), dice.randint(8, 18)
        wide, high = (3, long) if dice.random() < 0.5 else (long, 3)
        image[:, y : y + high, x : x + wide] = colour(dice)
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    boxes: list[list[float]] = []
    drawn: list[int] = []
    for label in labels:
        for _ in range(50):
            half = dice.randint(SMALLEST, LARGEST)
            x, y = dice.randint(half + 1, SIDE - half - 1), dice.randint(half + 1, SIDE - half - 1)
            box = [x - half, y - half, x + half, y + half]
            if all(box[0] > b[2] + 4 or b[0] > box[2] + 4 or box[1] > b[3] + 4 or b[1] > box[3] + 4 for b in boxes):
                break
        else:
            continue
        across, down = (columns - x).abs(), (rows - y).abs()
        inside = across.square() + down.square() < half**2 if label == 1 else torch.maximum(across, down) < half
        image = torch.where(inside, 0.75 * colour(dice) + 0.25 * image, image)
        boxes.append(box)
        drawn.append(label)
    return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(drawn)}


def colour(dice: random.Random) -> Tensor:
    return torch.tensor([0.35 + 0.6 * dice.random() for _ in range(3)])[:, None, None]


class Backbone(nn.Module):
    """Four convolutions; a place of its map is the middle of 4 × 4 pixels, and all places are of one length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.features = nn.Sequential(
            *_block(3, 16, 4, 2),
            *_block(16, 24, 4, 2),
            *_block(24, channels, 3, 1),
            nn.Conv2d(channels, channels, 3, padding=1),
            LayerNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def _block(channels: int, more: int, size: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, more, size, stride, 1, bias=False), nn.BatchNorm2d(more), nn.ReLU()


def shapes_detector() -> RetinaNet:
    """torchvision's RetinaNet, small; its head's convolutions are dilated, so that it sees the whole image."""
    anchors = AnchorGenerator(((2 * SMALLEST, SMALLEST + LARGEST, 2 * LARGEST),), ((1.0,),))
    sizes = {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    net = RetinaNet(Backbone(24), len(NAMES), anchor_generator=anchors, score_thresh=0.5, nms_thresh=0.3, **sizes)
    for tower in (net.head.classification_head, net.head.regression_head):
        convolutions = [layer for layer in tower.conv.modules() if isinstance(layer, nn.Conv2d)]
        for layer, dilation in zip(convolutions, (1, 2, 4, 8), strict=True):
            layer.dilation = layer.padding = (dilation, dilation)
    return net


def train(steps: int = 1100, batch: int = 8) -> RetinaNet:
    """One to four shapes an image, of either class, so that none tells of another."""
    torch.manual_seed(0)
    net, dice = shapes_detector().train(), random.Random(0)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        scenes = [
            scene(1_000_000 + step * batch + i, tuple(dice.choices((1, 2), k=dice.randint(1, 4)))) for i in range(batch)
        ]
        images, targets = zip(*scenes, strict=True)
        loss = sum(net(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5}: loss {float(loss.detach()):.3f}", flush=True)
    return net.eval()


def trained() -> RetinaNet:
    """The detector with the weights that `train` found."""
    from safetensors.torch import load_file  # noqa: PLC0415

    net = shapes_detector()
    net.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()}, strict=False)
    return net.eval()


if __name__ == "__main__":
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    state = train().state_dict()
    save_file({name: weight.half() for name, weight in state.items() if weight.is_floating_point()}, WEIGHTS)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1000:.0f} KB")
