"""Odd arguments that once ended in an error of torch, NumPy or Python: each ends in ours now, or is taken."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.cli import main
from torch_featviz.errors import DeviceError, DtypeError, FileError, LayerError, OptionError, ShapeError

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "attack"))
from arguments import ODD, Attentive, best, net

X = torch.rand(2, 3, 12, 12)
NESTED, SPARSE, META, LONG = ODD["nested tensor"], ODD["tensor sparse"], ODD["tensor meta"], "w" * 5000
PAIRS = [(X, torch.tensor([0, 1]))]
DRAWN = {"flip": lambda x: x.flip(-1)}


def worth(baselines, **options):
    model = net()
    return fv.faithfulness(model, X, fv.attribute(model, X, method="saliency"), baselines=baselines, **options)


pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*torch.jit:FutureWarning")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: fv.zoo.evaluate(net(), PAIRS, augment=int),
            DtypeError,
            "augment: expected a function, got the class int",
        ),
        (lambda: fv.augment(nn.ReLU), DtypeError, "ways: expected a function, got the class ReLU; pass an instance"),
        (lambda: fv.probabilities(net(), X, augment=lambda x: None), DtypeError, "augment= must return tensors"),
        (lambda: fv.zoo.evaluate(net(), [[[1, 2], [3]]]), DtypeError, "batch 0 must be a tensor of inputs and .* list"),
        (lambda: fv.zoo.evaluate(net(), [(1, 2)]), DtypeError, "batch 0 must be a tensor of inputs and .* int"),
        (lambda: fv.zoo.evaluate(nn.ModuleList(), PAIRS), DtypeError, "model must have a forward, got ModuleList"),
        (lambda: fv.bench.settled(nn.ModuleList(), bool), DtypeError, "measure must have a forward, got ModuleList"),
        (lambda: fv.probabilities(net(), X, augment=nn.ModuleList()), DtypeError, "augment must have a forward, got"),
        (lambda: fv.zoo.fit(net(), PAIRS, around=lambda: None), OptionError, "around must return a context manager"),
        (lambda: fv.zoo.fit(nn.ModuleList(), PAIRS), DtypeError, "model must have a forward, got ModuleList"),
        (lambda: fv.first_nonfinite(nn.ModuleList(), X), DtypeError, "model must have a forward, got ModuleList"),
        (
            lambda: fv.explain.reasons(net(), X, targets=2.0),
            DtypeError,
            "targets must be a class, or a list of classes",
        ),
        (lambda: fv.explain.reasons(net(), X, likeliest=0), OptionError, "likeliest must be at least 1, got 0"),
        (lambda: fv.explain.reasons(net(), X, baselines=X[0, 0, 0, :5]), ShapeError, "baselines must expand to images"),
        (lambda: fv.zoo.ImageFiles("a\0b", len), FileError, "has no images"),
        (lambda: fv.zoo.FilterBank(10**400), DtypeError, "filters must be 'k h w' real numbers, got 1000"),
        (lambda: fv.zoo.FilterBank(X.to(torch.complex64)), DtypeError, "filters must be 'k h w' real numbers"),
        (lambda: fv.zoo.FilterBank(np.ones((2, 2, 2), complex)), DtypeError, "filters must be 'k h w' real numbers"),
        (lambda: fv.zoo.FilterBank(NESTED()), DtypeError, "filters: expected a dense tensor, got a nested tensor"),
        (lambda: fv.zoo.FilterBank()(NESTED()), DtypeError, "images: expected a dense tensor, got a nested tensor"),
        (lambda: fv.zoo.FilterBank()(SPARSE()), DtypeError, "images: expected a dense tensor, got torch.sparse_coo"),
        (lambda: fv.attribute(net(), X, method=X), OptionError, "method is one name, got tensor"),
        (lambda: fv.attribute(net(), X, np.array([None, 1])), OptionError, "all else by name: write target="),
        (lambda: fv.attribute(net(), X, target=int), DtypeError, "target: expected a function, got the class int"),
        (lambda: fv.attribute(net(), X, target=NESTED()), DtypeError, "target: expected a dense tensor"),
        (lambda: fv.atlas(net(), X, targets=Path()), DtypeError, "targets must be a class, or a list of classes"),
        (lambda: fv.atlas(net(), X, targets=META()), DeviceError, "targets: expected values, got a tensor on the meta"),
        (lambda: fv.atlas(net(), X, names=torch.rand(3)), OptionError, "names must have one entry per image, got 3"),
        (lambda: fv.summary(net(), NESTED()), DtypeError, "size: expected a dense tensor, got a nested tensor"),
        (lambda: fv.augmentations(X[0], -7), DtypeError, "transforms must be functions by name, or a list .* got int"),
        (lambda: fv.augmentations(X[0], DRAWN, value_range=int), OptionError, "value_range must be one of"),
        (lambda: fv.images(NESTED()), DtypeError, "images: expected a dense tensor, got a nested tensor"),
        (lambda: fv.images(torch.tensor(1)), ShapeError, r"images must be 'b c h w' or one .*, got shape \(\)"),
        (lambda: fv.images([NESTED()]), DtypeError, "image: expected a dense tensor, got a nested tensor"),
        (lambda: fv.images(X, [NESTED(), NESTED()]), DtypeError, "expected a dense tensor, got a nested tensor"),
        (
            lambda: fv.predictions(X, 9 * X[:, :, 0, 0], "abc", targets=NESTED()),
            DtypeError,
            "targets: expected a dense tensor",
        ),
        (lambda: fv.samples([NESTED()]), DtypeError, r"samples\(\) takes pairs .*, got a tensor; fv.images"),
        (lambda: fv.samples([(X[0], 0)], classes=torch.tensor(1.0)), DtypeError, "classes must be the names of all"),
        (lambda: fv.Scale().fit(NESTED()), DtypeError, "expected a dense tensor, got a nested tensor"),
        (lambda: fv.capture(net(), of=np.array([None, "a"])), OptionError, "of must be 'output', 'grad', 'attention'"),
        (lambda: fv.deconvnet(net(), X, "2", META()), DeviceError, "units: expected values, got a tensor on the meta"),
        (lambda: fv.explain.project(net(), META(), "2", [0]), DeviceError, "images: expected values, got a tensor"),
        (lambda: fv.explain.reasons(net(), {1}), DtypeError, r"images must be a tensor, got set"),
        (lambda: worth(1j * torch.ones(1)), DtypeError, "baselines must be real, got torch.complex64"),
        (lambda: worth(torch.ones(5)), ShapeError, r"baselines must expand to images of shape .*, got \(5,\)"),
        (lambda: fv.prove(net(), torch.tensor(1.0), keywords={"a": 1}), OptionError, "takes other arguments"),
        (lambda: worth(0.0, internal_batch_size=-7), OptionError, "internal_batch_size must be at least 1, got -7"),
        (lambda: fv.TopK(2**31), OptionError, "k must be an integer from 1 to 1,048,576, got 2147483648"),
        (lambda: fv.Histogram(2**31), OptionError, "bins must be an even number from 2 to 1,048,576, got 2147483648"),
        (
            lambda: fv.top_patches(net(), [X], "2", resume="a\0b"),
            FileError,
            "cannot write 'a.x00b': embedded null byte",
        ),
        (lambda: fv.zoo.write_image_folder("a\0b"), FileError, "cannot write 'a.x00b': embedded null byte"),
        (lambda: fv.curves({1: [2.0]}), OptionError, "a name in history must be a text, got 1"),
        (lambda: fv.attribute(net(), X, classes=NESTED()), DtypeError, "classes: expected a dense tensor"),
        (lambda: fv.receptive_field(net(), "2", channels=2**31), OptionError, "an input of 2147483648 × .* at most"),
        (lambda: fv.summary(net(), (3, 2**20, 2**20)), OptionError, "an input of 3 × 1048576 × 1048576 has"),
        (lambda: fv.attribute(net(), X, additional_forward_args=NESTED()), OptionError, "takes other arguments"),
        (lambda: fv.explain.attack(net(), X, keywords={"input": META()}), DeviceError, "on meta"),
        (lambda: fv.explain.reasons(net(), X, layer="2#9"), LayerError, "it has no call 9"),
        (lambda: fv.training.History().line("a", "rms"), LayerError, "no figures of 'a' were recorded"),
        (lambda: fv.samples(np.array(2.0)), DtypeError, r"samples\(\) takes pairs of .*, got array\(2.\)"),
        (lambda: fv.bench.launches(net(), NESTED()), OptionError, "launches on nested, sparse or quantised tensors"),
        (lambda: fv.bench.launches(net(), X.to_sparse()), OptionError, "launches on nested, sparse or quant"),
        (lambda: fv.pixels(X, decimals=2**31), OptionError, "decimals must be at most 50, got 2147483648"),
        (lambda: fv.overlay(X, torch.tensor(1.0)), ShapeError, r"heatmaps must be 'b H W' .*, got shape \(\)"),
        (lambda: fv.images(X, NESTED()), DtypeError, "labels: expected a dense tensor, got a nested tensor"),
        (lambda: fv.samples(np.int64(2)), DtypeError, r"samples\(\) takes pairs of .*, got .*2"),
        (lambda: fv.augmentations(X[0], NESTED()), DtypeError, "transforms: expected a dense tensor, got a nested"),
        (lambda: fv.capture(net(), NESTED()), DtypeError, "layers: expected a dense tensor, got a nested tensor"),
        (lambda: fv.confusion(NESTED(), "ab"), DtypeError, "counts: expected a dense tensor, got a nested tensor"),
        (lambda: fv.kernels(NESTED()), DtypeError, "model_or_weight: expected a dense tensor, got a nested tensor"),
        (lambda: fv.predictions(NESTED(), X[:, :, 0, 0], "abc"), DtypeError, "images: expected a dense tensor"),
        (lambda: fv.Monitor(net(), probe=NESTED()), DtypeError, "Sequential does not accept nested tensors"),
        (lambda: fv.Monitor(net(), probe=X[:0]), ShapeError, r"probe must hold at least one input, got shape \(0, 3"),
        (lambda: fv.explain.reasons(net(), torch.tensor(1.0)), ShapeError, "images must be 'b c h w'"),
        (lambda: fv.explain.reasons(net(), X, torch.empty(0)), OptionError, "methods and targets must not be empty"),
        (lambda: fv.survey.read_patches({}, {}), OptionError, "results must come from one top_patches"),
        (lambda: fv.survey.read_patches({"2": best()}, {"2": "0"}), OptionError, r"channels\['2'\] must be"),
        (lambda: fv.zoo.card("xo").load(LONG), FileError, "no weights file"),
        (lambda: fv.zoo.ImageFiles(LONG, len), FileError, "has no images"),
        (lambda: fv.zoo.write_image_folder(LONG), FileError, "cannot write"),
        (lambda: fv.training.History.load(LONG), FileError, "has no samples.jsonl"),
        (lambda: fv.bench.paired(1, len), DtypeError, "a must be a function, got 1"),
        (lambda: fv.bench.paired(list, list, timer=lambda: None), OptionError, "timer must return seconds, got None"),
        (lambda: fv.bench.paired(list, list, timer=lambda: 1.0), OptionError, "b takes no time by this timer"),
        (lambda: fv.bench.added(list, list, timer=lambda: "1"), OptionError, "timer must return seconds, got str"),
        (lambda: fv.bench.Ratio.of([]), OptionError, "ratios must be one at least, got none"),
        (lambda: fv.bench.Ratio(1, 1, 1).within("1"), OptionError, "budget must be a number, got '1'"),
        (lambda: fv.bench.Added(1, 1, 1).micro(0), OptionError, "parts must be at least 1, got 0"),
        (lambda: fv.capture(net(), of="attention", stop=True), OptionError, "of='attention' needs the whole forward"),
        (lambda: fv.capture(net(), of="attention", ops=True), OptionError, "sees functional calls as it is; leave ops"),
        (
            lambda: fv.attribute(net(), X, method="layer_activation", layer=["0", "2"]),
            LayerError,
            "layer_activation takes one layer, got 0, 2; its maps cannot be joined",
        ),
        (
            lambda: fv.attribute(torch.jit.trace(net().eval(), X), X, target=1, method="deep_lift"),
            LayerError,
            "deep_lift does not work with scripted layers; pass the model before torch.jit",
        ),
        (lambda: fv.receptive_field(net(), "*"), LayerError, r"'\*' matches .* layers \(.*\); choose one"),
        (lambda: fv.kernels(nn.Sequential(net()), "0*"), LayerError, r"'0\*' matches .* layers, .*; choose one"),
        (
            lambda: fv.overlay(X, torch.rand(2, 12, 12), cmap="viridis"),
            OptionError,
            "this scale needs a diverging map, got 'viridis'; Scale",
        ),
        (lambda: fv.samples(Path("folder")), DtypeError, "ImageFolder.folder. of torchvision reads a folder"),
        (
            lambda: fv.zoo.card("torchvision:resnet81"),
            OptionError,
            "no model 'resnet81' in torchvision; close: 'resnet18'",
        ),
    ],
)
def test_is_refused_in_our_words(call, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_first_nonfinite_takes_unsigned_inputs(dtype):
    class Cast(nn.Module):
        def forward(self, x):
            return x.float() / 0

    found = fv.first_nonfinite(Cast(), torch.tensor([1, 7]).to(dtype))
    assert (found.layer, found.inf, found.inputs[0].min, found.inputs[0].max) == ("", 2, 1, 7)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_first_nonfinite_takes_nested_tensors(layout):
    parts = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, float("inf")]])]
    nested = torch.nested.nested_tensor(parts, layout=layout)
    found = fv.first_nonfinite(nn.ReLU(), nested)
    assert (found.layer, found.call, found.inf, found.numel) == ("input", 0, 1, 6)
    assert (found.inputs[0].shape, found.inputs[0].min) == ((2, -1, 2), 1)
    assert fv.first_nonfinite(nn.ReLU(), torch.nested.nested_tensor(parts[:1], layout=layout)) is None


def test_a_capture_of_nested_tensors_ends_as_any_other():
    """Leaving the block once failed, and left the model's forward replaced."""
    model, nested = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), NESTED()
    with torch.no_grad():
        expected = model(nested)
        with fv.capture(model) as acts:
            model(nested)
        features = fv.FeatureExtractor(model, ["1"])(nested)
    for found in (acts["1"], features["1"]):
        assert all(map(torch.equal, found.unbind(), expected.unbind()))
    assert all("forward" not in vars(layer) for layer in model.modules())
    with pytest.raises(LayerError, match="the layout of '0' is not known"):
        acts.layout("0")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_rows_of_sparse_arguments(layout):
    class Weighted(nn.Module):
        def forward(self, x, weights):
            return torch.stack([x.mean((1, 2, 3)), (weights.to_dense() @ torch.arange(4.0))], 1)

    weights = torch.eye(4)[[3, 0]]
    dense = fv.probabilities(Weighted(), X, answer="logits", additional_forward_args=weights)
    sparse = fv.probabilities(Weighted(), X, answer="logits", additional_forward_args=weights.to_sparse(layout=layout))
    assert torch.equal(dense, sparse)
    one = fv.attribute(Weighted(), X, target=1, method="smoothgrad", additional_forward_args=weights)
    two = fv.attribute(
        Weighted(), X, target=1, method="smoothgrad", additional_forward_args=weights.to_sparse(layout=layout)
    )
    assert torch.equal(one.attributions, two.attributions)


def test_several_numbers_may_be_a_tensor_or_an_array():
    maps = torch.rand(2, 12, 12)
    for contours in (torch.tensor([0.5, 0.7]), np.array([0.5, 0.7])):
        assert torch.equal(fv.overlay(X, maps, contours=contours), fv.overlay(X, maps, contours=[0.5, 0.7]))


def test_filters_may_be_weights_of_a_model():
    weight = nn.Conv2d(3, 4, 2).weight
    bank = fv.zoo.FilterBank(weight)
    assert torch.equal(bank.conv.weight, weight)
    assert bank.conv.weight.data_ptr() != weight.data_ptr()


def test_a_seed_may_be_a_number_of_numpy():
    model, ways = net(), fv.augment(nn.Dropout(0.5), n=2)
    seeded = [fv.probabilities(model, X, augment=ways, answer="logits", seed=seed) for seed in (3, np.int64(3), 4)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


def test_a_sparse_argument_that_no_forward_takes():
    with pytest.raises(OptionError, match="takes other arguments"):
        fv.attention_distance(Attentive(), X, additional_forward_args=SPARSE())


@pytest.mark.parametrize("option", ["--out", "--device", "--image"])
def test_an_option_without_a_value(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["overview", "xo", "--random", "--image", "a.png", f"{option}=--"])
    assert f"argument {option}: expected an argument, got '--'" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_breaks_no_claim(value):
    proof = fv.prove(net(), torch.full((1, 3, 12, 12), value))
    (claim,) = [claim for claim in proof.claims if claim.name == "conservation"]
    assert proof.holds
    assert claim.holds is None
    assert "no finite slopes" in claim.found
