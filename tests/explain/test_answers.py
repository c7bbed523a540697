"""What is explained of a model with one logit, probabilities, labels or a dictionary; and rows that are no images."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from torch_featviz.choices import METHODS
from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.explain import attribute, faithfulness, reasons
from torch_featviz.views import attributions

IMAGES = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def net_of(outputs, *head, seed=0):
    torch.manual_seed(seed)
    body = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, outputs)
    return nn.Sequential(*body, *head).eval()


def doubled(net):
    """The same model with a logit for each of the two classes."""
    two = net_of(2)
    two.load_state_dict({**two.state_dict(), **{name: net.state_dict()[name] for name in ("0.weight", "0.bias")}})
    with torch.no_grad():
        two[3].weight.copy_(torch.cat([-net[3].weight, net[3].weight]))
        two[3].bias.copy_(torch.cat([-net[3].bias, net[3].bias]))
    return two


class Flat(nn.Module):
    """Loses the batch, so that one image has three rows of one figure."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.flat, self.fc = (
            nn.Conv2d(1, 1, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(0),
            nn.Linear(36, 3),
        )

    def forward(self, x):
        return self.fc(self.flat(self.relu(self.conv(x))))


class Rows(nn.Module):
    """A row for each of four patches of each image."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 5, 3, padding=1), nn.AdaptiveAvgPool2d(2)

    def forward(self, x):
        return self.pool(torch.relu(self.conv(x))).permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("target", [None, 0, lambda output: output[:, 0]], ids=["predicted", "a class", "callable"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_that_are_not_the_images(method, target):
    words = (
        "must return shape 'b', one value per image"
        if callable(target)
        else r"shape \([48], 5\) for [12] " r"images?: the first axis must be the"
    )
    if callable(target) and method in ("lrp", "deep_lift", "layer_activation"):
        pytest.skip("what the model calls is told first, or no figure is needed")
    for given, message in ((Rows(), words), *([] if callable(target) else [(Flat(), r"shape \(3,\) for 1 image: ")])):
        images = IMAGES[:2] if isinstance(given, Rows) else IMAGES[:1]
        with pytest.raises(ShapeError, match=message):
            attribute(given.eval(), images, method=method, target=target)


def test_rows_that_are_not_the_images_in_pictures():
    for view in (attributions, lambda *given: reasons(*given, ["occlusion"])):
        with pytest.raises(
            ShapeError, match=r"the first axis must be the batch\. Keep .*; otherwise, attribute\(\) takes"
        ):
            view(Rows().eval(), IMAGES[:2])


@pytest.mark.parametrize("target", [0, 1, [0, 1, 1]])
@pytest.mark.parametrize("method", METHODS)
def test_one_logit_is_explained_as_two_that_are_opposites(method, target):
    net = net_of(1)
    expected = attribute(doubled(net), IMAGES, method=method, target=target)
    found = attribute(net, IMAGES, method=method, target=target)
    torch.testing.assert_close(found.heatmaps, expected.heatmaps)
    assert found.classes.equal(expected.classes)


@pytest.mark.parametrize(
    "method", ["gradcam", "integrated_gradients", "input_x_gradient", "lrp", "occlusion", "deep_lift"]
)
@pytest.mark.parametrize("head", [(), (nn.Sigmoid(),), (nn.Flatten(0),)], ids=["logit", "probability", "b"])
def test_class_0_is_the_negative_of_class_1(method, head):
    if method == "lrp" and any(isinstance(layer, nn.Sigmoid) for layer in head):
        pytest.skip("Captum has no rule for it")
    net = net_of(1, *head)
    none, zero, one = (attribute(net, IMAGES, method=method, target=target) for target in (None, 0, 1))
    assert none.heatmaps.any()
    assert none.classes is None
    torch.testing.assert_close(one.heatmaps, none.heatmaps)
    torch.testing.assert_close(zero.heatmaps, -one.heatmaps)


@pytest.mark.parametrize("flat", [False, True])
def test_faithfulness_of_one_logit_is_that_of_two(flat):
    net = net_of(1, *([nn.Flatten(0)] if flat else []))
    images, target = IMAGES * 4, [0, 1, 0]
    other = doubled(net)  # scores twice as far apart
    with torch.no_grad():
        other[3].weight.mul_(0.5)
        other[3].bias.mul_(0.5)
    worth = faithfulness(net, images, attribute(net, images, target=target), stages=0)
    expected = faithfulness(other, images, attribute(other, images, target=target), stages=0)
    for name in ("deletion", "insertion", "random_deletion", "random_insertion"):
        torch.testing.assert_close(getattr(worth, name), getattr(expected, name))


def mean_on_the_way(net, images, places, shape, column):
    """The mean of a column while pixels go in the order of places, one image and one step at a time."""
    areas = []
    for image, heat in zip(images, places, strict=True):
        order = sorted(range(heat.numel()), key=lambda i: -heat.flatten()[i])
        values = []
        for step in range(shape + 1):
            gone = torch.zeros(heat.numel(), dtype=torch.bool)
            gone[order[: round(heat.numel() * step / shape)]] = True
            with torch.no_grad():
                values.append(float(column(net(torch.where(gone.view_as(heat), 0, image)[None]))))
        areas.append(sum((a + b) / 2 for a, b in pairwise(values)) / shape)
    return torch.tensor(areas)


@pytest.mark.parametrize(
    ("head", "answer", "column"),
    [
        ((nn.Softmax(1),), None, lambda out: out[0, 1]),
        ((nn.Sigmoid(),), None, lambda out: out[0, 1]),
        ((), "label_logits", lambda out: out[0, 1].sigmoid()),
        ((), "figures", lambda out: out[0, 1]),
        ((), None, lambda out: out.softmax(1)[0, 1]),
    ],
    ids=["softmax", "sigmoid", "labels", "figures", "logits"],
)
def test_areas_are_of_what_the_scores_are(head, answer, column):
    net = net_of(3, *head)
    why = attribute(net, IMAGES, target=1, method="occlusion", answer=answer)
    worth = faithfulness(net, IMAGES, why, stages=0, steps=6)
    torch.testing.assert_close(worth.deletion, mean_on_the_way(net, IMAGES, why.heatmaps, 6, column))


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"logits": x, "hidden": x},
        lambda x: {"out": x, "aux": x[:, :1]},
        lambda x: (x,),
        Output,
    ],
    ids=["logits", "out", "tuple", "dataclass"],
)
@pytest.mark.parametrize("method", ["gradcam", "integrated_gradients", "occlusion", "lrp"])
def test_dictionaries_and_dataclasses(wrap, method):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net_of(3)

        def forward(self, x):
            return wrap(self.net(x))

    for target in (None, 2):
        found = attribute(Wrapped(), IMAGES, method=method, target=target)
        expected = attribute(net_of(3), IMAGES, method=method, target=target)
        assert found.heatmaps.equal(expected.heatmaps)
        assert found.classes.equal(expected.classes)
    if method == "gradcam":
        sheets = [attributions(net, IMAGES, faithful=True) for net in (Wrapped(), net_of(3))]
        assert sheets[0].labels == sheets[1].labels
        assert sheets[0].captions == sheets[1].captions
        assert sheets[0].cells.equal(sheets[1].cells)


def test_a_wrong_word():
    with pytest.raises(OptionError, match=r"answer must be one of 'logits', 'probabilities', .* got 'softmax'"):
        attribute(net_of(2), IMAGES, answer="softmax")


def labels_of(sheet):
    return [words for words in sheet.labels if words]


@pytest.mark.parametrize("classes", [("no", "yes"), ("yes",)])
def test_a_sheet_of_one_logit(classes):
    net = net_of(1)
    with torch.no_grad():
        net[3].bias -= net(IMAGES)[:2].mean()  # about 0, so that there are both
        logits = net(IMAGES)[:, 0]
    assert 0 < int((logits > 0).sum()) < 3
    sheet = attributions(net, IMAGES, classes=classes)
    no = "no" if len(classes) == 2 else "not yes"
    chances = logits.sigmoid()
    expected = [f"yes {100 * p:.0f} %" if p > 0.5 else f"{no} {100 * (1 - p):.0f} %" for p in chances.tolist()]
    assert labels_of(sheet) == expected
    two = attributions(doubled(net), IMAGES, classes=("no", "yes"))
    assert sheet.cells.equal(two.cells)
    both = attributions(net, IMAGES, classes=classes, targets=[0, 1], faithful=False)
    assert both.columns == ("", f"gradcam: {no}", "gradcam: yes")


def test_a_sheet_of_figures_and_of_labels():
    net = net_of(1)
    with torch.no_grad():
        net[3].bias += 30
        figures = net(IMAGES)[:, 0].tolist()
    sheet = attributions(net, IMAGES)
    assert labels_of(sheet) == [f"output {value:.3g}" for value in figures], "a figure is no probability"
    assert "the output, of several the highest" in " ".join(sheet.legend.lines())
    labels = net_of(3, nn.Sigmoid())
    with torch.no_grad():
        best = labels(IMAGES).max(1)
    expected = [f"{'abc'[k]} {100 * p:.0f} %" for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    assert labels_of(attributions(labels, IMAGES, classes="abc")) == expected
    with pytest.raises(ShapeError, match="classes must name 3, as the model returns, got 2"):
        attributions(labels, IMAGES, classes="ab")


def test_reasons_of_what_cannot_be_told():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net_of(3)

        def forward(self, x):
            return 1 / (1 + (-self.net(x)).exp())

    with pytest.raises(OptionError, match="rows do not sum to 1, which may be logits or probabilities"):
        reasons(Odd(), IMAGES, ["saliency"], faithful=False)
    why = reasons(Odd(), IMAGES, ["saliency"], answer="label_probabilities", faithful=False)
    torch.testing.assert_close(why.probabilities, net_of(3)(IMAGES).detach().sigmoid())
    assert attribute(Odd(), IMAGES, method="saliency").heatmaps.any()


def test_a_dictionary_of_several_needs_a_callable():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net_of(3)

        def forward(self, x):
            return {"a": self.net(x), "b": self.net(x)}

    with pytest.raises(DtypeError, match=r"returns a dict; pass target= a callable .* \(it has 'a', 'b'\)"):
        attribute(Two(), IMAGES)
    with pytest.raises(DtypeError, match=r"returns a dict; attribute\(\) takes a callable as target="):
        attributions(Two(), IMAGES)
