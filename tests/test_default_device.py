"""Whatever `torch.set_default_device` says, a model and inputs on the CPU give the same.

The meta device stands in for a GPU: a tensor that is made there by mistake holds no values, and nearly all that is
done with it raises.
"""

import ast
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._device import _device_constructors
from torch.utils.data import DataLoader

import torch_featviz as fv
from tests import test_untouched as calls
from tests.test_house import files
from torch_featviz import cli, explain
from torch_featviz.bench import Overhead
from torch_featviz.capture.reduce import Several
from torch_featviz.errors import FeatvizError
from torch_featviz.picture import Picture
from torch_featviz.prove.subject import Subject
from torch_featviz.prove.untouched import untouched
from torch_featviz.survey.source import Source
from torch_featviz.training.film import Film
from torch_featviz.zoo import XO, augment_marks, evaluate, fit, train_xo
from torch_featviz.zoo.weights import read_state

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
IMAGES, BATCHES = calls.IMAGES, calls.BATCHES
SCORES = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
MAPS = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=["meta", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])
def same(request):
    """Runs a call without and with another default device, and compares all that comes of it."""

    def check(call, make=lambda: None):
        given = make()
        expected = told(call(given)), None if given is None else calls.values(given)
        given = make()
        with torch.device(request.param):
            found = call(given)
        assert equal(told(found), expected[0])
        assert given is None or calls.same(calls.values(given), expected[1])

    return check


def told(value):
    """All that a result tells, as bytes and plain values."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        return value.dtype, tuple(value.shape), value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, Picture):
        return value.png()
    if isinstance(value, Film):
        return value.strip().png(), value.numpy().tobytes()
    if isinstance(value, Overhead):
        return value.calls, value.bytes_held  # not the times
    if isinstance(value, fv.Compared):
        return value.name, value.accuracy, value.parameters, value.megabytes, value.multiply_adds  # likewise
    if isinstance(value, fv.Claim):
        return told(vars(value) | {"seconds": None})
    if isinstance(value, fv.Monitor):
        return told([value.state_dict(), value.findings])
    if isinstance(value, nn.Module):
        return told(value.state_dict())
    if isinstance(value, Mapping):
        return {key: told(each) for key, each in value.items()}
    if is_dataclass(value):
        return {each.name: told(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    if type(value).__module__.startswith("torch_featviz."):
        return {name: told(each) for name, each in shown(value)}
    return value


def shown(value):
    """The public attributes of an object that are no methods."""
    for name in dir(type(value)):
        if isinstance(getattr(type(value), name), property) and not name.startswith("_"):
            try:
                yield name, getattr(value, name)
            except FeatvizError as error:
                yield name, str(error)


def equal(a, b):
    """The same, where NaN is NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("name", calls.CALLS)
def test_what_runs_a_model(same, name, request):
    if name in ("attribute integrated_gradients", "look", "prove") and "meta" in request.node.name:
        pytest.skip("Captum makes the sizes of its steps on the default device, and moves them from there")
    if name == "launches" and torch.__version__ < (2, 7):
        pytest.skip("its autograd asks for a GPU that is there")
    same(calls.CALLS[name], calls.make)


@pytest.mark.parametrize("name", calls.WATCHED)
def test_what_looks_on(same, name):
    same(calls.WATCHED[name][0], calls.make)


# A training that is watched.


def frozen():
    """A body that is random and never learns, and a head."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        return nn.Sequential(body.requires_grad_(False), nn.Flatten(), nn.Linear(512, 3))


def trained(options):
    def call(net):
        labels = torch.tensor([0, 1, 2, 0], device="cpu")
        optimizer = torch.optim.SGD(net[2].parameters(), 0.1)
        watch = fv.Monitor(net, every=1, optimizer=optimizer, **options)
        for _ in range(6):
            with watch.step() as step:
                loss = nn.functional.cross_entropy(net(IMAGES), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step.log(loss=loss, rate=0.1)
        assert [name for each in watch.findings for name in each.names] == ["0.0.weight", "0.2.weight"]
        films = [("0.0", "kernels"), *([("0.0", "maps")] if "probe" in options else [])]
        scale = watch.noise_scale if "noise" in options else None
        return net, watch, watch.report(), [watch.film(*each) for each in films], scale

    return call


OPTIONS = {
    "plain": {},
    "noise": {"noise": True},
    "probe": {"probe": IMAGES[:2]},
    "why": {"probe": IMAGES[:2], "why": "gradcam"},
    "scales": {"scales": {"kernels/0.0": fv.Scale(symmetric=True)}},
}


@pytest.mark.filterwarnings("ignore:These parameters are frozen")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_that_is_watched(same, name):
    same(lambda _: trained(OPTIONS[name])(frozen()))


@pytest.mark.filterwarnings("ignore:These parameters are frozen")
def test_a_training_that_is_written(same, tmp_path):
    folders = iter([tmp_path / "first", tmp_path / "second"])

    def written(_):
        folder = next(folders)
        trained({"to": folder, "probe": IMAGES[:2]})(frozen())
        page = fv.atlas(frozen(), IMAGES[:1], methods=["gradcam"], training=folder)
        return {path.name: path.read_bytes() for path in folder.rglob("*.png")}, page

    same(written)


# What is given no model.

IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
CLASSES = ["a", "b", "c"]
CARD = fv.ModelCard("mine", nn.Identity, (3, 12, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize=12)


def noisy(image):
    """Of a Pillow image a tensor with noise."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (values + 0.1 * torch.randn(values.shape, device="cpu")).clamp(0, 1)


PICTURES = {
    "augmentations": lambda: fv.augmentations(IMAGE, {"noise": noisy, "part": lambda x: noisy(x)[:, :3]}, times=False),
    "segments": lambda: fv.segments(MAPS[:3], CLASSES, IMAGE),
    "segments labels": lambda: fv.segments((MAPS[:2] > 0).int(), CLASSES[:2]),
    "segments of one logit": lambda: fv.segments(MAPS[:, None], ["a"], IMAGES),
    "confusion": lambda: fv.confusion([[3, 1], [0, 4]], ["no", "yes"]),
    "curves": lambda: fv.curves({"train_loss": [2.0, 1.0]}),
    "feature_maps": lambda: fv.feature_maps(MAPS),
    **{
        f"feature_maps {how}": lambda how=how: fv.feature_maps(MAPS[None], reduce=how)
        for how in ("mean", "max", "rms", "pc1")
    },
    "feature_maps scale": lambda: fv.feature_maps({"a": MAPS, "b": -MAPS}, scale=fv.Scale(per="kernel")),
    "images": lambda: fv.images([IMAGES[0], IMAGE], [1, 0], classes=["a", "b"]),
    "kernels": lambda: fv.kernels(MAPS[:, None, :3, :3]),
    "KernelNormalizer": lambda: fv.KernelNormalizer(per="filter")(MAPS[:, None]),
    "normalize": lambda: fv.normalize(MAPS),
    "one end": lambda: [fv.Scale(vmin=0.5, per="filter").fit(MAPS), fv.Scale(vmax=-0.5, per="filter").fit(MAPS)],
    "overlay": lambda: fv.overlay(IMAGES, MAPS),
    "overlay k": lambda: fv.overlay(IMAGES, MAPS.expand(4, 4, 12, 12), alpha=0.3, scale=fv.Scale(per="filter")),
    "overlay range": lambda: fv.overlay(IMAGES, MAPS, value_range={"mean": [0.5], "std": np.array([0.2])}),
    "overlay imagenet": lambda: fv.overlay(IMAGES, MAPS, value_range="imagenet"),
    "pixels": lambda: fv.pixels(MAPS[0, :4, :4]),
    "predictions": lambda: fv.predictions(IMAGES, SCORES, CLASSES, targets=[0, 1, 2, 0]),
    "samples": lambda: fv.samples([(IMAGES[0], 0), (IMAGES[1], 1), (IMAGES[2], 1), (IMAGE.resize((12, 12)), 1)]),
    "samples one-hot": lambda: fv.samples([(IMAGES[0], [1, 0]), (IMAGES[1], np.array([0, 1]))]),
    "tile": lambda: fv.untile(fv.tile(MAPS[:, None], ncols=3), n=4, ncols=3),
    "GridTiler": lambda: fv.GridTiler(ncols=3)(MAPS[:, None]),
    "preprocess": lambda: CARD.preprocess(IMAGE),
    "denormalize": lambda: CARD.denormalize(CARD.normalize(IMAGES)),
    "channel_stats": lambda: fv.channel_stats(BATCHES),
    "XO": lambda: [XO("test")[0], XO("test", seed=1)[1]],
    "augment_marks": lambda: [torch.manual_seed(0) and augment_marks(IMAGES) for _ in range(2)],
    "preprocess as published": lambda: fv.zoo.card("torchvision:resnet18").preprocess(IMAGE.resize((40, 40))),
    "preprocess bytes": lambda: CARD.preprocess((IMAGES * 255).byte()),
    "from_pil": lambda: fv.zoo.from_pil(IMAGE),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_given_no_model(same, name):
    same(lambda _: PICTURES[name]())


# More of what is given a model.


def classifier():
    torch.manual_seed(0)
    with torch.device("cpu"):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))


MORE = {
    **{
        f"target {type(target).__name__}": lambda net, target=target: fv.attribute(net, IMAGES, target=target)
        for target in (1, [0, 1, 2, 0], np.array([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0]))
    },
    "targets": lambda net: explain.reasons(net, IMAGES, ["gradcam", "saliency"], [2, 0], faithful=True),
    "attributions": lambda net: fv.attributions(net, IMAGES, targets=[1, 0], value_range="unit"),
    "attributions of pixels": lambda net: fv.attributions(net[:1], IMAGES, targets="b", classes="abcd"),
    "effective_field": lambda net: fv.effective_field(fv.receptive_field(net, "0", (12, 12), effective=True)),
    "tokens norm": lambda net: fv.tokens(net, IMAGES, "1", by="norm"),
    "tokens similarity": lambda net: fv.tokens(net, IMAGES, "1", by="similarity", query=(1, 2)),
    "atlas": lambda net: fv.atlas(net, IMAGES[:2], loader=BATCHES, names=["one", "two"], targets=[0, 1]),
    "attention": lambda _: attended(fv.Attention()),
    "attention of some rows": lambda _: attended(fv.Attention([0, -1])),
    "untouched": lambda net: untouched(Subject(net, IMAGES)),
    "several": lambda net: captured(net, Several(fv.Moments(), fv.Histogram())),
    "Moments of channels": lambda net: captured(net, fv.Moments(dim=1)),
    "TopK of channels": lambda net: captured(net, fv.TopK(2, dim=1), ["0"]),
}


def attended(of):
    torch.manual_seed(0)
    with torch.device("cpu"):
        net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1).eval()
        x, mask = torch.randn(2, 3, 8), torch.eye(3) * -2
    with fv.capture(net, of=of) as att:
        net(x, mask=mask)
    with fv.capture(net, of=of, into=fv.Moments(dim=1)) as moments:  # with gradients on: a mode bars the fast path
        net(x)
    return att, moments


def captured(net, into, layers=None):
    with fv.capture(net, layers, into=into) as acts, torch.no_grad():
        for images in (*BATCHES, IMAGES):
            net(images)
    return acts


@pytest.mark.parametrize("name", MORE)
def test_more_of_what_runs_a_model(same, name):
    same(lambda _: MORE[name](classifier()))


def test_a_survey_that_goes_on(same, tmp_path):
    files = iter([tmp_path / "first", tmp_path / "second"])

    def call(_):
        net, file = classifier(), next(files)
        fv.top_patches(net, BATCHES[:1], "0", k=2, resume=file, every=1)
        best = fv.top_patches(net, BATCHES, "0", k=2, resume=file, every=1)
        return best, best.patches([0, 1, 2, 3])

    same(call)


def test_images_that_are_numbered(same):
    order, source = torch.tensor([[0, 2], [-1, 1]]), Source(DataLoader(IMAGES, 2, sampler=[0, 2, 3]))
    same(lambda _: source.numbers(order))


def test_a_training(same, monkeypatch):
    monkeypatch.setattr(
        "torch_featviz.zoo.data.SPLITS", {"train": range(40), "valid": range(40, 60), "test": range(60, 80)}
    )

    def call(_):
        net, curves, result = train_xo(epochs=1, device="cpu", progress=False)
        return net, curves.train_loss, curves.valid_loss, result, torch.get_rng_state()

    same(call)


def test_a_training_of_ones_own(same):
    def call(_):
        net, labels = classifier(), torch.tensor([0, 1], device="cpu")
        data = [(images, labels) for images in BATCHES]
        curves = fit(net, data, data, epochs=2, progress=False)
        seen = evaluate(net, data, augment=fv.augment("flip", "crops"))
        return net, curves.train_loss, curves.valid_loss, evaluate(net, data), seen

    same(call)


def test_weights_of_a_file(same, tmp_path):
    torch.save(classifier().state_dict(), tmp_path / "net.pt")
    same(lambda _: read_state(tmp_path / "net.pt"))


def test_a_card_knows_its_layers(same):
    same(lambda _: {each: getattr(fv.zoo.card("torchvision:resnet18"), each) for each in ("low", "middle", "high")})


@pytest.mark.parametrize("command", ["layers", "maps", "why"])
def test_commands(same, command, tmp_path, capsys):
    code = """
import torch
from torch import nn

with torch.device("cpu"):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""
    (tmp_path / "net.py").write_text(code)
    IMAGE.resize((12, 12)).save(tmp_path / "image.png")
    more = ["--json", "--size", "12", "12"] if command == "layers" else ["--image", str(tmp_path / "image.png")]
    out = [] if command == "layers" else ["--out", str(tmp_path / "out.png")]

    def call(_):
        asked = [command, f"{tmp_path / 'net.py'}:net", "--device", "cpu", *more, *out]
        done, said = cli.main(asked), capsys.readouterr()
        assert done == 0, said.err
        return said.out, (tmp_path / "out.png").read_bytes() if out else None

    same(call)


# What no test reaches without a GPU.

MAKERS = {each.__name__ for each in _device_constructors()}
AS_THE_DEFAULT = {"zoo/filters.py": 1, "zoo/recipe.py": 1}  # weights, and what asks which device that is


def silent(tree):
    """How many tensors a file makes without saying where."""
    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in MAKERS
        and not any(word.arg in ("device", None) for word in node.keywords)
        for node in ast.walk(tree)
    )


def test_each_tensor_says_where_it_is_made():
    assert {file: count for file, tree in files().items() if (count := silent(tree))} == AS_THE_DEFAULT
    assert silent(ast.parse("torch.zeros(3); torch.tensor([1], dtype=x); torch.zeros_like(x)")) == 2
