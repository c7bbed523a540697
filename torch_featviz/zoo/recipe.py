"""Training of the XO networks: settings that generalise to other handwriting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torch_featviz.errors import OptionError
from torch_featviz.gate import gated

from .data import XO, augment_marks
from .fit import Around, Evaluation, evaluate, fit
from .progress import TrainingCurves
from .xo import XONet, xo_deep

EPOCHS = 32
BATCH = 20
LR = 4e-3


@gated
def train_xo(
    seed: int = 0,
    *,
    epochs: int = EPOCHS,
    model: XONet | None = None,
    watch: Callable[[XONet], Around] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[XONet, TrainingCurves, Evaluation]:
    """Train an XO network from random weights on 1,700 drawings, and test it once on 150 others.

    The state after the last epoch is kept, so nothing is selected on held-out data.

    Args:
        seed: seed of the drawings, the initial weights and the order. torch's global generator is unchanged.
        epochs: number of passes over the drawings.
        model: another XO network; its weights are initialised again. Default: `xo_deep()`.
        watch: called with the network before training, returns a context manager for each step: `lambda net:
            Monitor(net).step`.
        device: as for `fit`; for the default network PyTorch's default device. The initial weights are the same on
            each.
        progress: show bars.
    Returns:
        The network in evaluation mode, its history (validated on another 150 drawings), and its evaluation on the test
        drawings.
    Raises:
        OptionError: a negative seed, or fewer than one epoch.
    """
    if epochs < 1:
        raise OptionError(f"epochs must be at least 1, got {epochs}.")
    train, valid, test = (XO(split, seed) for split in ("train", "valid", "test"))
    default = torch.empty(0).device  # get_default_device() of torch 2.6 does not know `with torch.device(...)`
    if device is None and model is None:
        device = default
    # On the CPU the first weights are the same wherever it is trained, and PyTorch's loaders shuffle nowhere else.
    on_the_cpu = nullcontext() if default.type == "cpu" else torch.device("cpu")
    with torch.random.fork_rng(devices=[]), on_the_cpu:
        torch.manual_seed(seed)
        net = xo_deep() if model is None else model
        _begin(net)
        # Channels last is several times faster for nets this narrow.
        swift = pool_first(net.to(memory_format=torch.channels_last))
        history = fit(
            swift,
            DataLoader(train, BATCH, shuffle=True),
            DataLoader(valid, 75),
            epochs=epochs,
            lr=LR,
            augment=_drawn_anew,
            around=watch(net) if watch else nullcontext,
            device=device,
            progress=progress,
        )
        net.to(memory_format=torch.contiguous_format).eval()
        return net, history, evaluate(net, DataLoader(test, 75))


def _begin(net: XONet) -> None:
    """He's weights; the first layer's filters come in pairs of opposite sign and sum to 0, so that each is silent on
    blank paper of any grey and none is deaf to ink.
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    weight = net.get_parameter("features.conv1.weight")
    half = len(weight) // 2
    with torch.no_grad():
        weight[half : 2 * half] = -weight[:half]
        weight.sub_(weight.mean((1, 2, 3), keepdim=True))
        weight.mul_((2 / weight[0].numel()) ** 0.5 / weight.std((1, 2, 3), keepdim=True))


def pool_first(net: XONet) -> nn.Sequential:
    """The same function with the same parameters, but pooled before each ReLU, whose work is then a quarter.

    The largest of clipped values is the clipped largest value, so outputs are those of `net`.
    """
    layers = list(net.features)
    for i in range(len(layers) - 1):
        if isinstance(layers[i], nn.ReLU) and isinstance(layers[i + 1], nn.MaxPool2d):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return nn.Sequential(*layers, nn.Flatten(), *net.classifier)


def _drawn_anew(images: Tensor) -> Tensor:
    return augment_marks(images).contiguous(memory_format=torch.channels_last)
