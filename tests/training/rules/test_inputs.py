"""Rules about what the model is given: told as what it is; ordinary images, tokens and signals are let alone."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.rules.samples import FINE, layer, told
from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor

PRESETS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "halves": ((0.5,) * 3, (0.5,) * 3),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "MNIST": ((0.1307,), (0.3081,)),
}


def given(first=None, **figures):
    """A sample of such inputs; the first layer gives half of them, as none that normalises does."""
    inputs = layer(**{"channels": 3, "n": 4096, **figures})
    first = first or layer(std=0.5 * (inputs.mean**2 + inputs.std**2) ** 0.5)
    return {"inputs": {"inputs": inputs}, "layers": {**FINE, "a": first}}


@pytest.mark.parametrize(
    ("beyond", "just_not"),
    [
        ({"mean": 1.0, "std": 0.0, "low": 1.0, "high": 1.0}, {"mean": 1.0, "std": 1e-7, "low": 1.0, "high": 1.0001}),
        ({"mean": 0.0, "std": 0.0, "low": 0.0, "high": 0.0}, {"std": 1e-3, "low": 0.0, "high": 0.0051}),
        ({"mean": 30.0, "std": 1.0, "high": 90.0, "low": -9.0}, {"mean": 29.9, "std": 1.0, "high": 90.0, "low": -9.0}),
        ({"std": 30.1, "low": -90.0, "high": 90.0}, {"std": 29.9, "low": -90.0, "high": 90.0}),
        ({"mean": 120.0, "std": 50.0, "low": 0.0, "high": 255.0}, {"mean": 0.5, "std": 0.2, "low": 0.0, "high": 1.0}),
        ({"mean": 1.01, "std": 5.0, "low": 0.0, "high": 65.0}, {"mean": 1.01, "std": 5.0, "low": 0.0, "high": 64.0}),
        ({"std": 1e-3, "low": -1e-3, "high": 4.9e-3}, {"std": 1e-3, "low": -1e-3, "high": 5.1e-3}),
    ],
)  # fmt: skip
def test_each_at_its_limit(beyond, just_not):
    assert told(given(**beyond), given(**beyond)) == [(0, "inputs", ("inputs",))]
    assert told(given(**just_not)) == []
    assert told(given(**{**beyond, "n": 63})) == []  # of few values nothing is said
    assert told(given(**{**beyond, "n": 64})) == [(0, "inputs", ("inputs",))]


def test_only_the_first_input_counts():
    wild = layer(mean=120.0, std=50.0, low=0.0, high=255.0, channels=3, n=4096)
    assert told({"inputs": {"inputs": layer(), "inputs/1": wild, "inputs/mask": wild}}) == []


def test_a_model_that_normalises_first_may_be_given_bytes():
    image = {"mean": 120.0, "std": 50.0, "low": 0.0, "high": 255.0}
    assert told(given(layer(std=0.04 * 130), **image)) == []
    assert told(given(layer(std=0.06 * 130), **image)) == [(0, "inputs", ("inputs",))]
    tiny = {"std": 1e-3, "low": -1e-3, "high": 1e-3}
    assert told(given(layer(std=0.51), **tiny)) == []
    assert told(given(layer(std=0.49), **tiny)) == [(0, "inputs", ("inputs",))]


def test_counts_and_tables_are_no_images():
    table = {"mean": 20.0, "std": 15.0, "low": 0.0, "high": 90.0, "channels": 8}
    assert told(given(**table)) == []
    assert told(given(**{**table, "channels": 1})) == [(0, "inputs", ("inputs",))]


def figures(images):
    array = images.astype(np.float64)
    return {
        "mean": array.mean(),
        "std": array.std(),
        "low": array.min(),
        "high": array.max(),
        "channels": array.shape[1],
    }


def normalised(images, mean, std, times):
    mean, std = (np.array(each).reshape(1, -1, 1, 1) for each in (mean, std))
    for _ in range(times):
        images = (images - mean) / std
    return images


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("seed", range(5))
def test_images_normalised_once_and_twice(name, seed):
    mean, std = PRESETS[name]
    images = np.random.default_rng(seed).beta(0.6, 0.8, (8, len(mean), 16, 16))
    images[0, :, 0, :2] = [0.0, 1.0]
    assert told(given(**figures(images))) == []
    assert told(given(**figures(normalised(images, mean, std, 1)))) == []
    assert told(given(**figures(normalised(images, mean, std, 2)))) == [(0, "inputs", ("inputs",))]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x * 0, "All values of the input are equal: inputs (all 0)"),
        (lambda x: (x * 255).floor(), "The input images have values from 0 to 255: inputs (0 to 25"),
        (lambda x: (x - 0.5) * 2000, "The input values are large"),
        (lambda x: x / 255, "The input values are tiny"),
        (lambda x: ((x - 0.5) / 0.5 - 0.5) / 0.5, "to be normalised twice"),
        (lambda x: (x - 0.5) / 0.5, None),
        (lambda x: x, None),
    ],
)
@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")
def test_of_a_network(make, said):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    watch, optimizer = Monitor(net, every=1), torch.optim.SGD(net.parameters(), 1e-6)
    images = torch.rand(8, 3, 16, 16)
    images[0, 0, 0, :2] = torch.tensor([0.0, 0.9999])
    with watch.step():
        net(make(images)).square().mean().backward()
        optimizer.step()
    told = [each for each in watch.findings if each.kind == "inputs"]
    assert len(told) == (said is not None)
    assert all(said in each.text for each in told)
    assert issubclass(FindingWarning, UserWarning)
