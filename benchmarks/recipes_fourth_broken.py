"""Broken recipes of the fourth part, written when the rules of the Monitor stood, by somebody who had not read them.

Of the Monitor its author knew what the README says to its users, its table of kinds included. Each recipe is a
mistake that people report: in forums, in guides to debugging, in studies of bugs. What is right to say of it, and by
when, was settled before it was run.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.checkpoint import checkpoint

from benchmarks.recipes_fourth_healthy import (
    VAE,
    Detector,
    DropPathBlock,
    Segmenter,
    covered,
    follow,
    gpt,
    margin_until_plateau,
    neighbours,
    scenes,
    sparse_code,
    vae_losses,
)
from benchmarks.recipes_harness import FIRST_LOOK, Run, broken
from benchmarks.recipes_parts import (
    LanguageModel,
    RowsRNN,
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
    resnet,
    warmup_cosine,
)

# Almost nothing is trained


@broken("autoencoder", "untrained", by=FIRST_LOOK, nothing_trained=True, stays=0.95)
def losses_in_a_new_tensor() -> Run:
    """Two losses are put into `torch.tensor([...], requires_grad=True)`: the sum has a gradient, the network none."""
    images, net = raw_digits()[0] / 16, VAE()

    def loss_of(_: int) -> Tensor:
        losses = vae_losses(net, images[torch.randint(len(images), (64,))])
        return torch.tensor([float(loss) for loss in losses], requires_grad=True).sum() / 64

    return follow(net, Adam(net.parameters(), 3e-3), loss_of, steps=120)


class Binary(nn.Module):
    """A code of zeros and ones, made by a comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.body(x) > 0).float())


@broken("MLP", "untrained", "body", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def threshold_by_comparison() -> Run:
    """`(x > 0).float()` in the middle of the network has no gradient: only the head is trained."""
    net = Binary()
    return learn(net, SGD(net.parameters(), 0.1), digits())


class Backbone(nn.Module):
    """A body to be loaded from a checkpoint, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(cnn())[:-1])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@broken("fine-tuning", "untrained", "body", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def checkpoint_of_other_names() -> Run:
    """The checkpoint's names begin with `module.`; `strict=False` loads nothing, and the body is frozen."""
    trained, net = Backbone(), Backbone()
    pretrain(trained, digits(), 50)
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    net.load_state_dict(state, strict=False)
    net.body.requires_grad_(False)
    return learn(net, SGD(net.head.parameters(), 0.1), digits())


@broken("ResNet", "untrained", "0 1 2", by=FIRST_LOOK, nothing_trained=True, twin="resnet_large_batch")
def convolutions_left_out() -> Run:
    """Linear layers go into the group with decay, norms into the one without; nobody thought of the convolutions."""
    net = resnet()
    decayed = [p for layer in net.modules() if isinstance(layer, nn.Linear) for p in layer.parameters()]
    others = [p for layer in net.modules() if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = SGD(groups, 0.4, momentum=0.9, nesterov=True)
    schedule = warmup_cosine(optimizer, 12, 70)
    return learn(net, optimizer, digits(), steps=70, every=5, batch=512, schedule=schedule)


@broken("CNN", "untrained stopped", "0 1 3 4 9", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def resumed_with_the_last_rate() -> Run:
    """A new task begins with the optimizer's state of a training that had ended, whose rate had come down to 0."""
    (images, labels), net = digits(), normed_cnn()
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9)
    schedule = warmup_cosine(optimizer, 5, 60)
    for given, wanted in batches((images, labels), 32, 60):
        optimizer.zero_grad()
        F.cross_entropy(net(given), wanted).backward()
        optimizer.step()
        schedule.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"] = {}  # the moments are not kept
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9)
    optimizer.load_state_dict(state)
    return learn(net, optimizer, (images.transpose(2, 3), labels), steps=120)


@broken("ViT", "untrained", by=FIRST_LOOK, nothing_trained=True, stays=0.95)
def optimizer_of_the_data() -> Run:
    """The optimizer was given `parameter.data` of each parameter: tensors that never have a gradient."""
    net = ViT()
    optimizer = AdamW([parameter.data for parameter in net.parameters()], 3e-3)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 100):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            net.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


class InADict(nn.Module):
    """Hidden layers in a plain dict, of which `parameters()` knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = {f"layer{i}": nn.Linear(64 if i == 0 else 32, 32) for i in range(3)}
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers.values():
            x = torch.relu(layer(x))
        return self.head(x)


@broken("MLP", "untrained", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def layers_in_a_plain_dict() -> Run:
    """Three of four layers are kept in a Python dict, not in a `ModuleDict`: the optimizer never hears of them."""
    net = InADict()
    return learn(net, SGD(net.parameters(), 0.1), digits())


class Checkpointed(nn.Module):
    """Its body is computed again in the backward pass, by the older, reentrant way."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=True))


@broken("MLP", "untrained", "body", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def checkpoint_without_gradient() -> Run:
    """Reentrant checkpointing of the first layers, whose input needs no gradient: theirs are None, with a warning."""
    net = Checkpointed()
    return learn(net, SGD(net.parameters(), 0.1), digits())


@broken("detection", "untrained", "box", by=30, stays=0.9)
def sum_not_assigned() -> Run:
    """`loss + 5 * box_loss` is computed, but kept nowhere: the boxes' head has no gradient. Its curve: their loss."""
    images, there, boxes = scenes()
    net = Detector()

    def loss_of(_: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (32,))
        score, box = net(images[chosen])
        held = there[chosen].bool()
        loss = F.binary_cross_entropy_with_logits(score, there[chosen])
        error = F.smooth_l1_loss(box[held], boxes[chosen][held])
        loss + 5 * error  # the mistake
        return loss, error

    return follow(net, AdamW(net.parameters(), 3e-3), loss_of, steps=120)


# Inputs


@broken("MLP", "inputs", by=30, twin="mlp_sgd")
def normalised_before_scaling() -> Run:
    """Mean and std of images from 0 to 1 are applied to bytes from 0 to 255: inputs up to 680."""
    images, labels = raw_digits()
    net = mlp()
    return learn(net, SGD(net.parameters(), 0.1), ((images / 16 * 255 - 0.3053) / 0.3761, labels))


@broken("regression", "inputs", by=30, twin="regression_scaled")
def timestamp_as_a_feature() -> Run:
    """Seconds since 1970 are one of nine features, beside eight that are standardised."""
    x, y = curves()
    x = torch.cat([x, 1.7e9 + 3e7 * torch.rand(len(x), 1)], 1)
    net = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    return learn(net, Adam(net.parameters(), 3e-3), (x, y), loss=F.mse_loss)


@broken("CNN", "inputs dead loss", by=110, stays=0.8)
def zeros_after_the_first_epoch() -> Run:
    """A buffer that the loader had filled is emptied after 56 steps: from then on all images are 0."""
    net = cnn()

    def change(number: int, images: Tensor) -> Tensor:
        return images if number < 56 else torch.zeros_like(images)

    return learn(net, SGD(net.parameters(), 0.02, momentum=0.9), digits(), change=change)


# Values that are not finite


@broken("sound", "nonfinite inputs", "inputs *0*", by=60, stays=0.9)
def log_of_silence() -> Run:
    """Log-spectra without an epsilon; at step 37 one recording holds silence, whose log is minus infinity."""
    labels = torch.randint(4, (400,))
    places = torch.arange(128)
    wave = torch.sin(places * (0.3 + 0.4 * labels[:, None] + 0.1 * torch.rand(400, 1))) + 0.3 * torch.randn(400, 128)
    net = nn.Sequential(nn.Conv1d(17, 24, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4))
    window = torch.hann_window(32)

    def change(number: int, sounds: Tensor) -> Tensor:
        if number == 37:
            sounds = sounds.clone()
            sounds[5, 40:] = 0
        return torch.stft(sounds, 32, 16, window=window, return_complex=True).abs().log()

    return learn(net, Adam(net.parameters(), 3e-3), (wave, labels), steps=100, change=change)


@broken("autoencoder", "nonfinite exploding large_updates loss", by=60, twin="vae_kl_warmup")
def variance_overflows() -> Run:
    """Loss summed over 64 images, SGD with 0.1: the exponential of the log-variance overflows."""
    images, net = raw_digits()[0] / 16, VAE()

    def loss_of(_: int) -> tuple[Tensor, Tensor]:
        loss = sum(vae_losses(net, images[torch.randint(len(images), (64,))]))
        return loss, loss / 64

    return follow(net, SGD(net.parameters(), 0.1), loss_of, steps=100)


@broken("segmentation", "nonfinite", "loss *.weight *.bias first second third head halfway", by=60, stays=0.9)
def mean_over_an_empty_mask() -> Run:
    """Losses are averaged over the pixels that somebody has labelled; at step 43 no pixel of the batch is: 0 / 0."""
    images, masks = covered()
    labelled = (torch.rand(masks.shape) < 0.3).float()
    net = Segmenter()

    def loss_of(number: int) -> Tensor:
        chosen = torch.randint(len(images), (16,))
        held = labelled[chosen] if number != 43 else torch.zeros(16, 1, 16, 16)
        losses = [F.binary_cross_entropy_with_logits(scores, masks[chosen], held) for scores in net(images[chosen])]
        return (losses[0] + 0.4 * losses[1]) * held.numel() / held.sum()

    return follow(net, SGD(net.parameters(), 0.1, momentum=0.9), loss_of, steps=80)


# Explosions


@broken("MLP", "exploding large_updates loss nonfinite dead", by=100, twin="mlp_sgd")
def one_cycle_up_to_ten() -> Run:
    """One cycle with `max_lr=10`, a hundred times what was found to be good; it begins at 0.4."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    return learn(net, optimizer, digits(), schedule=OneCycleLR(optimizer, 10.0, total_steps=150))


@broken("language model", "large_updates exploding saturated loss nonfinite", by=100, twin="lstm_language_model")
def clipped_after_the_step() -> Run:
    """Gradients are clipped when the optimizer has stepped already; the rate of 30 was chosen for clipped ones."""
    text, net = language(), LanguageModel()
    optimizer = SGD(net.parameters(), 30.0)
    run = Run(net, every=10)
    for words, following in batches((text[:, :-1], text[:, 1:]), 32, 120):
        with run.step() as step:
            loss = next_token(net(words), following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            nn.utils.clip_grad_norm_(net.parameters(), 0.25)
            step.log(loss=loss)
    return run


@broken("GAN", "exploding loss large_updates", by=None, stays=5.0)
def critic_without_a_bound() -> Run:
    """A Wasserstein critic with neither clipping nor a penalty: its scores grow without end.

    The curve is the size of the critic's loss. Nothing is wrong at first; the growth itself has to be seen.
    """
    generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
    critic = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    net = nn.ModuleDict({"generator": generator, "critic": critic})
    optimizers = [RMSprop(generator.parameters(), 1e-4), RMSprop(critic.parameters(), 1e-3)]
    images = digits()[0].flatten(1)
    run = Run(net, every=10)
    for number in range(200):
        with run.step() as step:
            fake = generator(torch.randn(64, 8))
            loss = critic(fake.detach()).mean() - critic(images[torch.randint(len(images), (64,))]).mean()
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            if number % 5 == 4:
                optimizers[0].zero_grad()
                (-critic(fake).mean()).backward()
                optimizers[0].step()
            step.log(loss=loss)
            run.curve[-1] = abs(run.curve[-1])
    return run


@broken("MLP", "exploding loss large_updates dead", by=60, twin="mlp_sgd")
def drawn_with_deviation_one() -> Run:
    """All weights are drawn by `torch.randn`: each layer widens its values, and the loss begins in the hundreds."""
    net = mlp()
    for layer in (net[1], net[3], net[5]):
        nn.init.normal_(layer.weight)
    return learn(net, SGD(net.parameters(), 0.1), digits())


# Dead and saturated layers


@broken("regression", "dead", by=100, stays=0.9)
def relu_before_negative_targets() -> Run:
    """A ReLU at the end, and temperatures of a winter, which are all below 0: it only ever says 0."""
    x, y = curves()
    net = nn.Sequential(*regressor(), nn.ReLU())
    return learn(net, Adam(net.parameters(), 3e-3), (x, -4 + 0.5 * y), loss=F.mse_loss)


@broken("autoencoder", "dead vanishing", by=None, twin="sparse_tied_autoencoder")
def penalty_empties_the_code() -> Run:
    """The penalty on a sparse code is a thousand times too strong: all of its units are 0, for every image."""
    return sparse_code(1.0)


@broken("autoencoder", "saturated targets", by=None, stays=0.7)
def tanh_before_pixels_up_to_16() -> Run:
    """A decoder ends in a tanh, but pixels go from 0 to 16: most of what it says is 1, and cannot be more."""
    images = raw_digits()[0].flatten(1)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.Tanh())
    return learn(net, Adam(net.parameters(), 1e-2), (images / 16, images), loss=F.mse_loss)


class Sums(nn.Module):
    """Four graph layers with a tanh; each sums over the neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.tanh1, self.tanh2, self.tanh3 = nn.Tanh(), nn.Tanh(), nn.Tanh()
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.tanh1(self.first(edges @ x))
        x = self.tanh2(self.second(edges @ x))
        return self.head(self.tanh3(self.third(edges @ x)))


@broken("graph", "saturated exploding inputs", by=60, twin="graph_attention")
def neighbours_summed() -> Run:
    """Sums, not means, over the 100 neighbours of each node: all tanh are at their ends."""
    x, _, labels = neighbours()
    edges = torch.zeros(300, 300).scatter_(1, torch.cdist(x, x).topk(100, largest=False).indices, 1.0)
    net = Sums()
    optimizer = SGD(net.parameters(), 0.05)
    return follow(net, optimizer, lambda _: F.cross_entropy(net(x, edges)[::3], labels[::3]), steps=100, every=5)


# Vanishing, stopped


@broken("RNN", "vanishing loss", by=150, stays=0.9)
def last_state_of_the_padding() -> Run:
    """Rows of a digit, padded with zeros to 100 places; what is read is the state at the end of the padding."""
    images, labels = digits()
    images = F.pad(images, (0, 0, 0, 92))
    net = RowsRNN(nn.RNN(8, 32, batch_first=True), 32)
    return learn(net, Adam(net.parameters(), 1e-3), (images, labels), steps=120)


class SkipForgotten(DropPathBlock):
    """`forward` returns the branch, and not `x +` the branch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


@broken("ConvNeXt", "vanishing dead loss untrained stopped", by=150, stays=0.9)
def skip_forgotten() -> Run:
    """Four ConvNeXt blocks without their skips: each multiplies the signal by its layer scale of 1e-6."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 2, 2), *(SkipForgotten(16, 0.0) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip
    return learn(net, AdamW(net.parameters(), 3e-3, weight_decay=0.05), digits(), steps=130, batch=16)


@broken("transformer", "stopped untrained loss", by=None, stays=0.9)
def lambda_returns_the_rate() -> Run:
    """`LambdaLR` wants a factor and is given the rate itself: the optimizer steps with 1e-3 times 1e-3."""
    text, net = language(), gpt()
    optimizer = AdamW(net.parameters(), 1e-3, weight_decay=0.01)
    schedule = LambdaLR(optimizer, lambda step: 1e-3 * min(1, (step + 1) / 10))
    return learn(net, optimizer, (text[:, :-1], text[:, 1:]), steps=150, loss=next_token, schedule=schedule)


@broken("MLP", "stopped untrained", by=None, twin="hinge_until_plateau")
def plateau_of_the_wrong_mode() -> Run:
    """`ReduceLROnPlateau(mode="max")` is shown the loss: while that falls, the rate is cut again and again."""
    return margin_until_plateau("max")


# Modes, symmetry, gradients


@broken("GAN", "mode", "generator", by=90, unchecked="a GAN's loss does not show how good its pictures are")
def pictures_drawn_in_evaluation() -> Run:
    """After 25 steps `generator.eval()` is called to save a few pictures, and `train()` never again."""
    generator = nn.Sequential(
        nn.Linear(8, 128), nn.Unflatten(1, (32, 2, 2)), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2), nn.Tanh(),
    )  # fmt: skip
    judge = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(256, 1)
    )
    net = nn.ModuleDict({"generator": generator, "judge": judge})
    optimizer, optimizer_of_judge = (Adam(part.parameters(), 1e-3, (0.5, 0.999)) for part in (generator, judge))
    images = raw_digits()[0] / 8 - 1
    run = Run(net, every=10)
    for number in range(120):
        with run.step() as step:
            fake = generator(torch.randn(32, 8))
            real = judge(images[torch.randint(len(images), (32,))])
            loss_of_judge = F.softplus(-real).mean() + F.softplus(judge(fake.detach())).mean()
            optimizer_of_judge.zero_grad()
            loss_of_judge.backward()
            optimizer_of_judge.step()
            loss = F.softplus(-judge(fake)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, judge=loss_of_judge)
        if number == 25:
            generator.eval()
            with torch.no_grad():
                generator(torch.randn(16, 8))
    return run


@broken("RNN", "symmetric", "rnn", by=30, twin="gru_of_rows")
def recurrent_weights_of_one_number() -> Run:
    """All weights of a GRU and of its head begin at 0.05: the units are one unit, 32 times."""
    net = RowsRNN(nn.GRU(16, 32, batch_first=True), 32)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.05)
    return learn(net, Adam(net.parameters(), 1e-2), digits(16))


@broken("MLP", "gradients", by=30, twin="mlp_sgd")
def cleared_once_an_epoch() -> Run:
    """`zero_grad()` stands in the outer loop: within an epoch of 50 steps gradients add up, and each step uses all."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1)
    run = Run(net, every=10)
    for _ in range(3):
        optimizer.zero_grad()
        for images, labels in batches(digits(), 32, 50):
            with run.step() as step:
                loss = F.cross_entropy(net(images), labels)
                loss.backward()
                optimizer.step()
                step.log(loss=loss)
    return run


# Targets and losses


class Visitors(nn.Module):
    """A GRU over fourteen days guesses the fifteenth."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@broken("RNN", "targets", by=None, stays=0.9)
def visitors_as_counted() -> Run:
    """A forecast of about 20,000 visitors a day: the past is standardised, what is wanted is not; Adam with 1e-3."""
    days = torch.arange(15) + torch.randint(7, (500, 1))
    visitors = 20_000 + 6_000 * torch.sin(days * 2 * torch.pi / 7) + 1_000 * torch.randn(500, 15)
    past = (visitors[:, :14, None] - visitors.mean()) / visitors.std()
    net = Visitors()
    return learn(net, Adam(net.parameters(), 1e-3), (past, visitors[:, 14:]), loss=F.mse_loss)


@broken("regression", "loss targets", by=None, twin="regression_scaled")
def answers_and_targets_broadcast() -> Run:
    """Answers are `n 1`, targets `n`: their difference is `n n`, and the best answer is the mean for all."""
    x, y = curves()
    net = regressor()
    return learn(net, Adam(net.parameters(), 3e-3), (x, y[:, 0]), steps=200, loss=F.mse_loss)


@broken("language model", "loss", by=None, stays=0.85)
def view_instead_of_transpose() -> Run:
    """Scores are `n tokens places`, and `view(-1, tokens)` makes them fit the targets, each to a wrong one."""
    text, net = language(tokens=20), LanguageModel()

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(scores.transpose(1, 2).reshape(-1, 20), targets.flatten())

    return learn(net, Adam(net.parameters(), 3e-3), (text[:, :-1], text[:, 1:]), loss=loss)


@broken("CNN", "loss exploding large_updates nonfinite", by=None, stays=0.95)
def nll_of_raw_scores() -> Run:
    """`nll_loss` is given scores without a `log_softmax`: the loss falls without end. Its curve: cross-entropy."""
    net, data = cnn(), batches(digits(), 32, 150)

    def loss_of(_: int) -> tuple[Tensor, Tensor]:
        images, labels = next(data)
        scores = net(images)
        return F.nll_loss(scores, labels), F.cross_entropy(scores, labels)

    return follow(net, Adam(net.parameters(), 3e-3), loss_of)
