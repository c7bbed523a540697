"""Broken recipes of the fifth part, written when the rules of the Monitor stood, by somebody who had not read them.

Each is one of the mistakes that fill forums, guides to debugging and studies of bugs, in a new setting. What is right
to say of it, and by when, was settled before it was run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from benchmarks.recipes_fifth_healthy import (
    FeatureTokens,
    Listener,
    Masked,
    TwoHeads,
    Velocity,
    WindowNet,
    blobs,
    contrast_loss,
    dilated,
    follow,
    inked,
    masked_loss,
    normed_projector,
    residual_mlp,
    response_net,
    reviews,
    scenes,
    shapes,
    some,
    sounds,
    spread_moons,
    standardised,
    tumours,
    velocity_loss,
)
from benchmarks.recipes_harness import FIRST_LOOK, Run, broken
from benchmarks.recipes_parts import (
    ViT,
    batches,
    cnn,
    curves,
    digits,
    language,
    learn,
    next_token,
    pretrain,
    raw_digits,
    zero,
)

# Almost nothing is trained


@broken("tabular", "untrained", by=FIRST_LOOK, nothing_trained=True, stays=0.85)
def optimizer_of_the_first_fold() -> Run:
    """Cross-validation makes a new network for each fold, but the optimizer was made once, for the first one.

    The second fold is watched.
    """
    x, y = tumours()
    data = (standardised(x[:, :10]), y)
    net = FeatureTokens(10)
    optimizer = AdamW(net.parameters(), 2e-3)
    for given, truth in batches(data, 32, 20):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(given), truth).backward()
        optimizer.step()
    net = FeatureTokens(10)
    return learn(net, optimizer, data, steps=100, loss=F.binary_cross_entropy_with_logits)


@broken("ConvNeXt", "untrained", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def schedule_stepped_alone() -> Run:
    """`scheduler.step()` is taken for the step of the optimizer, which is never called."""
    net = response_net()
    optimizer = AdamW(net.parameters(), 1e-2)
    schedule = CosineAnnealingLR(optimizer, 120)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 48, 120):
        with run.step() as step:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            schedule.step()
            step.log(loss=loss)
    return run


@broken("segmentation", "untrained", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def dice_of_hard_masks() -> Run:
    """Dice of masks that were cut at 0.5; `requires_grad_()` silences the error that the loss has no gradient."""
    images, masks = scenes()
    net = nn.Sequential(dilated(1), nn.Flatten(1, 2))

    def loss(scores: Tensor, truth: Tensor) -> Tensor:
        guess = (scores.sigmoid() > 0.5).float()
        return (1 - 2 * (guess * truth).sum() / (guess.sum() + truth.sum() + 1)).requires_grad_()

    return learn(net, Adam(net.parameters(), 1e-2), (images, (masks > 0).float()), steps=100, batch=12, loss=loss)


class Copied(Listener):
    """Features are copied by `torch.tensor` on their way to the head."""

    def forward(self, x: Tensor) -> Tensor:
        features = torch.tensor(self.body(x))
        return self.head(features.mean((2, 3)))


@broken("sound", "untrained", "body", by=FIRST_LOOK, nothing_trained=True, twin="spectra_with_masks")
def features_copied_by_tensor() -> Run:
    """`torch.tensor(features)` in `forward` copies values without their graph: only the head is trained."""
    net = Copied()
    return learn(net, Adam(net.parameters(), 1e-3), sounds(), steps=120)


@broken("ViT", "untrained", "patches blocks norm", by=FIRST_LOOK, nothing_trained=True, stays=0.85)
def windows_made_from_a_config() -> Run:
    """A body made from its configuration, not from its checkpoint, is frozen: its weights are random."""
    net = WindowNet()
    net.requires_grad_(False)
    net.head = nn.Linear(24, 10)
    return learn(net, AdamW(net.head.parameters(), 4e-3), digits(16), steps=120)


@broken("distillation", "untrained", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def optimizer_of_the_teacher() -> Run:
    """The optimizer was given `teacher.parameters()`; the student, which has the gradients, never moves."""
    images, labels = digits()
    teacher, student = cnn(), residual_mlp()
    pretrain(teacher, (images, labels), 150)
    optimizer = SGD(teacher.parameters(), 0.05, momentum=0.9)

    def loss_of() -> Tensor:
        given, truth = some(48, images, labels)
        score = student(given)
        with torch.no_grad():
            wanted = (teacher(given) / 4).softmax(1)
        soft = F.kl_div((score / 4).log_softmax(1), wanted, reduction="batchmean")
        return F.cross_entropy(score, truth) + 16 * soft

    return follow(student, optimizer, loss_of, steps=120)


# A part is not trained


class ListedBlocks(nn.Module):
    """A decoder whose blocks are kept in a Python list."""

    def __init__(self, words: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = [
            nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True, norm_first=True) for _ in range(3)
        ]
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places.weight
        for block in self.blocks:
            x = block(x, self.mask, is_causal=True)
        return self.head(self.norm(x))


@broken("transformer", "untrained", by=30, stays=0.9)
def blocks_in_a_plain_list() -> Run:
    """A decoder keeps its blocks in a list, not in a `ModuleList`; each word depends on the one two places before."""
    follows = torch.randperm(20)
    text = torch.randint(20, (500, 2))
    for _ in range(12):
        text = torch.cat([text, follows[text[:, -2:-1]]], 1)
    text = torch.where(torch.rand(text.shape) < 0.2, torch.randint(20, text.shape), text)
    net = ListedBlocks(20, 13)
    return learn(net, AdamW(net.parameters(), 1e-3), (text[:, :-1], text[:, 1:]), steps=120, loss=next_token)


@broken("autoencoder", "untrained", "decoder", by=30, stays=0.6)
def decoder_not_in_the_optimizer() -> Run:
    """Encoder and decoder are two networks, and the optimizer was given the parameters of the first one."""
    images = digits()[0].flatten(1)
    net = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 12)),
            "decoder": nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 64)),
        }
    )
    optimizer = Adam(net["encoder"].parameters(), 3e-3)

    def loss_of() -> Tensor:
        (given,) = some(48, images)
        return F.mse_loss(net["decoder"](net["encoder"](given)), given)

    return follow(net, optimizer, loss_of, steps=150)


@broken("several losses", "untrained gradients", "digit", by=40, stays=0.85)
def cleared_between_two_losses() -> Run:
    """`zero_grad()` stands between the backward passes of two losses: that of the digits is thrown away.

    Its curve: the loss of the digits.
    """
    images, labels, ink = inked()
    net = TwoHeads()
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for _ in range(120):
        given, truth, amount = some(48, images, labels, ink)
        with run.step() as step:
            score, guess = net(given)
            first, second = F.cross_entropy(score, truth), F.mse_loss(guess, amount)
            optimizer.zero_grad()
            first.backward(retain_graph=True)
            optimizer.zero_grad()
            second.backward()
            optimizer.step()
            step.log(loss=first + second)
            run.curve[-1] = float(first.detach())
    return run


@broken("diffusion", "gradients exploding large_updates loss", by=60, twin="points_without_a_classifier")
def diffusion_without_clearing() -> Run:
    """`zero_grad` was forgotten in the loop of a diffusion model; SGD with momentum."""
    points, labels = spread_moons()
    net = Velocity()
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9)
    run = Run(net, every=10)
    for _ in range(120):
        with run.step() as step:
            loss = velocity_loss(net, points, labels)
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


# Inputs and targets


@broken("ViT", "inputs", by=30, twin="vit_warmup_cosine")
def vit_given_bytes() -> Run:
    """Pixels from 0 to 255 go into a vision transformer, as the transform that scales them was left out."""
    images, labels = raw_digits()
    net = ViT()
    return learn(net, AdamW(net.parameters(), 1e-3), ((images * 255 / 16).round(), labels), steps=90)


@broken("tabular", "inputs", by=30, twin="tumours_logistic_regression")
def tumours_as_they_come() -> Run:
    """Measures of tumours without a scaler: areas up to 4,254 beside fractions of 0.003."""
    x, y = tumours()
    net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    return learn(net, SGD(net.parameters(), 0.05), (x, y), steps=120, loss=F.binary_cross_entropy_with_logits)


@broken("regression", "targets", by=60, stays=0.8)
def diabetes_as_it_comes() -> Run:
    """The course of diabetes, from 25 to 346, as it comes; Adam with 1e-3."""
    from sklearn.datasets import load_diabetes  # noqa: PLC0415  slow to import

    data = load_diabetes()
    x, y = standardised(torch.tensor(data.data).float()), torch.tensor(data.target).float()[:, None]
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    return learn(net, Adam(net.parameters(), 1e-3), (x, y), steps=100, loss=F.mse_loss)


class Prices(nn.Module):
    """An LSTM over twenty days, and the price of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])[:, 0]


@broken("RNN", "inputs targets saturated", by=60, stays=0.8)
def share_prices_as_they_come() -> Run:
    """Prices of about 4,000 go into an LSTM, and the next price is asked of it: it says the same number for all."""
    prices = 4000 + (30 * torch.randn(600, 21)).cumsum(1) + 300 * torch.randn(600, 1)
    net = Prices()
    data = (prices[:, :-1, None], prices[:, -1])
    return learn(net, Adam(net.parameters(), 1e-2), data, steps=120, loss=F.mse_loss)


@broken("regression", "saturated targets vanishing stopped loss", by=100, stays=0.9)
def sigmoid_before_ages() -> Run:
    """A regression ends in a sigmoid, copied from a classifier, but ages go from 20 to 80."""
    x, y = curves()
    net = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 1), nn.Sigmoid(),
    )  # fmt: skip
    return learn(net, RMSprop(net.parameters(), 1e-2), (x, 50 + 12 * y), steps=120, loss=F.mse_loss)


# Numbers


@broken("MLP", "nonfinite inputs", by=FIRST_LOOK, stays=0.9)
def constant_pixels_divided_by_their_std() -> Run:
    """Each pixel is standardised over all images; those of the rim are 0 in all of them: 0 / 0."""
    images, labels = raw_digits()
    net = residual_mlp()
    return learn(net, Adam(net.parameters(), 1e-3), (standardised(images), labels), steps=60)


@broken("MLP", "nonfinite", by=20, stays=0.9)
def adam_in_half_precision() -> Run:
    """`net.half()` and Adam: squares of gradients, and the epsilon of 1e-8, are 0 in float16: 0 / 0."""
    images, labels = digits()
    net = residual_mlp().half()
    return learn(
        net,
        Adam(net.parameters(), 1e-3),
        (images.half(), labels),
        steps=60,
        loss=lambda out, y: F.cross_entropy(out.float(), y),
    )


@broken("CNN", "exploding large_updates loss dead nonfinite", by=100, twin="cnn_adamw_onecycle")
def rate_of_adadelta_for_adam() -> Run:
    """PyTorch's first example has Adadelta with a rate of 1; the optimizer became Adam, the rate stayed."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10),
    )  # fmt: skip
    return learn(net, Adam(net.parameters(), 1.0), digits(), steps=120)


class HandMade(nn.Module):
    """A graph layer by hand: its weights are drawn by `torch.rand`, between 0 and 1."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(before, after)), nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor, graphs: Tensor) -> Tensor:
        return graphs @ (x @ self.weight) + self.bias


class HandMadeGraphs(nn.Module):
    """Three of them, and a head made the same way."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.ModuleList([HandMade(before, width) for before in (1, width, width)])
        self.head = nn.Parameter(torch.rand(width, 3))

    def forward(self, graphs: Tensor) -> Tensor:
        x = graphs.new_ones(len(graphs), 12, 1)
        for layer in self.layers:
            x = F.relu(layer(x, graphs))
        return x.mean(1) @ self.head


@broken("graph", "exploding large_updates loss dead nonfinite", by=100, twin="graphs_by_sums")
def graph_weights_between_0_and_1() -> Run:
    """Layers by hand, whose weights are drawn by `torch.rand`: none is below 0, and values grow by layer."""
    net = HandMadeGraphs()
    return learn(net, SGD(net.parameters(), 0.01), shapes(), steps=120)


class PostNormReader(nn.Module):
    """Six layers with the norm after each sum, the mean of all words."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(61, width), nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, words: Tensor) -> Tensor:
        hidden = words == 0
        x = self.body(self.words(words) + self.places, src_key_padding_mask=hidden)
        kept = (~hidden)[..., None].float()
        return self.head((x * kept).sum(1) / kept.sum(1))


@broken("transformer", "exploding large_updates loss dead saturated stopped vanishing", by=120, twin="packed_reviews")
def transformer_without_warmup() -> Run:
    """Six post-norm layers, Adam with 0.02 from the first step on: the loss stays at ln(2)."""
    words, _, labels = reviews()
    net = PostNormReader()
    return learn(net, Adam(net.parameters(), 0.02), (words, labels), steps=150)


# Units that do nothing


class Variational(nn.Module):
    """A VAE of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)), mean, log_variance


@broken("VAE", "dead vanishing loss stopped", by=150, stays=0.9)
def code_collapses() -> Run:
    """The error is a mean over pixels, the KL a sum: it outweighs all, and the code says nothing of the image.

    Its curve: the reconstruction.
    """
    images = digits()[0].flatten(1)
    images = images - images.mean(0)
    net = Variational()

    def loss_of() -> tuple[Tensor, Tensor]:
        (given,) = some(48, images)
        answer, mean, log_variance = net(given)
        error = F.mse_loss(answer, given)
        return error - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean(), error

    return follow(net, Adam(net.parameters(), 3e-3), loss_of, steps=200)


@broken("detection", "dead exploding large_updates loss stopped vanishing", by=100, twin="key_points_by_soft_argmax")
def key_points_of_dead_relus() -> Run:
    """Places of two spots by a plain CNN and Adam with 0.1: the ReLUs die, and its answer is the mean for all."""
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4), nn.Unflatten(1, (2, 2)),
    )  # fmt: skip
    return learn(net, Adam(net.parameters(), 0.1), blobs(), steps=120, loss=F.mse_loss)


@broken("CNN", "vanishing loss stopped", by=150, stays=0.9)
def plain_convolutions_too_deep() -> Run:
    """Eighteen convolutions with ReLUs, neither norms nor skips, default initialisation, SGD with momentum."""
    parts: list[nn.Module] = []
    for number in range(18):
        parts += [nn.Conv2d(12 if number else 1, 12, 3, 1, 1), nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))
    return learn(net, SGD(net.parameters(), 0.01, momentum=0.9), digits(), steps=150, batch=24)


@broken("GAN", "vanishing saturated stopped", by=150, stays=0.8)
def judge_too_sure() -> Run:
    """The generator minimises log(1 - D), and its judge learns five times a step: it is sure, and has no gradient.

    Its curve: how far the points are from where they should be.
    """
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    net = nn.ModuleDict({"generator": generator, "judge": nn.Sequential(judge, nn.Sigmoid())})
    ours, theirs = SGD(generator.parameters(), 0.02), Adam(judge.parameters(), 1e-2)
    run = Run(net, every=10)
    for _ in range(150):
        with run.step() as step:
            for _ in range(5):
                true = torch.tensor([3.0, 3.0]) + 0.3 * torch.randn(64, 2)
                fake = generator(torch.randn(64, 4)).detach()
                one, none = torch.ones(64, 1), torch.zeros(64, 1)
                loss = F.binary_cross_entropy(net["judge"](true), one) + F.binary_cross_entropy(
                    net["judge"](fake), none
                )
                theirs.zero_grad()
                loss.backward()
                theirs.step()
            fake = generator(torch.randn(64, 4))
            fooled = torch.log(1 - net["judge"](fake) + 1e-8).mean()
            ours.zero_grad()
            fooled.backward()
            ours.step()
            step.log(loss=loss, fooled=fooled)
            run.curve[-1] = float((fake.detach() - 3).norm(dim=1).mean())
    return run


@broken("reinforcement", "symmetric untrained dead vanishing stopped loss", by=60, stays=0.9)
def policy_of_zeros() -> Run:
    """A policy learns an expert's moves; all of its weights begin at 0, and but for the last bias they stay there."""
    places = torch.randn(600, 4)
    gap = places[:, 2:] - places[:, :2]
    along = gap.abs().argmax(1)
    moves = 2 * along + (gap.gather(1, along[:, None])[:, 0] > 0).long()
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    zero(net)
    return learn(net, Adam(net.parameters(), 3e-3), (places, moves), steps=120)


# The rate, the mode, the loss


@broken("transformer", "stopped untrained loss", by=60, stays=0.9)
def schedule_counts_epochs() -> Run:
    """A linear schedule was told the number of epochs, ten, and is stepped at each batch: then the rate is 0."""
    text, net = language(512, 16), Masked(21, 16)
    optimizer = AdamW(net.parameters(), 5e-3, weight_decay=0.01)
    schedule = LambdaLR(optimizer, lambda step: max(0.0, (10 - step) / 10))
    return follow(net, optimizer, lambda: masked_loss(net, text), steps=150, clip=1.0, schedule=schedule)


@broken("fine-tuning", "untrained stopped", by=60, stays=0.9)
def fine_tuned_in_bfloat16() -> Run:
    """A pretrained transformer in bfloat16, AdamW with 2e-5: nearly every update is rounded away."""
    net = Masked(21, 16)
    text = language(512, 16)
    optimizer = AdamW(net.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        masked_loss(net, text).backward()
        optimizer.step()
    net.bfloat16()
    other = language(512, 16)
    return follow(net, AdamW(net.parameters(), 2e-5), lambda: masked_loss(net, other), steps=120, clip=1.0)


@broken("metric learning", "mode", by=30, unchecked="it learns, but its norms never see the statistics of a batch")
def contrast_in_evaluation() -> Run:
    """`net.eval()` of an earlier cell holds while a fresh projector learns: its batch norms pass values as they are."""
    images, labels = digits()
    net = normed_projector()
    net.eval()
    return follow(net, Adam(net.parameters(), 3e-3), lambda: contrast_loss(net, images, labels), steps=120)


@broken("segmentation", "loss saturated vanishing stopped", by=150, twin="anything_or_nothing")
def sigmoid_twice() -> Run:
    """A sigmoid at the end, and `binary_cross_entropy_with_logits` behind it: the loss cannot fall below about 0.63."""
    images, masks = scenes()
    net = nn.Sequential(dilated(1), nn.Flatten(1, 2), nn.Sigmoid())
    data = (images, (masks > 0).float())
    return learn(net, Adam(net.parameters(), 1e-2), data, steps=150, batch=12, loss=F.binary_cross_entropy_with_logits)


@broken("tabular", "loss untrained vanishing stopped dead gradients saturated", by=100, stays=0.9)
def softmax_of_one_score() -> Run:
    """One score for two classes, and a softmax over it: its answer is always 1, and no gradient is left."""
    x, y = tumours()
    net = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 1), nn.Softmax(1), nn.Flatten(0))
    return learn(net, Adam(net.parameters(), 1e-3), (standardised(x), y), steps=120, loss=F.binary_cross_entropy)
