"""One image `c h w` is a batch of one, and the slips of a first try are answered with what to write."""

import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.errors import DtypeError, LayerError, OptionError, ShapeError
from torch_featviz.explain import reasons
from torch_featviz.picture import Picture

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SIGNALS = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).eval()


def explained(why):
    return why.attributions, why.heatmaps, why.classes


def faithful(image):
    return fv.faithfulness(NET, image, fv.attribute(NET, X[:1], method="saliency"), steps=2, stages=1)


CALLS = {
    "attribute": lambda image: explained(fv.attribute(NET, image, method="saliency")),
    "reasons": lambda image: reasons(NET, image, ["saliency"], faithful=False).methods[0].heatmaps,
    "attributions": lambda image: fv.attributions(NET, image, methods=["saliency"], faithful=False),
    "deconvnet": lambda image: fv.deconvnet(NET, image, "1", [0, 2]),
    "faithfulness": lambda image: [vars(faithful(image))[name] for name in ("deletion", "insertion", "similarity")],
    "atlas": lambda image: fv.atlas(NET, image, methods=["saliency"]).html,
    "tokens": lambda image: fv.tokens(NET, image, "1"),
    "predictions": lambda image: fv.predictions(image, torch.tensor([[1.0, 2, 3]]), ["a", "b", "c"]),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Picture):
        return a.png() == b.png()
    return all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.mark.parametrize("name", CALLS)
def test_one_image_is_a_batch_of_one(name):
    assert same(CALLS[name](X[0]), CALLS[name](X[:1]))


def test_signals_stay_a_batch_and_their_worth_is_that_of_each():
    signals = torch.rand(3, 3, 8)
    why = fv.attribute(SIGNALS, signals, method="saliency")
    assert why.heatmaps.shape == (3, 8)
    assert fv.faithfulness(SIGNALS, signals, why, steps=2, stages=0).deletion.shape == (3,)
    one = fv.attribute(SIGNALS, signals[:1], method="saliency")
    assert fv.faithfulness(SIGNALS, signals[:1], one, steps=2, stages=0).deletion.shape == (1,)


def test_a_model_that_refuses_three_axes_is_told_of_the_batch_axis():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flatten(1) @ torch.ones(192, 3)

    with pytest.raises(ShapeError, match=r"does not accept inputs of shape \(3, 8, 8\): .* is given as images\[None\]"):
        fv.attribute(Odd(), X[0], method="saliency")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fv.attribute(NET, X, "gradcam"), OptionError, "all else by name: write method='gradcam'"),
        (lambda: fv.attribute(NET, X, "0"), OptionError, "write layer='0'"),
        (lambda: fv.attribute(NET, X, NET[0]), OptionError, "write layer=Conv2d"),
        (lambda: fv.attribute(NET, X, 2), OptionError, "write target=2"),
        (lambda: fv.attribute(NET, X, method=["gradcam"]), OptionError, r"method is one name, got \['gradcam'\]"),
        (lambda: fv.attribute(NET, X, target="cat"), OptionError, "'cat' is a name: tell the names of all classes"),
        (lambda: fv.attribute(X, NET), DtypeError, r"model must be a torch\.nn\.Module, got Tensor"),
        (lambda: fv.attributions(NET, X, methods="gradcam"), OptionError, r"write methods=\['gradcam'\]"),
        (lambda: fv.attributions(NET, X, targets=["cat"]), OptionError, "no class 'cat'; close: none. It has 3."),
        (lambda: fv.faithfulness(NET, X, X), DtypeError, "a result of attribute.*, got Tensor"),
        (
            lambda: fv.faithfulness(NET, "a.png", fv.attribute(NET, X, method="saliency")),
            DtypeError,
            "got 'a.png'; fv.zoo.read_image opens a file",
        ),
        (lambda: fv.capture(NET)["0"], LayerError, r"write 'with fv.capture\(model\) as acts: .* acts\['0'\]"),
        (lambda: list(fv.capture(NET)), LayerError, "write 'with fv.capture"),
        (lambda: fv.exemplars(NET), DtypeError, r"a result of top_patches\(\) .*, got Sequential"),
        (lambda: fv.effective_field(NET), DtypeError, r"a result of receptive_field\(\), got Sequential"),
        (lambda: fv.tile([X]), DtypeError, r"of a batch with labels take batch\[0\]"),
        (lambda: fv.untile([X], n=1), DtypeError, r"sheet must be a tensor, got \["),
        (lambda: fv.samples("photos"), DtypeError, "got 'photos'; ImageFolder"),
        (lambda: fv.samples(3), DtypeError, "pairs of an image and its class, got 3"),
        (lambda: fv.samples((X, [0, 1])), DtypeError, r"fv.images\(batch, labels\) draws a batch"),
        (
            lambda: fv.samples(torch.utils.data.DataLoader([(X[0], 0)])),
            DtypeError,
            r"a DataLoader of batches; call samples\(loader.dataset\)",
        ),
        (lambda: fv.confusion(torch.eye(3).long(), 3), DtypeError, "classes must be the names of all classes, got 3"),
        (lambda: fv.confusion("a", ["b"]), DtypeError, "counts must be a table 'n n' of whole numbers, got 'a'"),
        (lambda: fv.confusion([0, 1], ["a", "b"]), ShapeError, "zoo.evaluate.* is such a table"),
        (lambda: fv.predictions(X, X[:, :, 0, 0], 3), DtypeError, "classes must be the names of all classes, got 3"),
    ],
)
def test_a_slip_is_answered_with_what_to_write(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("classes", [[0, 1, 2], {0: "0", 1: "1", 2: "2"}, torch.arange(3).numpy(), "012"])
def test_names_may_be_numbers_an_array_or_a_mapping(classes):
    drawn = fv.predictions(X, torch.tensor([[9.0, 1, 0]] * 2), classes)
    assert drawn.figure().axes[1].texts[0].get_text() == "0"
    assert fv.confusion(torch.eye(3).long(), classes).rows == ("0", "1", "2")
    assert fv.samples([(X[0], 1), (X[1], 0)], classes=classes).rows == ("0", "1", "2")
    assert fv.images(X, [1, 0], classes=classes).labels == ("1", "0")
