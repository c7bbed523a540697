"""Twenty-odd families of transformers, small: the default map, its heat by hand, and what faithfulness removes."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

m = pytest.importorskip("timm.models")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from benchmarks.sweep_checks import look_at  # noqa: E402
from benchmarks.sweep_models import Built  # noqa: E402
from torch_featviz.explain import attribute, faithfulness  # noqa: E402
from torch_featviz.training import Monitor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
HF_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
STAGES = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "depths": (1, 1, 1, 1), "num_classes": 5}
SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
HF_SWIN = {**SWIN, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 5, "image_size": 64}


@dataclass(frozen=True)
class Family:
    """A small network of a family.

    Args:
        build: makes it.
        side: of the images.
        layers: that the default map is of: of a class-token readout what enters the last block, else the last map.
        tokens: how many have no place; None where the layer returns maps.
        patch: side of what faithfulness removes at once.
        last: whether channels are on the last axis of a map.
    """

    build: Callable[[], nn.Module]
    side: int
    layers: tuple[str, ...]
    tokens: int | None = None
    patch: int = 1
    last: bool = False


def hf(kind: str, **config) -> nn.Module:
    settings = getattr(transformers, f"{kind}Config")(**{"num_labels": 5, **config})
    return getattr(transformers, f"{kind}ForImageClassification")(settings)


def hf_vit(kind: str, **config) -> Callable[[], nn.Module]:
    return lambda: hf(kind, **HF_VIT, intermediate_size=64, **config)


def clip(kind: str) -> Callable[[], nn.Module]:
    return lambda: hf(kind, vision_config={**HF_VIT, "intermediate_size": 64}, text_config={"num_hidden_layers": 1})


def vit(**config) -> Callable[[], nn.Module]:
    return lambda: m.VisionTransformer(**{**VIT, **config})


FEW = {
    "ViT, class token": Family(vit(), 32, ("blocks.1",), 1, 8),
    "ViT, mean of tokens": Family(vit(global_pool="avg"), 32, ("norm",), 1, 8),
    "DeiT, distilled": Family(lambda: m.deit.VisionTransformerDistilled(**VIT), 32, ("blocks.1",), 2, 8),
    "Dinov2 with registers": Family(hf_vit("Dinov2WithRegisters"), 32, ("dinov2_with_registers.layernorm",), 5, 8),
    "Swin": Family(lambda: m.SwinTransformer(**SWIN, num_classes=5), 64, ("norm",), None, 4, last=True),
    "ConvNeXt": Family(lambda: m.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5), 64, ("norm_pre",)),
    "MaxViT": Family(
        lambda: torchvision.models.MaxVit(
            (64, 64), 8, 2, [8, 16], [1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=5
        ),
        64,
        ("blocks.1",),
    ),
}
MORE = {
    "ViT, registers": Family(vit(reg_tokens=4), 32, ("blocks.1",), 5, 8),
    "ViT, attention pool": Family(vit(global_pool="map", class_token=False), 32, ("attn_pool.kv",), 0, 8),
    "ViT of torchvision": Family(
        lambda: torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=5),
        32,
        ("encoder.layers.encoder_layer_1",),
        1,
        8,
    ),
    "ViT of transformers": Family(hf_vit("ViT"), 32, ("vit.layers.1",), 1, 8),
    "DeiT of transformers": Family(hf_vit("DeiT"), 32, ("deit.layers.1",), 2, 8),
    "ViTMSN": Family(hf_vit("ViTMSN"), 32, ("vit.layers.1",), 1, 8),
    "IJepa": Family(hf_vit("IJepa"), 32, ("ijepa.layernorm",), 0, 8),
    "SigLIP": Family(clip("Siglip"), 32, ("vision_model.post_layernorm",), 0, 8),
    "CLIP": Family(clip("CLIP"), 32, ("vision_model.encoder.layers.2",), 1, 8),
    "Dinov2": Family(hf_vit("Dinov2"), 32, ("dinov2.layernorm",), 1, 8),
    "BEiT": Family(lambda: m.Beit(**VIT, use_rel_pos_bias=True, init_values=0.1), 32, ("norm",), 1, 8),
    "BEiT of transformers": Family(hf_vit("Beit"), 32, ("beit.layernorm",), 1, 8),
    "EVA": Family(lambda: m.Eva(**VIT, use_rot_pos_emb=True), 32, ("norm",), 1, 8),
    "EVA, class token": Family(
        lambda: m.Eva(**VIT, use_rot_pos_emb=True, global_pool="token", num_reg_tokens=4), 32, ("blocks.1",), 5, 8
    ),
    "CaiT": Family(lambda: m.Cait(**{**VIT, "depth": 2}, init_values=0.1), 32, ("blocks",), 0, 8),
    "XCiT": Family(
        lambda: m.Xcit(**{**VIT, "depth": 2}, cls_attn_layers=2, eta=1.0, tokens_norm=True),
        32,
        ("cls_attn_blocks.0",),
        1,
    ),
    "PiT": Family(
        lambda: m.PoolingVisionTransformer(64, 8, 4, "overlap", (8, 8, 8), (1, 1, 2), (1, 2, 4), 2, num_classes=5),
        64,
        ("transformers.2.blocks.0",),
        1,
    ),
    "LeViT": Family(
        lambda: m.Levit(64, embed_dim=(16, 24, 32), key_dim=8, depth=(1, 1, 1), num_heads=(2, 3, 4), num_classes=5),
        64,
        ("stages.1",),
        0,
    ),
    "LeViT, distilled": Family(
        lambda: m.levit.LevitDistilled(
            64, embed_dim=(16, 24, 32), key_dim=8, depth=(1, 1, 1), num_heads=(2, 3, 4), num_classes=5
        ),
        64,
        ("stages.1",),
        0,
    ),
    "CrossViT": Family(
        lambda: m.CrossVit(
            img_size=48,
            img_scale=(1.0, 1.0),
            patch_size=(12, 16),
            embed_dim=(16, 32),
            depth=((1, 1, 0), (1, 1, 0)),
            num_heads=(2, 2),
            mlp_ratio=(2, 2, 1),
            num_classes=5,
        ),
        48,
        ("blocks.1.blocks.0", "blocks.1.blocks.1"),
        1,
        12,
    ),
    "ConViT": Family(
        lambda: m.ConVit(**{**VIT, "depth": 4}, local_up_to_layer=2),
        32,
        ("blocks.2",),
        1,
        8,
    ),
    "TNT": Family(
        lambda: m.TNT(32, 8, embed_dim=32, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=2, num_classes=5),
        32,
        ("blocks.1.cat",),
        1,
        8,
    ),
    "VOLO": Family(
        lambda: m.VOLO(
            [1, 1, 1, 1],
            64,
            embed_dims=[16, 32, 32, 32],
            num_heads=[1, 2, 2, 2],
            downsamples=[True, False, False, False],
            outlook_attention=[True, False, False, False],
            post_layers=["ca", "ca"],
            num_classes=5,
        ),
        64,
        ("post_network.0",),
        1,
    ),
    "Swin of torchvision": Family(
        lambda: torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5),
        64,
        ("permute",),
    ),
    "Swin of transformers": Family(lambda: hf("Swin", **HF_SWIN), 64, ("swin.layernorm",), 0, 4),
    "Swinv2": Family(lambda: m.SwinTransformerV2(**SWIN, num_classes=5), 64, ("norm",), None, 4, last=True),
    "Hiera": Family(
        lambda: m.Hiera((64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), mask_unit_size=(8, 8), num_classes=5),
        64,
        ("blocks.4",),
        0,
    ),
    "PVT": Family(
        lambda: hf("Pvt", image_size=64, hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1]),
        64,
        ("pvt.encoder.block.3.0.layer_norm_1",),
        1,
        4,
    ),
    "PVTv2": Family(lambda: m.PyramidVisionTransformerV2(**STAGES), 64, ("stages",), None, 4),
    "Twins": Family(
        lambda: m.Twins(
            64, 4, mlp_ratios=(2, 2, 2, 2), sr_ratios=(8, 4, 2, 1), wss=(2, 2, 2, 2), **{**STAGES, "depths": (2,) * 4}
        ),
        64,
        ("norm",),
        0,
        4,
    ),
    "MViTv2": Family(
        lambda: m.MultiScaleVit(m.mvitv2.MultiScaleVitCfg(depths=(1, 1, 2, 1), embed_dim=8), (64, 64), num_classes=5),
        64,
        ("norm",),
        0,
        4,
    ),
    "DaViT": Family(lambda: m.DaVit(**STAGES, window_size=2), 64, ("norm_pre",), None, 4),
    "NesT": Family(
        lambda: m.Nest(
            64, patch_size=4, num_levels=3, embed_dims=(8, 16, 32), num_heads=(1, 2, 4), depths=(1, 1, 1), num_classes=5
        ),
        64,
        ("norm",),
        last=True,
    ),
    "FocalNet": Family(lambda: m.FocalNet(depths=(1, 1, 1, 1), embed_dim=8, num_classes=5), 64, ("norm",)),
}


def built(family: Family) -> tuple[nn.Module, torch.Tensor]:
    """The network, in which nothing is 0 as it is before a training, and two images."""
    torch.manual_seed(0)
    net = family.build().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(std=0.02)
    return net, torch.rand(2, 3, family.side, family.side)


def by_hand(net: nn.Module, image: torch.Tensor, family: Family) -> dict[str, torch.Tensor]:
    """Heat `h w` of one image by each method, from what one module returns and its gradient, place by place."""
    kept = []
    hook = net.get_submodule(family.layers[0]).register_forward_hook(
        lambda _module, _given, output: kept.append(output)
    )
    output = net(image[None])
    hook.remove()
    scores = output if isinstance(output, torch.Tensor) else output.logits
    (gradient,) = torch.autograd.grad(scores[0].max(), kept[0])
    maps, slopes = kept[0].detach()[0], gradient[0]
    if family.tokens is None:
        maps, slopes = (x.movedim(-1, 0) if family.last else x for x in (maps, slopes))
    else:
        maps, slopes = maps[family.tokens :], slopes[family.tokens :]
        side = round(len(maps) ** 0.5)
        maps, slopes = (
            torch.stack([x[side * y : side * y + side] for y in range(side)]).permute(2, 0, 1) for x in (maps, slopes)
        )
    heat = {
        "gradcam": sum(plane * slope.mean() for plane, slope in zip(maps, slopes, strict=True)),
        "hirescam": sum(plane * slope for plane, slope in zip(maps, slopes, strict=True)),
        "layercam": sum(plane * slope.clamp(min=0) for plane, slope in zip(maps, slopes, strict=True)),
    }
    return {method: F.interpolate(x[None, None], image.shape[1:], mode="bilinear")[0, 0] for method, x in heat.items()}


def check(family: Family) -> None:
    net, images = built(family)
    finding = look_at(Built(net, images[:1]), ("heatmap",))["heatmap"]
    assert finding.state == "right", finding.text  # gradients are cut there, and at all that comes later
    found = {method: attribute(net, images, method=method) for method in ("gradcam", "hirescam", "layercam")}
    assert {each.layers for each in found.values()} == {family.layers}
    if len(family.layers) == 1 and family.layers[0] in dict(net.named_modules()):
        for image, expected in ((i, by_hand(net, images[i], family)) for i in range(2)):
            for method, heat in expected.items():
                size = float(max(heat.abs().max(), expected["gradcam"].abs().max()))
                torch.testing.assert_close(found[method].heatmaps[image], heat, rtol=1e-3, atol=1e-4 * size)
    worth = faithfulness(net, images, found["gradcam"], steps=2, stages=0)
    assert worth.patch == (family.patch, family.patch)
    assert bool(torch.stack([worth.deletion, worth.insertion, worth.gain]).isfinite().all())


@pytest.mark.parametrize("name", FEW)
def test_the_default_map_of_some_families(name):
    check(FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_default_map_of_many_families(name):
    check(MORE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FEW, *MORE])
def test_a_monitor_watches_two_steps_of_it(name):
    family = {**FEW, **MORE}[name]
    net, images = built(family)
    net.train()
    monitor, optimizer = Monitor(net, every=1), torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(2):
        with monitor.step():
            output = net(images)
            output = output[0] if isinstance(output, tuple) else output
            (output if isinstance(output, torch.Tensor) else output.logits).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(monitor.history) == 2
