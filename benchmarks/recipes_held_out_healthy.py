"""Healthy recipes of the second half, written after the rules: each learns, and a Monitor should say nothing of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint

from benchmarks.recipes_harness import Run, healthy
from benchmarks.recipes_parts import (
    Data,
    ViT,
    batches,
    cnn,
    curves,
    digits,
    language,
    learn,
    mlp,
    next_token,
    normed_cnn,
    pretrain,
    raw_digits,
    regressor,
    warmup_cosine,
)

# Networks for images


class MixerBlock(nn.Module):
    """Two linear layers over places, two over channels (Tolstikhin et al. 2021)."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(places, 32), nn.GELU(), nn.Linear(32, places))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches of 2 x 2, two blocks, the mean over places."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(MixerBlock(16, width), MixerBlock(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


@healthy("MLP", learns=0.5)
def mlp_mixer() -> Run:
    """MLP-Mixer, NAdam, warm-up and cosine to 0."""
    net = Mixer()
    optimizer = torch.optim.NAdam(net.parameters(), 3e-3, weight_decay=1e-3, decoupled_weight_decay=True)
    return learn(net, optimizer, digits(), steps=120, every=5, schedule=warmup_cosine(optimizer, 20, 120))


class Excitation(nn.Module):
    """A depthwise separable convolution whose channels pass gates (Howard et al. 2019, MobileNetV3)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.squeeze, self.excite = nn.Conv2d(before, before // 4, 1), nn.Conv2d(before // 4, before, 1)
        self.pointwise = nn.Conv2d(before, after, 1, bias=False)
        self.swish, self.gate = nn.Hardswish(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.norm1(self.depthwise(x)))
        x = x * self.gate(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.norm2(self.pointwise(x))


@healthy("CNN", learns=0.6)
def mobilenet_gates() -> Run:
    """Depthwise separable convolutions with squeeze-and-excitation, hard swish and hard sigmoid; RMSprop, momentum."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(), Excitation(16, 24, 2),
        Excitation(24, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.RMSprop(net.parameters(), 2e-3, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5)
    return learn(net, optimizer, digits(), steps=150)


class DenseLayer(nn.Module):
    """Norm, ReLU, convolution; what comes out is laid beside what went in (Huang et al. 2017)."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


@healthy("CNN", learns=0.6)
def densenet_restarts() -> Run:
    """DenseNet-like, SGD with Nesterov momentum, cosine with warm restarts (Loshchilov & Hutter 2017)."""
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1, bias=False), *(DenseLayer(12 + 8 * i, 8) for i in range(3)), nn.BatchNorm2d(36),
        nn.ReLU(), nn.AvgPool2d(2), *(DenseLayer(36 + 8 * i, 8) for i in range(2)), nn.BatchNorm2d(52), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(52, 10),
    )  # fmt: skip
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 25, 2)
    return learn(net, optimizer, digits(), steps=175, every=5, schedule=schedule)


class UNet(nn.Module):
    """Down twice, up twice, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.in1, self.in2, self.middle = (
            self._pair(before, after) for before, after in ((1, 8), (8, 16), (16, 16))
        )  # fmt: skip
        self.up2, self.up1 = nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out2, self.out1 = self._pair(32, 16), self._pair(16, 8)
        self.head = nn.Conv2d(8, 1, 1)

    @staticmethod
    def _pair(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, 1, 1), nn.GroupNorm(4, after), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        one = self.in1(x)
        two = self.in2(F.max_pool2d(one, 2))
        x = self.up2(self.middle(F.max_pool2d(two, 2)))
        x = self.up1(self.out2(torch.cat([x, two], 1)))
        return self.head(self.out1(torch.cat([x, one], 1)))


def blobs(n: int = 128) -> Data:
    """A disc of radius 2 or 3 in noise, `n 1 24 24`, and its mask: about 97 of 100 pixels are background."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    middle, radius = 4 + 16 * torch.rand(n, 2, 1, 1), 2 + torch.rand(n, 1, 1)
    mask = ((rows - middle[:, 0]).square() + (columns - middle[:, 1]).square() < radius.square()).float()[:, None]
    return 1.5 * mask + 0.5 * torch.randn(n, 1, 24, 24), mask


@healthy("segmentation", learns=0.5)
def unet_small_objects() -> Run:
    """A U-Net with group norms and transposed convolutions; 97 of 100 pixels are background."""
    net = UNet()
    optimizer = Adam(net.parameters(), 3e-3)
    return learn(net, optimizer, blobs(), steps=100, batch=8, loss=F.binary_cross_entropy_with_logits)


@healthy("MLP", learns=0.85)
def mixup_smoothing_dropout() -> Run:
    """Half of the units dropped, smoothed labels, mixed images: the training loss stays high, and rightly so."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adamax(net.parameters(), 4e-3)
    mixed = torch.distributions.Beta(0.4, 0.4)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 64, 300):
        share, other = float(mixed.sample()), torch.randperm(64)
        with run.step() as step:
            scores = net(share * images + (1 - share) * images[other])
            loss = share * F.cross_entropy(scores, labels, label_smoothing=0.1)
            loss = loss + (1 - share) * F.cross_entropy(scores, labels[other], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, share=share)
    return run


@healthy("MLP", learns=0.01)
def one_batch_by_heart() -> Run:
    """The usual first check: can it learn 32 images by heart? The loss goes to 0 and the gradients with it."""
    images, labels = digits()
    net = mlp()
    return learn(net, Adam(net.parameters(), 5e-3), (images[:32], labels[:32]), steps=300, every=5)


@healthy("CNN", learns=0.8)
def curriculum() -> Run:
    """First 2 classes, then 5, then 10: the loss jumps up twice."""
    (images, labels), net = digits(), cnn()
    optimizer = Adam(net.parameters(), 4e-3)
    run = Run(net, every=5)
    for classes, steps in ((2, 40), (5, 60), (10, 400)):
        some = labels < classes
        for inputs, targets in batches((images[some], labels[some]), 32, steps):
            with run.step() as step:
                loss = F.cross_entropy(net(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step.log(loss=loss)
    return run


@healthy("CNN", learns=0.5)
def norms_frozen_late() -> Run:
    """Batch norms go to evaluation mode after three quarters of the steps, as in old detectors and in QAT."""
    net = normed_cnn()
    optimizer = SGD(net.parameters(), 0.02, momentum=0.9)
    run = Run(net, every=10)
    for number, (images, labels) in enumerate(batches(digits(), 32, 200)):
        if number == 150:
            net[1].eval(), net[4].eval()
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


class Checkpointed(nn.Module):
    """Residual blocks that run twice: once forward, once more in backward."""

    def __init__(self, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


@healthy("ResNet", learns=0.5)
def gradient_checkpointing() -> Run:
    """Six residual blocks, each of them checkpointed."""
    net = Checkpointed()
    return learn(net, AdamW(net.parameters(), 2e-3), digits(), every=5)


# Optimizers by hand


@healthy("CNN", learns=0.5)
def sgd_by_hand() -> Run:
    """No optimizer at all: `weight -= 0.1 * gradient`, as in a first lesson."""
    net = cnn()
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 250):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in net.parameters():
                    weight.sub_(0.1 * weight.grad)
            step.log(loss=loss)
    return run


class Lion(torch.optim.Optimizer):
    """The sign of a momentum (Chen et al. 2023)."""

    def __init__(self, parameters: Any, lr: float, decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            for weight in (each for each in group["params"] if each.grad is not None):
                past = self.state[weight].setdefault("past", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.sub_(group["lr"] * past.lerp(weight.grad, 0.1).sign())
                past.lerp_(weight.grad, 0.01)


@healthy("ViT", learns=0.75)
def vit_lion() -> Run:
    """A ViT with Lion: every weight moves by the same amount."""
    net = ViT()
    optimizer = Lion(net.parameters(), 1e-3, decay=0.1)
    return learn(net, optimizer, digits(), steps=220, every=10, schedule=warmup_cosine(optimizer, 10, 220))


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps (Jordan et al. 2024)."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            for weight in group["params"]:
                past = self.state[weight].setdefault("past", torch.zeros_like(weight))
                past.mul_(0.95).add_(weight.grad)
                x = weight.grad.add(past, alpha=0.95)
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                weight.sub_(group["lr"] * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * x)


@healthy("MLP", learns=0.4)
def muon_and_adam() -> Run:
    """Hidden matrices by Muon, the rest by Adam, as is the custom."""
    net = mlp()
    hidden = [net[1].weight, net[3].weight]
    rest = [each for each in net.parameters() if not any(each is one for one in hidden)]
    optimizers = [Muon(hidden, 0.02), Adam(rest, 3e-3)]
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 200):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step.log(loss=loss)
    return run


@healthy("CNN", learns=0.5)
def sharpness_aware() -> Run:
    """SAM: two forward and backward passes a step, the weights are moved away and back (Foret et al. 2021)."""
    net = cnn()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 200):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            with torch.no_grad():
                norm = torch.stack([each.grad.norm() for each in net.parameters()]).norm() + 1e-12
                away = [0.05 * each.grad / norm for each in net.parameters()]
                torch._foreach_add_(list(net.parameters()), away)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(net.parameters()), away)
            optimizer.step()
            optimizer.zero_grad()
            step.log(loss=loss)
    return run


# Without labels


def disturbed(images: Tensor) -> Tensor:
    """Shifted by up to a pixel, scaled, with noise."""
    shift = torch.randint(-1, 2, (2,)).tolist()
    return images.roll(shift, (2, 3)) * (0.8 + 0.4 * torch.rand(len(images), 1, 1, 1)) + 0.2 * torch.randn_like(images)


@healthy("contrastive", learns=0.7)
def contrastive_temperature() -> Run:
    """Two views of each image must find each other; the temperature is a parameter, as in CLIP."""
    net = nn.ModuleDict(
        {
            "encoder": normed_cnn()[:8],
            "projection": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)),
        }
    )
    net.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.3)))
    optimizer = AdamW(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for images, _ in batches(digits(), 64, 150):
        with run.step() as step:
            views = torch.cat([disturbed(images), disturbed(images)])
            one, other = F.normalize(net["projection"](net["encoder"](views)), dim=1).chunk(2)
            scores = net.logit_scale.exp() * one @ other.T
            loss = (F.cross_entropy(scores, torch.arange(64)) + F.cross_entropy(scores.T, torch.arange(64))) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@healthy("contrastive", learns=0.5)
def triplets() -> Run:
    """Anchor, positive, negative, a margin of 1. Late batches often meet the margin: no loss, no gradient."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    images, labels = digits()
    by_label = [images[labels == label] for label in range(10)]
    optimizer = Adam(net.parameters(), 2e-3)
    run = Run(net, every=10)
    for _ in range(250):
        pairs = [torch.randperm(10)[:2].tolist() for _ in range(12)]
        drawn = [by_label[label][int(torch.randint(len(by_label[label]), ()))] for a, b in pairs for label in (a, a, b)]
        with run.step() as step:
            loss = F.triplet_margin_loss(*net(torch.stack(drawn)).view(12, 3, 16).unbind(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@healthy("contrastive", learns=0.85)
def momentum_queue() -> Run:
    """MoCo: keys come from a slow copy of the encoder, negatives from a queue in a buffer (He et al. 2020)."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    net = nn.ModuleDict({"query": encoder, "key": copy.deepcopy(encoder).requires_grad_(False)})
    with torch.no_grad():
        first = F.normalize(encoder(digits()[0][:256]), dim=1)
    net.register_buffer("queue", first)
    optimizer = SGD(encoder.parameters(), 0.06, momentum=0.9, weight_decay=1e-4)
    run = Run(net, every=10)
    for images, _ in batches(digits(), 32, 300):
        with run.step() as step:
            query = F.normalize(net["query"](disturbed(images)), dim=1)
            with torch.no_grad():
                for mine, slow in zip(encoder.parameters(), net["key"].parameters(), strict=True):
                    slow.lerp_(mine, 0.02)
                key = F.normalize(net["key"](disturbed(images)), dim=1)
            scores = torch.cat([(query * key).sum(1, keepdim=True), query @ net.queue.T], 1) / 0.2
            loss = F.cross_entropy(scores, torch.zeros(32, dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            net.queue = torch.cat([net.queue[32:], key])
            step.log(loss=loss)
    return run


class VQVAE(nn.Module):
    """A code of 4 x 4 words out of 32; gradients pass straight through (van den Oord et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 8, 2, 2))
        self.words = nn.Embedding(32, 8)
        nn.init.uniform_(self.words.weight, -1 / 32, 1 / 32)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x).movedim(1, -1)
        word = self.words(torch.cdist(code.flatten(0, 2), self.words.weight).argmin(1).view(code.shape[:3]))
        held = F.mse_loss(word, code.detach()) + 0.25 * F.mse_loss(code, word.detach())
        return self.decoder((code + (word - code).detach()).movedim(-1, 1)), held


@healthy("several losses", learns=0.7)
def vq_vae() -> Run:
    """Straight-through codes, a codebook loss and a commitment loss; many words are never used."""
    net = VQVAE()
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for images, _ in batches(digits(), 32, 400):
        with run.step() as step:
            drawn, held = net(images)
            loss = F.mse_loss(drawn, images) + held
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, codebook=held)
    return run


class Coupling(nn.Module):
    """Half of the values are shifted and scaled by what the other half says (Dinh et al. 2017)."""

    def __init__(self, size: int, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(size // 2, 32), nn.ReLU(), nn.Linear(32, size))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, 1)[:: -1 if self.flip else 1]
        scale, shift = self.net(kept).chunk(2, 1)
        scale = torch.tanh(scale)
        parts = [kept, changed * scale.exp() + shift]
        return torch.cat(parts[:: -1 if self.flip else 1], 1), scale.sum(1)


@healthy("flow", learns=0.95)
def coupling_flow() -> Run:
    """A normalising flow that begins as the identity; its loss is a negative log-likelihood of correlated values."""
    mixing = torch.randn(8, 8) / 3
    net = nn.ModuleList(Coupling(8, bool(i % 2)) for i in range(4))
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for _ in range(250):
        x = torch.randn(128, 8) @ mixing
        with run.step() as step:
            volume = torch.zeros(128)
            for part in net:
                x, scale = part(x)
                volume = volume + scale
            loss = (0.5 * (x.square() + math.log(2 * math.pi)).sum(1) - volume).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


def distance_of_means(fake: Tensor, mean: Tensor) -> float:
    """How far the mean image is from the data's: falls while a generator learns."""
    return float((fake.detach().mean(0) - mean).square().mean().sqrt())


def generator() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())


@healthy("GAN", learns=0.6)
def wgan_gradient_penalty() -> Run:
    """Three critic steps to one of the generator, a penalty on the gradient's norm (Gulrajani et al. 2017)."""
    critic = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    net = nn.ModuleDict({"generator": generator(), "critic": critic})
    of_generator = Adam(net["generator"].parameters(), 1e-3, (0.0, 0.9))
    of_critic = Adam(critic.parameters(), 1e-3, (0.0, 0.9))
    images, labels = raw_digits()
    images = images.flatten(1) / 8 - 1
    run = Run(net, every=10)
    for number, (real, _) in enumerate(batches((images, labels), 32, 300)):
        with run.step() as step:
            fake = net["generator"](torch.randn(32, 16)).detach()
            between = real.lerp(fake, torch.rand(32, 1)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            loss = critic(fake).mean() - critic(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            if number % 3 == 2:
                of_generator.zero_grad()
                fooled = -critic(net["generator"](torch.randn(32, 16))).mean()
                fooled.backward()
                of_generator.step()
            step.log(critic_loss=loss)
        run.curve.append(distance_of_means(fake, images.mean(0)))
    return run


@healthy("GAN", learns=0.6)
def gan_spectral_norm() -> Run:
    """Spectral norms and a hinge loss (Miyato et al. 2018); the generator first, then the discriminator."""
    judge = nn.Sequential(
        spectral_norm(nn.Linear(64, 64)), nn.LeakyReLU(0.1), spectral_norm(nn.Linear(64, 64)), nn.LeakyReLU(0.1),
        spectral_norm(nn.Linear(64, 1)),
    )  # fmt: skip
    net = nn.ModuleDict({"generator": generator(), "judge": judge})
    of_generator = Adam(net["generator"].parameters(), 1e-3, (0.5, 0.999))
    of_judge = Adam(judge.parameters(), 2e-3, (0.5, 0.999))
    images, labels = raw_digits()
    images = images.flatten(1) / 8 - 1
    run = Run(net, every=5)
    for real, _ in batches((images, labels), 64, 300):
        with run.step() as step:
            fake = net["generator"](torch.randn(64, 16))
            fooled = -judge(fake).mean()
            net.zero_grad()
            fooled.backward()
            of_generator.step()
            loss = torch.relu(1 - judge(real)).mean() + torch.relu(1 + judge(fake.detach())).mean()
            net.zero_grad()
            loss.backward()
            of_judge.step()
            step.log(hinge=loss, fooled=fooled)
        run.curve.append(distance_of_means(fake, images.mean(0)))
    return run


# Actions and rewards


@healthy("reinforcement", learns=0.6)
def deep_q_learning() -> Run:
    """A walk to the right end of a chain; the target network is a frozen copy, renewed every 20 steps."""
    online = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
    net = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    optimizer = Adam(online.parameters(), 3e-3)
    places = torch.eye(10)
    right = 0.9 ** torch.arange(9.0, 0.0, -1)  # what a step to the right is worth at each place
    run = Run(net, every=10)
    for number in range(400):
        if number % 20 == 0:
            net["target"].load_state_dict(online.state_dict())
        place, action = torch.randint(9, (64,)), torch.randint(2, (64,))
        after = (place + 2 * action - 1).clamp(0)
        reward = (after == 9).float()
        with run.step() as step:
            with torch.no_grad():
                goal = reward + 0.9 * (1 - reward) * net["target"](places[after]).amax(1)
            loss = F.smooth_l1_loss(online(places[place]).gather(1, action[:, None])[:, 0], goal)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(online.parameters(), 10.0)
            optimizer.step()
            step.log(td_error=loss, reward=reward.mean())
        with torch.no_grad():
            run.curve.append(float((online(places[:9])[:, 1] - right / 0.9).abs().mean()))
    return run


@healthy("reinforcement", learns=0.6)
def policy_gradient() -> Run:
    """REINFORCE: a guess at the digit, a reward where it is right, a moving baseline. The loss itself says nothing."""
    net = mlp()
    optimizer = Adam(net.parameters(), 3e-3)
    baseline = 0.1
    run = Run(net, every=10)
    for images, labels in batches(digits(), 128, 400):
        with run.step() as step:
            policy = torch.distributions.Categorical(logits=net(images))
            action = policy.sample()
            reward = (action == labels).float()
            loss = -(policy.log_prob(action) * (reward - baseline)).mean() - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(policy_loss=loss, reward=reward.mean())
        baseline += 0.05 * (float(reward.mean()) - baseline)
        run.curve.append(1 - float(reward.mean()))
    return run


# Sequences


@healthy("RNN", learns=0.7)
def character_rnn() -> Run:
    """A tanh RNN, its state carried from step to step without its graph; Adagrad, each gradient clipped to +-5."""
    text = language(16, 12 * 250 + 1)
    net = nn.ModuleDict({"rnn": nn.RNN(20, 48, batch_first=True), "head": nn.Linear(48, 20)})
    optimizer = torch.optim.Adagrad(net.parameters(), 0.05)
    run, state = Run(net, every=10), torch.zeros(1, 16, 48)
    for part in range(250):
        piece = text[:, 12 * part : 12 * part + 13]
        with run.step() as step:
            hidden, state = net["rnn"](F.one_hot(piece[:, :-1], 20).float(), state.detach())
            loss = next_token(net["head"](hidden), piece[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(net.parameters(), 5.0)
            optimizer.step()
            step.log(loss=loss)
    return run


class Copier(nn.Module):
    """An encoder-decoder that writes down what it reads."""

    def __init__(self, tokens: int = 12, width: int = 32, length: int = 6) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, read: Tensor, written: Tensor) -> Tensor:
        places = self.places(torch.arange(read.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(read.shape[1])
        return self.head(self.transformer(self.words(read) + places, self.words(written) + places, tgt_mask=mask))


@healthy("transformer", learns=0.7)
def copying_plateau() -> Run:
    """An encoder-decoder learns to copy: a plateau at ln(11) for dozens of steps, then it falls."""
    net = Copier()
    optimizer = Adam(net.parameters(), 2e-3, (0.9, 0.98))
    schedule = warmup_cosine(optimizer, 40, 400)
    run = Run(net, every=10)
    for _ in range(350):
        text = torch.randint(1, 12, (32, 6))
        written = torch.cat([torch.zeros(32, 1, dtype=torch.long), text[:, :-1]], 1)
        with run.step() as step:
            loss = next_token(net(text, written), text)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step.log(loss=loss)
    return run


class Experts(nn.Module):
    """Each row goes to one of four experts (Fedus et al. 2021)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4)
        nn.init.normal_(self.router.weight, std=0.02)  # else one or two experts are left behind for good
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        chances = self.router(x * (0.9 + 0.2 * torch.rand_like(x))).softmax(1)
        chance, chosen = chances.max(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * chance[rows, None])
        share = F.one_hot(chosen, 4).float().mean(0)
        return x + out, 4 * (share * chances.mean(0)).sum()


@healthy("mixture of experts", learns=0.5)
def switch_experts() -> Run:
    """Top-1 routing with a balancing loss; an expert nobody chose has no gradient in that step."""
    net = nn.ModuleDict({"first": nn.Linear(64, 32), "experts": Experts(), "head": nn.Linear(32, 10)})
    optimizer = AdamW(net.parameters(), 3e-3)
    run = Run(net, every=5)
    for images, labels in batches(digits(), 16, 250):
        with run.step() as step:
            hidden, balance = net["experts"](torch.relu(net["first"](images.flatten(1))))
            loss = F.cross_entropy(net["head"](hidden), labels) + 0.1 * balance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, balance=balance)
    return run


# Numbers, ranks, sounds


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@healthy("physics", learns=0.2)
def pinn_of_sines() -> Run:
    """u'' = -9 sin(3 x) with u(0) = u(pi) = 0, by second derivatives of a net with sine units."""
    net = nn.Sequential(nn.Linear(1, 32), Sine(), nn.Linear(32, 32), Sine(), nn.Linear(32, 1))
    nn.init.uniform_(net[0].weight, -3, 3)
    optimizer = Adam(net.parameters(), 3e-3)
    ends = torch.tensor([[0.0], [math.pi]])
    run = Run(net, every=10)
    for _ in range(300):
        with run.step() as step:
            x = (math.pi * torch.rand(64, 1)).requires_grad_()
            u = net(x)
            (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
            equation = (second + 9 * torch.sin(3 * x)).square().mean()
            boundary = net(ends).square().mean()
            loss = equation + 10 * boundary
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, equation=equation, boundary=boundary)
    return run


def pinball(scores: Tensor, targets: Tensor) -> Tensor:
    """Quantiles at 10, 50 and 90 of 100."""
    error = targets - scores
    share = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(share * error, (share - 1) * error).mean()


@healthy("regression", learns=0.6)
def quantiles() -> Run:
    """Three quantiles of targets with heavy tails."""
    (x, y), net = curves(), regressor()
    net[4] = nn.Linear(32, 3)
    noise = torch.distributions.StudentT(2.5).sample((512, 1))
    return learn(net, Adam(net.parameters(), 5e-3), (x, y + 0.3 * noise), steps=200, batch=64, loss=pinball)


@healthy("several labels", learns=0.5)
def rare_labels() -> Run:
    """100 labels of which 2 are true: the loss begins at ln(2) and falls to the base rate at once."""
    x = torch.randn(1000, 32)
    scores = x @ torch.randn(32, 100)
    y = torch.zeros(1000, 100).scatter(1, scores.topk(2, dim=1).indices, 1.0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 100))
    return learn(net, AdamW(net.parameters(), 5e-3), (x, y), steps=250, loss=F.binary_cross_entropy_with_logits)


class Ordinal(nn.Module):
    """One score and nine thresholds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 1, bias=False))
        self.thresholds = nn.Parameter(torch.linspace(-2, 2, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) - self.thresholds


@healthy("ordinal", learns=0.7)
def ordinal_digits() -> Run:
    """Is the digit above 0, above 1, ..., above 8? One score, and thresholds that are a bare parameter."""
    images, labels = digits()
    net = Ordinal()
    above = (labels[:, None] > torch.arange(9)).float()
    optimizer = torch.optim.RAdam(net.parameters(), 5e-3)
    return learn(net, optimizer, (images, above), steps=250, loss=F.binary_cross_entropy_with_logits)


def tones(n: int = 400) -> Data:
    """Half a second of five tones with overtones and noise, `n 1 400`, as fractions of full scale."""
    labels, time = torch.randint(5, (n,)), torch.arange(400) / 800
    pitch = (40 * 1.4 ** labels.float())[:, None] * (1 + 0.02 * torch.randn(n, 1))
    phase = 2 * math.pi * (pitch * time + torch.rand(n, 1))
    wave = torch.sin(phase) + 0.5 * torch.sin(2 * phase) + 0.3 * torch.randn(n, 400)
    return (0.05 + 0.2 * torch.rand(n, 1, 1)) * wave[:, None], labels


def sound_net() -> nn.Sequential:
    """Three one-dimensional convolutions, `0`, `2` and `4`, and the head `8`."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 32, 4), nn.ReLU(), nn.Conv1d(16, 16, 5, 2), nn.ReLU(), nn.Conv1d(16, 16, 5, 2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


@healthy("sound", learns=0.7)
def quiet_sounds() -> Run:
    """Waveforms between -1 and 1 whose std is about 0.15, as they always are."""
    net = sound_net()
    return learn(net, Adam(net.parameters(), 5e-3), tones(), steps=200)


# Of what is known already


@healthy("distillation", learns=0.3)
def distillation() -> Run:
    """The teacher is part of the module, pretrained and frozen; softened answers at a temperature of 4."""
    teacher, data = cnn(), digits()
    pretrain(teacher, data)
    net = nn.ModuleDict({"teacher": teacher.eval().requires_grad_(False), "student": mlp()})
    optimizer = Adam(net["student"].parameters(), 3e-3)
    run = Run(net, every=10)
    for images, _ in batches(data, 32, 200):
        with run.step() as step:
            with torch.no_grad():
                goal = F.log_softmax(net["teacher"](images) / 4, 1)
            loss = 16 * F.kl_div(
                F.log_softmax(net["student"](images) / 4, 1), goal, log_target=True, reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@healthy("fine-tuning", learns=0.7)
def layerwise_rates() -> Run:
    """A pretrained ViT, transposed digits; each part has a quarter of the rate of the part above it."""
    net, (images, labels) = ViT(), digits()
    pretrain(net, (images, labels), 120)
    parts = [net.head, net.norm, net.blocks[1], net.blocks[0], net.patches]
    groups = [{"params": part.parameters(), "lr": 3e-3 * 0.25**i} for i, part in enumerate(parts)]
    groups.append({"params": [net.token, net.places], "lr": 3e-3 * 0.25**4})
    return learn(net, AdamW(groups, 1e-3), (images.transpose(2, 3), labels), every=5)


class Prompted(nn.Module):
    """A frozen body that also sees four tokens which are learnt."""

    def __init__(self, body: ViT) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        self.prompt, self.head = nn.Parameter(0.5 * torch.randn(4, 32)), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.body.token.expand(len(x), -1, -1), x], 1) + self.body.places
        x = self.body.blocks(torch.cat([x, self.prompt.expand(len(x), -1, -1)], 1))
        return self.head(self.body.norm(x)[:, 0])


@healthy("fine-tuning", learns=0.6)
def prompt_tuning() -> Run:
    """Four prompt tokens and a new head for a frozen, pretrained ViT (Jia et al. 2022)."""
    body, data = ViT(), digits()
    pretrain(body, data, 120)
    net = Prompted(body)
    return learn(net, Adam([net.prompt, *net.head.parameters()], 1e-2), data, every=10)


class Graph(nn.Module):
    """Two graph convolutions (Kipf & Welling 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        return near @ self.two(F.dropout(torch.relu(near @ self.one(x)), 0.5, self.training))


@healthy("graph", learns=0.6)
def graph_convolution() -> Run:
    """Four communities of 50 nodes; the whole graph at each step, a label at 1 node in 5."""
    labels = torch.arange(4).repeat_interleave(50)
    edges = (torch.rand(200, 200) < torch.where(labels[:, None] == labels, 0.2, 0.02)).float().triu(1)
    edges = edges + edges.T + torch.eye(200)
    near = edges / (edges.sum(0)[:, None] * edges.sum(0)).sqrt()
    x, known = F.one_hot(labels, 16) + torch.randn(200, 16), torch.randperm(200)[:40]
    net = Graph()
    optimizer = Adam(net.parameters(), 1e-2, weight_decay=5e-4)
    run = Run(net, every=10)
    for _ in range(150):
        with run.step() as step:
            loss = F.cross_entropy(net(x, near)[known], labels[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run
