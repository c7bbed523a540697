"""Networks written otherwise than most: channels last, weights that are made, layers that run in more than one way."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import torch_featviz as fv
from torch_featviz.inspect.walk import walk as walk_through
from torch_featviz.model.inputs import Inputs


def walk(model, images):
    return walk_through(model, Inputs(images))


class Net(nn.Module):
    """The layers given, and a forward as given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.way = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.way(self, x)


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def by_name(seen):
    return {layer.name: layer for layer in seen.layers}


def test_channels_last():
    """As of ConvNeXt and Swin: what a norm or a linear layer returns is `b h w k`."""
    net = Net(
        lambda self, x: self.head(F.gelu(self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1)))).mean((1, 2))),
        conv=nn.Conv2d(3, 8, 4, stride=4),
        norm=nn.LayerNorm(8),
        wide=nn.Linear(8, 5),
        head=nn.Linear(5, 2),
    )
    with torch.no_grad():
        wide = net.wide(net.norm(net.conv(IMAGES).permute(0, 2, 3, 1)))
    layers = by_name(walk(net, IMAGES))
    assert layers["wide"].shape == (2, 4, 4, 5)
    for name, expected in (("wide", wide), ("wide.gelu", F.gelu(wide))):
        torch.testing.assert_close(layers[name].values, expected.permute(0, 3, 1, 2), rtol=0, atol=0)
        assert layers[name].figures[1].mean == pytest.approx(float(expected[1].mean()), abs=1e-6)
        assert layers[name].field.box(1, 2) == ((4, 8), (8, 12))


def test_channels_of_sequences():
    """A Conv1d returns `b k t`, attention `b t k`; both are kept as `b t k`."""
    net = Net(
        lambda self, x: self.head(self.mix(self.conv1(self.conv(x).flatten(2)).transpose(1, 2)).mean(1)),
        conv=nn.Conv2d(3, 4, 4, stride=4),
        conv1=nn.Conv1d(4, 6, 5),
        mix=nn.Linear(6, 7),
        head=nn.Linear(7, 2),
    )
    with torch.no_grad():
        sequence = net.conv1(net.conv(IMAGES).flatten(2))
        mixed = net.mix(sequence.transpose(1, 2))
    layers = by_name(walk(net, IMAGES))
    assert layers["conv1"].shape == (2, 6, 12)
    torch.testing.assert_close(layers["conv1"].values, sequence.transpose(1, 2), rtol=0, atol=0)
    torch.testing.assert_close(layers["mix"].values, mixed, rtol=0, atol=0)


def test_a_layer_that_runs_on_two_sizes():
    net = Net(
        lambda self, x: self.fc(self.head(self.stem(x)).mean((2, 3)) + self.head(F.avg_pool2d(x, 2)).mean((2, 3))),
        stem=nn.Conv2d(3, 3, 1),
        head=nn.Conv2d(3, 4, 3, padding=1),
        fc=nn.Linear(4, 2),
    )
    layers = by_name(walk(net, IMAGES))
    assert (layers["head#1"].multiply_adds, layers["head#2"].multiply_adds) == (256 * 4 * 27, 64 * 4 * 27)


def test_attention_is_counted_and_its_projection_is_no_layer_that_did_not_run():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        nn.Flatten(2),
        nn.AdaptiveAvgPool1d(8),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    )
    seen = walk(net.eval(), IMAGES)
    tokens, width = 8, 8
    attention = by_name(seen)["3.self_attn"]
    assert attention.multiply_adds == tokens * width * 4 * width + 2 * tokens * tokens * width
    assert seen.not_run == []


def test_recurrent_layers_are_counted():
    net = Net(
        lambda self, x: self.fc(self.rnn(self.conv(x).mean(1))[0][:, -1]),
        conv=nn.Conv2d(3, 4, 3),
        rnn=nn.LSTM(14, 5, batch_first=True),
        fc=nn.Linear(5, 2),
    )
    seen = walk(net, IMAGES)
    assert by_name(seen)["rnn"].multiply_adds == 14 * 4 * 5 * (14 + 5)
    assert seen.uncounted == []


def test_what_is_not_counted_is_said():
    """An operator of another package may multiply."""

    @torch.library.custom_op("featviz_tests::square", mutates_args=())
    def square(x: torch.Tensor) -> torch.Tensor:
        return x @ x.mT

    class Square(nn.Module):
        def forward(self, x):
            return square(x)

    seen = walk(nn.Sequential(nn.Conv2d(3, 4, 3), Square(), nn.Conv2d(4, 2, 1)), IMAGES)
    assert seen.uncounted == ["1"]
    assert [layer.multiply_adds for layer in seen.layers[1:]] == [14 * 14 * 4 * 27, None, 14 * 14 * 2 * 4]


def test_weights_that_are_made():
    """`spectral_norm` keeps a weight as a module of its own, that sees no image."""
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()).eval()
    seen = walk(net, IMAGES)
    assert [layer.name for layer in seen.layers] == ["input", "0", "1"]
    assert seen.not_run == []
    assert torch.equal(seen.layers[1].kernels, net[0].weight)


def test_a_function_written_in_place_is_a_layer():
    class Clamp(nn.Module):
        def forward(self, x):
            return x.clamp_(min=0)

    class Same(nn.Module):
        def forward(self, x):
            return x

    seen = walk(nn.Sequential(nn.Conv2d(3, 4, 3), Clamp(), Same()), IMAGES)
    assert [layer.name for layer in seen.layers] == ["input", "0", "1"]
    assert [call.name for call in seen.idle] == ["2"]
    assert seen.layers[1].values.min() < 0 <= seen.layers[2].values.min()


def test_a_name_that_another_begins_with():
    net = Net(
        lambda self, x: self.relu(self.relu1(self.conv(x))), conv=nn.Conv2d(3, 4, 3), relu1=nn.ReLU(), relu=nn.ReLU()
    )
    assert [layer.name for layer in walk(net, IMAGES).layers] == ["input", "conv", "relu1", "relu"]


def test_one_image_that_goes_another_way_than_two():
    net = Net(lambda self, x: self.conv(x) if len(x) > 1 else x[:, :1], conv=nn.Conv2d(3, 4, 3))
    assert by_name(walk(net, IMAGES))["conv"].multiply_adds is None


def test_a_forward_in_inference_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    plain = walk(net, IMAGES)

    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        @torch.inference_mode()
        def forward(self, x):
            return self.net(x)

    guarded = walk(Guarded(), IMAGES)
    assert [layer.multiply_adds for layer in guarded.layers] == [layer.multiply_adds for layer in plain.layers]
    assert guarded.layers[2].fed_by == "net.0"


def test_what_answers():
    seen = walk(
        Net(
            lambda self, x: (self.out(x), self.aside(x))[0],
            out=nn.Sequential(nn.Flatten(), nn.Linear(768, 2)),
            aside=nn.Sequential(nn.Flatten(), nn.Linear(768, 3)),
        ),
        IMAGES,
    )
    assert seen.answered_by is by_name(seen)["out.1"]
    assert walk(nn.Conv2d(3, 4, 3), IMAGES).answered_by is None


def test_torchscript_cannot_be_looked_into():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch say that they will drop it
        script = torch.jit.trace(nn.Conv2d(3, 4, 3), IMAGES)
    with pytest.raises(fv.errors.LayerError, match="TorchScript module hides its layers"):
        walk(script, IMAGES)


@pytest.mark.parametrize("error", [TypeError("two inputs"), AssertionError("a"), ValueError("no."), IndexError("3")])
def test_what_layers_raise_is_of_the_images(error):
    def fail(self, x):
        raise error

    with pytest.raises(fv.errors.ShapeError, match=rf"\(2, 3, 16, 16\): {type(error).__name__}: .*[^.]\.$"):
        walk(Net(fail, conv=nn.Conv2d(3, 4, 3)), IMAGES)


def test_windows_of_a_swin_transformer():
    """Some of its layers return windows instead of images, and rows and columns in one axis."""
    torch.manual_seed(0)
    layers = by_name(walk(models.swin_t(weights=None).eval(), torch.rand(1, 3, 64, 64)))
    patches = layers["features.1.0.norm1"]
    assert patches.shape == (1, 16, 16, 96)
    assert patches.values.shape == (1, 96, 16, 16)
    assert layers["features.1.0.attn.matmul#1"].why_not.startswith("it returns shape (9, 3, 49, 49), not one row")
    assert layers["head"].values.shape == (1, 1000)
