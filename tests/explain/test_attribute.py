"""Each method against the direct call of Captum, and Captum's against formulas written out."""

import copy
import itertools

import captum.attr as captum
import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.explain import METHODS, attribute
from torch_featviz.views import attributions
from torch_featviz.zoo import card

NETS = {
    "alexnet": (torchvision.models.alexnet, 64, "features.10"),
    "resnet18": (torchvision.models.resnet18, 64, "layer3"),
    "cifar": (card("cifar_cnn_large").build, 32, None),
}


@pytest.fixture(scope="module", params=NETS)
def case(request):
    """A net, its twin without in-place layers for Captum, three images, a layer's name."""
    build, size, layer = NETS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build().eval()
        images = torch.randn(3, 3, size, size)
    layer = layer or [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)][-1]
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net, plain, images, layer


TARGETS = [3, 1, 7]
WINDOW = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 16, 16)}


def mask_of(images):
    return (torch.arange(images[0, 0].numel()).view(images.shape[2:]) % 5)[None, None]


def direct(method, net, images, layer, targets):
    """What Captum says when called as its documentation does."""
    target, of = torch.tensor(targets), net.get_submodule(layer)
    torch.manual_seed(0)
    np.random.seed(0)
    if method == "smoothgrad":
        tunnel = captum.NoiseTunnel(captum.Saliency(net))
        return tunnel.attribute(images, nt_samples=4, stdevs=0.2, target=target)
    if method == "gradient_shap":
        return captum.GradientShap(net).attribute(images, baselines=torch.zeros_like(images), target=target)
    if method == "integrated_gradients":
        return captum.IntegratedGradients(net).attribute(images, target=target, n_steps=8)
    if method == "occlusion":
        return captum.Occlusion(net).attribute(images, target=target, **WINDOW)
    if method == "feature_ablation":
        return captum.FeatureAblation(net).attribute(images, target=target, feature_mask=mask_of(images))
    if method == "layer_activation":
        return captum.LayerActivation(net, of).attribute(images)
    if method == "gradcam":
        return captum.LayerGradCam(net, of).attribute(images, target=target)
    if method == "hirescam":
        return captum.LayerGradientXActivation(net, of).attribute(images, target=target).sum(1, keepdim=True)
    if method == "guided_gradcam":
        return captum.GuidedGradCam(net, of).attribute(images, target=target)
    name = "".join(part.capitalize() for part in method.split("_"))
    found = getattr(captum, {"InputXGradient": "InputXGradient", "Lrp": "LRP"}.get(name, name))
    return found(net).attribute(images, target=target)


OPTIONS = {
    "smoothgrad": {"nt_samples": 4, "stdevs": 0.2},
    "integrated_gradients": {"n_steps": 8},
    "occlusion": WINDOW,
}


@pytest.mark.filterwarnings("ignore:Setting .*backward hooks")
@pytest.mark.parametrize("method", [m for m in METHODS if m != "layercam"])
def test_equals_captum(method, case):
    net, plain, images, layer = case
    options = dict(OPTIONS.get(method, {}))
    if method == "feature_ablation":
        options["feature_mask"] = mask_of(images)
    if method in ("gradcam", "hirescam", "guided_gradcam", "layer_activation"):
        options["layer"] = layer
    at_once = [[0], [1], [2]] if method in ("smoothgrad", "gradient_shap") else [[0, 1, 2]]
    try:
        expected = torch.cat(
            [direct(method, plain, images[i].requires_grad_(), layer, [TARGETS[k] for k in i]) for i in at_once]
        )
    except (AssertionError, TypeError, RuntimeError):  # Captum cannot either
        if method not in ("deep_lift", "lrp"):
            raise
        with pytest.raises(LayerError):
            attribute(net, images, target=TARGETS, method=method, **options)
        return
    found = attribute(net, images, target=TARGETS, method=method, **options)
    expected = expected.detach()
    small = 1e-6 * (1 if method in ("occlusion", "feature_ablation") else float(expected.abs().max()))  # of logits
    torch.testing.assert_close(found.attributions, expected, rtol=1e-5, atol=small)
    assert found.attributions.any()
    assert found.classes.tolist() == TARGETS


def tiny(**last):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


IMAGES = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["gradcam", "hirescam", "layercam"])
def test_class_activation_maps_by_hand(kind):
    net = tiny().eval()
    found = attribute(net, IMAGES, target=2, method=kind, layer="4")
    head, tail = net[:5], nn.Sequential(nn.ReLU(), *net[6:])
    maps = head(IMAGES).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(tail(maps)[:, 2].sum(), maps)
    for b in range(4):
        expected = torch.zeros(4, 4)
        for k in range(6):
            weight = {
                "gradcam": gradient[b, k].mean(),
                "hirescam": gradient[b, k],
                "layercam": gradient[b, k].clamp(min=0),
            }
            expected += weight[kind] * maps[b, k].detach()
        torch.testing.assert_close(found.attributions[b, 0], expected)
        large = F.interpolate(expected[None, None], (8, 8), mode="bilinear")[0, 0]
        torch.testing.assert_close(found.heatmaps[b], large)


def test_targets_in_every_form():
    net = tiny().eval()
    predicted = net(IMAGES).argmax(1)
    by_class = [attribute(net, IMAGES, target=k, method="saliency").attributions for k in range(3)]
    expected = torch.stack([by_class[k][i] for i, k in enumerate(predicted.tolist())])
    for target in (None, predicted, predicted.tolist()):
        for method in ("saliency", "guided_backprop"):
            found = attribute(net, IMAGES, target=target, method=method)
            assert found.classes.tolist() == predicted.tolist()
        assert torch.equal(attribute(net, IMAGES, target=target, method="saliency").attributions, expected)
    summed = attribute(net, IMAGES, target=lambda output: output[:, 0] + output[:, 2], method="input_x_gradient")
    parts = [attribute(net, IMAGES, target=k, method="input_x_gradient").attributions for k in (0, 2)]
    torch.testing.assert_close(summed.attributions, parts[0] + parts[1])
    assert summed.classes is None


class Several(nn.Module):
    """Outputs that are of no class."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x):
        maps = torch.relu(self.conv(x))
        return {"maps": maps, "score": (maps.sum((1, 2, 3)), maps)}


@pytest.mark.parametrize("method", ["gradcam", "occlusion", "integrated_gradients", "guided_backprop"])
def test_outputs_that_are_no_classes(method):
    net = Several()
    found = attribute(net, IMAGES, target=lambda output: output["maps"][:, 1].mean((1, 2)), method=method)
    assert found.heatmaps.shape == (4, 8, 8)
    assert found.heatmaps.any()
    with pytest.raises(DtypeError, match="the model returns a dict; pass target= a callable"):
        attribute(net, IMAGES, method=method)


@pytest.mark.parametrize("method", ["saliency", "gradcam", "occlusion", "smoothgrad"])
def test_regression_needs_no_target(method):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 1))
    assert attribute(net, IMAGES, method=method).heatmaps.any()


@pytest.mark.parametrize("method", METHODS)
def test_one_image_is_as_in_a_batch_and_parts_are_as_the_whole(method):
    net = tiny()
    whole = attribute(net, IMAGES, target=[0, 1, 2, 0], method=method)
    parts = attribute(net, IMAGES, target=[0, 1, 2, 0], method=method, internal_batch_size=1)
    alone = attribute(net, IMAGES[2:3], target=2, method=method)
    torch.testing.assert_close(parts.attributions, whole.attributions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.attributions, whole.attributions[2:3], rtol=1e-4, atol=1e-5)
    assert whole.heatmaps.shape == (4, 8, 8)
    again = attribute(net, IMAGES, target=[0, 1, 2, 0], method=method)
    assert torch.equal(again.attributions, whole.attributions)


class Switched(nn.Module):
    """One of two ends, by an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.ends_early = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), False

    def forward(self, x):
        x = self.first(x).relu()
        return x.mean((2, 3)) if self.ends_early else self.second(x).mean((2, 3))


def test_a_model_that_was_built_otherwise_meanwhile():
    def stride(net):
        net.first.stride = (2, 2)

    def kernel(net):
        net.first.weight = nn.Parameter(torch.randn(4, 3, 5, 5))

    def end(net):
        net.ends_early = True

    images = torch.rand(2, 3, 12, 12)
    for layer, change in itertools.product((None, "first"), (stride, kernel, end)):
        net = Switched().eval()
        attribute(net, images, target=1, layer=layer)
        change(net)
        found, expected = (attribute(each, images, target=1, layer=layer) for each in (net, copy.deepcopy(net)))
        assert found.layers == expected.layers
        assert torch.equal(found.heatmaps, expected.heatmaps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(9,), (5, 6, 7)])
def test_one_and_three_dimensions(method, size):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    net = nn.Sequential(conv(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 2, *size)
    net(x)
    if method == "lrp" and len(size) != 2:
        with pytest.raises(LayerError, match="lrp has no rule"):
            attribute(net, x, method=method)
        return
    assert attribute(net, x, method=method).heatmaps.shape == (2, *size)


def test_transformers_by_their_tokens():
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=5).eval()
    nn.init.normal_(net.heads.head.weight)  # which begin as zeros
    images = torch.randn(2, 3, 16, 16)

    def to_maps(tokens):
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))

    layer = "encoder.layers.encoder_layer_1.ln_1"
    found = attribute(net, images, target=3, layer=layer, reshape_transform=to_maps)
    assert found.attributions.shape == (2, 1, 4, 4)
    assert found.heatmaps.shape == (2, 16, 16)
    assert found.heatmaps.any()
    folded = attribute(net, images, target=3, layer=layer)
    torch.testing.assert_close(folded.attributions, found.attributions)
    assert folded.where == f"{layer}, tokens as 4 × 4, 1 without a place"
    default = attribute(net, images, target=3)
    assert default.layers == ("encoder.layers.encoder_layer_0",), "the tokens that enter the last block"


@pytest.mark.parametrize("kind", ["module", "functional", "in place", "method", "clamp"])
@pytest.mark.parametrize("method", ["guided_backprop", "deconvolution", "guided_gradcam"])
def test_functional_rectifiers_have_the_same_rule(kind, method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.last = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)

        def forward(self, x):
            y = self.conv(x)
            calls = {
                "module": lambda: self.relu(y),
                "functional": lambda: F.relu(y),
                "in place": lambda: F.relu(y, inplace=True),
                "method": lambda: y.relu_(),
                "clamp": lambda: y.clamp(min=0),
            }
            return self.last(calls[kind]()).mean((2, 3))

    torch.manual_seed(0)
    net = Net()
    plain = nn.Sequential(net.conv, net.relu, net.last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layer = {"layer": "conv"} if method == "guided_gradcam" else {}
    found = attribute(net, IMAGES, target=1, method=method, **layer)
    layer = {"layer": "0"} if layer else {}
    expected = attribute(plain, IMAGES, target=1, method=method, **layer)
    torch.testing.assert_close(found.attributions, expected.attributions)
    if not layer:
        gradient = attribute(net, IMAGES, target=1, method="saliency", abs=False)
        assert not torch.allclose(found.attributions, gradient.attributions)


@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients", "guided_backprop"])
def test_inside_other_modes(method):
    net = tiny().eval()
    expected = attribute(net, IMAGES, target=1, method=method).attributions
    with torch.inference_mode():
        images = IMAGES.clone()
        assert torch.equal(attribute(net, images, target=1, method=method).attributions, expected)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert torch.equal(attribute(net, IMAGES, target=1, method=method).attributions, expected)
    loss = net(IMAGES).sum()  # a training step: what autograd saved must not be written to
    attribute(net, IMAGES, target=1, method=method)
    loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert attribute(net, IMAGES, target=1, method=method).heatmaps.dtype == torch.float32
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(attribute(compiled, IMAGES, target=1, method=method).attributions, expected)


@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16(method):
    net, images = tiny().eval().bfloat16(), IMAGES.bfloat16()
    expected = attribute(copy.deepcopy(net).float(), images.float(), target=1, method=method).heatmaps
    found = attribute(net, images, target=1, method=method).heatmaps.float()
    assert torch.nn.functional.cosine_similarity(found.flatten(1), expected.flatten(1)).min() > 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "cam"}, OptionError, "no method 'cam'; there are saliency"),
        ({"method": "saliency", "n_steps": 3}, OptionError, "saliency has no option 'n_steps'; it takes abs"),
        ({"method": "saliency", "layer": "0"}, OptionError, "saliency uses no layer"),
        ({"target": 3}, OptionError, r"target must be from 0 to 2, got \[3\]"),
        ({"target": [0, 1]}, ShapeError, r"target must be one class, or 4 classes, one per image; got shape \(2,\)\."),
        ({"target": 0.5}, DtypeError, "target must be a class number"),
        (
            {"target": lambda output: output},
            ShapeError,
            r"must return shape 'b', one value per image, got \(1, 3\)",
        ),
        ({"target": lambda output: 1.0}, DtypeError, "must return a tensor 'b' of floats, got float"),
        (
            {"layer": "8"},
            ShapeError,
            r"layer '8' returns shape \(4, 3\), not a map of the images; choose a convolution, or pass",
        ),
        ({"layer": "nope"}, LayerError, "no layer 'nope'"),
        ({"internal_batch_size": 0}, OptionError, "at least 1, got 0"),
        ({"target": lambda output: output.detach()[:, 0]}, OptionError, "no gradient reaches the model's output"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        attribute(tiny(), IMAGES, **options)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.ones(1, 2, 8, 8, dtype=torch.uint8), DtypeError, "images must be a tensor of floats .* got torch.uint8"),
        ("cat.png", DtypeError, "got 'cat.png'"),
        (torch.ones(2, 8), ShapeError, r"'b c h w' .* got shape \(2, 8\)"),
        (torch.ones(0, 2, 8, 8), ShapeError, r"got shape \(0, 2, 8, 8\)"),
    ],
)
def test_bad_images(images, error, message):
    with pytest.raises(error, match=message):
        attribute(tiny(), images)


def test_lrp_passes_flattening_layers():
    class Flat(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.maps, self.last = net[:7], net[8]

        def forward(self, x):
            return self.last(torch.flatten(self.maps(x), 1))

    net = tiny()
    found, expected = (attribute(each, IMAGES, target=1, method="lrp").attributions for each in (net, Flat(net)))
    torch.testing.assert_close(found, expected)


class Gate(nn.Module):
    """One linear layer for two poolings, and one ReLU for both."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
        self.gate = nn.ModuleDict({"mlp": nn.Linear(3, 3), "relu": nn.ReLU()})

    def forward(self, x):
        maps = self.body(x)
        return sum(self.gate["relu"](self.gate["mlp"](pooled)) for pooled in (maps.mean((2, 3)), maps.amax((2, 3))))


def test_lrp_names_the_layer_that_is_called_twice():
    net = Gate()
    with pytest.raises(LayerError, match=r"lrp needs one layer per call, and layer 'gate\.mlp' ran 2 times"):
        attribute(net, IMAGES, method="lrp")
    both = nn.Sequential(
        nn.Conv2d(2, 3, 3), relu := nn.ReLU(), nn.Conv2d(3, 3, 3), relu, nn.Flatten(), nn.Linear(48, 3)
    )
    apart = copy.deepcopy(both)
    apart[3] = nn.ReLU()  # what has no rule may run twice
    found, expected = (attribute(each, IMAGES, target=1, method="lrp").attributions for each in (both, apart))
    assert torch.equal(found, expected)


def test_models_that_cannot_be_explained():
    with pytest.raises(LayerError, match="has no feature map that its answer depends on; choose one"):
        attribute(nn.Sequential(nn.Flatten(), nn.Linear(128, 2)), IMAGES)
    with pytest.raises(
        LayerError,
        match=r"layer '0' of Sequential is lazy and has no weights yet; run the model once on an input first\.",
    ):
        attribute(nn.Sequential(nn.LazyConv2d(2, 3)), IMAGES)

    class Rounds(nn.Module):
        def forward(self, x):
            return x.flatten(1).round().detach()

    with pytest.raises(OptionError, match="no gradient reaches the model's output"):
        attribute(Rounds(), IMAGES, method="saliency", target=0)
    assert attribute(Rounds(), IMAGES, method="occlusion", target=0).heatmaps.any()

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = __import__("threading").Lock()

    with pytest.raises(DtypeError, match="'lock' of Holds cannot be copied"):
        attribute(Holds(), IMAGES)

    replaced = tiny()
    plain = replaced.forward
    replaced.forward = lambda x: plain(x) * 2
    expected = attribute(tiny(), IMAGES, target=0).heatmaps
    assert torch.equal(attribute(replaced, IMAGES, target=0).heatmaps, 2 * expected)
    replaced.forward = lambda x: x.flatten(1)
    assert attribute(replaced, IMAGES, method="saliency", target=0).heatmaps.any()
    reused = nn.Sequential(
        nn.Conv2d(2, 3, 3), (relu := nn.ReLU()), nn.Conv2d(3, 3, 3), relu, nn.Flatten(), nn.Linear(48, 2)
    )
    with pytest.raises(LayerError, match="deep_lift needs one layer per call, and layer '1' ran 2 times"):
        attribute(reused, IMAGES, method="deep_lift")
    with pytest.raises(LayerError, match=r"layer '1' ran 2 times in one forward"):
        attribute(reused, IMAGES, layer="1")

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            return F.relu(self.conv(x)).mean((2, 3))

    with pytest.raises(LayerError, match="this model calls relu as functions; use layers"):
        attribute(Functional(), IMAGES, method="deep_lift")


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


ODD = {
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "operator": torch.ops.aten.relu.default,
    "log_softmax": lambda x: F.log_softmax(x, 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_deep_lift_refuses_what_it_has_no_rule_for(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            return ODD[kind](self.conv(x)).mean((2, 3))

    with pytest.raises(LayerError, match="deep_lift has rules for layers only"):
        attribute(Net(), IMAGES, method="deep_lift")


@pytest.mark.parametrize("method", ["guided_backprop", "deconvolution"])
def test_rectifiers_out_of_reach_are_refused(method):
    class Net(nn.Module):
        def __init__(self, relu):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(2, 3, 3), relu

        def forward(self, x):
            return self.relu(self.conv(x)).mean((2, 3))

    with pytest.raises(LayerError, match="is called in scripted, compiled, checkpointed"):
        attribute(Net(Custom.apply), IMAGES, method=method)
    assert attribute(Net(nn.Hardtanh(-1, 1)), IMAGES, method=method).heatmaps.any()


def test_targets_must_be_as_many_as_images_however_they_are_cut():
    for options in ({"method": "smoothgrad"}, {"internal_batch_size": 2}):
        with pytest.raises(
            ShapeError, match=r"target must be one class, or 4 classes, one per image; got shape \(2,\)\."
        ):
            attribute(tiny(), IMAGES, target=[0, 1], **options)
    by_array = attribute(tiny(), IMAGES, target=np.array([0, 1, 2, 0]), internal_batch_size=3)
    assert by_array.classes.tolist() == [0, 1, 2, 0]
    with pytest.raises(ShapeError, match="must return shape 'b', one value per image"):
        attribute(tiny(), IMAGES, target=lambda output: output[0], method="saliency")


@pytest.mark.parametrize(("method", "many"), [("smoothgrad", {"nt_samples": 7}), ("gradient_shap", {"n_samples": 7})])
def test_noise_is_the_same_however_many_rows_fit(method, many):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2))
    images = torch.randn(2, 1, 5, 5)  # 25 values: torch draws whole runs of 16
    whole = attribute(net, images, target=[0, 1], method=method, **many)
    for rows in (1, 3):
        parts = attribute(net, images, target=[0, 1], method=method, internal_batch_size=rows, **many)
        torch.testing.assert_close(parts.attributions, whole.attributions)


@pytest.mark.parametrize(
    ("method", "rows"), [("deep_lift", 6), ("gradient_shap", 3), ("smoothgrad", 3), ("saliency", 3)]
)
def test_no_more_rows_at_once_than_were_allowed(method, rows):
    most = []

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny()

        def forward(self, x):
            if x.requires_grad:
                most.append(len(x))
            return self.net(x)

    attribute(Counts(), IMAGES.repeat(3, 1, 1, 1), target=1, method=method, internal_batch_size=rows)
    assert max(most) == rows


def test_samples_of_gradient_shap_are_for_all_images():
    baselines = torch.randn(4, 2, 8, 8)
    whole = attribute(tiny(), IMAGES, target=1, method="gradient_shap", baselines=baselines)
    alone = attribute(tiny(), IMAGES[:1], target=1, method="gradient_shap", baselines=baselines)
    torch.testing.assert_close(whole.attributions[:1], alone.attributions)
    assert attribute(tiny(), IMAGES, target=1, method="gradient_shap", baselines=0.5).heatmaps.any()


class ClassToken(nn.Module):
    """Patches that the class token reads behind a norm, or without one."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.cls = nn.Conv2d(1, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.enter, self.norm, self.attn = nn.Identity(), norm, nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        x = self.enter(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))
        y = self.norm(x)
        return self.head((x + self.attn(y, y, y, need_weights=False)[0])[:, 0])


@pytest.mark.parametrize(("norm", "zero"), [(nn.LayerNorm(16), True), (nn.RMSNorm(16), True), (nn.Identity(), False)])
def test_hirescam_before_a_norm_is_0_by_construction_and_it_says_so(norm, zero):
    net, images = ClassToken(norm).eval(), torch.rand(2, 1, 16, 16)
    heat = attribute(net, images, method="gradcam", layer="enter").heatmaps.abs().max()
    found = attribute(net, images, method="hirescam", layer="enter")
    assert bool(found.heatmaps.abs().max() < 1e-4 * heat) == zero
    assert found.note.startswith("hirescam is 0 by construction where the next layer is a norm layer") == zero
    assert attribute(net, images, method="layercam", layer="enter").note == ""
    sheet = attributions(net, images, methods=["hirescam"], layer="enter", faithful=False)
    assert any(note.startswith("hirescam is 0 by construction") for note in sheet.legend.notes) == zero
