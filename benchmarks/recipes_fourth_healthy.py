"""Healthy recipes of the fourth part, written when the rules of the Monitor stood, by somebody who had not read them.

Of the Monitor its author knew what the README says to its users, its table of kinds included. Each recipe is a
training as a careful person would write it, though some are unusual: gates and heads that begin with zeros, layers that
are frozen on purpose, tiny and large batches, losses that begin high or fall below zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.recipes_harness import Run, healthy
from benchmarks.recipes_parts import (
    ConvNeXtBlock,
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
    pretrain,
    raw_digits,
    resnet,
    warmup_cosine,
    zero,
)


def follow(
    net: nn.Module,
    optimizers: torch.optim.Optimizer | list[torch.optim.Optimizer],
    loss_of: Callable[[int], Tensor | tuple[Tensor, Tensor]],
    *,
    steps: int = 150,
    every: int = 10,
    clip: float = math.inf,
    schedule: LRScheduler | None = None,
) -> Run:
    """The plain loop around a loss; where `loss_of` returns two tensors, the second one is the curve."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    run = Run(net, every=every)
    for number in range(steps):
        with run.step() as step:
            given = loss_of(number)
            loss, curve = given if isinstance(given, tuple) else (given, given)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            if clip < math.inf:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            for optimizer in optimizers:
                optimizer.step()
            step.log(loss=loss)
            run.curve[-1] = float(curve.detach())
        if schedule is not None:
            schedule.step()
    return run


# Images


class DropPathBlock(ConvNeXtBlock):
    """A ConvNeXt block that is left out at random, for each image by itself (Huang et al. 2016)."""

    def __init__(self, width: int, dropped: float) -> None:
        super().__init__(width)
        self.dropped = dropped

    def branch(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.training:
            y = y * (torch.rand(len(x), 1, 1, 1) >= self.dropped) / (1 - self.dropped)
        return x + y


@healthy("ConvNeXt", learns=0.6)
def stochastic_depth_averaged() -> Run:
    """ConvNeXt blocks with stochastic depth; a running mean of the weights is kept by `swa_utils`."""
    net = nn.Sequential(
        nn.Conv2d(1, 24, 2, 2), nn.GroupNorm(1, 24), *(DropPathBlock(24, 0.1 * i) for i in range(2)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(24), nn.Linear(24, 10),
    )  # fmt: skip
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimizer = AdamW(net.parameters(), 8e-3, weight_decay=0.05)
    schedule = warmup_cosine(optimizer, 10, 90)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 48, 90):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
        mean.update_parameters(net)
        schedule.step()
    return run


@healthy("ResNet", learns=0.4)
def resnet_large_batch() -> Run:
    """Batches of 512 with a rate raised in proportion and a warm-up (Goyal et al. 2017)."""
    net = resnet()
    optimizer = SGD(net.parameters(), 0.4, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = warmup_cosine(optimizer, 12, 70)
    return learn(net, optimizer, digits(), steps=70, every=5, batch=512, schedule=schedule)


@healthy("CNN", learns=0.75)
def batch_of_two() -> Run:
    """Two images a batch, so group norms in place of batch norms; the loss is very noisy."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return learn(net, SGD(net.parameters(), 0.01, momentum=0.9), digits(), steps=200, batch=2)


@healthy("ViT", learns=0.6)
def optimizer_in_backward() -> Run:
    """Each parameter has an AdamW of its own, which steps and clears within `backward`, to save memory."""
    net = ViT()
    optimizers = {parameter: AdamW([parameter], 2e-3, weight_decay=0.05) for parameter in net.parameters()}

    def step_at_once(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step_at_once)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 64, 150):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            step.log(loss=loss)
    return run


# Multilayer perceptrons


class ReZero(nn.Module):
    """A layer beside a skip, times a number that begins at 0 (Bachlechner et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.alpha = nn.Linear(width, width), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * torch.relu(self.layer(x))


@healthy("MLP", learns=0.5)
def rezero_twelve_layers() -> Run:
    """Twelve residual layers, each of them shut by a gate of 0 at first; no norms."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *(ReZero(48) for _ in range(12)), nn.Linear(48, 10))
    return learn(net, Adam(net.parameters(), 3e-3), digits())


class Highway(nn.Module):
    """A layer that carries its input on where its gate is shut (Srivastava et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.layer(x)) + (1 - gate) * x


@healthy("MLP", learns=0.4)
def highway_gates_shut() -> Run:
    """Eight highway layers whose gates begin at a twentieth, with SGD and momentum."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *(Highway(48) for _ in range(8)), nn.Linear(48, 10))
    return learn(net, SGD(net.parameters(), 0.05, momentum=0.9), digits())


def margin_until_plateau(mode: str) -> Run:
    """An MLP with a hinge loss; the rate is lowered by a plateau in the mean loss of ten steps."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    schedule = ReduceLROnPlateau(optimizer, mode, factor=0.3, patience=2)
    run = Run(net, every=10)
    for number, (images, labels) in enumerate(batches(digits(), 32, 180), 1):
        with run.step() as step:
            loss = F.multi_margin_loss(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
        if number % 10 == 0:
            schedule.step(sum(run.curve[-10:]) / 10)
    return run


@healthy("MLP", learns=0.3)
def hinge_until_plateau() -> Run:
    """A hinge loss, which is 0 for what is right by a margin; the rate falls when the loss no longer does."""
    return margin_until_plateau("min")


@healthy("MLP", learns=0.4)
def master_weights() -> Run:
    """The network is in bfloat16; the optimizer holds copies in float32, which are copied back after each step."""
    net = mlp().bfloat16()
    masters = [parameter.detach().float().requires_grad_() for parameter in net.parameters()]
    optimizer = SGD(masters, 0.05, momentum=0.9)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            loss = F.cross_entropy(net(images.bfloat16()).float(), labels)
            net.zero_grad()
            loss.backward()
            for master, parameter in zip(masters, net.parameters(), strict=True):
                master.grad = parameter.grad.float()
            optimizer.step()
            with torch.no_grad():
                for master, parameter in zip(masters, net.parameters(), strict=True):
                    parameter.copy_(master)
            step.log(loss=loss)
    return run


@healthy("MLP", learns=0.5)
def pruned_and_trained_on() -> Run:
    """A trained network, of which nine weights in ten were pruned, learns on with the rest; the masks stay."""
    net, data = mlp(), digits()
    pretrain(net, data, 200)
    for layer in (net[1], net[3], net[5]):
        prune.l1_unstructured(layer, "weight", 0.9)
    return learn(net, SGD(net.parameters(), 0.05, momentum=0.9), data, steps=120)


# Sequences


def turned(x: Tensor) -> Tensor:
    """Rotary places (Su et al. 2021): `n heads length width`."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 100 ** (-torch.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angles.cos() - right * angles.sin(), left * angles.sin() + right * angles.cos()], -1)


class GPTBlock(nn.Module):
    """RMS norms, rotary causal attention with normed queries and keys, SwiGLU; both branches begin with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(width // 4), nn.RMSNorm(width // 4)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        zero(self.out, self.down)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        q, k = turned(self.norm_q(q)), turned(self.norm_k(k))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def gpt(tokens: int = 20, width: int = 32) -> nn.Sequential:
    """Two blocks."""
    return nn.Sequential(
        nn.Embedding(tokens, width), GPTBlock(width), GPTBlock(width), nn.RMSNorm(width), nn.Linear(width, tokens)
    )


@healthy("transformer", learns=0.65)
def gpt_rotary_swiglu() -> Run:
    """A decoder as they are built now, under autocast to bfloat16; warm-up, cosine, clipping at 1."""
    text, net = language(400, 17), gpt()
    optimizer = AdamW(net.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.1)
    data = batches((text[:, :-1], text[:, 1:]), 32, 150)

    def loss_of(_: int) -> Tensor:
        words, following = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            return next_token(net(words).float(), following)

    return follow(net, optimizer, loss_of, clip=1.0, schedule=warmup_cosine(optimizer, 15, 150))


class Adapter(nn.Module):
    """LoRA as a parametrization: the weight plus a product of rank 4 that begins at 0."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, columns) / math.sqrt(columns)), nn.Parameter(torch.zeros(rows, 4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.b @ self.a


@healthy("LoRA", learns=0.75)
def lora_as_parametrization() -> Run:
    """A decoder that knows one language learns another one by adapters in all of its linear layers."""
    text, other, net = language(300, 13), language(300, 13), gpt()
    optimizer = Adam(net.parameters(), 1e-2)
    for words, following in batches((text[:, :-1], text[:, 1:]), 32, 120):
        optimizer.zero_grad()
        next_token(net(words), following).backward()
        optimizer.step()
    net.zero_grad()
    net.requires_grad_(False)
    for layer in [layer for layer in net.modules() if isinstance(layer, nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", Adapter(*layer.weight.shape))
    adapters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return learn(net, AdamW(adapters, 1e-2), (other[:, :-1], other[:, 1:]), steps=120, loss=next_token)


class Adder(nn.Module):
    """An LSTM whose forget gates begin open (Jozefowicz et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 32, batch_first=True), nn.Linear(32, 1)
        with torch.no_grad():
            self.rnn.bias_ih_l0[32:64] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@healthy("RNN", learns=0.65)
def lstm_adds_two_numbers() -> Run:
    """The adding problem: two of ten numbers are marked, and their sum is wanted; RMSprop, clipping at 1."""
    numbers = torch.rand(2000, 10)
    marks = torch.zeros(2000, 10).scatter_(1, torch.rand(2000, 10).argsort(1)[:, :2], 1.0)
    data = batches((torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)), 64, 200)
    net = Adder()

    def loss_of(_: int) -> Tensor:
        x, y = next(data)
        return F.mse_loss(net(x), y)

    return follow(net, RMSprop(net.parameters(), 5e-3), loss_of, steps=200, clip=1.0)


class WaveNet(nn.Module):
    """Causal, dilated convolutions with gates, and a skip from each to the end (van den Oord et al. 2016)."""

    def __init__(self, values: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(values, width)
        self.filters = nn.ModuleList([nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(4)])
        self.outs = nn.ModuleList([nn.Conv1d(width, 2 * width, 1) for _ in range(4)])
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 32, 1), nn.ReLU(), nn.Conv1d(32, values, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.embedding(x).transpose(1, 2), 0
        for number, (both, out) in enumerate(zip(self.filters, self.outs, strict=True)):
            value, gate = both(F.pad(x, (2**number, 0))).chunk(2, 1)
            y, skip = out(torch.tanh(value) * torch.sigmoid(gate)).chunk(2, 1)
            x, skips = x + y, skips + skip
        return self.head(skips)


@healthy("sound", learns=0.8)
def wavenet_mu_law() -> Run:
    """Sounds of two tones, coded by mu-law as one of 32 values; the next value is guessed."""
    places = torch.arange(49)
    wave = sum(torch.sin(places * (0.1 + 0.5 * torch.rand(300, 1)) + 6.28 * torch.rand(300, 1)) for _ in range(2)) / 2
    coded = wave.sign() * torch.log1p(31 * wave.abs()) / math.log(32)
    codes = ((coded + 1) / 2 * 31).round().long()
    net = WaveNet(32)
    return learn(
        net, Adam(net.parameters(), 5e-3), (codes[:, :-1], codes[:, 1:]), batch=16, loss=F.cross_entropy
    )  # `n values places`, as cross_entropy has it


class Speech(nn.Module):
    """A convolution over frames, a GRU in both directions, log-probabilities: `frames n symbols`."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(8, 24, 3, padding=1), nn.BatchNorm1d(24)
        self.rnn, self.head = nn.GRU(24, 24, batch_first=True, bidirectional=True), nn.Linear(48, symbols)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).transpose(1, 2)
        return self.head(self.rnn(x)[0]).log_softmax(2).transpose(0, 1)


@healthy("sound", learns=0.5)
def speech_with_ctc() -> Run:
    """Four symbols are spoken in 20 frames of noise; CTC, whose loss begins high and at first learns the blank only."""
    spoken, told = torch.randn(6, 8), torch.randint(1, 6, (600, 4))
    frames = torch.zeros(600, 20, 8)
    for place in range(4):
        frames[:, 5 * place + 1 : 5 * place + 4] = 1.5 * spoken[told[:, place]][:, None]
    frames = (frames + 0.3 * torch.randn(frames.shape)).transpose(1, 2)
    net, data = Speech(6), batches((frames, told), 32, 150)
    lengths, told_lengths = torch.full((32,), 20), torch.full((32,), 4)

    def loss_of(_: int) -> Tensor:
        x, symbols = next(data)
        return F.ctc_loss(net(x), symbols, lengths, told_lengths)

    return follow(net, Adam(net.parameters(), 5e-3), loss_of, clip=5.0)


# Autoencoders, diffusion, GAN


class VAE(nn.Module):
    """Eight numbers for a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp()), mean, log_variance


def vae_losses(net: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL, each summed over all images."""
    scores, mean, log_variance = net(images)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return F.binary_cross_entropy_with_logits(scores, images.flatten(1), reduction="sum"), kl


@healthy("autoencoder", learns=0.85)
def vae_kl_warmup() -> Run:
    """Sums over pixels, so that the loss begins at about 44; the weight of the KL rises from 0 to 1."""
    images, net = raw_digits()[0] / 16, VAE()

    def loss_of(number: int) -> Tensor:
        reconstruction, kl = vae_losses(net, images[torch.randint(len(images), (64,))])
        return (reconstruction + min(1, number / 100) * kl) / 64

    return follow(net, Adam(net.parameters(), 3e-3), loss_of)


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder's weight, transposed."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(64, width), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.relu(self.encoder(x))
        return code @ self.encoder.weight + self.bias, code


def sparse_code(penalty: float) -> Run:
    """A tied autoencoder on digits with noise, with a penalty on the code. Its curve: the reconstruction."""
    images, net = digits()[0].flatten(1), Tied()

    def loss_of(_: int) -> tuple[Tensor, Tensor]:
        given = images[torch.randint(len(images), (64,))]
        answer, code = net(given + 0.3 * torch.randn(given.shape))
        error = F.mse_loss(answer, given)
        return error + penalty * code.abs().sum(1).mean(), error

    return follow(net, Adam(net.parameters(), 3e-3), loss_of)


@healthy("autoencoder", learns=0.5)
def sparse_tied_autoencoder() -> Run:
    """One weight serves as encoder and decoder; the code is wider than the image, with a small penalty."""
    return sparse_code(1e-3)


class Velocity(nn.Module):
    """Where a point should go, given the time; it begins by saying nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.time = nn.Linear(64, 128), nn.Sequential(nn.Linear(16, 128), nn.SiLU(), nn.Linear(128, 128))
        self.middle, self.last = nn.Linear(128, 128), nn.Linear(128, 64)
        zero(self.last)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time * torch.exp(torch.linspace(0, 4, 8))
        x = F.silu(self.first(x) + self.time(torch.cat([angles.sin(), angles.cos()], 1)))
        return self.last(x + F.silu(self.middle(x)))


@healthy("diffusion", learns=0.85)
def flow_matching() -> Run:
    """A rectified flow from noise to digits (Liu et al. 2023); its loss cannot come near to 0."""
    images, net = digits()[0].flatten(1), Velocity()

    def loss_of(_: int) -> Tensor:
        data, noise, time = images[torch.randint(len(images), (128,))], torch.randn(128, 64), torch.rand(128, 1)
        return F.mse_loss(net(time * data + (1 - time) * noise, time), data - noise)

    optimizer = AdamW(net.parameters(), 3e-3)
    return follow(net, optimizer, loss_of, clip=1.0, schedule=warmup_cosine(optimizer, 15, 150))


class Painter(nn.Module):
    """An image to an image, with a skip over the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2))
        self.middle = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(48, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Conv2d(16, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return torch.tanh(self.last(self.up(torch.cat([x, self.middle(x)], 1))))


@healthy("GAN", learns=0.6)
def pix2pix() -> Run:
    """Coarse digits become sharp: L1 and a judge of patches, two Adams (Isola et al. 2017). Its curve: L1."""
    sharp = raw_digits()[0] / 8 - 1
    coarse = F.interpolate(F.avg_pool2d(sharp, 2), scale_factor=2)
    judge = nn.Sequential(nn.Conv2d(2, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 3, 1, 1))
    net = nn.ModuleDict({"generator": Painter(), "judge": judge})
    optimizer = Adam(net["generator"].parameters(), 2e-3, (0.5, 0.999))
    optimizer_of_judge = Adam(judge.parameters(), 5e-4, (0.5, 0.999))
    run = Run(net, every=10)
    for given, wanted in batches((coarse, sharp), 32, 150):
        with run.step() as step:
            made = net["generator"](given)
            real, fake = judge(torch.cat([given, wanted], 1)), judge(torch.cat([given, made.detach()], 1))
            loss_of_judge = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
            optimizer_of_judge.zero_grad()
            loss_of_judge.backward()
            optimizer_of_judge.step()
            error = F.l1_loss(made, wanted)
            loss = F.softplus(-judge(torch.cat([given, made], 1))).mean() + 30 * error
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, judge=loss_of_judge)
            run.curve[-1] = float(error.detach())
    return run


# Fine-tuning, distillation, representation


@healthy("fine-tuning", learns=0.5)
def only_the_biases() -> Run:
    """BitFit: of a pretrained network only the biases and a new head learn (Ben Zaken et al. 2022)."""
    images, labels = digits()
    net = cnn()
    pretrain(net, (images, labels), 150)
    net[8] = nn.Linear(64, 10)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("8."))
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return learn(net, AdamW(learning, 1e-2, weight_decay=0.01), (images.transpose(2, 3), labels), steps=120)


class Student(nn.Module):
    """A thin network, and a layer that makes its features as wide as the teacher's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.wider, self.head = nn.Linear(32, 64), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.body(x))
        return self.head(x), self.wider(x)


@healthy("distillation", learns=0.5)
def hints_of_a_teacher() -> Run:
    """FitNets: a student learns labels and the features of a teacher, which is not watched (Romero et al. 2015)."""
    data, teacher, net = digits(), cnn(), Student()
    pretrain(teacher, data, 150)
    features = teacher[:8].eval().requires_grad_(False)
    stream = batches(data, 32, 150)

    def loss_of(_: int) -> Tensor:
        images, labels = next(stream)
        scores, guess = net(images)
        return F.cross_entropy(scores, labels) + 0.5 * F.mse_loss(guess, features(images))

    return follow(net, Adam(net.parameters(), 3e-3), loss_of)


def two_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Noise, and a shift by at most one pixel."""
    views = []
    for _ in range(2):
        down, right = torch.randint(-1, 2, (2,)).tolist()
        views.append(images.roll((down, right), (2, 3)) + 0.3 * torch.randn(images.shape))
    return views[0], views[1]


def projector() -> nn.Sequential:
    """A digit to 32 numbers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64), nn.BatchNorm1d(64),
        nn.ReLU(), nn.Linear(64, 32, bias=False),
    )  # fmt: skip


@healthy("contrastive", learns=0.7)
def barlow_twins() -> Run:
    """The features of two views must agree, and not repeat each other (Zbontar et al. 2021)."""
    images, net = digits()[0], projector()

    def loss_of(_: int) -> Tensor:
        a, b = (net(view) for view in two_views(images[torch.randint(len(images), (128,))]))
        a, b = ((z - z.mean(0)) / (z.std(0) + 1e-5) for z in (a, b))
        c = a.T @ b / len(a)
        agree = (c.diagonal() - 1).square().sum()
        return agree + 0.05 * (c.square().sum() - c.diagonal().square().sum())

    optimizer = AdamW(net.parameters(), 3e-3, weight_decay=1e-4)
    return follow(net, optimizer, loss_of, schedule=warmup_cosine(optimizer, 15, 150))


class SimSiam(nn.Module):
    """An encoder, and a predictor of what it says of another view."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*projector(), nn.BatchNorm1d(32, affine=False))
        self.predictor = nn.Sequential(nn.Linear(32, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predictor(z), z.detach()


@healthy("contrastive", learns=0.75)
def simsiam() -> Run:
    """No negatives, but a gradient that is stopped on purpose (Chen & He 2021). The loss falls from 0 towards -1.

    Its curve: the loss plus 1.
    """
    images, net = digits()[0], SimSiam()

    def loss_of(_: int) -> tuple[Tensor, Tensor]:
        (p1, z1), (p2, z2) = (net(view) for view in two_views(images[torch.randint(len(images), (128,))]))
        loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
        return loss, loss + 1

    return follow(net, SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4), loss_of)


# Detection and segmentation


def scenes(n: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of 16 x 16 with up to two rectangles; for each of 4 x 4 cells: is there one, and its box."""
    images, there, boxes = 0.1 * torch.randn(n, 1, 16, 16), torch.zeros(n, 4, 4), torch.zeros(n, 4, 4, 4)
    for image, cells, box in zip(images, there, boxes, strict=True):
        for _ in range(int(torch.randint(1, 3, ()))):
            top, left = torch.randint(0, 11, (2,)).tolist()
            height, width = torch.randint(3, 6, (2,)).tolist()
            image[0, top : top + height, left : left + width] += 1
            y, x = top + height / 2, left + width / 2
            row, column = int(y // 4), int(x // 4)
            cells[row, column] = 1
            box[row, column] = torch.tensor([y / 4 - row, x / 4 - column, height / 5, width / 5])
    return images / 0.4, there, boxes


class Detector(nn.Module):
    """For each cell a score and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
            nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.score, self.box = nn.Conv2d(32, 1, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.score(x)[:, 0], self.box(x).permute(0, 2, 3, 1)


@healthy("detection", learns=0.5)
def one_stage_detector() -> Run:
    """A score for each cell, and a box where there is something; a smooth L1 loss with a weight of 5."""
    images, there, boxes = scenes()
    net = Detector()

    def loss_of(_: int) -> Tensor:
        chosen = torch.randint(len(images), (32,))
        score, box = net(images[chosen])
        held = there[chosen].bool()
        found = F.binary_cross_entropy_with_logits(score, there[chosen])
        return found + 5 * F.smooth_l1_loss(box[held], boxes[chosen][held])

    return follow(net, AdamW(net.parameters(), 3e-3), loss_of, steps=120, clip=10.0)


class Segmenter(nn.Module):
    """Dilated convolutions; a second head halfway, for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 2, 2), nn.BatchNorm2d(12), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 4, 4), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout2d(0.1))
        self.head, self.halfway = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.second(self.first(x))
        return self.head(self.third(x)), self.halfway(x)


def covered(n: int = 300) -> Data:
    """Noisy pictures of rectangles, and where they are."""
    images = scenes(n)[0]
    return images + torch.randn(images.shape), (images > 1.4).float()


@healthy("segmentation", learns=0.6)
def deep_supervision() -> Run:
    """Cross-entropy plus Dice, and 0.4 times the same of a head halfway; SGD with a polynomial rate."""
    images, masks = covered()
    net = Segmenter()

    def loss(scores: Tensor, wanted: Tensor) -> Tensor:
        chance = torch.sigmoid(scores)
        dice = 1 - (2 * (chance * wanted).sum() + 1) / (chance.sum() + wanted.sum() + 1)
        return F.binary_cross_entropy_with_logits(scores, wanted) + dice

    def loss_of(_: int) -> Tensor:
        chosen = torch.randint(len(images), (16,))
        scores, halfway = net(images[chosen])
        return loss(scores, masks[chosen]) + 0.4 * loss(halfway, masks[chosen])

    optimizer = SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 100, 0.9)
    return follow(net, optimizer, loss_of, steps=100, schedule=schedule)


# Regression, tables, graphs, reinforcement


@healthy("regression", learns=0.5)
def gaussian_likelihood() -> Run:
    """A mean and a variance for each answer, by their likelihood; the loss goes below 0. Its curve: the loss plus 2."""
    x = torch.rand(1000, 1) * 4 - 2
    y = torch.sin(2 * x) + (0.05 + 0.1 * (x > 0)) * torch.randn(1000, 1)
    net = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))

    data = batches((x, y), 64, 200)

    def loss_of(_: int) -> tuple[Tensor, Tensor]:
        given, wanted = next(data)
        answer = net(given)
        loss = F.gaussian_nll_loss(answer[:, :1], wanted, F.softplus(answer[:, 1:]) + 1e-3)
        return loss, loss + 2

    return follow(net, Adam(net.parameters(), 5e-3), loss_of, steps=200)


@healthy("regression", learns=0.85)
def counts_by_poisson() -> Run:
    """Counts, most of them 0, by a Poisson likelihood of the log-rate; the head begins at the mean."""
    x = torch.randn(2000, 8)
    y = torch.poisson(torch.exp(1.2 * x[:, :1] + torch.sin(2 * x[:, 1:2]) - 1))
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))
    zero(net[4])
    nn.init.constant_(net[4].bias, float(y.mean().log()))

    def loss(answer: Tensor, wanted: Tensor) -> Tensor:
        return F.poisson_nll_loss(answer, wanted, full=True)

    return learn(net, AdamW(net.parameters(), 5e-3), (x, y), batch=128, loss=loss)


@healthy("ranking", learns=0.75)
def which_of_two_is_better() -> Run:
    """RankNet: the difference of two scores says which one is better; RMSprop (Burges et al. 2005)."""
    x, y = curves(1000)
    net = nn.Sequential(nn.Linear(8, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))

    def loss_of(_: int) -> Tensor:
        a, b = torch.randint(1000, (2, 64))
        return F.softplus(-(net(x[a]) - net(x[b])) * (y[a] - y[b]).sign()).mean()

    return follow(net, RMSprop(net.parameters(), 2e-3), loss_of)


@healthy("tabular", learns=0.3)
def wines_by_lbfgs() -> Run:
    """178 wines at once, in float64: LBFGS with a line search, and a penalty on the weights."""
    from sklearn.datasets import load_wine  # noqa: PLC0415  slow to import

    data = load_wine()
    x, labels = torch.tensor(data.data), torch.tensor(data.target)
    x = (x - x.mean(0)) / x.std(0)
    net = nn.Sequential(nn.Linear(13, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=2, line_search_fn="strong_wolfe")
    run = Run(net, every=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss = loss + 2e-3 * sum(parameter.square().sum() for parameter in net.parameters())
        loss.backward()
        return loss

    for _ in range(60):
        with run.step() as step:
            step.log(loss=optimizer.step(closure))
    return run


class WideAndDeep(nn.Module):
    """A bag of words to a score by itself, and through a network (Cheng et al. 2016)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.wide = nn.EmbeddingBag(words, 4, mode="sum", sparse=True)
        self.bag = nn.EmbeddingBag(words, 16, mode="mean", sparse=True)
        self.deep = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        zero(self.wide)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.deep(self.bag(x))


@healthy("tabular", learns=0.7)
def wide_and_deep_adagrad() -> Run:
    """Bags of 12 of 1,000 words with sparse gradients; Adagrad, whose rates fall by themselves."""
    labels = torch.randint(4, (1500,))
    words = torch.randint(1000, (1500, 12))
    words[:, :4] = 250 * labels[:, None] + torch.randint(120, (1500, 4))
    net = WideAndDeep(1000)
    return learn(net, Adagrad(net.parameters(), 0.1), (words, labels), batch=64)


class Factors(nn.Module):
    """A vector for each user and each film; a line makes a rating of their product."""

    def __init__(self, users: int, films: int) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(users, 8, sparse=True), nn.Embedding(films, 8, sparse=True)
        self.rating = nn.Linear(8, 1)
        for table in (self.users, self.films):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.rating(self.users(pairs[:, 0]) * self.films(pairs[:, 1]))[:, 0]


@healthy("embedding", learns=0.5)
def ratings_by_factors() -> Run:
    """Sparse vectors by SparseAdam, the rest by Adam: two optimizers for one loss."""
    pairs = torch.stack([torch.randint(60, (3000,)), torch.randint(40, (3000,))], 1)
    ratings = (torch.randn(60, 3)[pairs[:, 0]] * torch.randn(40, 3)[pairs[:, 1]]).sum(1) / math.sqrt(3)
    ratings = ratings + 0.3 * torch.randn(3000)
    net = Factors(60, 40)
    vectors = [*net.users.parameters(), *net.films.parameters()]
    data = batches((pairs, ratings), 256, 200)

    def loss_of(_: int) -> Tensor:
        given, wanted = next(data)
        return F.mse_loss(net(given), wanted)

    return follow(net, [SparseAdam(vectors, 3e-2), Adam(net.rating.parameters(), 1e-2)], loss_of, steps=200)


class Attention(nn.Module):
    """One graph attention layer (Velickovic et al. 2018)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(before, after, bias=False), nn.Dropout(0.3)
        self.source, self.target = nn.Linear(after, 1, bias=False), nn.Linear(after, 1, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.linear(self.dropout(x))
        scores = F.leaky_relu(self.source(x).T + self.target(x), 0.2)
        return scores.masked_fill(~edges, -math.inf).softmax(1) @ x


class AttentionNet(nn.Module):
    """Two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(64, 32), Attention(32, 10)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(F.elu(self.first(x, edges)), edges)


def neighbours(n: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Digits, which of them are among the eight nearest to each (and itself), and their labels."""
    images, labels = digits()
    chosen = torch.randperm(len(images))[:n]
    x = images[chosen].flatten(1)
    near = torch.cdist(x, x).topk(9, largest=False).indices
    return x, torch.zeros(n, n, dtype=torch.bool).scatter_(1, near, True), labels[chosen]


@healthy("graph", learns=0.5)
def graph_attention() -> Run:
    """A graph of the nearest digits, all at once at each step; every third label is known."""
    x, edges, labels = neighbours()
    net = AttentionNet()
    optimizer = Adam(net.parameters(), 5e-3, weight_decay=5e-4)
    return follow(net, optimizer, lambda _: F.cross_entropy(net(x, edges)[::3], labels[::3]), steps=100, every=5)


class Policy(nn.Module):
    """The mean of an action, its spread as a parameter, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_std = nn.Parameter(torch.full((2,), -0.5))
        nn.init.orthogonal_(self.actor[2].weight, 0.01)

    def forward(self, x: Tensor) -> tuple[torch.distributions.Normal, Tensor]:
        return torch.distributions.Normal(self.actor(x), self.log_std.exp()), self.critic(x)[:, 0]


@healthy("reinforcement", learns=0.6)
def ppo() -> Run:
    """Clipped ratios, four steps for each 256 trials (Schulman et al. 2017). Its curve: the mean loss of reward."""
    net, wanted = Policy(), torch.randn(3, 2)
    optimizer = Adam(net.parameters(), 1e-2, eps=1e-5)
    run = Run(net, every=10)
    for _ in range(45):
        state = torch.randn(256, 3)
        with torch.no_grad():
            policy, value = net(state)
            action = policy.sample()
            before = policy.log_prob(action).sum(1)
            reward = -(action - torch.tanh(state @ wanted)).square().sum(1)
            gain = reward - value
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        for _ in range(4):
            with run.step() as step:
                policy, value = net(state)
                ratio = (policy.log_prob(action).sum(1) - before).exp()
                loss = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
                loss = loss + 0.5 * F.mse_loss(value, reward) - 1e-3 * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                step.log(loss=loss)
                run.curve[-1] = -float(reward.mean())
    return run
