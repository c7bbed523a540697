import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.zoo import FOUR_EDGES, SOBEL_X, SOBEL_Y, VERTICAL_EDGE, FilterBank, card, names
from torch_featviz.zoo.cifar import CifarCNN
from torch_featviz.zoo.imagenet import landmarks_of
from torch_featviz.zoo.xo import XONet, xo, xo_deep, xo_nopool, xo_wide


def count(model):
    return sum(p.numel() for p in model.parameters())


def layers(model, kind):
    return [m for m in model.modules() if isinstance(m, kind)]


def linear(model):
    return [(m.in_features, m.out_features) for m in layers(model, nn.Linear)]


def conv(model):
    return [(m.in_channels, m.out_channels, m.kernel_size) for m in layers(model, nn.Conv2d)]


@pytest.mark.parametrize(
    ("build", "channels", "sizes", "pools"),
    [
        (xo, (1, 9, 5), (3645, 1200, 64, 2), 2),
        (xo_deep, (1, 9, 5, 5), (720, 480, 320, 2), 3),
        (xo_nopool, (1, 9, 5), (62720, 4000, 2400, 2), 0),
        (xo_wide, (1, 18, 5), (3645, 1200, 64, 2), 2),
    ],
)
def test_xo_layers(build, channels, sizes, pools):
    with torch.device("meta"):
        model = build()
    assert conv(model) == [(a, b, (3, 3)) for a, b in pairwise(channels)]
    assert linear(model) == list(pairwise(sizes))
    assert len(layers(model, nn.MaxPool2d)) == pools
    assert len(layers(model, nn.ReLU)) == len(channels) - 1 + 2
    assert model(torch.zeros(2, 1, 116, 116, device="meta")).shape == (2, 2)


def test_an_input_too_small_for_its_net():
    with pytest.raises(OptionError, match="3 convolutions need a larger input, got 8x8"):
        XONet((1, 9, 5, 5), (4,), size=8)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("cifar_mlp", 3_738_506),
        ("cifar_cnn", 18_354),
        ("cifar_cnn_large", 5_852_170),
        ("alexnet", 61_100_840),
    ],
)
def test_parameter_counts(name, total):
    with torch.device("meta"):
        assert count(card(name).build()) == total


def test_cifar_layers():
    assert linear(card("cifar_mlp").build()) == [(3072, 1024), (1024, 512), (512, 128), (128, 10)]
    small = card("cifar_cnn").build()
    assert conv(small) == [(3, 16, (3, 3)), (16, 8, (3, 3))]
    assert linear(small) == [(512, 32), (32, 10)]
    assert not layers(small, (nn.Tanh, nn.MaxPool2d))
    assert linear(card("cifar_cnn_3").build())[-1] == (32, 3)
    assert card("cifar_cnn_3").classes == ("airplane", "automobile", "ship")


def test_cifar_cnn_size():
    model = CifarCNN()
    sizes = [(3, 32), (32, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    assert [c[:2] for c in conv(model)] == sizes
    assert linear(model) == [(4096, 1024), (1024, 512), (512, 10)]
    assert [m.num_features for m in layers(model, nn.BatchNorm2d)] == [32, 128, 256]
    assert [m.p for m in layers(model, (nn.Dropout, nn.Dropout2d))] == [0.05, 0.1, 0.1]
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert round(held / 2**20, 2) == 22.33
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 4, 4)


@pytest.mark.parametrize(
    "name", [*names(), "torchvision:googlenet", "torchvision:inception_v3", "torchvision:vit_b_16"]
)
def test_cards_fit_their_nets(name):
    known = card(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = known.build().eval()
    found = dict(model.named_modules())
    assert all(isinstance(found[layer], (nn.Conv2d, nn.Linear)) for layer in (known.low, known.middle, known.high))
    out = model(torch.zeros(1, *known.input_size, device="meta"))
    if known.classes:
        assert out.shape == (1, len(known.classes))


def test_a_torchvision_card_says_what_its_weights_need():
    known = card("torchvision:resnet18")
    assert (known.low, known.middle, known.high) == ("conv1", "layer3.0.conv1", "layer4.1.conv2")
    assert known.mean == (0.485, 0.456, 0.406)
    assert (known.input_size, known.resize, len(known.classes)) == ((3, 224, 224), 256, 1000)
    assert known.classes[281] == "tabby"
    assert known.preprocess(torch.rand(3, 100, 300)).shape == (1, 3, 224, 224)


def test_nets_that_compute_their_own_widths_need_no_memory():
    assert card("torchvision:regnet_y_128gf").low == "stem.0"


def test_no_auxiliary_layer_is_a_landmark():
    assert card("torchvision:googlenet").high == "inception5b.branch4.1.conv"


def test_old_densenet_weights_fit(tmp_path):
    known = card("torchvision:densenet121")
    state = known.build().state_dict()
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for key, value in state.items()}
    torch.save(old, tmp_path / "old.pth")
    assert torch.equal(known.load(tmp_path / "old.pth").classifier.weight, state["classifier.weight"])


def slow_bank(filters, image):
    k, h, w = filters.shape
    rows, cols = image.shape[0] - h + 1, image.shape[1] - w + 1
    out = np.zeros((k, rows, cols))
    for f in range(k):
        for i in range(rows):
            for j in range(cols):
                out[f, i, j] = sum(filters[f, a, b] * image[i + a, j + b] for a in range(h) for b in range(w))
    relu = np.maximum(out, 0)
    pool = np.zeros((k, rows // 2, cols // 2))
    for f in range(k):
        for i in range(rows // 2):
            for j in range(cols // 2):
                pool[f, i, j] = max(relu[f, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1))
    return out, relu, pool


@pytest.mark.parametrize("filters", [FOUR_EDGES, [SOBEL_X, SOBEL_Y, VERTICAL_EDGE], torch.rand(2, 2, 5)])
def test_filter_bank_against_loops(filters):
    image = torch.rand(9, 12)
    stages = FilterBank(filters)(image[None, None])
    for got, want in zip(stages, slow_bank(np.asarray(filters), image.numpy()), strict=True):
        np.testing.assert_allclose(got[0].detach().numpy(), want, atol=1e-5)


@pytest.mark.parametrize("filters", [FOUR_EDGES, [VERTICAL_EDGE], torch.rand(2, 2, 5)])
def test_filter_bank_over_colour_is_a_convolution_of_all_planes(filters):
    images = torch.rand(2, 3, 9, 12)
    conv = nn.Conv2d(3, len(filters), np.shape(filters)[1:], bias=False)
    with torch.no_grad():
        for k, kernel in enumerate(np.asarray(filters)):
            for plane in range(3):
                conv.weight[k, plane] = torch.as_tensor(kernel)
    bank = FilterBank(filters)
    torch.testing.assert_close(bank(images).conv, conv(images))
    with fv.capture(bank, "conv") as acts:
        bank(images)
    torch.testing.assert_close(acts["conv"], conv(images))
    torch.testing.assert_close(bank(images[1]).conv, conv(images[1:]))  # one image, without a batch axis


def test_filter_bank_with_a_kernel_for_each_colour():
    filters = torch.randn(4, 3, 3, 2)
    images = torch.rand(2, 3, 6, 7)
    torch.testing.assert_close(FilterBank(filters)(images).conv, nn.functional.conv2d(images, filters))
    assert FilterBank(filters).conv.weight.shape == (4, 3, 3, 2)


@pytest.mark.parametrize(
    ("filters", "images", "error", "match"),
    [
        (
            [VERTICAL_EDGE],
            torch.rand(1, 4, 9, 9),
            ShapeError,
            r"must have 1 or 3 channels .*, got shape \(1, 4, 9, 9\)",
        ),
        (
            torch.rand(1, 3, 3, 3),
            torch.rand(1, 1, 9, 9),
            ShapeError,
            r"must have 3 channels .*, got shape \(1, 1, 9, 9\)",
        ),
        ([VERTICAL_EDGE], torch.rand(1, 1, 9, 3), ShapeError, "must be at least 4 × 4 for these filters, got 9 × 3"),
        ([VERTICAL_EDGE], torch.rand(9, 9), ShapeError, r"'b c h w' and not empty, got shape \(9, 9\)"),
        (
            [VERTICAL_EDGE],
            torch.ones(1, 3, 9, 9).byte(),
            DtypeError,
            "a tensor of floats as the model takes them, got torch.u",
        ),
    ],
)
def test_filter_bank_refuses_images(filters, images, error, match):
    with pytest.raises(error, match=match):
        FilterBank(filters)(images)


def test_the_four_edges():
    rows = np.array([[-1, -1, 1, 1]] * 4)
    assert np.array_equal(FilterBank().conv.weight[:, 0].detach(), [rows, -rows, rows.T, -rows.T])
    assert FilterBank().conv.bias is None


@pytest.mark.parametrize(
    ("filters", "error", "match"),
    [
        ([[1, 2]], ShapeError, r"must be 'k h w' or 'k c h w' and not empty, got shape \(1, 2\)"),
        (np.zeros((0, 3, 3)), ShapeError, r"got shape \(0, 3, 3\)"),
        ("abc", DtypeError, "must be 'k h w' real numbers, got 'abc'"),
        ([[[1, 2], [3]]], DtypeError, "real numbers"),
    ],
)
def test_filter_bank_refuses(filters, error, match):
    with pytest.raises(error, match=match):
        FilterBank(filters)


def test_the_landmarks_of_an_adapted_network_are_the_adapted_layers():
    class Lora(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.lora_A, self.lora_B = base_layer, nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 1)

    net = nn.Sequential(Lora(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    assert landmarks_of(net) == ("0", "2", "3")


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_torchvision_detector_is_built_without_a_download(name, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    info = card(f"torchvision:{name}")
    image = torch.rand(3, 50, 70)
    assert torch.equal(info.preprocess(image), image[None])
    assert info.classes[:2] == ("__background__", "person")
    with torch.no_grad():
        (found,) = info.build().eval()(info.preprocess(image))
    assert found.keys() == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_segmenters_of_torchvision_are_built_without_a_download(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    info = card(f"torchvision:{name}")
    with torch.device("meta"):
        net = info.build().eval()
    assert (len(info.classes), info.classes[0], info.classes[8]) == (21, "__background__", "cat")
    assert info.input_size == (3, 0, 0)
    given = info.preprocess(torch.rand(3, 30, 40))
    assert given.shape == (1, 3, 520, 693), "proportions are kept"
    assert net(torch.zeros(1, 3, 64, 96, device="meta"))["out"].shape == (1, 21, 64, 96)
    assert (name.startswith("lraspp")) == (not any(key.startswith("aux") for key in net.state_dict()))
    assert info.high.startswith("classifier")
