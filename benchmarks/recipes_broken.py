"""Recipes of the first half that are broken on purpose, with what is right to say of each.

`twin` is the healthy recipe that differs in the fault alone. `by` is a step: that of the first look, or that of the
third or so where a symptom has to last. Kinds are those of `Finding`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from benchmarks.recipes_harness import FIRST_LOOK, Run, broken
from benchmarks.recipes_healthy import bfloat16_cross_entropy, l1_of_one
from benchmarks.recipes_parts import (
    LanguageModel,
    RowsRNN,
    batches,
    cnn,
    deep_mlp,
    digits,
    language,
    learn,
    mlp,
    next_token,
    normed_cnn,
    prices,
    raw_digits,
    regressor,
    scale,
)

# Almost nothing is trained


@broken("MLP", "untrained", "1 3 5", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def optimizer_of_a_copy() -> Run:
    """The optimizer holds the weights of a copy of the model."""
    net = mlp()
    return learn(net, SGD(copy.deepcopy(net).parameters(), 0.1), digits(), steps=100)


@broken("MLP", "untrained", "1 3", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def optimizer_of_the_head() -> Run:
    """The optimizer holds the head only, though all may be trained."""
    net = mlp()
    optimizer = SGD(net[5].parameters(), 0.1)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 200):
        with run.step() as step:
            optimizer.zero_grad()  # the body's gradients pile up
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("MLP", "untrained", "1 3", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def body_detached() -> Run:
    """The head is given the body's output without its graph."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 200):
        with run.step() as step:
            loss = F.cross_entropy(net[5](net[:5](images).detach()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("MLP", "untrained", "1 3", by=FIRST_LOOK, nothing_trained=True, twin="mlp_sgd")
def untrained_body_frozen() -> Run:
    """The body is frozen as for fine-tuning, but nobody has trained it."""
    net = mlp()
    net[:5].requires_grad_(False)
    return learn(net, SGD(net[5].parameters(), 0.1), digits(), steps=200)


@broken("MLP", "untrained", "1 3 5", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def cleared_before_the_step() -> Run:
    """`zero_grad()` between backward and step."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 100):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.zero_grad()
            optimizer.step()
            step.log(loss=loss)
    return run


@broken("MLP", "untrained", "1 3 5", by=FIRST_LOOK, nothing_trained=True, stays=0.9)
def never_stepped() -> Run:
    """`optimizer.step()` is never called. Until the next look is due it might be accumulation."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 100):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            step.log(loss=loss)
    return run


# Part of it is not trained


@broken("CNN", "untrained stopped", "0 2", by=30, unchecked="a random first layer costs little on digits")
def group_with_rate_zero() -> Run:
    """The first two convolutions are in a group whose rate is 0."""
    net = cnn()
    groups = [{"params": net[:4].parameters(), "lr": 0.0}, {"params": net[4:].parameters()}]
    return learn(net, AdamW(groups, 1e-2), digits())


class WithBranch(nn.Module):
    """A branch is built, and `forward` forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.branch, self.head = nn.Linear(64, 48), nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))))


@broken("MLP", "untrained", "branch", by=20, unchecked="the rest learns as well as without it")
def branch_never_called() -> Run:
    """Half of the body has no part in the answer."""
    net = WithBranch()
    return learn(net, Adam(net.parameters(), 3e-3), digits())


@broken("language model", "untrained", "embedding", by=20, unchecked="random vectors serve 20 tokens as well")
def embedding_without_graph() -> Run:
    """The embedding runs under `no_grad`."""
    net, text = LanguageModel(), language()
    optimizer = SGD(net.parameters(), 1.0)
    run = Run(net, every=5)
    for tokens, _ in batches((text, text), 32, 300):
        with run.step() as step:
            with torch.no_grad():
                words = net.embedding(tokens[:, :-1])
            loss = next_token(net.head(net.rnn(words)[0]), tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.25)
            optimizer.step()
            step.log(loss=loss)
    return run


# Rates and precision


@broken("CNN", "exploding large_updates loss nonfinite", by=50, twin="cnn_adamw_onecycle")
def rate_far_too_high() -> Run:
    """SGD with 10 where 0.1 is right. Explosion, huge updates, a loss that diverges: each leads to the rate."""
    net = cnn()
    return learn(net, SGD(net.parameters(), 10.0), digits(), every=5)


@broken("CNN", "untrained stopped", "0 2 4 8", by=50, stays=0.95)
def rate_far_too_low() -> Run:
    """SGD with 1e-8: float32 cannot hold what is added."""
    net = cnn()
    return learn(net, SGD(net.parameters(), 1e-8), digits(), every=5)


@broken("MLP", "untrained stopped", "1 3 5", by=50, stays=0.9)
def bfloat16_does_not_move() -> Run:
    """Weights in bfloat16 with SGD 1e-5: rounding swallows nearly every update."""
    net, (images, labels) = mlp().bfloat16(), digits()
    data = (images.bfloat16(), labels)
    return learn(net, SGD(net.parameters(), 1e-5), data, every=5, loss=bfloat16_cross_entropy)


# Weights to begin with


@broken("MLP", "vanishing", by=50, stays=0.9)
def weights_a_thousandth() -> Run:
    """All parameters are a thousandth of what they should be: outputs and gradients vanish with depth."""
    net = deep_mlp(nn.ReLU, 5)
    scale(net, 1e-3)
    return learn(net, SGD(net.parameters(), 0.1), digits())


@broken("MLP", "exploding", by=50, twin="mlp_sgd")
def weights_hundredfold() -> Run:
    """All weights are a hundred times what they should be."""
    net = deep_mlp(nn.ReLU, 5)
    scale(net, 100.0)
    return learn(net, Adam(net.parameters(), 1e-3), digits(), every=5)


@broken("CNN", "dead", "2 3", by=50, stays=0.9)
def relus_shut_off() -> Run:
    """Biases of -10: no channel of the second convolution ever fires."""
    net = cnn()
    nn.init.constant_(net[2].bias, -10)
    return learn(net, SGD(net.parameters(), 0.1), digits())


@broken("MLP", "symmetric", "1 3", by=30, twin="mlp_sgd")
def constant_initialisation() -> Run:
    """All weights of a layer are one number, so that all its units stay equal."""
    net = mlp()
    for i in (1, 3):
        nn.init.constant_(net[i].weight, 0.02)
        nn.init.zeros_(net[i].bias)
    return learn(net, SGD(net.parameters(), 0.1), digits(), steps=200)


@broken("MLP", "saturated", "2 4", by=50, twin="mlp_sgd")
def tanh_of_large_weights() -> Run:
    """Weights drawn from N(0, 2²) drive both tanh layers to their ends."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)
    )  # fmt: skip
    for i in (1, 3):
        nn.init.normal_(net[i].weight, std=2.0)
    return learn(net, SGD(net.parameters(), 0.05), digits(), steps=200)


@broken("MLP", "vanishing", "1 3 5", by=50, stays=0.9)
def ten_sigmoids() -> Run:
    """Ten sigmoid layers, one after another, with SGD (Glorot & Bengio 2010)."""
    net = deep_mlp(nn.Sigmoid, 10)
    return learn(net, SGD(net.parameters(), 0.1), digits())


# Inputs


@broken("MLP", "inputs", by=30, twin="mlp_sgd")
def inputs_of_bytes() -> Run:
    """Pixels from 0 to 255 go in as they are. What explodes after that is their effect."""
    net, (images, labels) = mlp(), raw_digits()
    return learn(net, SGD(net.parameters(), 0.1), (images * 255 / 16, labels), steps=200)


@broken("CNN", "inputs", by=30, unchecked="Adam makes up for most of it")
def inputs_normalised_twice() -> Run:
    """ImageNet's mean and std are taken off twice: inputs of mean -5 and std 7. From within the cause is a guess."""
    net, (images, labels) = cnn(), raw_digits()
    net[0] = nn.Conv2d(3, 8, 3, 1, 1)
    images = (images / 16).expand(-1, 3, -1, -1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    twice = ((images - mean) / std - mean) / std
    return learn(net, Adam(net.parameters(), 3e-3), (twice, labels))


@broken("CNN", "inputs", by=30, stays=0.9)
def inputs_divided_twice() -> Run:
    """Pixels are divided by 255 twice: inputs of 0 to 1/255, whose std is about 0.0015."""
    net, (images, labels) = cnn(), raw_digits()
    return learn(net, SGD(net.parameters(), 0.05), (images / 16 / 255, labels))


@broken("CNN", "inputs", by=30, stays=0.9)
def inputs_all_zero() -> Run:
    """The loader gives images that are all 0."""
    net, (images, labels) = cnn(), digits()
    return learn(net, SGD(net.parameters(), 0.1), (torch.zeros_like(images), labels))


def nan_at(number: int) -> Callable[[int, Tensor], Tensor]:
    """One pixel of that batch is no number."""

    def change(step: int, images: Tensor) -> Tensor:
        if step == number:
            images = images.clone()
            images[3, 0, 4, 4] = torch.nan
        return images

    return change


@broken("CNN", "nonfinite", "inputs", by=45, stays=0.9)
def nan_in_an_image() -> Run:
    """One pixel of one batch is NaN, at a step that is looked at."""
    net = cnn()
    return learn(net, AdamW(net.parameters(), 1e-3), digits(), every=5, change=nan_at(40))


@broken("CNN", "nonfinite", "loss", by=45, stays=0.9)
def nan_between_looks() -> Run:
    """The same between two looks, where loss and gradient are all that is looked at: afterwards all weights are NaN."""
    net = cnn()
    return learn(net, AdamW(net.parameters(), 1e-3), digits(), every=5, change=nan_at(42))


# Modes, losses and targets


@broken("RNN", "nonfinite exploding", "rnn", by=20, stays=0.9)
def nan_born_in_an_rnn() -> Run:
    """Recurrent weights six times too large with a ReLU; what comes out of the head is not its fault."""
    net = RowsRNN(nn.RNN(8, 32, nonlinearity="relu", batch_first=True), 32)
    scale([net.rnn], 6.0)
    return learn(net, SGD(net.parameters(), 0.05), digits(), steps=60, every=1)


@broken("CNN", "mode", "1 4", by=30, unchecked="with small weights it learns nearly as well")
def norms_in_evaluation() -> Run:
    """`model.eval()` stands before the loop: batch norms never see their batch, and dropout is off."""
    net = normed_cnn().eval()
    return learn(net, SGD(net.parameters(), 0.05, momentum=0.9), digits())


@broken("MLP", "loss", by=None, stays=0.9)
def labels_shuffled() -> Run:
    """Labels have nothing to do with the images: the loss stays at ln(10)."""
    images, labels = digits()
    net = mlp()
    run = Run(net, every=10)
    optimizer = SGD(net.parameters(), 0.05)
    for batch, _ in batches((images, labels), 64, 300):
        with run.step() as step:
            loss = F.cross_entropy(net(batch), torch.randint(10, (64,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


def log_of_chances(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy by hand, with log(0) where a chance underflows."""
    return -(F.one_hot(targets, 10) * (40 * scores).softmax(1).log()).sum(1).mean()


@broken("MLP", "nonfinite", "loss *.weight *.bias", by=30, stays=0.9)
def log_of_zero() -> Run:
    """A loss by hand: 0 · log(0) is NaN as soon as a chance is 0. No layer is its cause: all were finite till then."""
    net = mlp()
    return learn(net, SGD(net.parameters(), 0.1), digits(), every=5, loss=log_of_chances)


@broken("regression", "targets", by=None, stays=0.9)
def raw_targets_small_rate() -> Run:
    """Targets of 200,000 as they come; Adam with 1e-3 would take a million steps."""
    net = regressor()
    return learn(net, Adam(net.parameters(), 1e-3), prices(), steps=200, batch=64, loss=l1_of_one)


@broken("regression", "targets exploding nonfinite loss", by=50, unchecked="it ends at 1e17 or NaN, after 1e32 or NaN")
def raw_targets_squared() -> Run:
    """Targets of 200,000, squared error, SGD: NaN within a few steps. The targets are the cause, the rest its signs."""
    net = regressor()
    return learn(net, SGD(net.parameters(), 1e-3), prices(), every=1, steps=60, loss=F.mse_loss)
