"""Each method against the direct call of Captum, and Captum's against formulas written out."""

import copy

import captum.attr as captum
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from torch_featviz.errors import LayerError
from torch_featviz.explain import METHODS, attribute
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
