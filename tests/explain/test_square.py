"""A small ViT learns the colour of a bright square; the default heatmap lies on it, in images that it has not seen."""

import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.explain import attribute

SIDE, SQUARE, PATCH = 48, 12, 8
COLOURS = torch.tensor([[1.0, 0.2, 0.2], [0.2, 0.9, 0.2], [0.25, 0.35, 1.0], [0.95, 0.85, 0.1]])


class Block(nn.Module):
    """With the small scale of each branch that CaiT and DINOv2 begin with, so that tokens stay what they are."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.scale = nn.Parameter(torch.full((2, width), 0.01))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.scale[0] * self.attn(y, y, y, need_weights=False)[0]
        return x + self.scale[1] * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Read out at the mean of its tokens, of which a strong one counts more: the last norm comes behind the mean."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.place = nn.Conv2d(3, width, PATCH, PATCH), nn.Parameter(0.02 * torch.randn(1, 36, width))
        self.blocks, self.norm = nn.Sequential(Block(width), Block(width)), nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x):
        tokens = self.blocks(self.embed(x).flatten(2).transpose(1, 2) + self.place)
        return self.head(self.norm(tokens.mean(1)))


def pictures(count, seed, *, without=False):
    """Grey clouds with a striped square of one of four colours, or some without; classes, and where the square is."""
    generator = torch.Generator().manual_seed(seed)
    clouds = F.interpolate(torch.rand(count, 1, 6, 6, generator=generator), (SIDE, SIDE), mode="bicubic")
    images = (0.3 + 0.4 * clouds + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)
    classes = torch.randint(5 if without else 4, (count,), generator=generator)
    corners = torch.randint(SIDE - SQUARE + 1, (count, 2), generator=generator)
    stripes = 0.75 + 0.25 * (torch.arange(SQUARE) % 4 < 2).float()
    for image, colour, (row, column) in zip(images, classes.tolist(), corners.tolist(), strict=True):
        if colour < 4:
            image[:, row : row + SQUARE, column : column + SQUARE] = COLOURS[colour][:, None, None] * stripes
    return images - 0.5, classes, corners


def learnt():
    """After a few steps; later the tokens tell each other of the square, and heat is wherever they were told."""
    torch.manual_seed(0)
    net = ViT()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 20)
    for step in range(50):
        images, classes, _ = pictures(32, step, without=True)
        F.cross_entropy(net(images), classes).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return net.eval()


def shares_on_the_square(heatmaps, corners):
    """Of what speaks for the class, how much lies on the square, give or take half a patch."""
    shares, half = [], PATCH // 2
    for heat, (row, column) in zip(heatmaps.clamp(min=0), corners.tolist(), strict=True):
        top, left = max(0, row - half), max(0, column - half)
        inside = heat[top : row + SQUARE + half, left : column + SQUARE + half]
        shares.append(float(inside.sum() / heat.sum()))
    return torch.tensor(shares)


def test_the_heat_is_on_the_square():
    net = learnt()
    images, classes, corners = pictures(200, 10**6)
    with torch.no_grad():
        assert float((net(images).argmax(1) == classes).double().mean()) >= 0.98
    found = attribute(net, images)
    assert found.where == "blocks, tokens as 6 × 6"
    shares = shares_on_the_square(found.heatmaps, corners)
    assert float((shares > 0.5).double().mean()) >= 0.95, "of an area of a sixth at most"
    assert float(shares.median()) > 0.75
    elsewhere = shares_on_the_square(found.heatmaps, corners.roll(1, 0))
    assert float((elsewhere > 0.5).double().mean()) < 0.5, "squares of other images"
