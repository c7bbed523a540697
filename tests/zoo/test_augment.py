"""The mean over views, against views made by hand."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.zoo import ModelCard, augment, evaluate, probabilities

IMAGES = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def net(classes=3, head=None):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(1232, classes)]
    return nn.Sequential(*layers, *([head] if head else [])).train()


def by_hand(images, names):
    """Views with loops and torchvision's own words: corners clockwise or not, the order does not matter to a mean."""
    views = [images]
    if "crops" in names:
        for top, left in ((0, 0), (0, 3), (2, 0), (2, 3), (1, 1)):
            cut = torch.stack([image[:, top : top + 14, left : left + 21] for image in images])
            views.append(nn.functional.interpolate(cut, (16, 24), mode="bilinear"))
    if "flip" in names:
        views += [torch.stack([image[:, :, list(range(23, -1, -1))] for image in images]) for images in views]
    return views


@pytest.mark.parametrize("names", [("flip",), ("crops",), ("flip", "crops"), ("crops", "flip", "flip")])
def test_the_mean_of_probabilities_over_views(names):
    model = net()
    views = by_hand(IMAGES, names)
    found = augment(*names)(IMAGES)
    assert len(found) == len(views)
    assert torch.equal(found[0], IMAGES)
    asked = probabilities(model, IMAGES, augment=augment(*names))
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = sum(model(view).softmax(1) for view in views) / len(views)
    assert torch.allclose(asked, expected, atol=1e-6)
    assert not torch.allclose(asked, model(IMAGES).softmax(1), atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "head", "answer", "expected"),
    [
        (3, None, None, lambda x: x.softmax(1)),
        (3, nn.Softmax(1), None, lambda x: x.softmax(1)),
        (3, nn.Sigmoid(), None, lambda x: x.sigmoid()),
        (3, None, "label_logits", lambda x: x.sigmoid()),
        (1, None, "logits", lambda x: torch.cat([1 - x.sigmoid(), x.sigmoid()], 1)),
        (1, nn.Sigmoid(), None, lambda x: torch.cat([1 - x.sigmoid(), x.sigmoid()], 1)),
    ],
)
def test_each_kind_of_answer(classes, head, answer, expected):
    model = net(classes, head)
    views = by_hand(IMAGES, ("flip",))
    logits = [net(classes).eval()(view).detach() for view in views]
    found = probabilities(model, IMAGES, augment=augment("flip"), answer=answer)
    assert torch.allclose(found, sum(map(expected, logits)) / 2, atol=1e-6)
    assert torch.allclose(probabilities(model, IMAGES, answer=answer), expected(logits[0]), atol=1e-6)
    if answer:
        card = ModelCard("any", nn.Identity, (3, 16, 24), answer=answer)
        assert torch.equal(probabilities(model, IMAGES, card=card), probabilities(model, IMAGES, answer=answer))


def test_one_image_and_views_of_ones_own():
    model = net().eval()
    one = probabilities(model, IMAGES[0], augment=lambda x: [x, x + 1])
    assert torch.allclose(one, (model(IMAGES[:1]).softmax(1) + model(IMAGES[:1] + 1).softmax(1)) / 2, atol=1e-6)
    assert torch.equal(probabilities(model, IMAGES, augment=lambda x: x + 1), probabilities(model, IMAGES + 1))


def test_what_draws_at_random_goes_by_the_seed():
    noisy = augment(lambda x: x + torch.randn_like(x), "flip", n=3)
    assert len(noisy(IMAGES)) == 5
    assert repr(noisy) == "augment('flip', <lambda>, n=3)"
    first, second, third = (probabilities(net(), IMAGES, augment=noisy, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    model, state = net(), torch.get_rng_state()
    probabilities(model, IMAGES, augment=noisy)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_view_is_held_at_a_time():
    held = []

    class Counted(nn.Module):
        def forward(self, x):
            held.append(len(alive))
            return x.flatten(1)[:, :3] * 5 - 2

    alive = set()

    def views(images):
        for i in range(4):
            alive.add(i)
            yield images
            alive.discard(i)

    probabilities(Counted(), IMAGES, augment=views)
    assert held == [1] * 4


def test_an_evaluation_over_views():
    model = net()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 3)
    result = evaluate(model, loader, augment=augment("flip", "crops"))
    means = probabilities(model, IMAGES, augment=augment("flip", "crops"))
    assert model.training
    assert torch.allclose(result.logits, means, atol=1e-6)
    assert result.accuracy == (means.argmax(1) == LABELS).double().mean()
    assert result.loss == pytest.approx(float(-means[range(4), LABELS].log().mean()), rel=1e-5)
    assert int(result.confusion.sum()) == 4
    plain = evaluate(model, loader, augment=lambda x: x)
    assert plain.loss == pytest.approx(evaluate(model, loader).loss, rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "head", "labels"),
    [
        (1, None, [0, 1, 1, 0]),
        (1, nn.Sigmoid(), [0, 1, 1, 0]),
        (3, nn.Softmax(1), [0, 1, 2, 0]),
        (3, nn.Sigmoid(), [2] * 4),
    ],
)
def test_an_evaluation_of_each_kind_of_answer(classes, head, labels):
    loader = DataLoader(TensorDataset(IMAGES, torch.tensor(labels)), 2)
    model = net(classes, head)
    alone, same = evaluate(model, loader), evaluate(model, loader, augment=lambda x: [x, x])
    assert same.loss == pytest.approx(alone.loss, rel=1e-4)
    assert same.accuracy == alone.accuracy
    assert torch.equal(same.confusion, alone.confusion)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: augment(), OptionError, "augment takes 'flip', 'crops' and functions of images, got none"),
        (lambda: augment("flop"), OptionError, "got 'flop'"),
        (lambda: augment("flip", n=0), OptionError, "n must be at least 1, got 0"),
        (lambda: probabilities(net(), IMAGES, augment=lambda x: [1]), DtypeError, "must return tensors .* got int"),
        (lambda: probabilities(net(), IMAGES, augment=lambda x: x[:2]), ShapeError, r"all 4 images, got shape \(2, 3"),
        (
            lambda: probabilities(net(), IMAGES, augment=lambda x: []),
            ShapeError,
            "must return at least one view of the images",
        ),
        (lambda: probabilities(net(), IMAGES, augment="flip"), OptionError, r"such as augment\('flip', .* got 'flip'"),
        (lambda: probabilities(net(), [1]), DtypeError, r"images must be a tensor, got \[1\]"),
        (lambda: probabilities(net(), IMAGES[0, 0]), ShapeError, "images must be 'b c h w'"),
        (lambda: probabilities(nn.Identity(), IMAGES), ShapeError, "the model returns shape"),
        (lambda: probabilities(net(), IMAGES, answer="figures"), OptionError, "needs classes, got answer='figures'"),
        (
            lambda: probabilities(nn.Sequential(nn.Flatten(), nn.ReLU()), IMAGES),
            OptionError,
            "logits or probabilities",
        ),
        (
            lambda: evaluate(net(), DataLoader(TensorDataset(IMAGES, LABELS), 2), augment=lambda x: x[:1]),
            ShapeError,
            "all 2 images",
        ),
        (
            lambda: evaluate(net(), DataLoader(TensorDataset(IMAGES, LABELS), 2), augment=lambda x: "x"),
            DtypeError,
            "got str",
        ),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()
