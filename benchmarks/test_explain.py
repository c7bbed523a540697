"""What explaining costs: Grad-CAM against the passes it needs, pictures against the peers'; all within one run.

pytest benchmarks/test_explain.py --benchmark-enable -s
"""

import copy
import subprocess
import sys
from time import thread_time

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms.functional import to_pil_image

from examples import shapes
from torch_featviz.bench import paired, settled
from torch_featviz.explain import attribute
from torch_featviz.picture import overlay

IMAGES = 16
# Ratios: of Grad-CAM to the passes by hand, of a twin to a deep copy; then how many times a peer takes as long, at
# least. All begin with the same tensors and go the way of their documentation; what torchcam takes once it has Pillow
# images is given, too.
BUDGET = {
    "gradcam": 1.15,
    "boxes": 1.1,
    "boxes of a small detector": 1.1,
    "boxes of a small detector, images together": 1.25,
    "twin": 0.1,
    "torchcam": 1,
    "grad-cam": 1,
    "captum": 1,
    "drawing, torchcam": 2,
    "drawing, torchcam from Pillow images": 1,
    "drawing, captum": 100,
}


@pytest.fixture(scope="module")
def unit():
    """Images in the unit range, `16 3 224 224`."""
    return torch.rand(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))


LAYERS = {"alexnet": "features.10", "resnet18": "layer4"}


def halves(name):
    """A net, and the same in two parts, cut after the layer explained."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)().eval()
    if name == "alexnet":
        children = [*net.features, net.avgpool, torch.nn.Flatten(), net.classifier]
        cut = 11
    else:
        children = [*list(net.children())[:-1], torch.nn.Flatten(), net.fc]
        cut = 8
    return net, torch.nn.Sequential(*children[:cut]), torch.nn.Sequential(*children[cut:])


@pytest.mark.parametrize("name", LAYERS)
def test_gradcam_costs_a_forward_and_the_backward_it_needs(name, unit):
    net, head, tail = halves(name)

    def by_hand():
        with torch.no_grad():
            maps = head(unit)
        leaf = maps.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(tail(leaf.clone())[:, 3].sum(), leaf)
        return (gradient.mean((2, 3), keepdim=True) * maps).sum(1)

    def ours():
        return attribute(net, unit, target=3, layer=LAYERS[name]).attributions[:, 0]

    torch.testing.assert_close(ours(), by_hand(), rtol=1e-4, atol=1e-6)
    budget = BUDGET["gradcam"]
    ratio = settled(lambda: paired(ours, by_hand, rounds=11), lambda ratio: ratio.median <= budget)
    print(f"\nGrad-CAM of {name}, {IMAGES} images: {ratio} of one forward and the backward it needs")
    assert ratio.within(budget), str(ratio)


def test_boxes_cost_a_forward_and_a_backward_each():
    """Of FCOS on ResNet-50, up to its own logits: two boxes of one image."""
    torch.manual_seed(0)
    options = {"min_size": 192, "max_size": 192, "score_thresh": 0, "detections_per_img": 2}
    net = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, **options).eval()
    by, kept = copy.deepcopy(net), {}
    by.head.register_forward_hook(lambda _module, _given, output: kept.update(output))
    by.backbone.register_forward_hook(lambda _module, _given, output: kept.update(maps=[*output.values()]))
    image = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (found,) = by(image)
    chances = (kept["cls_logits"].sigmoid() * kept["bbox_ctrness"].sigmoid()).sqrt()[0]
    places = [
        (int((chances[:, label] - score).abs().argmin()), int(label))
        for label, score in zip(found["labels"], found["scores"], strict=True)
    ]

    def by_hand():
        by(image.clone().requires_grad_())
        heats = []
        for place in places:
            gradients = torch.autograd.grad(
                kept["cls_logits"][0][place], kept["maps"], retain_graph=True, materialize_grads=True, allow_unused=True
            )
            level = [bool(gradient.any()) for gradient in gradients].index(True)
            heat = (gradients[level].clamp(min=0) * kept["maps"][level]).sum(1, keepdim=True).detach()
            heats.append(torch.nn.functional.interpolate(heat, image.shape[2:], mode="bilinear")[:, 0])
        return torch.cat(heats)

    def ours():
        return attribute(net, image).heatmaps

    torch.testing.assert_close(ours(), by_hand(), rtol=1e-3, atol=1e-6)
    budget = BUDGET["boxes"]
    ratio = settled(lambda: paired(ours, by_hand, rounds=11), lambda ratio: ratio.median <= budget)
    print(f"\nTwo boxes of FCOS: {ratio} of one forward and the two backwards they need")
    assert ratio.within(budget), str(ratio)


def test_boxes_of_a_small_detector():
    """Of examples/shapes.py, eight images of 96 × 96, by the time of the processor: most that is added is Python's."""
    net = shapes.trained()
    by, kept = copy.deepcopy(net), {}
    by.head.register_forward_hook(lambda _module, _given, output: kept.update(output))
    by.backbone.register_forward_hook(lambda _module, _given, output: kept.update(maps=output))
    images, places = torch.stack([shapes.scene(seed)[0] for seed in range(8)]), []
    for image in images:
        with torch.no_grad():
            (found,) = by(image[None])
        chances = kept["cls_logits"].sigmoid()[0]
        pairs = zip(found["labels"].tolist(), found["scores"], strict=True)
        places.append([(int((chances[:, label] - score).abs().argmin()), label) for label, score in pairs])

    def by_hand():
        heats = []
        for image, own in zip(images, places, strict=True):
            by(image[None].clone().requires_grad_())
            for place in own:
                (gradient,) = torch.autograd.grad(kept["cls_logits"][0][place], kept["maps"], retain_graph=True)
                heat = (gradient.clamp(min=0) * kept["maps"]).sum(1, keepdim=True).detach()
                heats.append(torch.nn.functional.interpolate(heat, image.shape[1:], mode="bilinear")[:, 0])
        return torch.cat(heats)

    def together():
        by([*images.clone().requires_grad_()])
        heats = {}
        for rank in range(max(map(len, places))):
            picked = [(image, *own[rank]) for image, own in enumerate(places) if len(own) > rank]
            score = kept["cls_logits"][tuple(torch.tensor(picked).T)].sum()
            (gradient,) = torch.autograd.grad(score, kept["maps"], retain_graph=True)
            heat = (gradient.clamp(min=0) * kept["maps"]).sum(1, keepdim=True).detach()
            heat = torch.nn.functional.interpolate(heat, images.shape[2:], mode="bilinear")[:, 0]
            heats.update({(image, rank): heat[image] for image, *_ in picked})
        return torch.stack([heats[key] for key in sorted(heats)])

    def ours():
        return attribute(net, images).heatmaps

    def held_to(baseline, budget, what):
        torch.testing.assert_close(ours(), baseline(), rtol=1e-3, atol=1e-6)
        ratio = settled(
            lambda: paired(ours, baseline, rounds=15, timer=thread_time), lambda ratio: ratio.median <= budget
        )
        print(f"\n{sum(map(len, places))} boxes of a small detector: {ratio} of {what}")
        assert ratio.within(budget), str(ratio)

    held_to(by_hand, BUDGET["boxes of a small detector"], "a forward an image and a backward a box")
    held_to(together, BUDGET["boxes of a small detector, images together"], "a forward, and a backward for each rank")


TWIN = """
import copy, torch, torchvision
from torch_featviz.bench import paired, settled
from torch_featviz.model.twin import twin

torch.set_num_threads(1)
net = torchvision.models.resnet50()
ratio = settled(
    lambda: paired(lambda: twin(net), lambda: copy.deepcopy(net), rounds=15), lambda ratio: ratio.median <= {budget}
)
print(ratio, "of copy.deepcopy", ratio.within({budget}))
"""


def test_a_twin_costs_a_tenth_of_a_deep_copy():
    """In a process of its own: what ran before leaves memory behind, which a deep copy need not ask the system for."""
    code = TWIN.format(budget=BUDGET["twin"])
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    print(f"\nThe twin of ResNet-50: {told.strip().rpartition(' ')[0]}")
    assert told.endswith("True\n"), told


def faster(ours, peer, name, rounds):
    """Times that `peer` takes as long as `ours`, at least the budget's."""
    budget = BUDGET[name]
    ratio = settled(lambda: paired(peer, ours, rounds=rounds), lambda ratio: ratio.median >= budget)
    print(f"\n{name}: takes {ratio} times as long")
    assert ratio.high >= budget, str(ratio)


def captum_figures(images, maps):
    """As its documentation draws them, down to pixels, and without pyplot's windows."""
    from captum.attr import visualization  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

    for image, heat in zip(images, maps, strict=True):
        figure, _ = visualization.visualize_image_attr(
            heat.numpy()[..., None], image, "blended_heat_map", "all", show_colorbar=True, use_pyplot=False
        )
        FigureCanvasAgg(figure).draw()


def pixels_of(unit):
    return (unit * 255).byte().permute(0, 2, 3, 1).numpy()


def torchcam_overlay(image, heat):
    """As its documentation draws it."""
    from torchcam.utils import overlay_mask  # noqa: PLC0415

    return overlay_mask(to_pil_image(image), to_pil_image(heat, mode="F"), alpha=0.5)


def test_drawing_is_ahead_of_torchcam(unit):
    from torchcam.utils import overlay_mask  # noqa: PLC0415

    heat = torch.rand(IMAGES, 224, 224)

    def peer():
        return [torchcam_overlay(image, each) for image, each in zip(unit, heat, strict=True)]

    pairs = [(to_pil_image(image), to_pil_image(each, mode="F")) for image, each in zip(unit, heat, strict=True)]
    faster(lambda: overlay(unit, heat), peer, "drawing, torchcam", 21)
    faster(
        lambda: overlay(unit, heat),
        lambda: [overlay_mask(picture, mask, alpha=0.5) for picture, mask in pairs],
        "drawing, torchcam from Pillow images",
        21,
    )


def test_drawing_is_ahead_of_captum(unit):
    heat, images = torch.randn(IMAGES, 224, 224), pixels_of(unit)
    faster(lambda: overlay(unit, heat), lambda: captum_figures(images, heat), "drawing, captum", 3)


def test_images_to_pictures_ahead_of_torchcam(unit):
    from torchcam.methods import GradCAM  # noqa: PLC0415

    net, *_ = halves("resnet18")
    theirs = copy.deepcopy(net)

    def peer():
        with GradCAM(theirs, "layer4") as extract:
            scores = theirs(unit.clone().requires_grad_())
            maps = extract([3] * IMAGES, scores)[0]
        return [torchcam_overlay(image, each) for image, each in zip(unit, maps, strict=True)]

    faster(lambda: ours(net, unit), peer, "torchcam", 7)


def test_images_to_pictures_ahead_of_grad_cam(unit):
    from pytorch_grad_cam import GradCAM  # noqa: PLC0415
    from pytorch_grad_cam.utils.image import show_cam_on_image  # noqa: PLC0415
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

    net, *_ = halves("resnet18")
    theirs, images = copy.deepcopy(net), unit.permute(0, 2, 3, 1).numpy()

    def peer():
        with GradCAM(model=theirs, target_layers=[theirs.layer4]) as extract:
            maps = extract(input_tensor=unit, targets=[ClassifierOutputTarget(3)] * IMAGES)
        return [show_cam_on_image(image, mask, use_rgb=True) for image, mask in zip(images, maps, strict=True)]

    faster(lambda: ours(net, unit), peer, "grad-cam", 7)


def test_images_to_pictures_ahead_of_captum(unit):
    from captum.attr import LayerAttribution, LayerGradCam  # noqa: PLC0415

    net, *_ = halves("resnet18")
    theirs, images = copy.deepcopy(net), pixels_of(unit)

    def peer():
        maps = LayerGradCam(theirs, theirs.layer4).attribute(unit, target=3)
        maps = LayerAttribution.interpolate(maps, (224, 224), "bilinear")[:, 0].detach()
        captum_figures(images, maps)

    faster(lambda: ours(net, unit), peer, "captum", 3)


def ours(net, unit):
    why = attribute(net, unit, target=3, layer="layer4")
    return overlay(unit, why.heatmaps).permute(0, 2, 3, 1).numpy().astype(np.uint8)
