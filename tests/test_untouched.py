"""Every public call that is given a model leaves it as it was, to the bit, also after an error in its forward.

A new public function or class has to be added here: to CALLS, or to WITHOUT_MODEL.
"""

import inspect
import random
import types

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz import bench, explain, survey, training, views
from torch_featviz import inspect as inspection
from torch_featviz.explain import METHODS
from torch_featviz.model.inputs import Inputs

IMAGES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
BATCHES = [IMAGES[:2], IMAGES[2:]]


class Tired(Exception):
    pass


class Net(nn.Module):
    """In training mode, with all that a forward can change: running statistics, random numbers, a cache."""

    def __init__(self):
        super().__init__()
        conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.features = nn.Sequential(conv, norm, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
        self.shift, self.cache, self.fails = nn.Parameter(torch.full((4, 1, 2), 0.1)), {}, False
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        conv.forward = types.MethodType(nn.Conv2d.forward, conv)
        conv.register_forward_hook(lambda _module, _inputs, output: output * 2)

    def forward(self, x):
        if "shift" not in self.cache:
            self.cache["shift"] = {"deep": [self.shift[..., :1]]}  # with its graph
        self.seen += len(x)
        scale = 1 + 0 * (np.random.rand() + random.random() + torch.rand((), device="cpu").to(x.device))
        x = self.features(x) * scale + self.cache["shift"]["deep"][0]
        if self.fails:
            raise Tired
        return self.head(x)


class Pixels(Net):
    """The same as a segmenter."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 3, 1), nn.Upsample((12, 12)))

    def forward(self, x):
        return {"out": super().forward(x)}


def make(fails=False, kind=Net):
    torch.manual_seed(0)
    net = kind().train()
    net.features[1].eval()
    output = net(IMAGES)  # the cache is filled
    (output if kind is Net else output["out"]).square().mean().backward()
    net.fails = fails
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    return net


def structure(net):
    """Which objects make up the model: those of each module's `__dict__`, and those in its containers."""
    return [
        (
            name,
            {key: id(value) for key, value in vars(module).items()},
            {key: members(value) for key, value in vars(module).items()},
            [id(parameter.grad) for parameter in module.parameters()],
        )
        for name, module in net.named_modules()
    ]


def members(value):
    if isinstance(value, dict):
        return [(key, id(item), members(item)) for key, item in value.items()]
    return [(id(item), members(item)) for item in value] if isinstance(value, (list, tuple, set)) else None


def values(net):
    """All numbers: tensors with their gradients and versions, flags, and the states of the random generators."""
    tensors = [*net.parameters(), net.cache["shift"]["deep"][0], *(p.grad for p in net.parameters()), *net.buffers()]
    return (
        [tensor.detach().clone() for tensor in tensors],
        [tensor._version for tensor in tensors],
        [(tensor.requires_grad, tensor.is_leaf) for tensor in tensors],
        [module.training for module in net.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
        random.getstate(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# What is given a model to run as it likes.


def monitored(net):
    watch = fv.Monitor(net, every=1, probe=IMAGES, why="saliency")
    with watch.step():
        pass
    return watch


def patches(net):
    best = fv.top_patches(net, BATCHES, "features.4", k=2)
    return best.patches([0, 1])


def exemplars(net):
    return fv.exemplars(fv.top_patches(net, BATCHES, ["features.0", "features.4"], k=2)["features.0"])


def faithful(net):
    net.fails, fails = False, net.fails
    why = fv.attribute(net, IMAGES, method="saliency")
    net.fails = fails
    return fv.faithfulness(net, IMAGES, why, steps=2, stages=1)


class Attentive(nn.Module):
    """Attention of places beside a net."""

    def __init__(self, net):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(3, 3, batch_first=True, device="cpu")
        self.net = net

    def forward(self, x):
        tokens = x[..., ::4, ::4].flatten(2).mT
        return self.net(x) + self.attention(tokens, tokens, tokens)[0].mean(1)


class Boxed(nn.Module):
    """A detector around the network: its logits are those of three boxes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        scores = self.net(x)[0].sigmoid()
        corners = torch.tensor([[1.0, 1, 8, 9], [2, 3, 11, 7], [0, 0, 5, 5]], device=x.device)
        return [{"boxes": corners * scores[:, None], "labels": torch.arange(3, device=x.device), "scores": scores}]


CALLS = {
    "attention": lambda net: fv.attention(Attentive(net), IMAGES[:2], queries=[(0, 1), 3]),
    "attention rollout": lambda net: fv.attention(Attentive(net), IMAGES, rollout=True),
    "attention_distance": lambda net: fv.attention_distance(Attentive(net), IMAGES),
    **{
        f"attribute {method}": lambda net, method=method: fv.attribute(
            net, IMAGES, method=method, internal_batch_size=4
        )
        for method in METHODS
    },
    "attributions": lambda net: fv.attributions(net, IMAGES, methods=["gradcam", "saliency"]),
    "attribute boxes": lambda net: fv.attribute(Boxed(net), IMAGES[:2]),
    "attribute boxes saliency": lambda net: fv.attribute(Boxed(net), IMAGES[:2], method="saliency"),
    "attributions boxes": lambda net: fv.attributions(Boxed(net), IMAGES[:2]),
    "attack": lambda net: explain.attack(net, IMAGES, target=1, steps=2),
    "adversarial": lambda net: fv.adversarial(net, IMAGES, steps=2),
    "probabilities": lambda net: fv.probabilities(net, IMAGES, augment=fv.augment("flip", torch.rand_like, n=1)),
    "projection": lambda net: fv.projection(net, IMAGES[0], "features.4", [0, (1, 2, 0)]),
    "reasons": lambda net: explain.reasons(net, IMAGES, faithful=False),
    "faithfulness": faithful,
    "deconvnet": lambda net: fv.deconvnet(net, IMAGES[:1], "features.4", [0, 1]),
    "project": lambda net: explain.project(net, IMAGES[:1], "features.2", [0, 1]),
    "receptive_field": lambda net: fv.receptive_field(net, "features.4", (12, 12)),
    "receptive_field effective": lambda net: fv.receptive_field(net, "features.4", (12, 12), effective=True),
    "look": lambda net: fv.look(net, IMAGES[0]),
    "overview": lambda net: fv.overview(net, IMAGES[:1]),
    "tokens": lambda net: fv.tokens(net, IMAGES, "features.4"),
    "shapes": lambda net: fv.shapes(net, (1, 3, 12, 12)),
    "summary": lambda net: fv.summary(net, (3, 12, 12)),
    "activations": lambda net: inspection.activations(net, Inputs(IMAGES)),
    "first_nonfinite": lambda net: fv.first_nonfinite(net, IMAGES),
    "top_patches": lambda net: fv.top_patches(net, BATCHES, "features.4", k=2),
    "top_patches patches": patches,
    "exemplars": exemplars,
    "atlas": lambda net: fv.atlas(net, IMAGES[:1], loader=BATCHES, methods=["gradcam"]),
    "Monitor": monitored,
    "overhead": lambda net: bench.overhead(net, IMAGES, rounds=1),
    "launches": lambda net: bench.launches(net, IMAGES),
    "compare": lambda net: fv.compare({"a": net, "b": net}, IMAGES, rounds=1),
    "prove": lambda net: fv.prove(net, IMAGES),
    "kernels": lambda net: fv.kernels(net, "features.0"),
    "layer_names": fv.layer_names,
}
OF_PIXELS = {
    "a segmenter's attribute": lambda net: fv.attribute(net, IMAGES),
    "a segmenter's attributions": lambda net: fv.attributions(net, IMAGES, methods=["gradcam", "occlusion"]),
    "a segmenter's faithfulness": faithful,
}
RUN_NOTHING = {"kernels", "layer_names"}
RUN_ITSELF = {"first_nonfinite", "overhead", "prove"}  # in the mode it is in: buffers are written, and written back


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", [*CALLS, *OF_PIXELS])
def test_the_model_is_as_it_was(name, fails):
    net = make(fails, Pixels if name in OF_PIXELS else Net)
    call = {**CALLS, **OF_PIXELS}[name]
    objects, numbers = structure(net), values(net)
    if fails and name not in RUN_NOTHING:
        with pytest.raises((Tired, fv.FeatvizError)):
            call(net)
    else:
        call(net)
    assert structure(net) == objects
    after = values(net)
    if name in RUN_ITSELF:
        for versions in (numbers[1], after[1]):
            del versions[-len(list(net.buffers())) :]
    for then, now in zip(numbers, after, strict=True):
        assert same(then, now)


# What looks on while the caller runs the model: the same as when nobody looks.


def captured(**options):
    def call(net):
        with fv.capture(net, **options) as acts:
            trained(net)
        return acts

    return call


def trained(net):
    net(IMAGES).square().mean().backward()


def extracted(net):
    return fv.FeatureExtractor(net, ["features.4"])(IMAGES)


def tapped(net):
    tap = fv.FeatureTap(net)
    tap(IMAGES).square().mean().backward()
    return tap.output


def watched(net):
    net.fails, fails = False, net.fails  # a probe that fails is refused at once
    watch = fv.Monitor(net, every=1, probe=IMAGES, why="gradcam")
    net.fails = fails
    with watch.step():
        trained(net)
    return watch


def seen(net):
    with torch.no_grad(), fv.capture(net) as acts:
        net(IMAGES)
    return acts


def inference(net):
    with torch.inference_mode(), fv.capture(net) as acts:
        net(IMAGES)
    return acts


def forward(net):
    net(IMAGES)


def alone(net):
    with torch.no_grad():
        net(IMAGES)


WATCHED = {
    "capture": (captured(), trained),
    "capture ops": (captured(ops=True), trained),
    "capture gradients": (captured(of="grad"), trained),
    "capture attention": (captured(of="attention"), trained),
    "capture every": (captured(every=2), trained),
    "capture Moments": (captured(into=fv.Moments()), trained),
    "capture Histogram": (captured(into=fv.Histogram()), trained),
    "capture TopK": (captured(layers=nn.Conv2d, into=fv.TopK()), trained),
    "capture Ring": (captured(into=fv.Ring(2)), trained),
    "capture ToCPU": (captured(into=fv.ToCPU()), trained),
    "capture function": (captured(into=lambda output: output.mean()), trained),
    "capture no_grad": (seen, alone),
    "capture inference": (inference, alone),
    "FeatureExtractor": (extracted, forward),
    "FeatureTap": (tapped, trained),
    "Monitor step": (watched, trained),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", WATCHED)
def test_a_model_that_is_watched_does_what_it_does_alone(name, fails):
    call, bare = WATCHED[name]
    results = []
    for run in (bare, call):
        net = make(fails)
        objects = structure(net)
        if fails:
            with pytest.raises(Tired):
                run(net)
        else:
            run(net)
        assert structure(net) == objects
        results.append(values(net))
    for then, now in zip(*results, strict=True):
        assert same(then, now)


WITHOUT_MODEL = {
    *(
        "Activations",
        "Atlas",
        "Attention",
        "AttentionDistance",
        "Attribution",
        "Boxes",
        "Claim",
        "Compared",
        "Comparison",
        "Faithfulness",
        "FeatvizError",
        "Layout",
        "NonFinite",
        "Proof",
        "ReceptiveField",
        "Summary",
    ),
    *("GridTiler", "KernelNormalizer", "ModelCard", "Picture", "Scale", "TopPatches", "Patches", "Reason", "Reasons"),
    *("Projections", "Verdict"),
    *("Adversarial", "augment", "augmentations", "segments"),
    *("channel_stats", "confusion", "curves", "effective_field", "errors", "feature_maps", "images", "normalize"),
    "overlay",
    *("pixels", "predictions", "samples", "tile", "untile", "zoo", "METHODS", "read_patches"),
    *("Added", "Launches", "Overhead", "Ratio", "added", "paired", "peak_memory", "settled"),
    *("Bins", "History", "LayerFigures", "NoiseScale", "ParameterFigures", "Sample", "Step"),
}


def test_every_public_name_is_here():
    rooms = (fv, explain, inspection, survey, views, bench, training)
    public = {name: getattr(room, name) for room in rooms for name in room.__all__}
    known = {word for name in (*CALLS, *WATCHED) for word in name.split()}
    assert public.keys() - known - WITHOUT_MODEL == set()
    for name in WITHOUT_MODEL - {
        "TopPatches",
        "errors",
        "zoo",
        "METHODS",
        "FeatvizError",
        "Picture",
        "Verdict",  # which takes what any Enum does
    }:  # TopPatches: result
        takes = set(inspect.signature(public[name]).parameters)
        assert not takes & {"model", "net", "module", "model_or_weight"} or name in ("Proof", "Summary"), name
