"""Capture against clone-in-a-hook, and outputs and gradients with and without it, on real architectures."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from torch_featviz.capture import capture
from torch_featviz.zoo import card, names

NETS = {
    "alexnet": 64,
    "vgg11_bn": 32,
    "squeezenet1_1": 64,
    "resnet18": 48,
    "googlenet": 64,
    "inception_v3": 299,
    "densenet121": 48,
    "mobilenet_v3_small": 48,
    "efficientnet_b0": 48,
    "shufflenet_v2_x1_0": 48,
    "convnext_tiny": 48,
    "vit": 32,  # a narrow one
    "vit_b_16": 32,
    "swin_t": 64,
}
LIKE_ANOTHER = {"vgg11_bn", "inception_v3", "efficientnet_b0", "vit_b_16"}  # and larger

ZOO = [name for name in names() if name not in (*NETS, "xo_nopool")]  # which is xo with 250 million weights


CASES = [
    pytest.param(name, marks=pytest.mark.slow) if name in LIKE_ANOTHER else name
    for name in (*NETS, *ZOO, "lstm", "transformer")
]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        out, (hidden, _) = self.lstm(x)
        return self.head(out[:, -1]) + hidden[-1].sum()


def build(name):
    torch.manual_seed(0)
    if name == "lstm":
        return Recurrent(), torch.randn(2, 7, 6)
    if name == "transformer":
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)
    if name in ZOO:
        return card(name).build(), torch.randn(2, *card(name).input_size)
    if name == "vit":
        return torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 48), torch.randn(2, 3, 32, 32)
    options = {
        "googlenet": {"init_weights": False},  # the default is slow and warns of it
        "inception_v3": {"init_weights": False},
        "vit_b_16": {"image_size": 32},
    }
    model = getattr(torchvision.models, name)(**options.get(name, {}))
    if name in ("alexnet", "vgg11_bn"):  # nearly all of whose weights are in three layers of one kind
        linear = [at for at, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
        wide = model.classifier[linear[0]].in_features
        for at, shape in zip(linear, ((wide, 64), (64, 64), (64, 10)), strict=True):
            model.classifier[at] = nn.Linear(*shape)
    return model, torch.randn(2, 3, NETS[name], NETS[name])


def total(output):
    if isinstance(output, torch.Tensor):
        return output.double().square().sum()
    return sum(total(item) for item in output if item is not None)


def step(model, x):
    torch.manual_seed(1)
    output = model(x)
    model.zero_grad()
    total(output).backward()
    return output, [p.grad for p in model.parameters()], [b.clone() for b in model.buffers()]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_outputs_and_gradients_are_those_of_the_bare_model(name, training, hooked, same, instance_state):
    bare, x = build(name)
    bare.train(training)
    watched, oracle = copy.deepcopy(bare), copy.deepcopy(bare)
    before = instance_state(watched)
    for _ in range(2):  # the first forward is watched, the second runs on what was learnt
        expected = step(bare, x)
        with capture(watched) as acts:
            actual = step(watched, x)
        _, calls = hooked(oracle, lambda: step(oracle, x))
        assert all(map(same, actual, expected))
        assert [key.partition("#")[0] for key in acts] == [call for call, _ in calls]
        assert all(same(value, kept) for value, (_, kept) in zip(acts.values(), calls, strict=True))
    assert instance_state(watched) == before


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(name, mode, hooked, same):
    model, x = build(name)
    model.eval()
    with mode():
        bare = model(x)
        _, calls = hooked(model, lambda: model(x))
        for _ in range(2):
            with capture(model) as acts:
                assert same(model(x), bare)
            assert all(same(value, kept) for value, (_, kept) in zip(acts.values(), calls, strict=True))
