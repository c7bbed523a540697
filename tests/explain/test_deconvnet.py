"""The deconvnet against a walk down by hand, and against autograd through ReLUs with another backward."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.googlenet import BasicConv2d

from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.explain.deconvnet import deconvnet
from torch_featviz.zoo import card


class Functional(nn.Module):
    """ReLUs and pools are functions, one pool overlaps, and one convolution is strided, dilated, grouped."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 8, 3, padding=2, dilation=2, groups=4)
        self.conv3 = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.local_response_norm(torch.relu_(self.conv2(x)), 5, alpha=0.5)
        x = self.conv3(F.max_pool2d(x, 2, stride=1)).clamp(min=0)
        return self.fc(F.adaptive_max_pool2d(x, 1).flatten(1))

    def chain(self):
        return [
            *(self.conv1, nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(self.conv2, nn.ReLU(), nn.LocalResponseNorm(5, alpha=0.5), nn.MaxPool2d(2, stride=1), self.conv3),
        ]


def until(parts, last):
    return [*itertools.takewhile(lambda part: part is not last, parts), last]


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # as if trained: no statistics are 0 and 1
                for tensor, low in ((module.running_var, 0.5), (module.weight.data, 0.5), (module.bias.data, -0.5)):
                    tensor.uniform_(low, low + 1)
                module.running_mean.uniform_(-0.5, 0.5)
    return net.eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CHAINS = {
    "alexnet": (torchvision.models.alexnet, (3, 75, 96), ["features.0", "features.6", "features.10", "features.12"]),
    "vgg11": (torchvision.models.vgg11, (3, 40, 48), ["features.0", "features.8", "features.16", "features.20"]),
    "xo": (card("xo").build, (1, 116, 116), ["features.conv1", "features.relu2", "features.pool2"]),
    "xo_deep": (card("xo_deep").build, (1, 116, 116), ["features.conv2", "features.conv3", "features.pool3"]),
    "functional": (Functional, (3, 41, 38), ["conv1", "conv2", "conv3"]),
    "cifar": (card("cifar_cnn_large").build, (3, 32, 32), ["features.4", "features.10", "features.16"]),
}
CASES = [(name, layer) for name, (_, _, layers) in CHAINS.items() for layer in layers]


@pytest.fixture(scope="module")
def nets():
    return {name: seeded(build) for name, (build, _, _) in CHAINS.items()}


def walk(parts, image, unit, overwrite):
    """The deconvnet as the paper says it, one layer after the other; independent of autograd."""
    x, kept = image[None], []
    with torch.no_grad():
        for part in parts:
            kept.append((part, x, part(x)))
            x = kept[-1][2]
        signal = torch.zeros_like(x)
        signal[(0, *unit)] = x[(0, *unit)].clamp(min=0)
        for part, before, after in reversed(kept):
            if isinstance(part, nn.ReLU):
                signal = signal.clamp(min=0)
            elif isinstance(part, nn.MaxPool2d):
                signal = unpooled(part, before, signal, overwrite)
            elif isinstance(part, nn.Conv2d):
                signal = transposed(part, before, after, signal)
            elif isinstance(part, nn.BatchNorm2d):
                sigma = (part.running_var + part.eps).sqrt()
                signal = signal * (part.weight / sigma)[:, None, None]
            else:
                assert isinstance(part, (nn.LocalResponseNorm, nn.Dropout2d))
    return signal


def transposed(conv, before, after, signal):
    extra = [
        before.shape[2 + i]
        - ((after.shape[2 + i] - 1) * conv.stride[i] - 2 * conv.padding[i])
        - (conv.dilation[i] * (conv.kernel_size[i] - 1) + 1)
        for i in range(2)
    ]
    return F.conv_transpose2d(signal, conv.weight, None, conv.stride, conv.padding, extra, conv.groups, conv.dilation)


def unpooled(pool, before, signal, overwrite):
    _, switches = F.max_pool2d(
        before, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, return_indices=True
    )
    flat = torch.zeros_like(before).flatten(2)
    if not overwrite:
        return flat.scatter_add(2, switches.flatten(2), signal.flatten(2)).view_as(before)
    for plane, at, values in zip(flat[0].numpy(), switches[0].flatten(1), signal[0].flatten(1), strict=True):
        for place, value in zip(at.tolist(), values.tolist(), strict=True):
            plane[place] = value
    return flat.view_as(before)


def active(maps, n=4):
    """Units well above 0, where rounding does not matter: the strongest, and some from the first to the last place."""
    places = (maps > 0.1 * maps.max()).nonzero()
    strongest = (maps == maps.max()).nonzero()[:1]
    return [tuple(unit) for unit in [*strongest.tolist(), *places[:: max(1, len(places) // n)].tolist()]]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("pooling", ["sum", "overwrite"])
@pytest.mark.parametrize(("name", "layer"), CASES)
def test_equals_the_walk_by_hand(nets, name, layer, pooling):
    net, size = nets[name], CHAINS[name][1]
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    parts = until(plain.chain() if name == "functional" else list(plain.features), plain.get_submodule(layer))
    image = noise(*size)
    with torch.no_grad():
        units = active(nn.Sequential(*parts)(image[None])[0])
    found = deconvnet(net, image[None], layer, units, projection="deconvnet", pooling=pooling)
    assert found.shape == (len(units), *size)
    assert found.any()
    for unit, projection in zip(units, found, strict=True):
        close(projection[None], walk(parts, image, unit, pooling == "overwrite"))


def test_overwriting_pools_differ_from_summing_ones(nets):
    image = noise(1, 3, 75, 96)
    both = [deconvnet(nets["alexnet"], image, "features.10", [3], pooling=p) for p in ("sum", "overwrite")]
    assert F.cosine_similarity(*(projection.flatten(1) for projection in both)) < 0.97


@pytest.mark.parametrize("pool", ["max_pool2d", "adaptive_max_pool2d"])
@pytest.mark.parametrize("called", ["plain", "indices", "torch"])
def test_the_last_window_wins(pool, called):
    class Net(nn.Module):
        def forward(self, x):
            if called == "torch" and pool == "max_pool2d":
                return F.conv2d(torch.max_pool2d(x, 3, 1), torch.ones(1, 1, 2, 2))
            size = (3, 1) if pool == "max_pool2d" else (2,)
            x = getattr(F, pool)(x, *size, return_indices=called == "indices")
            return F.conv2d(x[0] if called == "indices" else x, torch.tensor([[[[1.0, 2], [3, 4]]]]))

    net = nn.Sequential(Net())
    image = torch.zeros(1, 1, 4, 4) if pool == "max_pool2d" else torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 1] = 1
    signal = 4 if called == "torch" and pool == "max_pool2d" else 10
    last = 1 if signal == 4 else 4
    assert deconvnet(net, image, "0", [(0, 0, 0)])[0, 0, 1, 1] == signal * signal
    found = deconvnet(net, image, "0", [(0, 0, 0)], pooling="overwrite")
    assert found[0, 0, 1, 1] == signal * last
    assert found.count_nonzero() == 1


def test_a_later_window_without_signal_overwrites_with_zero():
    net = nn.Sequential(nn.MaxPool2d(3, 1))
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1] = 2
    assert deconvnet(net, image, "0", [(0, 0, 0)]).sum() == 2
    assert deconvnet(net, image, "0", [(0, 0, 0)], pooling="overwrite").sum() == 0
    assert deconvnet(net, image, "0", [(0, 1, 1)], pooling="overwrite").sum() == 2


def test_overwriting_is_what_max_unpool_does():
    conv, pool = seeded(lambda: nn.Conv2d(4, 2, 3, bias=False)), nn.MaxPool2d(3, 2, 1)
    image = noise(1, 4, 17, 17)
    pooled, switches = F.max_pool2d(image, 3, 2, 1, return_indices=True)
    unit = active(conv(pooled)[0].detach())[0]
    signal = torch.zeros_like(conv(pooled))
    signal[(0, *unit)] = conv(pooled)[(0, *unit)]
    assert signal.max() > 0
    expected = F.max_unpool2d(F.conv_transpose2d(signal, conv.weight), switches, 3, 2, 1, (17, 17))
    found = deconvnet(nn.Sequential(pool, conv), image, "1", [unit], pooling="overwrite")
    close(found, expected.detach())


class PositivePart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, activation):
        return activation(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(min=0), None


class Rectifier(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return PositivePart.apply(x, self.activation)


KINDS = {nn.ReLU: F.relu, nn.ReLU6: F.relu6, nn.SiLU: F.silu}


def replaced(net):
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in KINDS:
                setattr(parent, name, Rectifier(KINDS[type(child)]))
            if isinstance(child, BasicConv2d):  # of GoogLeNet, which calls F.relu
                setattr(parent, name, nn.Sequential(child.conv, child.bn, Rectifier(F.relu)))
    return net


class Branches(nn.Module):
    """Functional concatenation, ReLU6, a depthwise convolution, an average pool."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12), nn.ReLU6())

    def forward(self, x):
        x = self.stem(x) * 3
        return self.last(torch.cat([F.avg_pool2d(x, 3, 1, 1), x + self.deep(x)], 1))


def googlenet():
    return torchvision.models.googlenet(init_weights=False, aux_logits=False)


GRAPHS = {
    "squeezenet": (torchvision.models.squeezenet1_1, 64, ["features.3", "features.12"]),
    "googlenet": (googlenet, 64, ["inception3a", "inception4c.branch3"]),
    "resnet18": (torchvision.models.resnet18, 64, ["layer1", "layer2.0.conv2", "layer4.1.bn2"]),
    "relu6": (Branches, 32, ["deep", "last"]),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 64, ["features.4", "features.11"]),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 64, ["features.2", "features.6"]),
}


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, of in GRAPHS.items() for layer in of[2]])
def test_equals_autograd_through_replaced_rectifiers(name, layer):
    build, side, _ = GRAPHS[name]
    net = seeded(build)
    other, images, outputs = replaced(net), noise(3, 3, side, side), []
    leaf = images.clone().requires_grad_()
    # cloned, because a residual sum may go on in place
    other.get_submodule(layer).register_forward_hook(lambda *of: outputs.append(of[2].clone()))
    other(leaf)
    values, places = outputs[0].detach().flatten(2).max(2)
    units = values.argmax(1).tolist()
    seed = torch.zeros_like(outputs[0]).flatten(2)
    for row, channel in enumerate(units):
        seed[row, channel, places[row, channel]] = values[row, channel]
    (expected,) = torch.autograd.grad(outputs[0], leaf, seed.view_as(outputs[0]))
    assert expected.flatten(1).any(1).all()
    found = deconvnet(net, images, layer, units, projection="deconvnet")
    for projection, wanted in zip(found, expected, strict=True):
        close(projection, wanted)


# jump, first pixel and size of what a unit sees (torchvision's AlexNet)
SEES = {
    "features.0": (4, -2, 11),
    "features.3": (8, -18, 51),
    "features.6": (16, -34, 99),
    "features.10": (16, -66, 163),
}


@pytest.mark.parametrize("layer", SEES)
def test_the_energy_is_where_the_unit_looks(nets, layer):
    jump, start, size = SEES[layer]
    image = noise(1, 3, 224, 224)
    with torch.no_grad():
        maps = nets["alexnet"].features[: int(layer.split(".")[1]) + 1](image)[0]
    units = [(3, 0, 0), (5, 2, maps.shape[2] - 1), active(maps)[0], *active(maps)[-2:]]
    for (_, *place), projection in zip(units, deconvnet(nets["alexnet"], image, layer, units), strict=True):
        (top, left), (bottom, right) = ([max(0, start + i * jump + end) for i in place] for end in (0, size))
        inside = projection[:, top:bottom, left:right].square().sum()
        assert projection.square().sum() == pytest.approx(float(inside), rel=1e-6)
    assert projection.any()


def test_a_unit_at_or_below_zero_has_no_projection(nets):
    image = noise(1, 3, 64, 64)
    with torch.no_grad():
        maps = nets["alexnet"].features[:4](image)[0]
    below = tuple((maps < 0).nonzero()[7].tolist())
    found = deconvnet(nets["alexnet"], image, "features.3", [below, active(maps)[0]])
    assert not found[0].any()
    assert found[1].any()


def test_before_and_after_the_rectifier_are_the_same(nets):
    image = noise(1, 3, 64, 64)
    before, after = (deconvnet(nets["alexnet"], image, layer, [2, 9]) for layer in ("features.6", "features.7"))
    assert torch.equal(before, after)


def test_a_larger_unit_has_a_larger_projection(nets):
    net, image = nets["xo"], noise(1, 1, 116, 116)
    once = deconvnet(net, image, "features.conv2", [1, 3])
    twice = copy.deepcopy(net)
    with torch.no_grad():
        twice.features.conv1.weight.mul_(2)
        twice.features.conv1.bias.mul_(2)
        twice.features.conv2.bias.mul_(2)
    close(deconvnet(twice, image, "features.conv2", [1, 3]), 4 * once)  # the value, and the weights on the way down


def test_two_units_together_are_not_their_sum(nets):
    """Why each unit has a projection of its own: the rectifiers on the way down see what comes from both."""
    net, image = nets["alexnet"], noise(1, 3, 64, 64)
    units = [(3, 1, 1), (5, 1, 1)]
    apart = nn.Sequential(*replaced(net.features)[:7])
    with torch.no_grad():
        apart[6].bias += 1  # both active
    leaf = image.clone().requires_grad_()
    maps = apart(leaf)
    seed = torch.zeros_like(maps)
    for unit in units:
        seed[(0, *unit)] = maps[(0, *unit)].detach()
    assert (seed >= 0).all()
    (together,) = torch.autograd.grad(maps, leaf, seed)
    strong = copy.deepcopy(net)
    with torch.no_grad():
        strong.features[6].bias += 1
    each = deconvnet(strong, image, "features.6", units)
    assert (together[0] - each.sum(0)).abs().max() > 0.05 * together.abs().max()


def test_several_units_of_one_image_are_each_as_alone(nets):
    net, image = nets["alexnet"], noise(1, 3, 64, 64)
    units = [*range(20), (4, 0, 2)]
    together = deconvnet(net, image, "features.6", units)
    for given in (torch.tensor([3]), np.array([3]), 3, [torch.tensor(3)]):
        close(deconvnet(net, image, "features.6", given), together[3:4])
    for rows in (1, 4):
        close(deconvnet(net, image, "features.6", units, internal_batch_size=rows), together)
    close(deconvnet(net, image, "features.6", torch.tensor([[4, 0, 2]])), together[-1:])
    each = deconvnet(net, image.expand(21, -1, -1, -1), "features.6", units, internal_batch_size=8)
    close(each, together)


def test_each_unit_has_its_own_image(nets):
    net, images = nets["xo"], noise(5, 1, 116, 116)
    units = [0, (1, 2, 3), 4, (2, 20, 7), 3]
    found = deconvnet(net, images, "features.conv2", units, internal_batch_size=2)
    for image, unit, projection in zip(images, units, found, strict=True):
        close(projection[None], deconvnet(net, image[None], "features.conv2", [unit]))
    assert found[2].any()


class Cautious(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        try:
            return self.inner(x)
        except Exception:
            return x


def test_a_model_that_catches_errors_is_stopped_too(nets):
    image = noise(1, 1, 116, 116)
    found = deconvnet(nn.Sequential(Cautious(nets["xo"])), image, "0.inner.features.conv2", [0, 1])
    assert torch.equal(found, deconvnet(nets["xo"], image, "features.conv2", [0, 1]))


def test_the_memory_decides_how_many_run_at_once(nets, monkeypatch):
    net, image, sizes = copy.deepcopy(nets["alexnet"]), noise(1, 3, 64, 64), []
    expected = deconvnet(net, image, "features.6", range(30))
    net.features[0].register_forward_hook(lambda *of: sizes.append(len(of[2])))
    monkeypatch.setattr("torch_featviz.explain.explained._CPU_BUDGET", 2 << 20)
    close(deconvnet(net, image, "features.6", range(30)), expected)
    assert sum(sizes) == 30 + 2  # and one to see the map, one to measure
    assert 1 < max(sizes) < 30


def state_of(net):
    tensors = {name: tensor.clone() for name, tensor in net.state_dict(keep_vars=False).items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()]
    flags = [(m.training, getattr(m, "inplace", None)) for m in net.modules()]
    wants = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    return tensors, hooks, flags, wants


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Broken(nn.Module):
    """Raises at its second run: after the map was looked at, in the middle of the walk."""

    runs = 0

    def forward(self, x):
        Broken.runs += 1
        if Broken.runs > 1:
            raise ZeroDivisionError
        return x


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_about_the_model_changes(raises):
    Broken.runs = 0
    middle = Broken() if raises else nn.Dropout(0.5)
    net = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), middle, nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 2, 3), nn.ReLU(inplace=True)),
        )
    ).train()
    net[4].eval()
    net[5].weight.requires_grad_(False)
    if not raises:
        net(noise(2, 3, 16, 16)).sum().backward()
    images = noise(2, 3, 16, 16).requires_grad_()
    given, before = images.detach().clone(), state_of(net)
    numbers = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    if raises:
        with pytest.raises(ZeroDivisionError):
            deconvnet(net, images, "5", [0, 1])
    else:
        with torch.inference_mode():
            assert deconvnet(net, images, "5", [0, 1]).any()
        found = deconvnet(net, images, "6", [0, 1])
        assert not found.requires_grad
    assert same(before, state_of(net))
    assert torch.equal(given, images)
    assert images.grad is None
    now = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(numbers[0], now[0])
    assert (numbers[1] == now[1]).all()
    assert numbers[2] == now[2]


def tiny(*between):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(2 * 144, 5))


class Rounded(nn.Module):
    def forward(self, x):
        return x.round().detach()


IMAGES = torch.zeros(1, 3, 16, 16)
WRONG = {
    "row": (("0", [(0, 14, 0)]), OptionError, r"unit \(0, 14, 0\) is outside.*rows 0 to 13 and columns 0 to 13"),
    "negative": (("0", [(0, 1, -1)]), OptionError, r"unit \(0, 1, -1\) is outside"),
    "channel": (("0", [4]), OptionError, r"layer '0' has channels 0 to 3, got channel 4\."),
    "below": (("0", [(-1, 0, 0)]), OptionError, r"layer '0' has channels 0 to 3, got channel -1\."),
    "pair": (("0", [(1, 2)]), OptionError, r"a unit must be a channel or \(channel, row, column\), got \(1, 2\)\."),
    "ambiguous": (
        ("0", (1, 2, 3)),
        OptionError,
        r"units=\(1, 2, 3\) may be one unit or three channels; pass \[\(1, 2, 3\)\] for one unit or \[1, 2, 3\] for",
    ),
    "words": (("0", ["1"]), DtypeError, r"units must be integers: channels or \(channel, row, column\), got \['1'\]\."),
    "fraction": (
        ("0", [1.5]),
        DtypeError,
        r"units must be integers: channels or \(channel, row, column\), got \[1\.5\]\.",
    ),
    "none": (("0", []), ShapeError, "got 0 units for 1 images"),
    "linear": (
        ("3", [0]),
        ShapeError,
        r"layer '3' returns shape \(1, 5\) for one image, not a map 'b k h w'; choose a convolution\.",
    ),
    "name": (("7", [0]), LayerError, "no layer '7'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_units_and_layers(case):
    (layer, units), error, match = WRONG[case]
    with pytest.raises(error, match=match):
        deconvnet(tiny(), IMAGES, layer, units)


def test_units_and_images_do_not_fit():
    with pytest.raises(ShapeError, match="got 3 units for 2 images"):
        deconvnet(tiny(), torch.zeros(2, 3, 16, 16), "0", [0, 1, 2])


def test_wrong_images_and_options():
    with pytest.raises(DtypeError, match=r"tensor of floats.*uint8"):
        deconvnet(tiny(), IMAGES.byte(), "0", [0])
    with pytest.raises(ShapeError, match="'b c h w' and not empty, got shape"):
        deconvnet(tiny(), IMAGES[0, 0], "0", [0])
    with pytest.raises(OptionError, match="'sum' or 'overwrite', got 'max'"):
        deconvnet(tiny(), IMAGES, "0", [0], pooling="max")
    with pytest.raises(OptionError, match="at least 1, got 0"):
        deconvnet(tiny(), IMAGES, "0", [0], internal_batch_size=0)


def test_a_layer_must_run_once():
    relu = nn.ReLU()
    with pytest.raises(LayerError, match="layer '1' ran 2 times"):
        deconvnet(nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu), IMAGES, "1", [0])


def test_no_gradient_to_the_images():
    with pytest.raises(OptionError, match="no gradient flows from layer '2'"):
        deconvnet(tiny(Rounded()), IMAGES, "2", [0])


class Elsewhere(nn.Module):
    """Its maps have a gradient, but to something else than the images."""

    def forward(self, x):
        return torch.ones_like(x, requires_grad=True) * 2


def test_a_gradient_to_something_else():
    with pytest.raises(OptionError, match="no gradient flows from layer '2'"):
        deconvnet(tiny(Elsewhere()), IMAGES, "2", [0])


def test_batch_statistics_are_refused():
    with pytest.raises(LayerError, match="no running statistics"):
        deconvnet(tiny(nn.BatchNorm2d(4, track_running_stats=False)), IMAGES, "2", [0])


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = torch.jit.script(inner)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_scripted_parts_are_refused():
    with pytest.raises(LayerError, match="Relu is called in scripted, compiled, checkpointed"):
        deconvnet(nn.Sequential(nn.Conv2d(3, 4, 3), Wrapped(nn.ReLU()), nn.Conv2d(4, 2, 3)), IMAGES, "2", [0])
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), Wrapped(nn.MaxPool2d(3, 2)), nn.Conv2d(4, 2, 3))
    with pytest.raises(LayerError, match=r"cannot reach a max pool"):
        deconvnet(pooled, IMAGES, "2", [0], pooling="overwrite")
    deconvnet(pooled, IMAGES, "2", [0])


class Standardised(nn.Conv2d):
    """Weight standardisation by a batch norm of the weight, as timm writes it."""

    def standardised(self):
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)

    def forward(self, x):
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


@pytest.mark.parametrize("pooling", ["sum", "overwrite"])
def test_a_batch_norm_of_a_weight_mixes_no_images(pooling):
    def chain(kind):
        return nn.Sequential(kind(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2), kind(6, 4, 3, padding=1), nn.ReLU()).eval()

    made, plain = seeded(lambda: chain(Standardised)), seeded(lambda: chain(nn.Conv2d))
    for own, other in zip(made, plain, strict=True):
        if isinstance(own, nn.Conv2d):
            other.weight.data = own.standardised().detach()
    images = noise(2, 3, 15, 17)
    expected = deconvnet(plain, images, "4", [1, 3], pooling=pooling)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(deconvnet(made, images, "4", [1, 3], pooling=pooling), expected)


def test_one_of_the_maps_by_keyword_is_still_refused():
    class Mixing(nn.Conv2d):
        def forward(self, x):
            return F.batch_norm(input=super().forward(x), running_mean=None, running_var=None, training=True)

    with pytest.raises(LayerError, match="a batch norm has no running statistics"):
        deconvnet(nn.Sequential(Mixing(3, 4, 3)), noise(1, 3, 9, 9), "0", [0])
