"""Healthy recipes of the fifth part, written when the rules of the Monitor stood, by somebody who had not read them.

Trainings as practitioners write them, some of them unusual. Each must really learn; the author had not seen how other
recipes came out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim import SGD, Adadelta, Adafactor, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, PolynomialLR

from benchmarks.recipes_harness import Run, healthy
from benchmarks.recipes_parts import (
    Data,
    batches,
    cnn,
    digits,
    language,
    learn,
    marks,
    pretrain,
    resnet,
    warmup_cosine,
    zero,
)

Loss = Callable[[], "Tensor | tuple[Tensor, Tensor]"]


def follow(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    *,
    steps: int = 150,
    every: int = 10,
    clip: float | None = None,
    schedule: Any = None,
) -> Run:
    """The plain loop around `loss_of`; where that returns two tensors, the second one is the curve."""
    run = Run(net, every=every)
    for _ in range(steps):
        with run.step() as step:
            given = loss_of()
            loss, curve = given if isinstance(given, tuple) else (given, given)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            step.log(loss=loss)
            run.curve[-1] = float(curve.detach())
        if schedule is not None:
            schedule.step()
    return run


def some(n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The same `n` random rows of each."""
    chosen = torch.randint(len(tensors[0]), (n,))
    return tuple(tensor[chosen] for tensor in tensors)


def standardised(x: Tensor) -> Tensor:
    """Each column with mean 0 and std 1."""
    return (x - x.mean(0)) / x.std(0)


def shifted(images: Tensor) -> Tensor:
    """Moved by at most one pixel, with some noise."""
    moved = torch.roll(images, (int(torch.randint(-1, 2, ())), int(torch.randint(-1, 2, ()))), (2, 3))
    return moved + 0.2 * torch.randn_like(images)


# Tables


@cache
def tumours() -> Data:
    """569 tumours: 30 measures as they come, up to 4,254, and whether they are benign."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415  slow to import

    data = load_breast_cancer()
    return torch.tensor(data.data).float(), torch.tensor(data.target).float()


@healthy("tabular", learns=0.4)
def tumours_logistic_regression() -> Run:
    """One linear layer, all rows at once, plain gradient descent with a large rate."""
    x, y = tumours()
    x = standardised(x)
    net = nn.Sequential(nn.Linear(30, 1), nn.Flatten(0))
    return follow(net, SGD(net.parameters(), 0.5), lambda: F.binary_cross_entropy_with_logits(net(x), y), steps=100)


class FeatureTokens(nn.Module):
    """Each number is a token, and so is the question (FT-Transformer, Gorishniy et al. 2021)."""

    def __init__(self, features: int, width: int = 24) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.randn(features, width) / math.sqrt(width))
        self.question = nn.Parameter(torch.randn(1, 1, width) / math.sqrt(width))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 4, 48, 0.1, batch_first=True, norm_first=True) for _ in range(2))
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[..., None] * self.weight + self.bias
        tokens = torch.cat([self.question.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.blocks(tokens)[:, 0])[:, 0]


@healthy("tabular", learns=0.5)
def numbers_as_tokens() -> Run:
    """A small transformer over ten standardised measures of tumours; AdamW, no decay of vectors."""
    x, y = tumours()
    net = FeatureTokens(10)
    matrices = [parameter for parameter in net.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in net.parameters() if parameter.ndim != 2]
    optimizer = AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], 2e-3)
    data = (standardised(x[:, :10]), y)
    return learn(net, optimizer, data, steps=120, loss=F.binary_cross_entropy_with_logits)


def moons(n: int = 400) -> Data:
    """Two half circles that reach into each other: points, and 0 or 1."""
    angle, label = math.pi * torch.rand(n), torch.randint(2, (n,))
    sign = 1.0 - 2 * label
    points = torch.stack([angle.cos() * sign + label, angle.sin() * sign + 0.5 * label], 1)
    return points + 0.2 * torch.randn(n, 2) - torch.tensor([0.5, 0.25]), label


@healthy("MLP", learns=0.3)
def moons_rprop() -> Run:
    """All points at once, for which Rprop was made: only the signs of gradients count."""
    x, y = moons()
    net = nn.Sequential(nn.Linear(2, 24), nn.ELU(), nn.Linear(24, 24), nn.ELU(), nn.Linear(24, 2))
    return follow(net, Rprop(net.parameters(), 3e-3), lambda: F.cross_entropy(net(x), y), steps=120)


@healthy("regression", learns=0.82)
def survival_by_cox() -> Run:
    """Who lives longer: a partial likelihood, a third censored (DeepSurv, Katzman et al. 2018).

    Its curve: the share of pairs in the wrong order.
    """
    x = torch.randn(600, 10)
    risk = 2 * x[:, 0] + x[:, 1] ** 2 - 2 * x[:, 2]
    time = -torch.rand(600).log() * torch.exp(-risk)
    died = (torch.rand(600) > 0.33).float()
    net = nn.Sequential(nn.Linear(10, 32), nn.SELU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.SELU(), nn.Linear(32, 1))

    def loss_of() -> tuple[Tensor, Tensor]:
        given, when, event = some(200, x, time, died)
        score = net(given)[:, 0]
        order = when.argsort(descending=True)
        ranked = score[order]
        loss = -((ranked - ranked.logcumsumexp(0)) * event[order]).sum() / event.sum()
        later = when[:, None] > when
        return loss, (score[:, None] > score)[later].float().mean()

    return follow(net, Adamax(net.parameters(), 2e-3), loss_of, steps=200)


class Sine(nn.Module):
    """A linear layer and a sine of 30 times its answer (Sitzmann et al. 2020)."""

    def __init__(self, before: int, after: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        bound = 1 / before if first else math.sqrt(6 / before) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


@healthy("regression", learns=0.3)
def picture_by_sines() -> Run:
    """A SIREN in float64 learns one picture by heart: places in, grey values out."""
    picture = marks()[0][3].double().flatten()[:, None]
    line = torch.linspace(-1, 1, 29, dtype=torch.float64)
    places = torch.cartesian_prod(line, line)
    net = nn.Sequential(Sine(2, 48, True), Sine(48, 48), Sine(48, 48), nn.Linear(48, 1)).double()
    return follow(net, Adam(net.parameters(), 1e-3), lambda: F.mse_loss(net(places), picture), steps=150)


# Images


@healthy("CNN", learns=0.5)
def vgg_label_smoothing() -> Run:
    """Convolutions and norms by twos, labels smoothed by 0.1, moved images; Nesterov momentum, one cycle."""
    images, labels = digits(16)
    sizes = ((1, 12), (12, 12), (12, 24), (24, 24))
    parts: list[nn.Module] = []
    for number, (before, after) in enumerate(sizes, 1):
        parts += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if number % 2 == 0 else []
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
    optimizer = SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = OneCycleLR(optimizer, 0.2, total_steps=120)

    def loss_of() -> Tensor:
        given, truth = some(48, images, labels)
        return F.cross_entropy(net(shifted(given)), truth, label_smoothing=0.1)

    return follow(net, optimizer, loss_of, steps=120, schedule=schedule)


class FourBits(nn.Module):
    """Rounds a weight to 15 values; its gradient passes straight through."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().amax() / 7
        return weight + ((weight / scale).round() * scale - weight).detach()


@healthy("CNN", learns=0.5)
def weights_of_four_bits() -> Run:
    """Quantisation-aware training as a parametrization: what is used has four bits, what is trained has 32."""
    net = cnn()
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(layer, "weight", FourBits())
    return learn(net, RAdam(net.parameters(), 5e-3), digits(), steps=150)


@healthy("CNN", learns=0.5)
def bfloat16_group_norms() -> Run:
    """All weights in bfloat16 with Adafactor, whose steps are a share of each weight; the loss in float32."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32),
        nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    ).bfloat16()  # fmt: skip
    images, labels = digits()
    optimizer = Adafactor(net.parameters(), 0.03)
    return learn(
        net, optimizer, (images.bfloat16(), labels), steps=120, loss=lambda out, y: F.cross_entropy(out.float(), y)
    )


@healthy("ResNet", learns=0.8)
def mixup_and_cutout() -> Run:
    """Each image is mixed with another one, and a square of it is blanked: the loss cannot come near to 0."""
    images, labels = digits()
    truth = F.one_hot(labels, 10).float()
    net = resnet()
    optimizer = AdamW(net.parameters(), 1e-2, weight_decay=0.05)

    def loss_of() -> Tensor:
        given, wanted = some(48, images, truth)
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        order = torch.randperm(48)
        mixed = share * given + (1 - share) * given[order]
        top, left = torch.randint(6, (2,)).tolist()
        mixed[:, :, top : top + 3, left : left + 3] = 0.0
        return F.cross_entropy(net(mixed), share * wanted + (1 - share) * wanted[order])

    return follow(net, optimizer, loss_of, steps=150, schedule=CosineAnnealingLR(optimizer, 150))


class Standardised(nn.Module):
    """The weights of each output channel with mean 0 and a sum of squares of 1 (Qiao et al. 2019)."""

    def forward(self, weight: Tensor) -> Tensor:
        centred = weight - weight.mean((1, 2, 3), keepdim=True)
        return centred / (centred.square().sum((1, 2, 3), keepdim=True) + 1e-5).sqrt()


class PreActivation(nn.Module):
    """Norm, ReLU, convolution, twice, on top of what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(4, width) for _ in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(2)])
        for conv in self.convs:
            parametrize.register_parametrization(conv, "weight", Standardised())

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.relu(norm(y)))
        return x + y


@healthy("ResNet", learns=0.5)
def standardised_weights_accumulated() -> Run:
    """Group norms and standardised weights, as in BiT; gradients of two micro-batches a step, a head of zeros."""
    head = nn.Linear(16, 10)
    zero(head)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), PreActivation(16), nn.AvgPool2d(2), PreActivation(16),
        nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), head,
    )  # fmt: skip
    data = digits()
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9)
    run = Run(net, every=10)
    for _ in range(120):
        with run.step() as step:
            optimizer.zero_grad()
            losses = []
            for images, labels in batches(data, 16, 2):
                loss = F.cross_entropy(net(images), labels) / 2
                loss.backward()
                losses.append(loss.detach())
            optimizer.step()
            step.log(loss=sum(losses))
    return run


class Response(nn.Module):
    """Global response norm, which begins as the identity (ConvNeXt V2, Woo et al. 2023): `n h w c`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(1, 2), keepdim=True)
        return x + self.gamma * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.beta


class ResponseBlock(nn.Module):
    """A depthwise convolution, a norm, and two linear layers with a response norm between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(width, width, 5, 1, 2, groups=width), nn.LayerNorm(width)
        self.up, self.response = nn.Linear(width, 4 * width), Response(4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + self.down(self.response(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def response_net() -> nn.Sequential:
    """A stem of patches, two blocks, a head."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 2, 2), nn.GroupNorm(1, 16), ResponseBlock(16), ResponseBlock(16), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 10),
    )  # fmt: skip


@healthy("ConvNeXt", learns=0.6)
def convnext_response_norms() -> Run:
    """ConvNeXt V2: response norms begin with zeros; AdamW, warm-up and cosine, a running mean of the weights."""
    net = response_net()
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    images, labels = digits()
    optimizer = AdamW(net.parameters(), 1e-2, weight_decay=0.05)

    def loss_of() -> Tensor:
        mean.update_parameters(net)
        given, truth = some(48, images, labels)
        return F.cross_entropy(net(given), truth)

    return follow(net, optimizer, loss_of, steps=150, schedule=warmup_cosine(optimizer, 15, 150))


class TwoTokens(nn.Module):
    """Patches, a token for the class and one for the teacher's answer (DeiT, Touvron et al. 2021)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.tokens = nn.Parameter(0.02 * torch.randn(1, 2, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 18, width))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True) for _ in "ab")
        )
        self.norm = nn.LayerNorm(width)
        self.head, self.pupil = nn.Linear(width, 10), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1) + self.places
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0]), self.pupil(x[:, 1])


@healthy("ViT", learns=0.5)
def vit_with_a_teacher() -> Run:
    """A second token learns the hard answers of a convolutional teacher, which is not watched."""
    images, labels = digits()
    teacher = cnn()
    pretrain(teacher, (images, labels), 150)
    teacher.eval().requires_grad_(False)
    net = TwoTokens()
    optimizer = AdamW(net.parameters(), 6e-3, weight_decay=0.05)

    def loss_of() -> Tensor:
        given, truth = some(48, images, labels)
        given = given + 0.2 * torch.randn_like(given)
        score, pupil = net(given)
        return 0.5 * F.cross_entropy(score, truth) + 0.5 * F.cross_entropy(pupil, teacher(given).argmax(1))

    return follow(net, optimizer, loss_of, steps=130, schedule=warmup_cosine(optimizer, 20, 130))


class Windows(nn.Module):
    """Attention in windows of 4 x 4, moved or not, with a bias by distance that begins with zeros (Liu et al. 2021)."""

    def __init__(self, width: int, move: int) -> None:
        super().__init__()
        self.move, self.heads = move, 4
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.bias = nn.Parameter(torch.zeros(49, self.heads))
        row, column = torch.arange(16) // 4, torch.arange(16) % 4
        self.register_buffer("index", (row[:, None] - row + 3) * 7 + column[:, None] - column + 3)

    def forward(self, x: Tensor) -> Tensor:
        n, size, _, width = x.shape
        y = torch.roll(self.norm(x), (-self.move, -self.move), (1, 2))
        y = y.view(n, size // 4, 4, size // 4, 4, width).transpose(2, 3).reshape(-1, 16, width)
        q, k, v = self.qkv(y).view(len(y), 16, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index].permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)).transpose(1, 2).reshape(-1, 16, width)
        y = self.out(y).view(n, size // 4, size // 4, 4, 4, width).transpose(2, 3).reshape(n, size, size, width)
        x = x + torch.roll(y, (self.move, self.move), (1, 2))
        return x + self.mlp(self.norm2(x))


class WindowNet(nn.Module):
    """8 x 8 patches of 2 x 2, two blocks, the mean of all."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(Windows(width, 0), Windows(width, 2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


@healthy("ViT", learns=0.75)
def windows_under_autocast() -> Run:
    """Swin-like blocks under autocast to bfloat16; NAdam, clipping at 1."""
    images, labels = digits(16)
    net = WindowNet()

    def loss_of() -> Tensor:
        given, truth = some(32, images, labels)
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(net(given), truth)

    return follow(net, NAdam(net.parameters(), 6e-3), loss_of, steps=130, clip=1.0)


# Language and series


class Masked(nn.Module):
    """An encoder of words, some of which are hidden; the embedding is the head as well (Devlin et al. 2019)."""

    def __init__(self, words: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 4, 64, 0.1, "gelu", batch_first=True) for _ in range(2))
        )
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.words(x) + self.places.weight[: x.shape[1]])
        return F.linear(self.transform(self.blocks(x)), self.words.weight, self.bias)


def masked_loss(net: nn.Module, text: Tensor) -> Tensor:
    """A fifth of the words of 48 sentences is hidden, and asked for."""
    (given,) = some(48, text)
    hidden = torch.rand(given.shape) < 0.2
    scores = net(given.masked_fill(hidden, 20))
    return F.cross_entropy(scores.flatten(0, 1), given.masked_fill(~hidden, -100).flatten())


@healthy("transformer", learns=0.86)
def hidden_words() -> Run:
    """BERT-like: hidden words, tied weights, a linear warm-up and a linear end."""
    text, net = language(512, 16), Masked(21, 16)
    optimizer = AdamW(net.parameters(), 5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, (201 - step) / 180))
    return follow(net, optimizer, lambda: masked_loss(net, text), steps=200, clip=1.0, schedule=schedule)


class Translator(nn.Module):
    """`nn.Transformer` with an embedding for each language and learnt places."""

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words + 1, width)
        self.places = nn.Parameter(0.5 * torch.randn(12, width))
        self.body = nn.Transformer(width, 2, 1, 1, 64, 0.0, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        source = self.source(source) + self.places[: source.shape[1]]
        target = self.target(target) + self.places[: target.shape[1]]
        return self.head(self.body(source, target, tgt_mask=mask, tgt_is_causal=True))


@healthy("transformer", learns=0.75)
def translation_word_by_word() -> Run:
    """An encoder and a decoder; each word has one translation; labels smoothed by 0.1, Adam with a warm-up."""
    source = language(512, 10)
    target = torch.randperm(20)[source]
    begun = F.pad(target, (1, 0), value=20)[:, :-1]
    net = Translator(20)
    optimizer = Adam(net.parameters(), 4e-3, (0.9, 0.98))

    def loss_of() -> Tensor:
        given, before, wanted = some(48, source, begun, target)
        return F.cross_entropy(net(given, before).flatten(0, 1), wanted.flatten(), label_smoothing=0.1)

    return follow(net, optimizer, loss_of, steps=180, schedule=warmup_cosine(optimizer, 20, 180))


def reviews(n: int = 600) -> tuple[Tensor, Tensor, Tensor]:
    """Words, 0 is padding; lengths; and whether there are more of the ten good words than of the ten bad ones."""
    words = torch.randint(1, 61, (n, 16))
    lengths = torch.randint(8, 17, (n,))
    words = words.masked_fill(torch.arange(16) >= lengths[:, None], 0)
    good, bad = ((words > 0) & (words <= 10)).sum(1), ((words > 10) & (words <= 20)).sum(1)
    kept = good != bad
    return words[kept], lengths[kept], (good > bad).long()[kept]


class Reader(nn.Module):
    """An LSTM over packed sentences; its forget gates begin open."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words, self.dropout = nn.Embedding(61, 24, padding_idx=0), nn.Dropout(0.3)
        self.rnn, self.head = nn.LSTM(24, width, batch_first=True), nn.Linear(width, 2)
        with torch.no_grad():
            self.rnn.bias_ih_l0[width : 2 * width] = 1.0

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.dropout(self.words(words)), lengths, True, enforce_sorted=False)
        return self.head(self.dropout(self.rnn(packed)[1][0][-1]))


@healthy("RNN", learns=0.6)
def packed_reviews() -> Run:
    """Reviews of different lengths, packed, good or bad; Adam, clipping at 1."""
    words, lengths, labels = reviews()
    net = Reader()

    def loss_of() -> Tensor:
        given, long, truth = some(48, words, lengths, labels)
        return F.cross_entropy(net(given, long), truth)

    return follow(net, Adam(net.parameters(), 1e-2), loss_of, steps=120, clip=1.0)


class Orthogonal(nn.Module):
    """A tanh cell whose recurrent weights stay orthogonal, over the rows of an image."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.given, self.again = nn.Linear(16, width), nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.again.weight)
        parametrizations.orthogonal(self.again)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.given(x[:, 0])
        state = rows.new_zeros(len(x), self.again.in_features)
        with parametrize.cached():
            for row in rows.unbind(1):
                state = torch.tanh(row + self.again(state))
        return self.head(state)


@healthy("RNN", learns=0.6)
def recurrent_weights_stay_orthogonal() -> Run:
    """A parametrization keeps the recurrent weights orthogonal; RMSprop."""
    net = Orthogonal()
    return learn(net, RMSprop(net.parameters(), 2e-3), digits(16), steps=120)


@cache
def _time() -> Tensor:
    return torch.arange(1024) / 2048


def sounds(n: int = 320) -> Data:
    """Half a second each: a tone that rises, falls, stays, or beats; as log-spectra `n 1 33 31`, and labels."""
    time, labels = _time(), torch.randint(4, (n,))
    start, phase = 150 + 250 * torch.rand(n, 1), 6.28 * torch.rand(n, 1)
    slope = torch.tensor([500.0, -250.0, 0.0, 0.0])[labels][:, None]
    wave = torch.sin(2 * math.pi * (start * time + slope * time**2 / 2) + phase)
    wave = wave * torch.where(labels[:, None] == 3, 0.5 + 0.5 * torch.sin(2 * math.pi * 10 * time), 1.0)
    wave = 0.3 * wave + 0.05 * torch.randn(n, 1024)
    spectra = torch.stft(wave, 64, 32, window=torch.hann_window(64), return_complex=True).abs().add(1e-3).log()
    return ((spectra - spectra.mean()) / spectra.std())[:, None, :, 1:-1], labels


class Listener(nn.Module):
    """Three convolutions with norms, `body`, and a head over the mean of all times."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 12), (12, 16), (16, 24))
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.1))
                for a, b in sizes
            )
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@healthy("sound", learns=0.65)
def spectra_with_masks() -> Run:
    """Log-spectra, of which a band of tones and a span of time are blanked (SpecAugment, Park et al. 2019)."""
    spectra, labels = sounds()
    net = Listener()

    def loss_of() -> Tensor:
        given, truth = some(32, spectra, labels)
        tone, when = int(torch.randint(28, ())), int(torch.randint(24, ()))
        given[:, :, tone : tone + 5] = 0.0
        given[..., when : when + 6] = 0.0
        return F.cross_entropy(net(given), truth)

    return follow(net, Adadelta(net.parameters(), 1.0), loss_of, steps=120)


# Generators


@healthy("GAN", learns=0.65)
def points_by_their_label() -> Run:
    """A conditional least-squares GAN of eight clouds; two rates, a running mean. Its curve: the distance to a cloud.

    The generator whose points are measured is the one that learns.
    """
    angles = torch.arange(8) * (math.pi / 4)
    centres = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    net = nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2)),
            "judge": nn.Sequential(
                nn.Linear(10, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1)
            ),
        }
    )
    mean = copy.deepcopy(net["generator"])
    ours = Adam(net["generator"].parameters(), 2e-3, (0.5, 0.99))
    theirs = Adam(net["judge"].parameters(), 4e-3, (0.5, 0.99))
    run = Run(net, every=10)
    for _ in range(250):
        with run.step() as step:
            labels = torch.randint(8, (96,))
            told = F.one_hot(labels, 8).float()
            true = centres[labels] + 0.1 * torch.randn(96, 2)
            fake = net["generator"](torch.cat([torch.randn(96, 4), told], 1))
            real_score, fake_score = (net["judge"](torch.cat([x, told], 1)) for x in (true, fake.detach()))
            loss = 0.5 * ((real_score - 1).square() + fake_score.square()).mean()
            theirs.zero_grad()
            loss.backward()
            theirs.step()
            fooled = 0.5 * (net["judge"](torch.cat([fake, told], 1)) - 1).square().mean()
            ours.zero_grad()
            fooled.backward()
            ours.step()
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), net["generator"].parameters(), strict=True):
                    slow.lerp_(fast, 0.05)
            step.log(loss=loss, fooled=fooled)
            run.curve[-1] = float((fake.detach() - centres[labels]).norm(dim=1).mean())
    return run


@healthy("autoencoder", learns=0.8)
def sharper_by_pixel_shuffle() -> Run:
    """From 4 x 4 to 8 x 8: what has to be added to an enlarged image; an L1 loss, a last convolution of zeros."""
    images = digits()[0]
    body = [nn.Conv2d(1, 24, 3, 1, 1), nn.PReLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.PReLU()]
    last = nn.Conv2d(24, 4, 3, 1, 1)
    zero(last)
    net = nn.Sequential(*body, last, nn.PixelShuffle(2))
    optimizer = Adam(net.parameters(), 5e-3)

    def loss_of() -> Tensor:
        (given,) = some(48, images)
        coarse = F.avg_pool2d(given, 2)
        return F.l1_loss(F.interpolate(coarse, scale_factor=2, mode="bilinear") + net(coarse), given)

    return follow(net, optimizer, loss_of, steps=150, schedule=PolynomialLR(optimizer, 150))


class Velocity(nn.Module):
    """What to guess in a noisy point, given time and label; label 2 stands for none."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.label = nn.Embedding(3, 16)
        self.body = nn.Sequential(
            nn.Linear(36, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 16)
        )

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        angle = time[:, None] * torch.tensor([math.pi, 2 * math.pi])
        return self.body(torch.cat([x, angle.sin(), angle.cos(), self.label(label)], 1))


def velocity_loss(net: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Velocity prediction at a random time (Salimans & Ho 2022); a tenth of the labels is left out."""
    given, label = some(128, points, labels)
    label = label.masked_fill(torch.rand(128) < 0.1, 2)
    time, noise = torch.rand(128), torch.randn(128, 16)
    kept, noisy = torch.cos(time * math.pi / 2)[:, None], torch.sin(time * math.pi / 2)[:, None]
    return F.mse_loss(net(kept * given + noisy * noise, time, label), kept * noise - noisy * given)


def spread_moons() -> Data:
    """Moons on a plane within 16 dimensions, with a std of about 1."""
    points, labels = moons()
    plane = torch.linalg.qr(torch.randn(16, 2))[0]
    return standardised(points) @ plane.T * math.sqrt(8), labels


@healthy("diffusion", learns=0.75)
def points_without_a_classifier() -> Run:
    """Diffusion of moons in 16 dimensions with classifier-free guidance; velocities, AdamW, clipping at 1."""
    points, labels = spread_moons()
    net = Velocity()
    optimizer = AdamW(net.parameters(), 5e-3, (0.9, 0.95))
    return follow(net, optimizer, lambda: velocity_loss(net, points, labels), steps=150, clip=1.0)


# Fine-tuning, metric learning


class Adapter(nn.Module):
    """A frozen linear layer in bfloat16, and two small matrices in float32 beside it (QLoRA, Dettmers et al. 2023)."""

    def __init__(self, frozen: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.frozen = frozen.bfloat16().requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, frozen.in_features) / math.sqrt(frozen.in_features))
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x.bfloat16()).float() + 2 * F.linear(F.linear(x, self.a), self.b)


class Residual(nn.Module):
    """A norm and two linear layers, on top of what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def residual_mlp() -> nn.Sequential:
    """Two residual blocks over the pixels, and a head, `4`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), Residual(48), Residual(48), nn.Linear(48, 10))


@healthy("LoRA", learns=0.6)
def adapters_beside_bfloat16() -> Run:
    """A network that knows digits is frozen in bfloat16; adapters in float32 learn mirrored ones."""
    images, labels = digits()
    net = residual_mlp()
    pretrain(net, (images, labels), 200)
    net.requires_grad_(False)
    net[1] = Adapter(net[1])
    for block in (net[2], net[3]):
        block.up, block.down = Adapter(block.up), Adapter(block.down)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return learn(net, AdamW(trained, 5e-3), (images.flip(3), labels), steps=150)


def supervised_contrast(features: Tensor, labels: Tensor, temperature: float = 0.2) -> Tensor:
    """Each image is near to the others of its class (Khosla et al. 2020)."""
    features = F.normalize(features)
    itself = torch.eye(len(features), dtype=torch.bool)
    scores = (features @ features.T / temperature).masked_fill(itself, -1e9)
    same = (labels[:, None] == labels) & ~itself
    return -((scores.log_softmax(1) * same).sum(1) / same.sum(1)).mean()


def normed_projector() -> nn.Sequential:
    """Convolutions with batch norms, and a projection to 16 numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 16),
    )  # fmt: skip


def contrast_loss(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Two views of 40 images."""
    given, truth = some(40, images, labels)
    return supervised_contrast(net(torch.cat([shifted(given), shifted(given)])), truth.repeat(2))


@healthy("metric learning", learns=0.85)
def supervised_contrastive() -> Run:
    """Two views of each image; the loss cannot fall below the logarithm of how many are of one class."""
    images, labels = digits()
    net = normed_projector()
    optimizer = Adam(net.parameters(), 5e-3, weight_decay=1e-4)
    return follow(net, optimizer, lambda: contrast_loss(net, images, labels), steps=160)


# Places and masks


def blobs(n: int = 400) -> Data:
    """Two spots in noise, `n 1 16 16`, and their places between -1 and 1, `n 2 2`, the bright one first."""
    places = 1.5 * torch.rand(n, 2, 2) - 0.75
    line = torch.linspace(-1, 1, 16)
    distance = (line[:, None] - places[..., 0, None, None]) ** 2 + (line - places[..., 1, None, None]) ** 2
    spots = torch.exp(-distance / 0.03) * torch.tensor([3.0, -3.0])[:, None, None]
    return spots.sum(1, keepdim=True) + 0.2 * torch.randn(n, 1, 16, 16), places


class KeyPoints(nn.Module):
    """A map for each of two points; its answer is the mean place under a softmax (Nibali et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 5, 1, 2), nn.ReLU(), nn.Conv2d(12, 12, 5, 1, 2), nn.ReLU(), nn.Conv2d(12, 2, 1)
        )
        self.register_buffer("line", torch.linspace(-1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        heat = self.body(x)
        heat = heat.flatten(2).softmax(2).view_as(heat)
        return torch.stack([(heat.sum(3) * self.line).sum(2), (heat.sum(2) * self.line).sum(2)], 2)


@healthy("detection", learns=0.4)
def key_points_by_soft_argmax() -> Run:
    """The places of two spots as means under a softmax, with a squared error."""
    net = KeyPoints()
    return learn(net, Adam(net.parameters(), 5e-3), blobs(), steps=120, loss=F.mse_loss)


class SetOfSpots(nn.Module):
    """Four questions look at 4 x 4 features; each answers whether there is a spot, and where (Carion et al. 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, width, 4, 2, 1), nn.ReLU())
        self.places, self.questions = nn.Parameter(torch.randn(16, width)), nn.Parameter(torch.randn(4, width))
        self.decoder = nn.TransformerDecoderLayer(width, 4, 64, 0.0, batch_first=True)
        self.there, self.where = nn.Linear(width, 1), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.body(x).flatten(2).transpose(1, 2) + self.places
        answers = self.decoder(self.questions.expand(len(x), -1, -1), memory)
        return self.there(answers)[..., 0], self.where(answers).tanh()


@healthy("detection", learns=0.7)
def spots_matched_one_to_one() -> Run:
    """DETR-like: answers and spots are matched by least cost; scores, and an L1 loss of places times 3."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  slow to import

    images, places = blobs()
    net = SetOfSpots()
    optimizer = AdamW(net.parameters(), 3e-3, weight_decay=1e-4)

    def loss_of() -> Tensor:
        given, truth = some(32, images, places)
        there, where = net(given)
        cost = (3 * torch.cdist(where, truth, 1) - there.sigmoid()[..., None]).detach().numpy()
        pairs = torch.tensor([linear_sum_assignment(each)[0] for each in cost])
        wanted = torch.zeros_like(there).scatter_(1, pairs, 1.0)
        order = torch.tensor([linear_sum_assignment(each)[1] for each in cost])
        found = where.take_along_dim(pairs[..., None], 1)
        error = F.l1_loss(found, truth.take_along_dim(order[..., None], 1))
        return F.binary_cross_entropy_with_logits(there, wanted) + 3 * error

    return follow(net, optimizer, loss_of, steps=150, clip=0.5)


def scenes(n: int = 240) -> Data:
    """Noisy pictures of 20 x 20 with a disc and a square, and what is where: 0, 1 or 2."""
    row, column = torch.arange(20)[:, None], torch.arange(20)
    x, y = torch.randint(5, 15, (2, n, 2, 1, 1))
    disc = (row - y[:, 0]) ** 2 + (column - x[:, 0]) ** 2 <= 12
    square = ((row - y[:, 1]).abs() <= 2) & ((column - x[:, 1]).abs() <= 2)
    masks = torch.where(square, 2, torch.where(disc, 1, 0))
    levels = torch.tensor([-0.5, 1.0, 2.5])
    return (levels[masks] + 0.4 * torch.randn(n, 20, 20))[:, None], masks


def dilated(classes: int) -> nn.Sequential:
    """Four convolutions with holes of 1, 2 and 4, norms between them; a score for each pixel."""
    parts: list[nn.Module] = []
    for before, hole in ((1, 1), (12, 2), (12, 4)):
        parts += [nn.Conv2d(before, 12, 3, 1, hole, hole, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*parts, nn.Conv2d(12, classes, 1))


@healthy("segmentation", learns=0.4)
def pixels_at_the_rim_left_out() -> Run:
    """Dilated convolutions, weighted classes; the rim of the picture has no label, as in Pascal VOC."""
    images, masks = scenes()
    masks = masks.clone()
    masks[:, [0, -1]], masks[:, :, [0, -1]] = 255, 255
    net = dilated(3)
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    weight = torch.tensor([0.3, 1.0, 1.0])

    def loss(scores: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(scores, truth, weight, ignore_index=255)

    schedule = PolynomialLR(optimizer, 100, 0.9)
    return learn(net, optimizer, (images, masks), steps=100, batch=12, loss=loss, schedule=schedule)


@healthy("segmentation", learns=0.4)
def anything_or_nothing() -> Run:
    """One score for each pixel, whether anything is there: most are background; Adam."""
    images, masks = scenes()
    net = nn.Sequential(dilated(1), nn.Flatten(1, 2))
    data = (images, (masks > 0).float())
    return learn(net, Adam(net.parameters(), 1e-2), data, steps=120, batch=12, loss=F.binary_cross_entropy_with_logits)


# Graphs, several losses, reinforcement


def shapes(n: int = 300) -> Data:
    """Graphs of 12 nodes as matrices, `n 12 12`, and labels: a ring with chords, a star with a tail, or a tree."""
    labels = torch.randint(3, (n,))
    graphs = torch.zeros(n, 12, 12)
    ring = torch.arange(12)
    for graph, label in zip(graphs, labels.tolist(), strict=True):
        if label == 0:
            graph[ring, (ring + 1) % 12] = 1.0
            chords = torch.randint(12, (3, 2))
            graph[chords[:, 0], chords[:, 1]] = 1.0
        elif label == 1:
            middle = int(torch.randint(5, 9, ()))
            graph[0, 1:middle] = 1.0
            graph[torch.arange(middle - 1, 11), torch.arange(middle, 12)] = 1.0
        else:
            for node in range(1, 12):
                graph[node, int(torch.randint(max(0, node - 4), node, ()))] = 1.0
        order = torch.randperm(12)
        graph.copy_(graph[order][:, order])
    graphs = torch.maximum(graphs, graphs.transpose(1, 2))
    graphs[:, range(12), range(12)] = 0.0
    return graphs, labels


class Isomorphism(nn.Module):
    """Sums over neighbours and two layers with norms, three times; all rounds are read (Xu et al. 2019)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(3))
        self.rounds = nn.ModuleList(
            nn.Sequential(
                nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            )
            for before in (1, width, width)
        )
        self.head = nn.Linear(3 * width, 3)

    def forward(self, graphs: Tensor) -> Tensor:
        n = len(graphs)
        x, read = graphs.new_ones(n, 12, 1), []
        for eps, layers in zip(self.eps, self.rounds, strict=True):
            x = layers(((1 + eps) * x + graphs @ x).flatten(0, 1)).view(n, 12, -1)
            read.append(x.mean(1))
        return self.head(torch.cat(read, 1))


@healthy("graph", learns=0.4)
def graphs_by_sums() -> Run:
    """Which of three kinds of graph this is, by sums over neighbours; the self-weights begin at 0."""
    net = Isomorphism()
    return learn(net, Adam(net.parameters(), 1e-2), shapes(), steps=120)


class TwoHeads(nn.Module):
    """One body; which digit, and how much ink."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 32), nn.GELU()
        )
        self.digit, self.ink = nn.Linear(32, 10), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.digit(x), self.ink(x)[:, 0]


def inked() -> tuple[Tensor, Tensor, Tensor]:
    """Digits, labels, and how much ink each has, with mean 0 and std 1."""
    images, labels = digits()
    return images, labels, standardised(images.mean((1, 2, 3)))


@healthy("several losses", learns=0.5)
def gradients_that_do_not_quarrel() -> Run:
    """Two gradients; where they quarrel each loses its part against the other, and they are put in by hand (PCGrad)."""
    images, labels, ink = inked()
    net = TwoHeads()
    parameters = list(net.parameters())
    optimizer = Adam(parameters, 3e-3)
    run = Run(net, every=5)
    for _ in range(120):
        with run.step() as step:
            given, truth, amount = some(48, images, labels, ink)
            score, guess = net(given)
            losses = (F.cross_entropy(score, truth), F.mse_loss(guess, amount))
            flat = [
                torch.cat([each.flatten() for each in torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )])
                for loss in losses
            ]  # fmt: skip
            dot = flat[0] @ flat[1]
            if dot < 0:
                flat = [
                    flat[0] - dot / flat[1].square().sum() * flat[1],
                    flat[1] - dot / flat[0].square().sum() * flat[0],
                ]
            total, place = flat[0] + flat[1], 0
            for parameter in parameters:
                parameter.grad = total[place : place + parameter.numel()].view_as(parameter).clone()
                place += parameter.numel()
            optimizer.step()
            step.log(loss=losses[0] + losses[1], ink=losses[1])
    return run


def critic() -> nn.Sequential:
    """Of a place and a move."""
    return nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))


@healthy("reinforcement", learns=0.6)
def actor_and_two_critics() -> Run:
    """TD3 on a plane: two critics, slow copies that are frozen, an actor at every second step (Fujimoto et al. 2018).

    Its curve: how far from the goal the actor's moves lead, on average.
    """
    actor = nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 2), nn.Tanh())
    net = nn.ModuleDict({"actor": actor, "one": critic(), "two": critic()})
    slow = copy.deepcopy(net).requires_grad_(False)
    whole = nn.ModuleDict({"fast": net, "slow": slow})
    of_actor = Adam(actor.parameters(), 3e-3)
    of_critics = Adam([*net["one"].parameters(), *net["two"].parameters()], 5e-3)
    run = Run(whole, every=10)
    for number in range(160):
        with run.step() as step:
            place, move = 2 * torch.rand(96, 2) - 1, 2 * torch.rand(96, 2) - 1
            after = place + 0.5 * move
            with torch.no_grad():
                following = (slow["actor"](after) + 0.1 * torch.randn(96, 2)).clamp(-1, 1)
                pair = torch.cat([after, following], 1)
                goal = -after.norm(dim=1, keepdim=True) + 0.7 * torch.minimum(slow["one"](pair), slow["two"](pair))
            given = torch.cat([place, move], 1)
            loss = sum(F.mse_loss(net[name](given), goal) for name in ("one", "two"))
            of_critics.zero_grad()
            loss.backward()
            of_critics.step()
            if number % 2:
                of_actor.zero_grad()
                (-net["one"](torch.cat([place, actor(place)], 1)).mean()).backward()
                of_actor.step()
            step.log(loss=loss)
            with torch.no_grad():
                for old, new in zip(slow.parameters(), net.parameters(), strict=True):
                    old.lerp_(new, 0.05)
                run.curve[-1] = float((place + 0.5 * actor(place)).norm(dim=1).mean())
    return run
