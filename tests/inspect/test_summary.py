import json
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from torch_featviz import zoo
from torch_featviz.errors import FeatvizError, LayerError, OptionError, ShapeError
from torch_featviz.inspect import summary


def by_name(table):
    return {layer.name: layer for layer in table.layers}


@pytest.mark.parametrize(
    ("name", "parameters", "megabytes"),
    [
        ("alexnet", 61_100_840, None),
        ("cifar_cnn_large", 5_852_170, 22.33),
        ("cifar_cnn", 18_354, None),
        ("cifar_mlp", 3_738_506, None),
    ],
)
def test_what_the_tutorials_count(name, parameters, megabytes):
    card = zoo.card(name)
    table = summary(card.build(), card.input_size)
    assert table.parameters == table.trainable == parameters
    assert sum(layer.parameters for layer in table.layers) == parameters
    assert megabytes is None or round(table.megabytes, 2) == megabytes
    assert f"{parameters:,} parameters" in str(table)


@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "efficientnet_lite0"])
def test_every_card(name):
    card = zoo.card(name)
    model = card.build().eval()
    table = summary(model, card.input_size)
    with torch.no_grad():
        output = model(torch.rand(1, *card.input_size))
    first = output[0] if isinstance(output, tuple) else output  # the filters' answer holds what led to it
    assert table.layers[0 if name == "filters" else -1].shape == tuple(first.shape)
    assert table.parameters == sum(parameter.numel() for parameter in model.parameters())


FAMILIES = ["alexnet", "vgg11", "resnet18", "densenet121", "squeezenet1_1", "googlenet", "mobilenet_v3_small"]
FAMILIES += ["shufflenet_v2_x0_5", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "vit_b_32"]


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_families(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    side = 224 if name in ("vit_b_32", "vgg11", "alexnet") else 64
    table = summary(model, (3, side, side))
    assert table.parameters == sum(parameter.numel() for parameter in model.parameters())
    idle = set(table.not_run)  # googlenet's other heads
    held = sum(p.numel() for n, m in model.named_modules() if n in idle for p in m.parameters())
    assert sum(layer.parameters for layer in table.layers) == table.parameters - held
    assert table.multiply_adds == sum(layer.multiply_adds or 0 for layer in table.layers if not inside(layer, table))


def inside(layer, table):
    """Whether another layer of the table holds this one, and counts what it computes."""
    return any(layer.name.startswith(f"{other.name}.") for other in table.layers if other.name != layer.name) or (
        layer.name != "" and any(other.name == "" for other in table.layers)
    )


class Mixed(nn.Module):
    """One layer of each kind, of which one runs twice, one never, and one is frozen; weights of a block's own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.twice = nn.Linear(16, 16)
        self.rows = nn.LSTM(16, 6, batch_first=True)
        self.never = nn.Linear(2, 2)
        self.shift = nn.Parameter(torch.zeros(16))
        self.frozen = nn.Linear(6, 5).requires_grad_(False)

    def forward(self, x):
        x = self.up(self.depthwise(self.norm(self.conv(x))))
        x = self.twice(self.twice(x.mean(1))) + self.shift
        return self.frozen(self.rows(x)[0][:, -1])


def test_shapes_and_multiply_adds_by_hand():
    table = summary(Mixed(), (3, 16, 16))
    rows = by_name(table)
    assert list(rows) == ["conv", "norm", "depthwise", "up", "twice", "rows", "frozen", ""]
    assert {name: row.shape for name, row in rows.items()} == {
        **{"conv": (1, 8, 8, 8), "norm": (1, 8, 8, 8), "depthwise": (1, 8, 8, 8), "up": (1, 4, 16, 16)},
        **{"twice": (1, 16, 16), "rows": (1, 16, 6), "frozen": (1, 5), "": (1, 5)},
    }
    assert {name: row.multiply_adds for name, row in rows.items() if name} == {
        "conv": 8 * 8 * 8 * 3 * 9,
        "norm": 0,
        "depthwise": 8 * 8 * 8 * 25,
        "up": 8 * 8 * 8 * 4 * 4,  # each number that comes in is given to four places of four channels
        "twice": 2 * 16 * 16 * 16,
        "rows": 16 * 4 * 6 * (16 + 6),
        "frozen": 6 * 5,
    }
    assert table.multiply_adds == sum(row.multiply_adds for name, row in rows.items() if name)
    assert {name: row.parameters for name, row in rows.items()} == {
        **{"conv": 8 * 28, "norm": 16, "depthwise": 8 * 26, "up": 8 * 4 * 4 + 4, "twice": 16 * 17},
        **{"rows": 4 * 6 * (16 + 6 + 2), "frozen": 35, "": 16 + 6},  # its own, and those of the layer that never ran
    }
    assert table.trainable == table.parameters - 35
    assert rows["norm"].megabytes == pytest.approx((4 * 8 * 4 + 8) / 2**20)  # weight, bias, mean, variance; a counter
    assert [row.calls for row in rows.values()] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert table.not_run == ("never",)
    assert (rows["conv"].receptive_field, rows["depthwise"].receptive_field) == ((3, 3), (11, 11))
    assert rows["frozen"].receptive_field is None


def test_tied_weights_count_once_and_containers_hold_their_own():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    table = summary(tied, (4,))
    assert table.parameters == 16 + 4 + 4
    assert [layer.parameters for layer in table.layers] == [20, 0, 4]
    assert table.megabytes == pytest.approx(24 * 4 / 2**20)


def test_functional_networks_are_counted_as_a_whole():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))

        def forward(self, x):
            return F.relu(F.conv2d(x, self.weight))

    table = summary(Functional(), (3, 8, 8))
    assert [layer.name for layer in table.layers] == [""]
    assert table.multiply_adds == 36 * 4 * 27


def test_tokens_transformers_and_other_inputs():
    class Tagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

        def forward(self, tokens, *, scale):
            return self.head(self.embed(tokens).mean(1)) * scale

    table = summary(Tagged(), torch.tensor([[1, 2, 3]]), keywords={"scale": 2})
    assert [(layer.name, layer.shape) for layer in table.layers] == [("embed", (1, 3, 8)), ("head", (1, 3))]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    rows = by_name(summary(encoder, (10, 16)))
    assert rows["layers.1.linear1"].multiply_adds == 10 * 16 * 32
    assert rows["layers.0.self_attn"].parameters == 3 * 16 * 17 + 16 * 17  # and its projection
    half = summary(nn.Linear(4, 2).half(), (4,))
    assert half.megabytes == pytest.approx(10 * 2 / 2**20)


def test_it_prints_it_shows_and_it_is_plain():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    net.add_module("<b>", nn.Flatten())
    table = summary(net, (1, 5, 5))
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "MB", "multiply-adds", "sees", "calls"]
    assert lines[2].split() == ["0", "Conv2d", "1×2×3×3", "20", "0.00", "162", "3×3", "1"]
    assert len({len(line) for line in lines[:2]}) == 1
    assert "<b>" not in table._repr_html_()
    assert "&lt;b&gt;" in table._repr_html_()
    plain = json.loads(json.dumps(table.as_dict()))
    assert plain["layers"][0] == {
        **{"name": "0", "kind": "Conv2d", "shape": [1, 2, 3, 3], "parameters": 20, "megabytes": 80 / 2**20},
        **{"multiply_adds": 162, "receptive_field": [3, 3], "calls": 1},
    }


@pytest.mark.parametrize("size", [(), (3, 0, 4), (3, 4.0), 7, "x", None])
def test_a_size_is_that_of_one_input(size):
    with pytest.raises(
        OptionError, match=r"size must be the size of one input, such as " r"\(3, 224, 224\), or a tensor; got"
    ):
        summary(nn.Linear(2, 2), size)


def test_what_cannot_be_summarised():
    with pytest.raises(ShapeError, match=r"does not accept inputs of shape \(1, 5\)"):
        summary(nn.Linear(2, 2), (5,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch say that they will drop it
        script = torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2))
    with pytest.raises(LayerError, match="TorchScript"):
        summary(script, (2,))
    with pytest.raises(FeatvizError, match=r"model must be a torch\.nn\.Module"):
        summary(3, (2,))
