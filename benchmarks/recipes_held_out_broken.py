"""Recipes of the second half that are broken on purpose, written after the rules, with what is right to say of each.

A docstring says what is wrong and, where it is not plain, what a good watcher would say and why. `by` is the step at
which telling it is in time. Three that a look can hardly know are kept, as they are met in practice; each says so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, StepLR

from benchmarks.recipes_harness import FIRST_LOOK, Run, broken
from benchmarks.recipes_healthy import LoRA
from benchmarks.recipes_held_out_healthy import distance_of_means, generator, sound_net, tones
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
    normed_cnn,
    pretrain,
    raw_digits,
    regressor,
    resnet,
    warmup_cosine,
    zero,
)

# Almost nothing is trained


@broken("CNN", "untrained", "0 2 4 8", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def schedule_stuck_at_zero() -> Run:
    """A warm-up by whole numbers, `step // 1000`: the rate is 0 from the first step on."""
    net = cnn()
    optimizer = AdamW(net.parameters(), 1e-3)
    schedule = LambdaLR(optimizer, lambda step: min(1, step // 1000))
    return learn(net, optimizer, digits(), steps=120, schedule=schedule)


@broken("fine-tuning", "untrained", "8", by=FIRST_LOOK, nothing_trained=True, stays=0.8)
def head_replaced_too_late() -> Run:
    """A frozen, pretrained body; the optimizer was made of the old head, and then the head was replaced."""
    net, (images, labels) = cnn(), digits()
    pretrain(net, (images, labels))
    net.requires_grad_(False)
    net[8].requires_grad_(True)
    optimizer = Adam(net[8].parameters(), 1e-2)
    net[8] = nn.Linear(64, 2)
    return learn(net, optimizer, (images, (labels > 4).long()), steps=120)


def adapted() -> tuple[nn.Sequential, Data]:
    """A pretrained network with adapters at its three layers, and transposed digits."""
    net, (images, labels) = mlp(), digits()
    pretrain(net, (images, labels))
    for i in (1, 3, 5):
        net[i] = LoRA(net[i])
    return net, (images.transpose(2, 3), labels)


@broken("LoRA", "untrained dead", "1 3 5", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def lora_both_zero() -> Run:
    """Both matrices of each adapter begin with zeros: each multiplies the other's gradient by 0, for ever."""
    net, data = adapted()
    for i in (1, 3, 5):
        nn.init.zeros_(net[i].a)
    return learn(net, AdamW([each for each in net.parameters() if each.requires_grad], 1e-2), data, steps=120, every=5)


@broken("LoRA", "untrained", "1 3 5", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def lora_after_the_optimizer() -> Run:
    """The optimizer was made before the adapters were put in: it holds the frozen weights only."""
    net, (images, labels) = mlp(), digits()
    pretrain(net, (images, labels))
    optimizer = AdamW(net.parameters(), 1e-2)
    for i in (1, 3, 5):
        net[i] = LoRA(net[i])
    return learn(net, optimizer, (images.transpose(2, 3), labels), steps=120, every=5)


class ThroughNumPy(nn.Module):
    """A convolutional body, a step in NumPy, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()[:8]
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).detach().numpy()
        features = (features - features.mean(1, keepdims=True)) / (features.std(1, keepdims=True) + 1e-3)
        return self.head(torch.from_numpy(features))


@broken("CNN", "untrained", "body", by=FIRST_LOOK, nothing_trained=True, twin="cnn_adamw_onecycle")
def features_through_numpy() -> Run:
    """Features are standardised in NumPy on their way to the head: only the head has gradients."""
    net = ThroughNumPy()
    return learn(net, AdamW(net.parameters(), 3e-3), digits())


@broken("MLP", "untrained nonfinite", by=60, stays=0.9)
def scaler_made_in_the_loop() -> Run:
    """A GradScaler is made anew at each step, so that its scale never comes down: every step is skipped.

    The loss is a sum, and 65,536 times its gradients overflow in float16. One skipped step is usual, so that a watcher
    may wait for a few; that nothing moved, or that the gradients are never finite, is right.
    """
    net = mlp()
    optimizer = SGD(net.parameters(), 3e-3)
    run = Run(net, every=5)
    for images, labels in batches(digits(), 32, 120):
        scaler = torch.amp.GradScaler("cpu")
        with run.step() as step:
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(net(images), labels, reduction="sum")
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step.log(loss=loss)
    return run


# Part of it is not trained


def gan(of_generator: str, detached: bool) -> Run:
    """A GAN of linear layers, spoilt in one of two ways."""
    judge = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    net = nn.ModuleDict({"generator": generator(), "judge": judge})
    optimizers = [Adam(net[name].parameters(), 1e-3, (0.5, 0.999)) for name in ("judge", of_generator)]
    images, labels = raw_digits()
    images = images.flatten(1) / 8 - 1
    run = Run(net, every=10)
    for real, _ in batches((images, labels), 64, 150):
        with run.step() as step:
            fake = net["generator"](torch.randn(64, 16))
            scores = judge(real), judge(fake.detach())
            loss = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
            net.zero_grad()
            loss.backward()
            optimizers[0].step()
            fooled = F.softplus(-judge(fake.detach() if detached else fake)).mean()
            net.zero_grad()
            fooled.backward()
            optimizers[1].step()
            step.log(judge_loss=loss, generator_loss=fooled)
        run.curve.append(distance_of_means(fake, images.mean(0)))
    return run


@broken("GAN", "untrained", "generator", by=30, stays=0.9)
def generator_detached() -> Run:
    """The fakes are detached in the generator's own loss, too."""
    return gan("generator", detached=True)


@broken("GAN", "untrained", "generator", by=30, stays=0.9)
def optimizer_of_the_other_net() -> Run:
    """The generator's optimizer was given the discriminator's parameters."""
    return gan("judge", detached=False)


class TwoBranches(nn.Module):
    """What digit, and how many pixels are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.digit, self.ink = nn.Linear(48, 10), nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.digit(x), self.ink(x)[:, 0]


@broken("several losses", "untrained", "ink", by=30, stays=0.7)
def branch_by_item() -> Run:
    """The second loss is added as a number, `.item()`: its branch has no gradient. The curve is that of this branch."""
    net = TwoBranches()
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            scores, ink = net(images)
            inked = F.mse_loss(ink, 5 + images.mean((1, 2, 3)))
            loss = F.cross_entropy(scores, labels) + inked.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(total=loss, ink=inked)
        run.curve.append(inked.item())
    return run


@broken("language model", "untrained", "0", by=30, unchecked="random vectors serve 20 tokens nearly as well")
def random_vectors_frozen() -> Run:
    """Word vectors were not found and drawn at random; `from_pretrained` freezes them all the same."""
    text = language(256, 12)
    net = nn.Sequential(
        nn.Embedding.from_pretrained(torch.randn(20, 32)), nn.Flatten(), nn.Linear(11 * 32, 64), nn.ReLU(),
        nn.Linear(64, 20),
    )  # fmt: skip
    return learn(net, Adam(net.parameters(), 1e-3), (text[:, :-1], text[:, -1]), steps=150)


@broken("ResNet", "untrained vanishing dead", "*.one *.two *.norm1 *.norm2", by=60, twin="resnet_zero_norms")
def zero_norms_frozen() -> Run:
    """All batch norms are frozen in a fresh ResNet whose blocks begin with a norm of zeros: no block ever wakes up."""
    net = resnet()
    for norm in (each for each in net.modules() if isinstance(each, nn.BatchNorm2d)):
        norm.requires_grad_(False)
    trained = [each for each in net.parameters() if each.requires_grad]
    return learn(net, SGD(trained, 0.1, momentum=0.9), digits(), every=5)


@broken("MLP", "untrained vanishing dead symmetric", "1 3", by=60, stays=0.9)
def two_layers_of_zeros() -> Run:
    """Two linear layers begin with zeros, one after the other: neither ever has a gradient, only the last bias moves.

    A layer of zeros is usual, so that a watcher may wait for a few looks.
    """
    net = mlp()
    zero(net[3], net[5])
    return learn(net, SGD(net.parameters(), 0.1), digits(), steps=150, every=10)


# Rates, clipping, decay, precision


@broken("CNN", "stopped untrained", by=60, stays=0.95)
def clipped_to_nothing() -> Run:
    """Gradients are clipped to a norm of 1e-6, for SGD with 0.1: updates of 1e-7 in all. They do not matter."""
    net = cnn()
    optimizer = SGD(net.parameters(), 0.1)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1e-6)
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("CNN", "stopped untrained", by=100, twin="cnn_adamw_onecycle")
def schedule_by_batch() -> Run:
    """`StepLR(10, 0.1)` was meant for epochs and is stepped at each batch: after 60 steps the rate is 1e-8."""
    net = cnn()
    optimizer = SGD(net.parameters(), 0.01, momentum=0.9)
    return learn(net, optimizer, digits(), steps=200, schedule=StepLR(optimizer, 10, 0.1))


@broken("CNN", "gradients", by=60, twin="cnn_adamw_onecycle")
def gradients_never_cleared() -> Run:
    """`zero_grad` was forgotten: each step follows the sum of all gradients so far."""
    net = cnn()
    optimizer = SGD(net.parameters(), 0.05)
    run = Run(net, every=5)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("MLP", "vanishing loss large_updates stopped", by=None, stays=0.9)
def decay_wins() -> Run:
    """A weight decay of 0.5 for SGD with 0.1, where 5e-4 was meant: all weights shrink by a twentieth at each step.

    Activations and gradients vanish, and the loss stays at ln(10): each leads there.
    """
    net = mlp()
    return learn(net, SGD(net.parameters(), 0.1, weight_decay=0.5), digits(), steps=200)


@broken("MLP", "dead exploding large_updates loss nonfinite", by=60, twin="mlp_sgd")
def relus_killed_by_the_rate() -> Run:
    """SGD with 2 and momentum: within a few steps no ReLU fires, and the loss stays about ln(10)."""
    net = mlp()
    return learn(net, SGD(net.parameters(), 2.0, momentum=0.9), digits(), steps=150, every=2)


def in_float16(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.float(), targets)


@broken("MLP", "untrained stopped", by=60, stays=0.9)
def float16_weights() -> Run:
    """`net.half()` and SGD with 1e-4: most updates are less than half of a weight's last digit."""
    net, (images, labels) = mlp().half(), digits()
    data = (images.half(), labels)
    return learn(net, SGD(net.parameters(), 1e-4), data, every=5, loss=in_float16)


class Plain(nn.Module):
    """A residual branch without norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.up, self.down):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


@broken("ResNet", "exploding nonfinite large_updates loss", by=50, twin="mlp_sgd")
def residuals_without_norms() -> Run:
    """Sixteen residual blocks with He's weights and no norm: each doubles the variance and more; SGD with 0.1."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *(Plain(48) for _ in range(16)), nn.Linear(48, 10))
    return learn(net, SGD(net.parameters(), 0.1), digits(), every=5)


# Weights to begin with


@broken("CNN", "symmetric", "0 2", by=60, twin="cnn_adamw_onecycle")
def convolutions_of_one_number() -> Run:
    """All weights of each convolution are 0.1: all its channels are one channel."""
    net = cnn()
    for i in (0, 2, 4):
        nn.init.constant_(net[i].weight, 0.1)
        nn.init.zeros_(net[i].bias)
    return learn(net, SGD(net.parameters(), 0.02), digits(), every=10)


# Inputs


@broken("sound", "inputs", by=30, twin="quiet_sounds")
def sound_as_whole_numbers() -> Run:
    """Samples of 16 bits go in as they are read, up to 16,000; what explodes after that is their effect."""
    net, (waves, labels) = sound_net(), tones()
    return learn(net, SGD(net.parameters(), 0.05, momentum=0.9), ((waves * 16000).round(), labels), steps=200, every=5)


@broken("CNN", "inputs", by=30, stays=0.9)
def divided_as_whole_numbers() -> Run:
    """`images // 255` of bytes up to 240, then (x - 0.5) / 0.5: every pixel of every image is -1."""
    net, (images, labels) = cnn(), raw_digits()
    given = ((images * 15).byte() // 255 - 0.5) / 0.5
    return learn(net, SGD(net.parameters(), 0.1), (given, labels))


@broken("CNN", "inputs loss", by=None, stays=0.9)
def one_image_for_all() -> Run:
    """A bug of the loader repeats one image over the batch, with the labels of all.

    That all rows of a batch are equal can be seen in the inputs; that the loss stays at ln(10) is right as well.
    """
    net = cnn()
    return learn(
        net, SGD(net.parameters(), 0.05), digits(), steps=200, change=lambda _, images: images[:1].expand_as(images)
    )


@broken("regression", "inputs saturated", by=60, twin="regression_scaled")
def features_in_their_units() -> Run:
    """Features as they come, years and incomes in thousands, into two tanh layers: all units sit at their ends."""
    x, y = curves()
    units = torch.tensor([5000.0, 20.0, 300.0, 1.0, 2000.0, 10.0, 0.1, 50.0])
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return learn(net, Adam(net.parameters(), 1e-3), (x * units + 2 * units, y), loss=F.mse_loss)


# NaN


class Standardise(nn.Module):
    """Each image to mean 0 and std 1, with nothing against a std of 0."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


@broken("CNN", "nonfinite", "0 1 loss", by=40, stays=0.9)
def std_of_zero() -> Run:
    """One image is empty: 0 / 0 in the model's own standardisation, at step 33. The layer after it is given NaN."""
    net = nn.Sequential(Standardise(), *cnn())

    def emptied(number: int, images: Tensor) -> Tensor:
        return torch.cat([torch.full_like(images[:1], -0.8), images[1:]]) if number == 33 else images

    return learn(net, Adam(net.parameters(), 3e-3), digits(), every=5, change=emptied)


@broken("contrastive", "nonfinite", by=40, stays=0.9)
def square_root_of_zero() -> Run:
    """A distance by hand, `sum().sqrt()`, of a pair that is one image at step 20: a finite loss, a gradient of NaN.

    A good watcher says that a gradient broke first, and that the loss was finite.
    """
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = Adam(net.parameters(), 2e-3)
    images, labels = digits()
    run = Run(net, every=5)
    for number in range(100):
        one = torch.randint(len(images), (32,))
        other = (one + torch.randint(1, len(images), (32,))) % len(images)
        other[0] = one[0] if number == 20 else other[0]
        same = labels[one] == labels[other]
        with run.step() as step:
            distance = (net(images[one]) - net(images[other])).square().sum(1).sqrt()
            loss = torch.where(same, distance, torch.relu(2 - distance)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("regression", "nonfinite", "loss", by=30, stays=0.9)
def log_of_a_negative_rate() -> Run:
    """A loss takes the log of the output itself, which is negative as often as not: the loss is NaN at once.

    Every activation was finite before it, so that the loss is what to look at.
    """
    x, y = curves()
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    counts = torch.poisson(y.clamp(-2, 2).exp())
    return learn(
        net, Adam(net.parameters(), 1e-3), (x, counts), steps=60, every=5,
        loss=lambda rate, count: (rate.log() - count.log1p()).square().mean(),
    )  # fmt: skip


@broken("regression", "nonfinite", "loss", by=50, stays=0.9)
def target_missing() -> Run:
    """A missing value in the targets of step 42, an empty cell read as NaN. All that the net returned was finite."""
    x, y = curves()
    net = regressor()
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for number, (inputs, targets) in enumerate(batches((x, y), 32, 100)):
        if number == 42:
            targets[5] = torch.nan
        with run.step() as step:
            loss = F.huber_loss(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


class Reader(nn.Module):
    """Attention by hand over padded sentences, whose mask is the wrong way round."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "out")})
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, words: Tensor) -> Tensor:
        x, part = self.embedding(words), self.attention
        scores = part["query"](x) @ part["key"](x).transpose(1, 2) / x.shape[2] ** 0.5
        scores = scores.masked_fill((words != 0)[:, None], -torch.inf)  # it is the padding that should be hidden
        return self.head((x + part["out"](scores.softmax(2) @ part["value"](x))).mean(1))


@broken("transformer", "nonfinite", "attention", by=FIRST_LOOK, stays=0.9)
def mask_the_wrong_way() -> Run:
    """The padding mask is inverted: in sentences without padding every word is hidden, and attention is 0 / 0.

    The layer to name is the one that was given NaN first, `attention.out`.
    """
    texts = torch.randint(1, 20, (256, 12))
    lengths = torch.randint(6, 13, (256, 1))
    texts = texts.masked_fill(torch.arange(12) >= lengths, 0)
    net = Reader()
    return learn(net, Adam(net.parameters(), 1e-3), (texts, (texts == 3).any(1).long()), steps=60, every=5)


# Modes, losses and targets


@broken("CNN", "mode", "1 4", by=90, unchecked="the training loss is none the worse for it")
def evaluation_never_left() -> Run:
    """`net.eval()` for a validation after 50 steps, and no `net.train()` after it: norms and dropout are off."""
    net, (images, labels) = normed_cnn(), digits()
    optimizer = SGD(net.parameters(), 0.02, momentum=0.9)
    run = Run(net, every=10)
    for number, (inputs, targets) in enumerate(batches((images, labels), 32, 200)):
        if number and number % 50 == 0:
            net.eval()
            with torch.no_grad():
                net(images[:256]).argmax(1)
        with run.step() as step:
            loss = F.cross_entropy(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("MLP", "loss exploding nonfinite large_updates", by=None, stays=0.8)
def sign_of_the_loss() -> Run:
    """A log-likelihood is minimised that should be maximised: the loss falls without end. The curve is the error rate.

    That a cross-entropy is negative and runs away, or what grows with it, is right.
    """
    net = mlp()
    optimizer = Adam(net.parameters(), 1e-3)
    run, errors = Run(net, every=10), []
    for images, labels in batches(digits(), 32, 200):
        with run.step() as step:
            scores = net(images)
            loss = F.log_softmax(scores, 1).gather(1, labels[:, None]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
        errors.append(float((scores.argmax(1) != labels).float().mean()))
    run.curve[:] = errors
    return run


class Boxes(nn.Module):
    """A small body, a class and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()[:8]
        self.kind, self.box = nn.Linear(64, 2), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.kind(x), self.box(x)


@broken("detection", "targets", by=None, stays=0.6)
def boxes_in_pixels() -> Run:
    """Corners of boxes in pixels of a picture of 1,000; Adam with 3e-4 and a smooth L1 loss would take for ever.

    The class's loss is drowned as well. A watcher sees outputs of about 0, a loss of hundreds, gradients of one size.
    """
    net = Boxes()
    optimizer = Adam(net.parameters(), 3e-4)
    corners = 100 + 500 * torch.rand(256, 2)
    boxes, kinds = torch.cat([corners, corners + 100 + 300 * torch.rand(256, 2)], 1), torch.randint(2, (256,))
    images = 0.3 * torch.randn(256, 1, 16, 16)
    for image, box, kind in zip(images, (boxes * 16 / 1000).long().tolist(), kinds.tolist(), strict=True):
        image[0, box[1] : box[3], box[0] : box[2]] += 1.5 if kind else -1.5
    run = Run(net, every=10)
    for _ in range(200):
        chosen = torch.randint(256, (32,))
        with run.step() as step:
            scores, drawn = net(images[chosen])
            loss = F.cross_entropy(scores, kinds[chosen]) + F.smooth_l1_loss(drawn, boxes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


# What a look can hardly know


@broken("MLP", "loss saturated", by=None, twin="mlp_sgd")
def softmax_twice() -> Run:
    """A softmax at the end, and `cross_entropy` behind it: the loss cannot fall below 1.46.

    A look can hardly know what the loss does with the output, though outputs that sum to 1 are a hint.
    """
    net = nn.Sequential(*mlp(), nn.Softmax(1))
    return learn(net, SGD(net.parameters(), 0.1), digits(), steps=200)


@broken("MLP", "dead mode", by=None, twin="mlp_sgd")
def dropout_of_nearly_all() -> Run:
    """`Dropout(0.95)` by someone who gives the share that is kept.

    A look can hardly know what was meant, though 19 of 20 values behind the layer are 0.
    """
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.95), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.95),
        nn.Linear(32, 10),
    )  # fmt: skip
    return learn(net, SGD(net.parameters(), 0.1), digits(), steps=200)


@broken("ViT", "loss", by=None, stays=0.9)
def labels_of_another_order() -> Run:
    """Images were shuffled once, labels were not: at first nothing can be learnt, later only by heart.

    A look cannot know the labels; that the loss stays at ln(10) is all there is to see.
    """
    net, (images, labels) = ViT(), digits()
    optimizer = AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    data = (images[torch.randperm(len(images))], labels)
    return learn(net, optimizer, data, steps=200, schedule=warmup_cosine(optimizer, 20, 200))
