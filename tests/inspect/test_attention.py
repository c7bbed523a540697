"""Where the keys of attention are on the image: found in networks that hold their tokens in many ways."""

import re

import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from torch_featviz.errors import LayerError
from torch_featviz.inspect.attention import Attending, Tokens
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.layout import Layout

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": (32, 32),
    "patch_size": 8,
}


def of_timm(name, **options):
    return timm.create_model(name, img_size=32, patch_size=8, embed_dim=12, depth=2, num_heads=2, **options)


def of_transformers(config, **options):
    return transformers.AutoModel.from_config(config(**SMALL, **options))


def swin():
    return SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=2)


REGISTERS = ("class token", *["register"] * 4)
NETS = {  # how many tokens stand before and behind a grid of 4 x 4, and what those before are called
    "torchvision ViT": (lambda: VisionTransformer(32, 8, 2, 2, 8, 8), 1, 0, ("class token",)),
    "timm ViT": (lambda: of_timm("vit_tiny_patch16_224"), 1, 0, ("class token",)),
    "timm DeiT": (lambda: of_timm("deit_tiny_distilled_patch16_224"), 2, 0, ("class token", "distillation token")),
    "timm DINOv2": (lambda: of_timm("vit_small_patch14_reg4_dinov2"), 5, 0, REGISTERS),
    "timm without class": (lambda: of_timm("vit_medium_patch16_reg4_gap_256"), 4, 0, REGISTERS[1:]),
    "timm pooled": (lambda: of_timm("vit_base_patch16_siglip_224", global_pool="avg"), 0, 0, ()),
    "ViT": (lambda: of_transformers(transformers.ViTConfig), 1, 0, ("class token",)),
    "DeiT eager": (
        lambda: of_transformers(transformers.DeiTConfig, attn_implementation="eager"),
        2,
        0,
        ("class token", "distillation token"),
    ),
    "DINOv2": (lambda: of_transformers(transformers.Dinov2WithRegistersConfig), 5, 0, REGISTERS),
    "YOLOS": (lambda: of_transformers(transformers.YolosConfig, num_detection_tokens=3), 1, 3, ("class token",)),
}


@pytest.mark.parametrize("name", NETS)
def test_tokens_of_each_layer(name):
    make, prefix, suffix, names = NETS[name]
    torch.manual_seed(0)
    attending = Attending(make(), Inputs(torch.rand(2, 3, 32, 32)), None)
    assert len(attending.tokens) == 2
    for tokens in attending.tokens.values():
        assert (tokens.layout.grid, tokens.layout.prefix, tokens.layout.suffix) == ((4, 4), prefix, suffix)
        assert (tokens.names, tokens.asking, tokens.count) == (names, True, prefix + 16 + suffix)
        assert tokens.has_class is (names[:1] == ("class token",))
    found = attending(list(attending.tokens), [0, 3])
    assert [each.weights.shape for each in found] == [(2, 2, 2, prefix + 16 + suffix)] * 2
    every = attending([found[1].layer], None)[0].weights
    torch.testing.assert_close(every[:, :, [0, 3]], found[1].weights)
    torch.testing.assert_close(every.sum(-1), torch.ones(every.shape[:3]))


def test_windows_lie_on_the_grid_of_the_image():
    attending = Attending(swin(), Inputs(torch.rand(1, 3, 32, 32)), None)
    assert [tokens.layout.grid for tokens in attending.tokens.values()] == [(8, 8), (4, 4)]
    assert all(tokens.asking for tokens in attending.tokens.values())


class Pooled(nn.Module):
    """Places attend to fewer places, as in PVT, and then one token of its own to all of them."""

    def __init__(self):
        super().__init__()
        self.embed, self.reduce = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cls_token = nn.Parameter(torch.rand(1, 1, 8))
        self.head = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embed(x)
        fewer = self.reduce(x).flatten(2).mT
        x = self.attention(x.flatten(2).mT, fewer, fewer)[0]
        token = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([token, x], 1)
        return self.head(token, x, x)[0]


def test_queries_that_are_other_tokens():
    attending = Attending(Pooled(), Inputs(torch.rand(2, 3, 32, 48)), None)
    grids = {name: (tokens.layout.grid, tokens.names, tokens.asking) for name, tokens in attending.tokens.items()}
    assert grids == {"attention": ((4, 6), (), False), "head": ((8, 12), ("class token",), False)}
    assert [each.weights.shape[2:] for each in attending(["attention", "head"], None)] == [(96, 24), (1, 97)]


class OfChannels(nn.Module):
    """Softmax of channels by channels, as in XCiT, before attention of places."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mixing = Shuffled()

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        x = self.mixing(x)
        return self.attention(x, x, x)[0]


class Shuffled(nn.Module):
    """Attention of tokens of which nobody knows where they are."""

    def forward(self, x):
        y = x.sort(1).values[:, :5]
        nn.functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])
        return x


class Scattered(nn.Module):
    """Attention in groups of which nobody knows whose image they are of."""

    def forward(self, x):
        y = x.sort(1).values.unflatten(1, (2, -1)).flatten(0, 1)[:, None].contiguous()
        nn.functional.scaled_dot_product_attention(y, y, y)
        return x


@torch.library.custom_op("flash_attn_of_a_look::forward", mutates_args=())
def hiding(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


class Hides(nn.Module):
    def forward(self, x):
        hiding(x)
        return x


class Talks(nn.Module):
    """Heads are mixed after the softmax, as in CaiT."""

    def __init__(self, mixes):
        super().__init__()
        self.mixes = mixes

    def forward(self, x):
        y = x.unflatten(-1, (2, -1)).transpose(1, 2)
        weights = (y @ y.mT).softmax(-1).permute(0, 2, 3, 1)
        return (self.mixes(weights).permute(0, 3, 1, 2) @ y).transpose(1, 2).flatten(2)


REFUSED = {
    "no place": (Shuffled, r"it is unknown where on the image the 5 keys are that it attends to"),
    "groups": (
        Scattered,
        r"its attention cannot be captured: it is computed in 2 groups, and which image each of them",
    ),
    "hidden": (Hides, r"its attention is computed by flash_attn_of_a_look.forward.default, which returns no weights"),
    "talking": (lambda: Talks(nn.Linear(2, 2)), r"its heads are mixed after the softmax \(talking heads\)"),
    "talking, no bias": (lambda: Talks(nn.Linear(2, 2, bias=False)), r"its heads are mixed after the softmax \(talk"),
    "changed": (lambda: Talks(nn.ReLU()), r"its softmax goes through 'relu' before it meets values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_attention_that_cannot_be_shown_is_named_with_its_reason_and_stops_no_other(kind):
    make, why = REFUSED[kind]
    net, inputs = OfChannels(), Inputs(torch.rand(1, 3, 16, 16))
    net.mixing = make()
    attending = Attending(net, inputs, None)
    assert list(attending.tokens) == ["attention"]
    assert list(attending.without) == ["mixing"]
    assert re.match(why, attending.without["mixing"])
    assert attending(["attention"], [0])[0].weights.shape == (1, 2, 1, 16)
    assert list(Attending(net, inputs, "").without) == ["mixing"]
    for layers in ("mixing", ["mixing", "attention"]):
        with pytest.raises(LayerError, match=f"the attention of 'mixing' cannot be shown: {why}"):
            Attending(net, inputs, layers)


def test_what_is_softmaxed_but_no_attention_is_not_told():
    net, inputs = OfChannels(), Inputs(torch.rand(1, 3, 16, 16))
    net.mixing = Gated()
    assert Attending(net, inputs, None).without == {}


class Gated(nn.Module):
    """A share of each image that is multiplied with it."""

    def forward(self, x):
        return x * x.mean(1).softmax(-1).square()[:, None]


def test_layers_that_hold_attention():
    net = VisionTransformer(32, 8, 3, 2, 8, 8)
    inputs = Inputs(torch.rand(1, 3, 32, 32))
    names = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    for layers, found in (
        (names[1], names[1:2]),
        ("encoder", names),
        ("", names),
        (nn.MultiheadAttention, names),
        (f"{names[0]}.*", names[:1]),
        ([f"{names[2]}.self_attention", names[0]], names[::2]),
    ):
        assert list(Attending(net, inputs, layers).tokens) == [f"{name}.self_attention" for name in found]
    with pytest.raises(LayerError, match=r"no attention is computed in 'conv_proj'; these compute some: 'encoder.*_0"):
        Attending(net, inputs, "conv_proj")
    with pytest.raises(LayerError, match=r"no layer 'blocks\.0'"):
        Attending(net, inputs, "blocks.0")
    with pytest.raises(LayerError, match=r"no attention is computed in the model\.$"):
        Attending(nn.Conv2d(3, 1, 3), inputs, None)


def test_one_module_that_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.embed(x).flatten(2).mT
            for _ in range(2):
                x = x + self.attention(x, x, x)[0]
            return x

    attending = Attending(Twice(), Inputs(torch.rand(1, 3, 16, 16)), None)
    assert list(attending.tokens) == ["attention#1", "attention#2"]
    first, second = attending(["attention#1", "attention#2"], [0])
    assert not torch.equal(first.weights, second.weights)
    assert torch.equal(attending(["attention#2"], [0])[0].weights, second.weights)


def test_names_of_tokens():
    tokens = Tokens(Layout((2, 3), 2, 1), ("class token", "distillation token"), True)
    assert [tokens.name(i) for i in (0, 1, 2, 7, 8)] == [
        "class token",
        "distillation token",
        "place (0, 0)",
        "place (1, 2)",
        "token 8",
    ]
    assert [tokens.place(i) for i in (1, 2, 7, 8)] == [None, (0, 0), (1, 2), None]
    assert Tokens(Layout((2, 2), 2), ("token 0", "token 1"), True).name(1) == "token 1"
