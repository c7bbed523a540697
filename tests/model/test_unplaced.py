"""Tokens without a place are found in the networks that have them, and called what they are."""

import pytest
import torch
from torch import nn

from torch_featviz.capture import capture
from torch_featviz.model.layout import Layout
from torch_featviz.model.unplaced import names_before, unplaced

SMALL = {"depth": 1, "embed_dim": 12, "num_heads": 3, "num_classes": 2}
TINY = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24}


def timm(name, **options):
    return pytest.importorskip("timm").create_model(name, pretrained=False, **options)


def transformers(name, **options):
    library = pytest.importorskip("transformers")
    return getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**TINY, **options))


NETS = {
    "ViT": (lambda: timm("test_vit", img_size=32), "blocks.5", 32, 1, "1 class token"),
    "distilled DeiT": (
        lambda: timm("deit_tiny_distilled_patch16_224", img_size=32, **SMALL),
        *("blocks.0", 32, 2, "1 class token and 1 distillation token"),
    ),
    "DINOv2 with registers": (
        lambda: timm("vit_small_patch14_reg4_dinov2", img_size=28, **{**SMALL, "num_classes": 0}),
        *("blocks.0", 28, 5, "1 class token and 4 registers"),
    ),
    "ViT of torchvision": (
        lambda: pytest.importorskip("torchvision").models.VisionTransformer(32, 16, 1, 3, 12, 24),
        *("encoder.layers.encoder_layer_0", 32, 1, "1 class token"),
    ),
    "ViT of transformers": (
        lambda: transformers("ViT", image_size=32),
        *("layers.0", 32, 1, "1 class token"),
    ),
    "distilled DeiT of transformers": (
        lambda: transformers("DeiT", image_size=32),
        *("layers.0", 32, 2, "1 class token and 1 distillation token"),
    ),
    "DINOv2 with registers of transformers": (
        lambda: transformers("Dinov2WithRegisters", image_size=28, patch_size=14, num_register_tokens=4),
        *("layernorm", 28, 5, "1 class token and 4 registers"),
    ),
    "no class token": (
        lambda: timm("vit_tiny_patch16_224", img_size=32, class_token=False, global_pool="avg", **SMALL),
        *("blocks.0", 32, 0, ""),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_they_are_found_and_named(name):
    make, layer, size, count, words = NETS[name]
    net = make().eval()
    with torch.no_grad(), capture(net, layer) as acts:
        net(torch.rand(2, 3, size, size))
    layout = acts.layout(layer)
    assert (layout.prefix + layout.suffix, layout.grid) == (count, (2, 2))
    assert unplaced(layout, net) == words


def test_without_the_usual_names_they_are_counted():
    net = nn.Module()
    net.summary = nn.Parameter(torch.zeros(1, 3, 4))
    assert unplaced(Layout((2, 2), prefix=2, suffix=1), net) == "3 tokens without a place"
    assert unplaced(Layout((2, 2), prefix=1)) == "1 token without a place"
    net.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    assert unplaced(Layout((2, 2), prefix=3), net) == "3 tokens without a place", "one name does not cover three"
    assert unplaced(Layout((2, 2), prefix=1), net) == "1 class token"
    assert unplaced(Layout((2, 2)), net) == ""


@pytest.mark.parametrize("name", NETS)
def test_each_has_a_name_of_its_own(name):
    make, *_, count, words = NETS[name]
    with torch.device("meta"):
        net = make()
    names = names_before(net, count)
    said = {f"{names.count(each)} {each}{'s' * (names.count(each) > 1)}": None for each in names}
    assert " and ".join(said) == words
    assert names_before(nn.Sequential(net), count) == names
    assert names_before(net, count + 1) == tuple(f"token {i}" for i in range(count + 1))
