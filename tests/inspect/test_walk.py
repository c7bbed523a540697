"""What is told of layers: against hooks, `receptive_field`, and figures worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import torch_featviz as fv
from torch_featviz.inspect.layer import spans
from torch_featviz.inspect.walk import walk as walk_through
from torch_featviz.model.inputs import Inputs


def walk(model, images):
    return walk_through(model, Inputs(images))


class Functional(nn.Module):
    """Two convolutions, joined by functions only."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(24, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        y = F.relu(self.conv2(x) + x)
        return self.fc(F.max_pool2d(y, 2).flatten(1))


class Residual(nn.Module):
    """Adds in place to what a norm returned: the ReLU's channels are then nobody's filters."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn(self.conv(x)))
        z = self.bn(self.conv(y))
        z += y
        return self.relu(z)


def by_name(seen):
    return {layer.name: layer for layer in seen.layers}


def test_every_layer_in_order_with_what_it_returned():
    net, images = models.squeezenet1_1(weights=None).eval(), torch.rand(2, 3, 64, 64)
    found, order = {}, []
    for name, module in net.named_modules():
        if not list(module.children()):

            def keep(module, inputs, output, name=name):
                found[name] = output.detach().clone()
                order.append(name)

            module.register_forward_hook(keep)
    with torch.no_grad():
        answer = net(images)
    for module in net.modules():
        module._forward_hooks.clear()
    seen = walk(net, images)
    layers = [layer.name for layer in seen.layers if layer.module is not None]
    assert layers == [name for name in order if not isinstance(net.get_submodule(name), nn.Dropout)]
    for layer in seen.layers:
        if layer.module is not None:
            torch.testing.assert_close(layer.values, found[layer.name], rtol=0, atol=0)
    assert torch.equal(seen.output, answer)
    assert [call.name for call in seen.idle] == ["classifier.0"]
    joined = by_name(seen)["features.3.expand1x1_activation.cat"]
    parts = [found["features.3.expand1x1_activation"], found["features.3.expand3x3_activation"]]
    assert torch.equal(joined.values, torch.cat(parts, 1))
    assert joined.kind == "cat"


def test_the_model_is_as_it_was():
    net = Residual().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    walk(net, torch.rand(2, 3, 8, 8))
    assert net.training
    assert net.relu.inplace
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    "make", [Functional, lambda: models.alexnet(weights=None), lambda: models.resnet18(weights=None)]
)
def test_fields_are_those_of_receptive_field(make):
    torch.manual_seed(0)
    net, size = make().eval(), 8 if make is Functional else 64
    seen = walk(net, torch.rand(2, 3, size, size))
    checked = 0
    for layer in seen.layers:
        if layer.module is None or "#" in layer.name:
            continue
        alone = fv.receptive_field(net, layer.name, (size, size))
        assert (layer.field.size, layer.field.kind, layer.field.stride) == (alone.size, alone.kind, alone.stride)
        rows, columns = spans(layer.field)
        if alone.map_size:
            h, w = alone.map_size
            for y, x in [(0, 0), (h - 1, w // 2), (h // 2, w - 1)]:
                assert (rows[min(y, len(rows) - 1)], columns[min(x, len(columns) - 1)]) == alone.box(y, x)
        checked += 1
    assert checked >= 3


def test_parameters_and_operations():
    net = Functional()
    seen = walk(net, torch.rand(3, 3, 8, 8))
    layers = by_name(seen)
    assert layers["conv1"].parameters == 6 * 3 * 9 + 6
    assert layers["conv1"].multiply_adds == 64 * 6 * 3 * 9
    assert layers["fc"].multiply_adds == 24 * 5
    assert seen.multiply_adds == sum(layers[name].multiply_adds for name in ("conv1", "conv2", "fc"))
    assert sum(layer.parameters for layer in seen.layers) == sum(p.numel() for p in net.parameters())
    twice = walk(Residual(), torch.rand(1, 3, 8, 8))
    assert [layer.parameters for layer in twice.layers if layer.name.startswith("conv")] == [84, 0]
    assert [layer.multiply_adds for layer in twice.layers if layer.name.startswith("conv")] == [64 * 3 * 27] * 2


def test_whose_filters_made_the_channels():
    functional = by_name(walk(Functional(), torch.rand(1, 3, 8, 8)))
    assert functional["conv1.relu"].fed_by == "conv1"
    assert functional["conv1.max_pool2d"].fed_by == "conv1"
    assert functional["conv2.add"].fed_by is None
    assert functional["conv2.relu"].fed_by is None  # of a sum
    residual = by_name(walk(Residual(), torch.rand(1, 3, 8, 8)))
    assert residual["bn#1"].fed_by == residual["relu#1"].fed_by == "conv#1"
    assert residual["bn#2"].fed_by == "conv#2"
    assert residual["relu#2"].fed_by is None
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    assert [layer.fed_by for layer in walk(chain, torch.rand(1, 1, 8, 8)).layers] == [None, None, "0", "0", "0"]
    shuffled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softmax(1), nn.ChannelShuffle(2))
    assert [layer.fed_by for layer in walk(shuffled, torch.rand(1, 1, 8, 8)).layers[2:]] == [None, None]


def test_what_can_not_be_below_zero():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Tanh(), nn.Sigmoid())
    assert [layer.positive for layer in walk(net, torch.rand(1, 1, 8, 8)).layers] == [False] * 2 + [True] * 2 + [
        False,
        False,
        True,
    ]


def test_nothing_below_zero_is_cut_off():
    net = nn.Sequential(
        nn.ReLU(), nn.LogSigmoid(), nn.ReLU(), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=3, mode="bicubic")
    )
    layers = walk(net, torch.rand(1, 1, 8, 8) * torch.randint(2, (1, 1, 8, 8))).layers
    assert [layer.positive for layer in layers if layer.name in "012"] == [True, False, True]
    assert all(layer.values.min() >= 0 for layer in layers if layer.positive)


def test_figures():
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.tensor([[[[-1.0, 2.0], [0.0, 5.0]]], [[[torch.nan, torch.inf], [-torch.inf, 3.0]]]])
    first, second = walk(net, x).layers[1].figures
    assert first == pytest.approx((4, 1.75, 4.1875**0.5, 0, 5, 0.5, 0, 0), abs=1e-5)
    assert (second.nan, second.inf, second.zero_share, second.max) == (1, 1, 0.25, 3.0)
    empty = walk(net, torch.full((1, 1, 2, 2), torch.nan)).layers[1].figures[0]
    assert empty.mean != empty.mean
    assert empty.nan == 4


def test_a_layer_with_weights_and_children_is_one_layer():
    """As of efficientnet-lite: a padding inside of a convolution, whose forward calls F.conv2d."""

    class Same(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 4, 3)
            self.pad = nn.ZeroPad2d(1)

        def forward(self, x):
            return F.conv2d(self.pad(x), self.weight, self.bias)

    net = nn.Sequential(Same(), nn.ReLU())
    seen = walk(net, torch.rand(1, 3, 6, 6))
    assert [layer.name for layer in seen.layers] == ["input", "0", "1"]
    assert seen.layers[1].kernels.shape == (4, 3, 3, 3)
    assert seen.layers[2].fed_by == "0"
    assert seen.layers[1].multiply_adds == 36 * 4 * 27 == seen.multiply_adds


def test_what_cannot_be_shown_is_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.count, self.pair, self.whole = Count(), Pair(), Whole()

        def forward(self, x):
            self.count(x)
            return self.whole(self.pair(x)[0])

    class Count(nn.Module):
        def forward(self, x):
            return (x > 0).long()

    class Pair(nn.Module):
        def forward(self, x):
            return x * 2, None

    class Whole(nn.Module):
        def forward(self, x):
            return x.mean((0, 1))

    layers = by_name(walk(Odd(), torch.rand(2, 3, 4, 4)))
    assert layers["count"].why_not == "it returns numbers of torch.int64"
    assert layers["whole"].why_not == "it returns shape (4, 4), not one row for each image"
    assert layers["pair"].values.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("count", [1, 3])
def test_all_layers_of_a_transformer_have_their_places_however_many_images_there_are(count):
    torch.manual_seed(0)
    net = models.VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3).eval()
    seen = by_name(walk(net, torch.rand(count, 3, 8, 8)))
    layers = [f"encoder.layers.encoder_layer_0.{part}" for part in ("ln_1", "mlp.0", "mlp.1", "mlp.3")]
    for name in layers:
        assert seen[name].maps.shape[2:] == (2, 2), name
        assert seen[name].maps[:, :, 1, 0].equal(seen[name].values[:, 3])
        assert seen[name].unplaced == "1 class token"
    assert seen["conv_proj"].unplaced == ""


def test_images_that_do_not_fit():
    with pytest.raises(fv.errors.ShapeError, match=r"Functional does not accept inputs of shape \(1, 2, 8, 8\)"):
        walk(Functional(), torch.rand(1, 2, 8, 8))


def test_runs_in_inference_mode_and_half_precision():
    with torch.inference_mode():
        seen = walk(Functional().bfloat16(), torch.rand(1, 3, 8, 8).bfloat16())
    assert by_name(seen)["conv1"].values.dtype == torch.float32


def test_a_layer_may_be_called_input():
    net = nn.ModuleDict({"input": nn.Conv2d(3, 4, 3)})

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input = net["input"]

        def forward(self, x):
            return self.input(x)

    assert [layer.name for layer in walk(Named(), torch.rand(1, 3, 8, 8)).layers] == ["(input)", "input"]
    assert [layer.name for layer in walk(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)).layers] == ["input", ""]


def test_calls_that_only_make_constants_are_left_out():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.constant = nn.Conv2d(3, 4, 3), nn.Embedding(10, 8)

        def forward(self, x):
            zeros = x.new_full((len(x), 3, 12, 12), 0.5)
            zeros[:, :, 2:10, 2:10] = x
            rows = self.constant(torch.arange(len(x)).to(x.device))
            return self.conv(zeros).mean((2, 3)) + rows[:, :4]

    seen = by_name(walk(Padded(), torch.rand(2, 3, 8, 8)))
    assert "new_full" not in seen
    assert {"conv", "constant"} < seen.keys()  # a layer is shown, whatever it computes
    assert seen["conv"].field.size == (3, 3)
