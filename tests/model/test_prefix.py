"""Names of tokens without a place, in the networks that people have."""

import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models import VisionTransformer

from torch_featviz.model.prefix import prefix_names

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 32,
    "patch_size": 16,
}


def of_timm(name):
    return timm.create_model(name, img_size=32, embed_dim=12, depth=1, num_heads=2)


def of_transformers(config):
    return transformers.AutoModel.from_config(config(**SMALL))


NETS = {
    "torchvision": (lambda: VisionTransformer(32, 16, 1, 2, 8, 8), ("class",)),
    "timm ViT": (lambda: of_timm("vit_tiny_patch16_224"), ("class",)),
    "timm DeiT": (lambda: of_timm("deit_tiny_distilled_patch16_224"), ("class", "distillation")),
    "timm DINOv2": (lambda: of_timm("vit_small_patch14_reg4_dinov2"), ("class", *["register"] * 4)),
    "timm without class": (lambda: of_timm("vit_medium_patch16_reg4_gap_256"), ("register",) * 4),
    "ViT": (lambda: of_transformers(transformers.ViTConfig), ("class",)),
    "DeiT": (lambda: of_transformers(transformers.DeiTConfig), ("class", "distillation")),
    "DINOv2": (lambda: of_transformers(transformers.Dinov2WithRegistersConfig), ("class", *["register"] * 4)),
    "CLIP": (lambda: of_transformers(transformers.CLIPVisionConfig), ("class",)),
}


@pytest.mark.parametrize("name", NETS)
def test_names_are_those_of_the_parameters(name):
    make, names = NETS[name]
    with torch.device("meta"):
        net = make()
    assert prefix_names(net, len(names)) == names
    assert prefix_names(nn.Sequential(net), len(names)) == names
    numbered = tuple(f"token {i}" for i in range(len(names) + 1))
    assert prefix_names(net, len(names) + 1) == numbered


def test_tokens_that_nobody_names_are_numbered():
    net = nn.Module()
    net.mask_token, net.classifier_weight = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(3, 4))
    net.class_bias, net.registry = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    assert prefix_names(net, 2) == ("token 0", "token 1")
    assert prefix_names(net, 0) == ()
