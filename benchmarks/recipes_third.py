"""Recipes of the third part: 16 healthy and 16 broken ones, written when the rules of the Monitor stood.

What is right to say of a broken one was settled before it was run: every kind that a fair judge would call right, and a
step by which it can be known.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, OneCycleLR

from benchmarks.recipes_harness import FIRST_LOOK, Run, broken, healthy
from benchmarks.recipes_parts import (
    RowsRNN,
    ViT,
    batches,
    cnn,
    curves,
    deep_mlp,
    digits,
    language,
    learn,
    mlp,
    next_token,
    regressor,
    resnet,
    zero,
)

# Healthy


class Tagger(nn.Module):
    """Words, a GRU in both directions, a tag at each place."""

    def __init__(self, words: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 24, padding_idx=0)
        self.rnn = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(48, tags)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.rnn(self.embedding(x))[0]))


@healthy("sequence tagging", learns=0.5)
def tagging_of_padded_sentences() -> Run:
    """A bidirectional GRU; the tag is the word's class, or another one after a negation; padding is left out."""
    words = torch.randint(2, 60, (512, 14))
    words[torch.rand(words.shape) < 0.15] = 1  # the negation
    before = F.pad(words, (1, 0), value=2)[:, :-1]
    tags = (words % 4 + 2 * (before == 1)) % 4
    padded = torch.arange(14) >= torch.randint(6, 15, (512, 1))
    words, tags = words.masked_fill(padded, 0), tags.masked_fill(padded, -100)
    net = Tagger(60, 4)
    return learn(net, Adam(net.parameters(), 1e-2), (words, tags), steps=120, loss=next_token)


class TextCNN(nn.Module):
    """Convolutions of three widths over words, the largest value of each (Kim 2014)."""

    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 32)
        self.convs = nn.ModuleList([nn.Conv1d(32, 24, width, padding="same") for width in (3, 5, 7)])
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(72, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).transpose(1, 2)
        return self.head(self.dropout(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1)))


@healthy("text", learns=0.6)
def text_cnn() -> Run:
    """Sentences of 500 words by Zipf's law, of which four belong to the topic; half of the features dropped."""
    labels = torch.randint(5, (800,))
    words = torch.multinomial(1 / torch.arange(1.0, 501), 800 * 20, replacement=True).view(800, 20)
    places = torch.rand(800, 20).argsort(1)[:, :4]
    words.scatter_(1, places, 400 + 20 * labels[:, None] + torch.randint(20, (800, 4)))
    net = TextCNN(500, 5)
    return learn(net, AdamW(net.parameters(), 3e-3), (words, labels), steps=150, every=5)


class Tabular(nn.Module):
    """Categories as vectors, counts through a batch norm (as fastai's tabular model)."""

    def __init__(self) -> None:
        super().__init__()
        self.region, self.product = nn.Embedding(12, 4), nn.Embedding(40, 6)
        self.counts = nn.BatchNorm1d(5)
        self.body = nn.Sequential(
            nn.Linear(15, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(),
            nn.Linear(32, 1),
        )  # fmt: skip

    def forward(self, counts: Tensor, codes: Tensor) -> Tensor:
        return self.body(torch.cat([self.counts(counts), self.region(codes[:, 0]), self.product(codes[:, 1])], 1))[:, 0]


@healthy("tabular", learns=0.75)
def tabular_raw_counts() -> Run:
    """Counts into the thousands go in as they are, as the first thing that they meet is a batch norm."""
    counts = torch.exp(torch.randn(1500, 5) * 0.8 + torch.tensor([1.0, 3.0, 5.0, 6.0, 7.0])).round()
    codes = torch.stack([torch.randint(12, (1500,)), torch.randint(40, (1500,))], 1)
    score = (counts[:, 2] / 150).log() + 2 * torch.randn(12)[codes[:, 0]] - (counts[:, 4] / 1100).log()
    labels = (score > 0).float()
    net = Tabular()
    optimizer = Adam(net.parameters(), 1e-2)
    run = Run(net, every=10)
    for chosen in (torch.randint(1500, (64,)) for _ in range(150)):
        with run.step() as step:
            loss = F.binary_cross_entropy_with_logits(net(counts[chosen], codes[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


class SkipGram(nn.Module):
    """A vector for each word, another one for each context, which begins with zeros (Mikolov et al. 2013)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.contexts = nn.Embedding(words, 24, sparse=True), nn.Embedding(words, 24, sparse=True)
        nn.init.uniform_(self.words.weight, -0.5 / 24, 0.5 / 24)
        zero(self.contexts)

    def forward(self, words: Tensor, contexts: Tensor) -> Tensor:
        return (self.words(words)[:, None] * self.contexts(contexts)).sum(2)


@healthy("embedding", learns=0.8)
def skip_gram_sparse() -> Run:
    """word2vec: one true context and five drawn ones, sparse gradients, `SparseAdam`."""
    text = language(512, 20, 100)
    words, contexts = text[:, :-1].flatten(), text[:, 1:].flatten()
    net = SkipGram(100)
    optimizer = torch.optim.SparseAdam(list(net.parameters()), 1e-2)
    run = Run(net, every=10)
    truth = F.one_hot(torch.tensor(0), 6).float().expand(256, 6)
    for word, context in batches((words, contexts), 256, 150):
        with run.step() as step:
            scores = net(word, torch.cat([context[:, None], torch.randint(100, (256, 5))], 1))
            loss = F.binary_cross_entropy_with_logits(scores, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


class Cosine(nn.Module):
    """Cosines of the features and a direction for each class, times 16."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(cnn())[:-1], nn.Linear(64, 32), nn.BatchNorm1d(32))
        self.directions = nn.Parameter(torch.randn(10, 32))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.linear(F.normalize(self.body(x)), F.normalize(self.directions))


@healthy("metric learning", learns=0.6)
def cosine_classifier() -> Run:
    """Normalised features and weights with a scale of 16 and a margin of 0.1 (CosFace, Wang et al. 2018)."""
    net = Cosine()
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(scores - 1.6 * F.one_hot(targets, 10), targets)

    return learn(net, optimizer, digits(), steps=150, batch=64, loss=loss)


class PostNorm(nn.Module):
    """Three causal layers with the norm after each sum, places as sines (Vaswani et al. 2017)."""

    def __init__(self, tokens: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.width = nn.Embedding(tokens, width), width
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True) for _ in range(3)])
        self.head = nn.Linear(width, tokens)
        angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.cat([angles.sin(), angles.cos()], 1))
        self.register_buffer("mask", torch.triu(torch.full((length, length), -math.inf), 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) * math.sqrt(self.width) + self.places
        for layer in self.layers:
            x = layer(x, src_mask=self.mask)
        return self.head(x)


@healthy("transformer", learns=0.7)
def post_norm_warmup() -> Run:
    """The first transformer: post-norm, Adam with beta2 of 0.98, a rate that rises and falls with the root of steps."""
    text = language(400, 17)
    net = PostNorm(20, 16)
    optimizer = Adam(net.parameters(), 3e-3, (0.9, 0.98), 1e-9)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 50, (50 / (step + 1)) ** 0.5))
    return learn(net, optimizer, (text[:, :-1], text[:, 1:]), steps=160, loss=next_token, schedule=schedule)


class MaskedAutoencoder(nn.Module):
    """Sees 6 of 16 patches, guesses the pixels of the others (He et al. 2022)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches, self.pixels = nn.Linear(4, width), nn.Linear(width, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.encoder, self.decoder = (
            nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor, seen: Tensor, back: Tensor) -> Tensor:
        x = self.patches(patches) + self.places
        x = self.encoder(x.take_along_dim(seen[..., None], 1))
        x = torch.cat([x, self.token.expand(len(x), 16 - seen.shape[1], -1)], 1)
        return self.pixels(self.norm(self.decoder(x.take_along_dim(back[..., None], 1) + self.places)))


@healthy("transformer", learns=0.75)
def masked_autoencoder() -> Run:
    """Ten of sixteen patches are hidden; the loss is that of the hidden ones."""
    patches = F.unfold(digits()[0], 2, stride=2).transpose(1, 2)
    net = MaskedAutoencoder()
    optimizer = AdamW(net.parameters(), 3e-3, (0.9, 0.95), weight_decay=0.05)
    run = Run(net, every=10)
    for given, _ in batches((patches, patches), 64, 200):
        order = torch.rand(64, 16).argsort(1)
        seen, back = order[:, :6], order.argsort(1)
        with run.step() as step:
            error = (net(given, seen, back) - given).square().mean(2)
            loss = error.gather(1, order[:, 6:]).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step.log(loss=loss)
    return run


@healthy("regression", learns=0.7)
def mixture_density() -> Run:
    """Five Gaussians for an inverse sine, which has several answers for one question (Bishop 1994); clipping at 1."""
    answer = torch.rand(1000, 1) * 2 - 1
    question = answer + 0.3 * torch.sin(2 * math.pi * answer) + 0.05 * torch.randn(1000, 1)
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 15))
    optimizer = Adam(net.parameters(), 1e-2)
    run = Run(net, every=10)
    for x, y in batches((question, answer), 128, 250):
        with run.step() as step:
            weight, mean, deviation = net(x).chunk(3, 1)
            normal = torch.distributions.Normal(mean, F.softplus(deviation) + 1e-3)
            loss = -(weight.log_softmax(1) + normal.log_prob(y)).logsumexp(1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step.log(loss=loss)
    return run


class WeighedTasks(nn.Module):
    """One body, a class and an amount of ink, and a log-variance for each (Kendall et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(cnn())[:-1])
        self.digit, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.digit(x), self.ink(x)[:, 0]


@healthy("several losses", learns=0.6)
def weights_by_uncertainty() -> Run:
    """Two tasks whose weights are learnt: two numbers that begin at 0. The loss may fall below 0."""
    images, labels = digits()
    ink = images.mean((1, 2, 3))
    ink = (ink - ink.mean()) / ink.std()
    net = WeighedTasks()
    optimizer = Adam(net.parameters(), 5e-3)
    run = Run(net, every=10)
    for _ in range(150):
        chosen = torch.randint(len(images), (48,))
        with run.step() as step:
            scores, amount = net(images[chosen])
            losses = torch.stack([F.cross_entropy(scores, labels[chosen]), F.mse_loss(amount, ink[chosen])])
            loss = (losses * torch.exp(-net.log_variances) + 0.5 * net.log_variances).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, ink=losses[1])
    return run


@healthy("ResNet", learns=0.85)
def label_noise_restarts() -> Run:
    """A fifth of the labels is wrong, so that the loss cannot fall below about 0.9; SGD with warm restarts."""
    images, labels = digits()
    labels = torch.where(torch.rand(len(labels)) < 0.2, torch.randint(10, labels.shape), labels)
    net = resnet()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = CosineAnnealingWarmRestarts(optimizer, 30, 2)
    return learn(net, optimizer, (images, labels), steps=150, batch=32, schedule=schedule)


@healthy("tabular", learns=0.5)
def one_in_fifty() -> Run:
    """One positive to fifty negatives, not weighed: many batches hold one or none."""
    x = torch.randn(4000, 12)
    score = x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * x[:, 3]
    y = (score > score.quantile(1 - 1 / 51)).float()[:, None]
    net = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 24), nn.GELU(), nn.Linear(24, 1))
    optimizer = AdamW(net.parameters(), 3e-3)
    return learn(net, optimizer, (x, y), steps=200, batch=64, loss=F.binary_cross_entropy_with_logits)


@healthy("CNN", learns=0.5)
def optimizer_made_anew() -> Run:
    """Adam for 80 steps, then a new SGD with one cycle of its own for the rest."""
    net, data = cnn(), digits()
    run = Run(net, every=5)
    optimizer, schedule = Adam(net.parameters(), 3e-3), None
    for number, (images, labels) in enumerate(batches(data, 32, 160)):
        if number == 80:
            optimizer = SGD(net.parameters(), 0.01, momentum=0.9)
            schedule = OneCycleLR(optimizer, 0.05, total_steps=80)
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
        if schedule is not None:
            schedule.step()
    return run


@healthy("CNN", learns=0.5)
def lookahead() -> Run:
    """Every fifth step the weights go back halfway to where they were (Zhang et al. 2019); clipping by value."""
    net = cnn()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    slow = [parameter.detach().clone() for parameter in net.parameters()]
    run = Run(net, every=5)
    for number, (images, labels) in enumerate(batches(digits(), 32, 160), 1):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            nn.utils.clip_grad_value_(net.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            if number % 5 == 0:
                with torch.no_grad():
                    for kept, parameter in zip(slow, net.parameters(), strict=True):
                        parameter.copy_(kept.lerp_(parameter, 0.5))
            step.log(loss=loss)
    return run


class ActorCritic(nn.Module):
    """One body, a policy and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 3), nn.Linear(64, 1)
        nn.init.orthogonal_(self.policy.weight, 0.01)
        zero(self.value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.policy(x), self.value(x)[:, 0]


@healthy("reinforcement", learns=0.75)
def actor_critic() -> Run:
    """Points in a plane are pushed to goals; advantages over 8 moves, an entropy bonus. Its curve: distances."""
    net = ActorCritic()
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for _ in range(250):  # with 150 it had not come far with one seed in ten
        with run.step() as step:
            logs, values, rewards, entropies = [], [], [], []
            place, goal = torch.randn(64, 2), torch.randn(64, 2)
            for _ in range(8):
                scores, value = net(torch.cat([place, goal], 1))
                policy = torch.distributions.Categorical(logits=scores)
                action = policy.sample()
                angle = action * (2 * math.pi / 3)
                place = place + 0.4 * torch.stack([angle.cos(), angle.sin()], 1)
                logs.append(policy.log_prob(action))
                values.append(value)
                rewards.append(-(place - goal).norm(dim=1) / 2)
                entropies.append(policy.entropy())
            gain, returns = torch.zeros(64), []
            for reward in reversed(rewards):
                gain = reward + 0.8 * gain
                returns.insert(0, gain)
            value, gains = torch.stack(values), torch.stack(returns)
            advantage = (gains - value).detach()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
            loss = -(advantage * torch.stack(logs)).mean() + 0.5 * F.mse_loss(value, gains)
            loss = loss - 0.01 * torch.stack(entropies).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            step.log(loss=loss)
            run.curve[-1] = float((place - goal).norm(dim=1).mean())
    return run


class Denoiser(nn.Module):
    """A U-Net with one step down, told the time by sines; its last convolution begins with zeros (Ho et al. 2020)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 2 * width))
        self.first, self.down = nn.Conv2d(1, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle, self.norm = nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.GroupNorm(4, 2 * width)
        self.up, self.join = nn.ConvTranspose2d(2 * width, width, 2, 2), nn.Conv2d(2 * width, width, 3, 1, 1)
        self.last = nn.Conv2d(width, 1, 3, 1, 1)
        zero(self.last)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * 1000 * torch.exp(-torch.arange(8) * (math.log(10000) / 8))
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        x = F.silu(self.first(x))
        y = F.silu(self.norm(self.middle(F.silu(self.down(x) + told))))
        return self.last(F.silu(self.join(torch.cat([x, self.up(y)], 1))))


@healthy("diffusion", learns=0.6)
def unet_denoiser() -> Run:
    """Guesses the noise in a digit with a U-Net that knows the time; a running mean of its weights is kept aside."""
    images, net = digits()[0], Denoiser()
    mean = copy.deepcopy(net)
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for given, _ in batches((images, images), 48, 150):
        time, noise = torch.rand(48), torch.randn(48, 1, 8, 8)
        kept = torch.cos(time * math.pi / 2)[:, None, None, None]
        with run.step() as step:
            loss = F.mse_loss(net(kept * given + (1 - kept**2).sqrt() * noise, time), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
            step.log(loss=loss)
    return run


class Forecaster(nn.Module):
    """Guesses the next value of a series, from the true last value or from its own guess."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(1, 32), nn.Linear(32, 1)

    def forward(self, series: Tensor, forced: float) -> Tensor:
        state, guess, guesses = series.new_zeros(len(series), 32), series[:, :1], []
        for place in range(series.shape[1] - 1):
            true = place < 6 or bool(torch.rand(()) < forced)
            state = self.cell(series[:, place : place + 1] if true else guess, state)
            guess = self.head(state)
            guesses.append(guess)
        return torch.cat(guesses, 1)


@healthy("RNN", learns=0.6)
def teacher_forcing() -> Run:
    """A GRU cell goes on with sines; it is given the truth less and less often (Bengio et al. 2015); AMSGrad."""
    places = torch.arange(20)
    series = torch.sin(places * (0.3 + 0.5 * torch.rand(400, 1)) + 6.28 * torch.rand(400, 1))
    net = Forecaster()
    optimizer = Adam(net.parameters(), 1e-2, amsgrad=True)
    run = Run(net, every=10)
    for number, (given, _) in enumerate(batches((series, series), 48, 150)):
        with run.step() as step:
            loss = F.mse_loss(net(given, 1 - number / 300), given[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(net.parameters(), 0.5)
            optimizer.step()
            step.log(loss=loss)
    return run


# Broken: almost nothing is trained


class CopyInAList(nn.Module):
    """`body` is registered, but `forward` runs copies of its layers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.layers = [copy.deepcopy(layer) for layer in self.body]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@broken("MLP", "untrained", "body", by=30, twin="mlp_sgd")
def copies_in_a_plain_list() -> Run:
    """Copies of the body's layers in a Python list are run: the registered layers are never called, nor trained."""
    net = CopyInAList()
    return learn(net, SGD(net.parameters(), 0.1), digits())


@broken("CNN", "untrained", "0 2 4 8", by=FIRST_LOOK, nothing_trained=True, twin="lookahead")
def generator_exhausted() -> Run:
    """The weights are a generator that was counted before it was given to the optimizer: only biases are trained."""
    net = cnn()
    weights = (parameter for parameter in net.parameters() if parameter.ndim > 1)
    vectors = (parameter for parameter in net.parameters() if parameter.ndim == 1)
    assert sum(parameter.numel() for parameter in weights) > 1000
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    return learn(net, SGD(groups, 0.1, momentum=0.9), digits())


@broken("MLP", "untrained gradients", by=40, nothing_trained=True, stays=0.9)
def accumulation_longer_than_an_epoch() -> Run:
    """Gradients of 16 batches are summed before a step, counted within the epoch, but an epoch has 12 batches."""
    net, data = mlp(), digits()
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for _ in range(10):
        optimizer.zero_grad()
        for number, (images, labels) in enumerate(batches(data, 32, 12), 1):
            with run.step() as step:
                loss = F.cross_entropy(net(images), labels)
                (loss / 16).backward()
                if number % 16 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                step.log(loss=loss)
    return run


class MadeInForward(nn.Module):
    """A linear layer whose weight is made when it is called, as only then its width is known."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight = nn.Parameter(torch.randn(48, x.shape[1]) / math.sqrt(x.shape[1]))
        return F.linear(x, self.weight)


@broken("MLP", "untrained", "1", by=40, stays=0.85)
def parameter_made_in_forward() -> Run:
    """A weight is drawn anew at each call, so that no optimizer has ever seen it."""
    net = nn.Sequential(nn.Flatten(), MadeInForward(), nn.ReLU(), nn.Linear(48, 10))
    net(torch.zeros(1, 1, 8, 8))
    return learn(net, SGD(net.parameters(), 0.05), digits())


class Wrapped(nn.Module):
    """Features become a parameter, by someone who wants a gradient for them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*list(cnn())[:-1]), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = nn.Parameter(self.body(x).clone())
        return self.head(F.relu(features))


@broken("CNN", "untrained", "body", by=FIRST_LOOK, nothing_trained=True, twin="lookahead")
def features_wrapped_as_parameter() -> Run:
    """`nn.Parameter(features.clone())` in `forward` ends the graph: the body has no gradient."""
    net = Wrapped()
    return learn(net, SGD(net.parameters(), 0.05, momentum=0.9), digits())


@broken("reinforcement", "untrained", "online", by=30, nothing_trained=True, stays=0.9)
def optimizer_of_the_target() -> Run:
    """Q-learning whose optimizer was given the target network; the online one, which has the gradients, stays."""
    online = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
    net = nn.ModuleDict({"online": online, "target": copy.deepcopy(online)})
    optimizer = Adam(net["target"].parameters(), 5e-3)
    truth = 0.8 ** (9 - torch.arange(9.0))  # of a walk to the right along a chain of ten
    run = Run(net, every=10)
    for number in range(120):
        state, action = torch.randint(9, (64,)), torch.randint(2, (64,))
        after = (state + 2 * action - 1).clamp(0, 9)
        with run.step() as step:
            with torch.no_grad():
                best = net["target"](F.one_hot(after, 10).float()).amax(1)
            goal = torch.where(after == 9, 1.0, 0.8 * best)
            value = online(F.one_hot(state, 10).float()).gather(1, action[:, None])[:, 0]
            loss = F.smooth_l1_loss(value, goal)
            online.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
            with torch.no_grad():
                run.curve[-1] = float((online(torch.eye(10)[:9])[:, 1] - truth).abs().mean())
        if number % 20 == 19:
            net["target"].load_state_dict(online.state_dict())
    return run


@broken("MLP", "untrained stopped", by=60, stays=0.85)
def average_copied_back() -> Run:
    """A running mean of the weights, with 0.999, is copied into the model after each step: it moves a thousandth."""
    net = mlp()
    mean = copy.deepcopy(net)
    optimizer = SGD(net.parameters(), 0.1)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
                    slow.mul_(0.999).add_(fast, alpha=0.001)
            net.load_state_dict(mean.state_dict())
            step.log(loss=loss)
    return run


@broken("MLP", "untrained loss stopped vanishing", by=None, stays=0.9)
def only_the_penalty_learns() -> Run:
    """Cross-entropy of detached scores plus a penalty on the weights: what has gradients has nothing to do with digits.

    The curve is the cross-entropy.
    """
    net = mlp()
    optimizer = Adam(net.parameters(), 1e-3)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 200):
        with run.step() as step:
            entropy = F.cross_entropy(net(images).detach(), labels)
            loss = entropy + 1e-3 * sum(parameter.square().sum() for parameter in net.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
            run.curve[-1] = float(entropy)
    return run


# Broken: signals and updates


@broken("MLP", "exploding large_updates loss nonfinite dead", by=100, twin="mlp_sgd")
def momentum_of_four_nines() -> Run:
    """SGD with a momentum of 0.9999: every gradient is followed for ten thousand steps."""
    net = mlp()
    return learn(net, SGD(net.parameters(), 0.1, momentum=0.9999), digits())


@broken("MLP", "exploding large_updates loss nonfinite dead", by=60, twin="mlp_sgd")
def loss_summed() -> Run:
    """`reduction="sum"` over 128 examples with the rate for a mean: every step is 128 times too large."""
    net = mlp()

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(scores, targets, reduction="sum")

    return learn(net, SGD(net.parameters(), 0.1), digits(), batch=128, loss=loss)


@broken("RNN", "saturated exploding large_updates loss", by=100, twin="gru_of_rows")
def recurrent_times_three() -> Run:
    """Recurrent weights of a tanh RNN, orthogonal times 3: states jump between -1 and 1, gradients grow in time."""
    net = RowsRNN(nn.RNN(16, 64, batch_first=True), 64)
    nn.init.orthogonal_(net.rnn.weight_hh_l0, 3.0)
    return learn(net, SGD(net.parameters(), 0.1), digits(16))


@broken("MLP", "vanishing loss stopped", by=150, stays=0.9)
def twenty_relu_layers() -> Run:
    """Twenty ReLU layers with PyTorch's own initialisation and no norms: each loses more than half of the signal."""
    net = deep_mlp(nn.ReLU, 20)
    return learn(net, SGD(net.parameters(), 0.05), digits(), steps=200)


@broken("CNN", "dead vanishing untrained loss symmetric", by=100, stays=0.9)
def norm_of_one_value() -> Run:
    """`GroupNorm(16, 16)` behind the pooling: a norm of one value is its bias, whatever the image."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.GroupNorm(16, 16), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return learn(net, Adam(net.parameters(), 3e-3), digits())


@broken("ViT", "exploding large_updates loss dead saturated nonfinite", by=100, twin="vit_warmup_cosine")
def vit_rate_of_sgd() -> Run:
    """The rate of 0.1 was taken over from SGD when the optimizer became AdamW."""
    net = ViT()
    return learn(net, AdamW(net.parameters(), 0.1, weight_decay=0.05), digits())


# Broken: data and numbers


@broken("tabular", "inputs", by=30, twin="regression_scaled")
def missing_as_minus_9999() -> Run:
    """A twentieth of the values is missing, and written as -9999; the targets do not depend on that."""
    x, y = curves()
    x = torch.where(torch.rand(x.shape) < 0.05, -9999.0, x)
    net = regressor()
    return learn(net, Adam(net.parameters(), 3e-3), (x, y), loss=F.mse_loss)


class MomentsNorm(nn.Module):
    """Instance norm by hand, its variance as the mean of squares less the square of the mean, which may be below 0."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return (x - mean) / ((x * x).mean((2, 3), keepdim=True) - mean**2).sqrt()


@broken("CNN", "nonfinite", "1 2 3 loss", by=60, stays=0.9)
def root_of_negative_variance() -> Run:
    """A norm by hand without an epsilon; at step 34 a batch holds an empty picture, whose variance is 0 or below.

    The norm is where the first value breaks; the convolution after it is the first layer with weights to be given it.
    """
    net = nn.Sequential(
        nn.Conv2d(1, 16, 1), MomentsNorm(), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip

    def change(number: int, images: Tensor) -> Tensor:
        if number == 34:
            images = images.clone()
            images[3] = images.min()
        return images

    return learn(net, Adam(net.parameters(), 3e-3), digits(), steps=100, change=change)
