"""What a card makes of an image, against the transform that was published with the weights, called by itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision import transforms as T

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.zoo import ImageFiles, ModelCard, card

SIZES = [(301, 400), (521, 350), (64, 97), (256, 256)]  # h w


def picture(height, width, seed=0):
    """Blots that are smooth, and noise, which tells one resampling from another."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return (smooth + rng.normal(0, 30, smooth.shape)).clip(0, 255).round().astype(np.uint8)


def presets():
    """One name for each set of parameters that any weights of a classifier have, of its smallest net."""
    found = {}
    for net in models.list_models(module=models):
        for weights in models.get_model_weights(net):
            made = weights.transforms()
            key = repr((made.resize_size, made.crop_size, made.mean, made.std, made.interpolation, made.antialias))
            size, name = weights.meta["num_params"], f"{net}.{weights.name}"
            found[key] = min(found.get(key, (size, name)), (size, name))
    return sorted(name for _, name in found.values())


def forms(pixels, batches):
    """The same image in every form that a person may have."""
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    found = {"PIL": Image.fromarray(pixels), "bytes": whole, "floats": whole / 255}
    several = torch.stack([whole, whole.flip(1)])
    return found | ({"batch of bytes": several, "batch of floats": several / 255} if batches else {})


def levels(known, made, expected):
    """How far apart, in levels of 255."""
    std = torch.tensor(known.std)[:, None, None]
    return float(((made - expected).abs() * std * 255).max())


def test_there_are_as_many_presets_as_are_published():
    assert len(presets()) >= 15


@pytest.mark.parametrize("name", presets())
def test_presets_of_torchvision(name, tmp_path):
    known, (net, _, tag) = card(f"torchvision:{name}"), name.partition(".")
    published = models.get_model_weights(net)[tag].transforms()
    for height, width in SIZES:
        pixels = picture(height, width)
        for form, image in forms(pixels, (height, width) == SIZES[-2]).items():
            expected = published(image)
            made = known.preprocess(image)
            assert made.shape == (len(image) if "batch" in form else 1, *known.input_size)
            assert levels(known, made, expected) <= 1, (form, height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert levels(known, known.preprocess(tmp_path / "a.png"), published(Image.open(tmp_path / "a.png"))) <= 1


def test_a_name_alone_means_the_weights_that_torchvision_calls_default():
    for net in ("resnet50", "efficientnet_b0", "vit_b_16"):
        default = models.get_model_weights(net)["DEFAULT"]
        assert repr(card(f"torchvision:{net}").transform) == repr(default.transforms())
        assert card(f"torchvision:{net}.{default.name}").weights == card(f"torchvision:{net}").weights == default.url
    assert card("torchvision:resnet50.IMAGENET1K_V1").weights != card("torchvision:resnet50").weights
    with pytest.raises(OptionError, match="no weights 'V3' of 'resnet50' in torchvision; there are IMAGENET1K_V1, IM"):
        card("torchvision:resnet50.V3")


def test_weights_of_a_larger_input_have_their_net():
    known = card("torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1")
    with torch.device("meta"):
        assert known.build()(torch.zeros(1, *known.input_size)).shape == (1, 1000)
    assert known.input_size == (3, 384, 384)


timm = pytest.importorskip("timm")
TIMM = [
    "resnet18",
    "resnet18.a1_in1k",
    "test_vit",
    "test_efficientnet.r160_in1k",
    "resmlp_12_224",
    "vit_small_patch14_dinov2",
    "convnext_tiny.fb_in22k_ft_in1k_384",
    "mobilenetv3_small_050",
    "mixer_s32_224",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_b0",
    "inception_v3",
]


@pytest.mark.parametrize("name", TIMM)
def test_transforms_of_timm(name, tmp_path):
    known = card(f"timm:{name}")
    config = timm.data.resolve_model_data_config(timm.create_model(name))
    published = timm.data.create_transform(**config, is_training=False)
    for height, width in SIZES:
        pixels = picture(height, width)
        for form, image in forms(pixels, (height, width) == SIZES[-2]).items():
            if form == "bytes":  # which timm does not take
                expected = published(Image.fromarray(pixels))
            elif form == "batch of bytes":
                expected = torch.stack([published(Image.fromarray(each)) for each in (pixels, pixels[::-1].copy())])
            else:
                expected = published(image)
            assert levels(known, known.preprocess(image), expected) <= 1, (form, height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert levels(known, known.preprocess(tmp_path / "a.png"), published(Image.open(tmp_path / "a.png"))) <= 1


@pytest.mark.parametrize("resize", [None, 40, 51])
def test_a_card_of_ones_own_does_as_torchvision_does(resize):
    known = ModelCard("own", nn.Identity, (3, 40, 40), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize=resize)
    squeeze = T.Resize((40, 40) if resize is None else resize, antialias=True)
    steps = [squeeze, T.CenterCrop(40), T.Normalize(known.mean, known.std)]
    for height, width in SIZES:
        pixels = picture(height, width)
        expected = T.Compose([*steps[:2], T.ToTensor(), steps[2]])(Image.fromarray(pixels))
        assert levels(known, known.preprocess(Image.fromarray(pixels)), expected) <= 1
        whole = torch.from_numpy(pixels).permute(2, 0, 1)
        assert levels(known, known.preprocess(whole / 255), T.Compose(steps)(whole / 255)) <= 1
        assert levels(known, known.preprocess(whole), T.Compose(steps)(whole / 255)) <= 1


def test_grey_and_colour_become_what_the_net_takes():
    known, published = card("torchvision:resnet18"), models.ResNet18_Weights.DEFAULT.transforms()
    grey = picture(70, 90)[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("RGBA")):
        assert levels(known, known.preprocess(image), published(image.convert("RGB"))) <= 1
    whole = torch.from_numpy(grey)[None]
    assert levels(known, known.preprocess(whole), published(whole.expand(3, -1, -1))) <= 1
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    expected = published(torch.from_numpy(grey / np.float32(255)).expand(3, -1, -1))
    assert levels(known, known.preprocess(deep), expected) <= 1
    one = ModelCard("one", nn.Identity, (1, 24, 24), resize=32)
    colour = picture(50, 60)
    luma = (colour @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    for image in (Image.fromarray(colour), torch.from_numpy(colour).permute(2, 0, 1)):
        assert levels(one, one.preprocess(image), one.preprocess(Image.fromarray(luma))) <= 2  # rounded twice


def test_gradients_reach_the_image():
    known = card("torchvision:resnet18")
    image = torch.rand(3, 240, 300, requires_grad=True)
    known.preprocess(image).square().sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_transform_of_another_size_is_not_taken_for_the_cards():
    published = models.ResNet18_Weights.DEFAULT.transforms()
    known = ModelCard("mine", nn.Identity, (3, 96, 96), transform=published)
    with pytest.raises(
        ShapeError,
        match=r"the transform of 'mine' returns \(3, 224, 224\), but its input_size is \(3, 96, 96\)",
    ):
        known.preprocess(torch.rand(3, 50, 50))
    any_size = ModelCard("mine", nn.Identity, (3, 0, 0), transform=published)
    assert torch.equal(any_size.preprocess(torch.rand(3, 9, 9) * 0), published(torch.zeros(1, 3, 9, 9)))


def test_a_folder_is_read_by_the_published_transform(tmp_path):
    for i in range(2):
        Image.fromarray(picture(80, 60, i)).save(tmp_path / f"{i}.png")
    files = ImageFiles(tmp_path, card("torchvision:resnet18").preprocess)
    published = models.ResNet18_Weights.DEFAULT.transforms()
    for i, fed in enumerate(files):
        assert torch.equal(fed, published(Image.fromarray(picture(80, 60, i))))
        if i == 1:
            break
