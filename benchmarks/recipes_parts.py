"""What the recipes share: small data sets that need no network, small networks, and the plain loop.

Everything is drawn from torch's own generator, which the harness seeds: another seed is another order of the data and
another initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.recipes_harness import Run
from torch_featviz.zoo import XO

Data = tuple[Tensor, Tensor]
DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3761  # of the pixels of all digits, as fractions


@cache
def raw_digits() -> Data:
    """1,797 handwritten digits, `1 8 8` with whole numbers from 0 to 16, and their labels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  slow to import

    data = load_digits()
    return torch.tensor(data.images).float()[:, None], torch.tensor(data.target)


def digits(size: int = 8) -> Data:
    """The same with mean 0 and std 1, enlarged to `size`."""
    images, labels = raw_digits()
    images = (images / 16 - DIGITS_MEAN) / DIGITS_STD
    return (images if size == 8 else F.interpolate(images, size=size, mode="bilinear")), labels


@cache
def marks(n: int = 200) -> Data:
    """Circles and crosses of the zoo, at a quarter of their size: `1 29 29`."""
    drawn = XO("train")
    images, labels = zip(*(drawn[i] for i in range(n)), strict=True)
    return (F.avg_pool2d(torch.stack(images), 4) - 0.9) / 0.2, torch.tensor(labels)


def curves(n: int = 512) -> Data:
    """Eight features, and a smooth function of three of them with mean 0 and std of about 1."""
    x = torch.randn(n, 8)
    return x, x[:, :1] + 0.5 * torch.sin(3 * x[:, 1:2]) + 0.3 * x[:, 2:3] ** 2 - 0.3


def prices(n: int = 512) -> Data:
    """Eight features, and targets as they come: about 200,000."""
    x, y = curves(n)
    return x, 2e5 + 5e4 * y


def language(n: int = 256, length: int = 24, tokens: int = 20) -> Tensor:
    """Sentences of a Markov chain in which three tokens may follow each token: `n length`, its entropy about 0.8."""
    follow = torch.stack([torch.randperm(tokens)[:3] for _ in range(tokens)])
    text = torch.randint(tokens, (n, 1))
    for _ in range(length - 1):
        choice = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), n, replacement=True)
        text = torch.cat([text, follow[text[:, -1], choice][:, None]], 1)
    return text


def batches(data: Data, size: int, steps: int) -> Iterator[Data]:
    """Random batches."""
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (size,))
        yield data[0][chosen], data[1][chosen]


def learn(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    *,
    steps: int = 150,
    every: int = 10,
    batch: int = 32,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    schedule: Any = None,
    change: Callable[[int, Tensor], Tensor] | None = None,
) -> Run:
    """The plain loop. `change` spoils the inputs of a step."""
    run = Run(net, every=every)
    for number, (inputs, targets) in enumerate(batches(data, batch, steps)):
        given = inputs if change is None else change(number, inputs)
        with run.step() as step:
            value = loss(net(given), targets)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            step.log(loss=value)
        if schedule is not None:
            schedule.step()
    return run


def pretrain(net: nn.Module, data: Data, steps: int = 400, rate: float = 3e-3) -> None:
    """Train it before anybody watches."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for inputs, targets in batches(data, 64, steps):
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    net.zero_grad()


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> Any:
    """Linear up, and down to exactly 0."""

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - 1 - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def zero(*layers: nn.Module) -> None:
    """Weights and biases of exactly 0."""
    for parameter in (parameter for layer in layers for parameter in layer.parameters()):
        nn.init.zeros_(parameter)


def scale(layers: Iterable[nn.Module], factor: float) -> None:
    """All parameters times that."""
    with torch.no_grad():
        for parameter in (parameter for layer in layers for parameter in layer.parameters()):
            parameter.mul_(factor)


# Networks


def mlp(classes: int = 10) -> nn.Sequential:
    """Three linear layers, `1`, `3` and `5`, for digits of 8 x 8."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
    )


def deep_mlp(activation: Callable[[], nn.Module], depth: int, width: int = 32) -> nn.Sequential:
    """`depth` hidden layers, the linear ones at odd places."""
    layers = [part for i in range(depth) for part in (nn.Linear(width if i else 64, width), activation())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def cnn(classes: int = 10) -> nn.Sequential:
    """Three convolutions, `0`, `2` and `4`, and the head `8`."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


def normed_cnn() -> nn.Sequential:
    """Two convolutions with batch norms, `1` and `4`, dropout, and the head `9`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block whose last norm begins with zeros (Goyal et al. 2017, section 5.1)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.two, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.skip = nn.Identity() if (before, stride) == (after, 1) else nn.Conv2d(before, after, 1, stride, bias=False)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm2(self.two(torch.relu(self.norm1(self.one(x))))) + self.skip(x))


def resnet() -> nn.Sequential:
    """Three residual blocks; the head is `5`."""
    return nn.Sequential(
        Block(1, 8, 1), Block(8, 16, 2), Block(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two linear layers, and a layer scale of 1e-6 (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(width, width, 5, 1, 2, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ViT(nn.Module):
    """Digits as 16 patches and a class token; the head begins with zeros (as torchvision's)."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        zero(self.head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class LanguageModel(nn.Module):
    """Embedding, LSTM, head."""

    def __init__(self, tokens: int = 20, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(tokens, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


class RowsRNN(nn.Module):
    """The rows of an image, one after another."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[:, 0])[0][:, -1])


def regressor() -> nn.Sequential:
    """Eight features to one number."""
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def next_token(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over all places."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())
