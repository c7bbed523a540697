"""The models of `benchmarks/sweep.py`, by name: torchvision's, timm's and transformers', without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SIZE = (160, 224)  # rows and columns, unlike each other so that a swap is seen; of a model that takes any
LARGEST = 60_000_000  # parameters, of those of torchvision that are not the smallest of their family


class Subject(NamedTuple):
    """A model to look at.

    Args:
        name: with its library in front: `torchvision:resnet18`.
        family: by its library's own division.
    """

    name: str
    family: str


@dataclass
class Built:
    """A model in evaluation mode, and what it is called with.

    Args:
        classes: it tells classes of one image.
        pixels: it tells classes of each pixel.
    """

    net: nn.Module
    images: Tensor
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    classes: bool = True
    pixels: bool = False

    def __call__(self, net: nn.Module | None = None) -> Any:
        return (net or self.net)(self.images, *self.args, **self.keywords)


def subjects() -> list[Subject]:
    """The smallest of each family, by library in turn, then the rest by size."""
    torchvision = sorted(_of_torchvision(), key=lambda pair: pair[1])
    first: dict[str, Subject] = {}
    for subject, _ in torchvision:
        first.setdefault(subject.family, subject)
    rest = [subject for subject, size in torchvision if subject not in first.values() and size < LARGEST]
    timm = [Subject(f"timm:{name}", family) for family, name in TIMM.items()]
    transformers = [Subject(f"transformers:{name}", name) for name in TRANSFORMERS]
    return [*first.values(), *timm, *transformers, *rest]


def build(name: str) -> Built:
    """A model and its inputs, the same at each call."""
    library, _, own = name.partition(":")
    torch.manual_seed(0)
    built = {"torchvision": _build_torchvision, "timm": _build_timm, "transformers": _build_transformers}[library](own)
    built.net.eval()
    _wake(built.net)
    return built


def _wake(net: nn.Module) -> None:
    """Weights that begin as zeros, such as those of heads, would hide all that lies before them."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() >= 2 and not parameter.any():
                parameter.normal_(std=0.02)


# torchvision


def _of_torchvision() -> Iterator[tuple[Subject, int]]:
    """All of torchvision's models with the numbers of their parameters."""
    from torchvision.models import get_model_builder, get_model_weights, list_models  # noqa: PLC0415

    for name in list_models():
        published = list(get_model_weights(name))
        size = published[0].meta["num_params"] if published else math.inf
        part, _, family = get_model_builder(name).__module__.removeprefix("torchvision.models.").rpartition(".")
        yield Subject(f"torchvision:{name}", f"{part} {family}".strip()), size


def _build_torchvision(name: str) -> Built:
    from torchvision.models import get_model, get_model_builder  # noqa: PLC0415

    kind = get_model_builder(name).__module__.split(".")[2]
    options: dict[str, Any] = {"weights": None}
    if kind in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if kind == "quantization":
        torch.backends.quantized.engine = "fbgemm"
        options["quantize"] = True
    if name.startswith(("googlenet", "inception", "quantized_googlenet", "quantized_inception")):
        options |= {"aux_logits": False, "init_weights": False}
    if kind == "detection" and not name.startswith("ssd"):
        options |= {"min_size": min(SIZE), "max_size": max(SIZE)}
    if kind == "detection":  # a few boxes, whatever their scores, since the weights are random
        two_stages = "rcnn" in name
        options |= {"box_score_thresh": 0, "box_detections_per_img": 8} if two_stages else {"score_thresh": 0}
        options |= {} if two_stages else {"detections_per_img": 8}
    net = get_model(name, **options)
    fixed = name.startswith(("vit_", "maxvit", "quantized"))
    rows, columns = (224, 224) if fixed else (320, 320) if name.startswith("ssd") else SIZE  # SSD resizes to squares
    if kind == "optical_flow":
        return Built(net, torch.rand(1, 3, 128, 160), (torch.rand(1, 3, 128, 160),), {"num_flow_updates": 2}, False)
    if kind == "video":
        side = 224 if name.startswith(("mvit", "s3d")) else 112
        return Built(net, torch.rand(1, 3, 16, side, side))
    images = torch.rand(1, 3, rows, columns)
    return Built(net, images, classes=kind not in ("detection", "quantization"), pixels=kind == "segmentation")


# timm: of each of its families the smallest, but for deepseek_vit's, which has 412 million parameters

TIMM: dict[str, str] = {
    "convnext": "test_convnext",
    "efficientnet": "test_efficientnet",
    "vision_transformer": "test_vit",
    "nfnet": "test_nfnet",
    "mambaout": "test_mambaout",
    "byobnet": "test_byobnet",
    "resnet": "test_resnet",
    "starnet": "starnet_s050",
    "maxxvit": "test_coatnet",
    "vision_transformer_relpos": "test_vit_relpos",
    "dla": "dla46x_c",
    "mobilevit": "mobilevit_xxs",
    "edgenext": "edgenext_xx_small",
    "mobilenetv3": "mobilenetv3_small_050",
    "vovnet": "ese_vovnet19b_slim_dw",
    "repghost": "repghostnet_050",
    "efficientvit_msra": "efficientvit_m0",
    "ghostnet": "ghostnet_050",
    "regnet": "regnetx_002",
    "cspnext": "cspnext_tiny",
    "iformer": "iformer_t",
    "xcit": "xcit_nano_12_p8_224",
    "cspnet": "cs3darknet_focus_s",
    "efficientvit_mit": "efficientvit_b0",
    "swiftformer": "swiftformer_xs",
    "efficientformer_v2": "efficientformerv2_s0",
    "pvt_v2": "pvt_v2_b0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "lcnetv2": "lcnetv2_small",
    "inception_next": "inception_next_atto",
    "rexnet": "rexnet_100",
    "pit": "pit_ti_224",
    "hardcorenas": "hardcorenas_b",
    "repvit": "repvit_m1",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "deit": "deit_tiny_patch16_224",
    "mlp_mixer": "gmlp_ti16_224",
    "hgnet": "hgnetv2_b0",
    "shvit": "shvit_s1",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "cpubone": "cpubone_nano",
    "efficientvim": "efficientvim_m1",
    "crossvit": "crossvit_tiny_240",
    "levit": "levit_128s",
    "densenet": "densenet121",
    "byoanet": "halonet_h1",
    "dpn": "dpn48b",
    "visformer": "visformer_tiny",
    "resnest": "resnest14d",
    "csatv2": "csatv2",
    "resnetv2": "resnetv2_18",
    "senet": "legacy_seresnet18",
    "metaformer": "poolformerv2_s12",
    "cait": "cait_xxs24_224",
    "sknet": "skresnet18",
    "gcvit": "gcvit_xxtiny",
    "tiny_vit": "tiny_vit_5m_224",
    "efficientformer": "efficientformer_l1",
    "hrnet": "hrnet_w18_small",
    "lowformer": "lowformer_b0",
    "nest": "nest_tiny",
    "convmixer": "convmixer_768_32",
    "vitamin": "vitamin_small_224",
    "xception": "legacy_xception",
    "tnt": "tnt_s_legacy_patch16_224",
    "inception_v3": "inception_v3",
    "rdnet": "rdnet_tiny",
    "twins": "twins_svt_small",
    "mvitv2": "mvitv2_tiny",
    "res2net": "res2next50",
    "volo": "volo_d1_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "xception_aligned": "xception41p",
    "sequencer": "sequencer2d_s",
    "hiera": "hiera_tiny_224",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "davit": "davit_tiny",
    "focalnet": "focalnet_tiny_srf",
    "selecsls": "selecsls42",
    "tresnet": "tresnet_m",
    "nextvit": "nextvit_small",
    "inception_v4": "inception_v4",
    "inception_resnet_v2": "inception_resnet_v2",
    "mobilenetv5": "mobilenetv5_base",
    "pnasnet": "pnasnet5large",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "beit": "beit_base_patch16_224",
    "qwen3_vit": "qwen3_vit_88m",
    "nasnet": "nasnetalarge",
    "vgg": "vgg11",
    "gemma4_vit": "gemma4_vit_167m",
}


def _build_timm(name: str) -> Built:
    import timm  # noqa: PLC0415

    net = timm.create_model(name)
    config = net.pretrained_cfg
    sizes = [config["input_size"][1:]]
    if not config.get("fixed_input_size"):
        sizes.insert(0, SIZE)
    for size in sizes:
        images = torch.rand(1, 3, *size)
        with suppress(Exception), torch.no_grad():
            net.eval()(images)
            break
    return Built(net, images)


# transformers: tiny ones of each kind


def _build_transformers(name: str) -> Built:
    return TRANSFORMERS[name]()


def _classifier(kind: str, side: tuple[int, int] | int = 64, **config: Any) -> Callable[[], Built]:
    """Of `{kind}Config` and `{kind}ForImageClassification`."""
    return _model(kind, f"{kind}ForImageClassification", side, **config)


def _model(
    kind: str,
    model: str,
    side: tuple[int, int] | int = 64,
    *,
    classes: bool = True,
    pixels: bool = False,
    **config: Any,
) -> Callable[[], Built]:
    def make() -> Built:
        import transformers  # noqa: PLC0415

        rows, columns = (side, side) if isinstance(side, int) else side
        settings = getattr(transformers, f"{kind}Config")(**config)
        net = getattr(transformers, model)(settings)
        return Built(net, torch.rand(1, 3, rows, columns), classes=classes, pixels=pixels)

    return make


_VIT: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 5,
}
_WIDE = (64, 96)
TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "ViT": _classifier("ViT", **_VIT),
    "DeiT": _classifier("DeiT", **_VIT),
    "Beit": _classifier("Beit", **_VIT),
    "Data2VecVision": _classifier("Data2VecVision", **_VIT),
    "ViTMSN": _classifier("ViTMSN", **_VIT),
    "IJepa": _classifier("IJepa", **_VIT),
    "Dinov2": _classifier("Dinov2", **_VIT),
    "Dinov2WithRegisters": _classifier("Dinov2WithRegisters", **_VIT),
    "Swin": _classifier(
        "Swin", image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    ),
    "Swinv2": _classifier(
        "Swinv2",
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    ),
    "Hiera": _classifier(
        "Hiera",
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        masked_unit_size=[8, 8],
        num_labels=5,
    ),
    "ConvNext": _classifier("ConvNext", _WIDE, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=5),
    "ConvNextV2": _classifier("ConvNextV2", _WIDE, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=5),
    "ResNet": _classifier(
        "ResNet", _WIDE, embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_labels=5
    ),
    "Bit": _classifier(
        "Bit", _WIDE, embedding_size=16, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 2, 1], num_groups=8, num_labels=5
    ),
    "RegNet": _classifier(
        "RegNet",
        _WIDE,
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 2, 1],
        groups_width=8,
        num_labels=5,
    ),
    "MobileNetV1": _classifier("MobileNetV1", _WIDE, depth_multiplier=0.25, num_labels=5),
    "MobileNetV2": _classifier("MobileNetV2", _WIDE, depth_multiplier=0.35, num_labels=5),
    "MobileViT": _classifier(
        "MobileViT",
        _WIDE,
        hidden_sizes=[24, 32, 48],
        neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
        num_attention_heads=4,
        num_labels=5,
    ),
    "MobileViTV2": _classifier("MobileViTV2", _WIDE, width_multiplier=0.25, num_labels=5),
    "PoolFormer": _classifier("PoolFormer", _WIDE, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=5),
    "Pvt": _classifier("Pvt", image_size=64, hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], num_labels=5),
    "PvtV2": _classifier("PvtV2", image_size=64, hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], num_labels=5),
    "Levit": _classifier("Levit", 224, depths=[1, 1, 1], num_labels=5),
    "Cvt": _classifier("Cvt", _WIDE, embed_dim=[8, 24, 48], num_heads=[1, 3, 6], depth=[1, 2, 3], num_labels=5),
    "EfficientNet": _classifier("EfficientNet", _WIDE, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
    "FocalNet": _classifier("FocalNet", image_size=64, embed_dim=16, depths=[1, 1, 2, 1], num_labels=5),
    "SwiftFormer": _classifier("SwiftFormer", 224, depths=[1, 1, 2, 1], embed_dims=[8, 16, 24, 32], num_labels=5),
    "Segformer": _classifier(
        "Segformer", _WIDE, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], decoder_hidden_size=32, num_labels=5
    ),
    "Segformer, semantic": _model(
        "Segformer",
        "SegformerForSemanticSegmentation",
        (128, 192),
        pixels=True,
        hidden_sizes=[8, 16, 32, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        num_labels=5,
    ),
    "DPT, semantic": _model(
        "DPT",
        "DPTForSemanticSegmentation",
        128,
        pixels=True,
        **{**_VIT, "image_size": 128, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
    ),
    "Yolos": _model("Yolos", "YolosForObjectDetection", classes=False, **{**_VIT, "image_size": [64, 64]}),
    "DPT": _model(
        "DPT",
        "DPTForDepthEstimation",
        classes=False,
        **{**_VIT, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
    ),
}
