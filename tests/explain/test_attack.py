"""Against gradients made by hand with numpy, and the laws of the ball, whatever the range of the images."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.explain import attack
from torch_featviz.picture.images import unit_steps
from torch_featviz.zoo import ModelCard

IMAGES = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def linear(classes=3, inputs=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def by_hand(net, image, k, eps, steps, start, sign):
    """Projected gradient descent on a linear model: the gradient of log softmax is its weight minus their mean."""
    weight, bias = (p.detach().numpy().astype(np.float64) for p in net[1].parameters())
    x = image.numpy().astype(np.float64).ravel()
    change = np.clip(start.ravel(), np.maximum(-eps, -x), np.minimum(eps, 1 - x))
    for _ in range(steps):
        logits = weight @ (x + change) + bias
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        gradient = weight[k] - sum(p * row for p, row in zip(chances, weight, strict=True))
        change = change + sign * min(eps, 5 * eps / steps) * np.sign(gradient)
        change = np.minimum(np.maximum(change, np.maximum(-eps, -x)), np.minimum(eps, 1 - x))
    return change


@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("target", [None, 2, [2, 0, 1]])
def test_as_made_by_hand(steps, target):
    net, eps = linear(), 0.1
    found = attack(net, IMAGES, target=target, eps=eps, steps=steps, seed=4)
    noise = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(4)).numpy()
    start = np.zeros_like(noise) if steps == 1 else 2 * eps * noise - eps
    classes = net(IMAGES).argmax(1).tolist() if target is None else [2, 2, 2] if target == 2 else target
    assert found.classes.tolist() == classes
    for i, k in enumerate(classes):
        change = by_hand(net, IMAGES[i], k, eps, steps, start, 1 if found.targeted else -1)
        assert np.abs(found.perturbation[i].numpy().ravel() - change).max() < 1e-5
    assert torch.allclose(found.before, net(IMAGES).softmax(1))
    assert torch.allclose(found.after, net(IMAGES + found.perturbation).softmax(1), atol=1e-6)
    answers = net(found.images).argmax(1)
    expected = [(int(a) == k) == found.targeted for a, k in zip(answers, classes, strict=True)]
    assert found.reached.tolist() == expected


@given(
    st.floats(1e-4, 1),
    st.integers(1, 4),
    st.integers(0, 3),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.05, 2)] * 3),
)
def test_no_value_leaves_the_ball_or_the_range(eps, steps, seed, mean, std):
    net = linear(inputs=48)
    card = ModelCard("any", nn.Identity, (3, 4, 4), mean=mean, std=std)
    units = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    units[0, 0] = 0
    units[1, 1] = 1
    found = attack(net, card.normalize(units), eps=eps, steps=steps, seed=seed, card=card)
    assert (found.perturbation.abs() <= eps).all()
    after = card.denormalize(found.images)
    assert (after - units - found.perturbation).abs().max() < 1e-5
    assert after.min() > -1e-5
    assert after.max() < 1 + 1e-5
    again = attack(net, card.normalize(units), eps=eps, steps=steps, seed=seed, card=card)
    assert torch.equal(found.images, again.images)


def test_what_is_outside_of_the_range_goes_no_further_out():
    images = IMAGES * 3 - 1
    found = attack(linear(), images, eps=0.2)
    below, above = images < 0, images > 1
    assert (found.perturbation[below] >= 0).all()
    assert (found.perturbation[above] <= 0).all()
    assert found.perturbation.abs().max() <= 0.2


class Wave(nn.Module):
    def forward(self, x):
        return (50 * x).sin()


def test_the_seed_is_of_the_start_which_is_the_same_for_each_image_and_alone():
    net = nn.Sequential(Wave(), *linear())
    found = attack(net, IMAGES, eps=0.05, steps=3, seed=1)
    for i, image in enumerate(IMAGES):
        assert torch.equal(attack(net, image, eps=0.05, steps=3, seed=1).images[0], found.images[i])
    assert not torch.equal(attack(net, IMAGES, eps=0.05, steps=3, seed=2).images, found.images)


def test_images_in_parts(monkeypatch):
    whole = attack(linear(), IMAGES, eps=0.05)
    monkeypatch.setattr(sys.modules[attack.__module__], "rows_at_once", lambda *_: 2)
    assert torch.allclose(attack(linear(), IMAGES, eps=0.05).images, whole.images)


@pytest.mark.parametrize(
    ("head", "classes", "kind"),
    [
        (nn.Softmax(1), 3, "probabilities"),
        (nn.Identity(), 1, "logits"),
        (nn.Sigmoid(), 1, "probabilities"),
        (nn.Flatten(0), 1, "logits"),
    ],
)
def test_all_ways_to_answer(head, classes, kind):
    net = nn.Sequential(*linear(classes), head)
    k = max(2, classes) - 1
    found = attack(net, IMAGES, target=k, eps=0.5, answer=kind)
    assert found.before.shape == (3, max(2, classes))
    assert (found.after[:, k] > found.before[:, k]).all()
    assert found.reached.all()
    away = attack(net, IMAGES, eps=0.5, answer=kind)
    assert away.classes.tolist() == found.before.argmax(1).tolist()
    assert away.reached.all()
    assert repr(away) == "Adversarial(3 of 3 images moved away from the answer, eps=0.5, steps=40)"


def test_labels_that_may_be_true_together_are_told_by_one_half():
    net = linear()
    with torch.no_grad():
        net[1].bias += 0.3
    found = attack(net, IMAGES, target=0, eps=0.01, answer="label_logits")
    assert torch.allclose(found.before, net(IMAGES).sigmoid())
    assert found.reached.tolist() == (net(found.images)[:, 0] >= 0).tolist()
    away = attack(net, IMAGES, eps=1, steps=5, answer="label_logits")
    k = net(IMAGES).argmax(1)
    assert away.reached.tolist() == (net(away.images).gather(1, k[:, None])[:, 0] < 0).tolist()
    assert away.reached.any()


def test_an_answer_that_is_all_but_sure_is_moved():
    net = linear()
    with torch.no_grad():
        net[1].bias[0] += 80  # a probability that is 1 in float32
    found = attack(net, IMAGES, eps=0.1, steps=5)
    assert float(found.before[:, 0].min()) == 1
    ahead = lambda logits: logits[:, 0] - logits[:, 1:].logsumexp(1)
    assert (ahead(net(found.images)) < ahead(net(IMAGES)) - 0.05).all()
    assert (found.perturbation != 0).all()


class Blocked(nn.Module):
    def forward(self, x):
        return nn.functional.one_hot(x.flatten(1).argmax(1), 16).float() * 3


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([[1.0, 2.0]]))

    def forward(self, x):
        return self.shift.expand(len(x), 2) * torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"eps": 0}, OptionError, "eps must be above 0 and at most 1, and steps at least 1, got 0 and 40"),
        ({"eps": 1.5}, OptionError, r"at most 1, .* got 1\.5 and 40"),
        ({"steps": 0}, OptionError, r"steps at least 1, got 0\.005 and 0"),
        ({"target": 3}, OptionError, r"target must be from 0 to 2, got \[3, 3, 3\]"),
        ({"target": [0, 1]}, ShapeError, "target must be one class, or 3 classes, one per image"),
        ({"target": "pig"}, OptionError, "'pig' is a name: tell the names of all classes"),
        ({"target": len}, OptionError, "target must be a whole number, .* or None, got builtin"),
        ({"answer": "figures"}, OptionError, "an attack needs classes, got answer='figures'"),
        ({"value_range": "float"}, OptionError, "value_range must be one of unit, signed"),
        (
            {"value_range": lambda x: x * x},
            OptionError,
            "value_range= must be a function that scales and shifts each value",
        ),
        ({"images": torch.rand(2, 2, 4, 4)}, ShapeError, "images must be 'b 1 h w' or 'b 3 h w'"),
        ({"images": torch.rand(4, 4)}, ShapeError, "images must be 'b c h w'"),
        ({"images": [1]}, DtypeError, "images must be a tensor, got"),
        ({"model": nn.Identity()}, ShapeError, "the model returns shape"),
        ({"model": Blocked()}, OptionError, "no gradient flows from the model's output to the images"),
        ({"model": Silent()}, OptionError, "no gradient flows from the model's output to the images"),
    ],
)
def test_bad_input_says_what_to_do(change, error, match):
    good = {"model": linear(), "images": IMAGES}
    given_ = {**good, **change}
    with pytest.raises(error, match=match):
        attack(given_.pop("model"), given_.pop("images"), **given_)


def test_half_precision_and_inference_mode():
    net = linear()
    plain = attack(net, IMAGES, eps=0.1)
    with torch.inference_mode():
        assert torch.equal(attack(net, IMAGES.clone(), eps=0.1).images, plain.images)
    half = attack(net.bfloat16(), IMAGES.bfloat16(), eps=0.1)
    assert half.images.dtype == torch.bfloat16
    assert half.perturbation.abs().max() <= 0.1


def test_steps_of_each_range():
    images = torch.rand(2, 3, 4, 4)
    known = {"unit": 1, "signed": 0.5, "byte": 1 / 255}
    for name, step in known.items():
        assert torch.allclose(unit_steps(images, name), torch.tensor(float(step)))
    imagenet = unit_steps(images, "imagenet")[0, :, 0, 0]
    assert torch.allclose(imagenet, torch.tensor([0.229, 0.224, 0.225]))


def test_what_was_so_before_was_not_moved():
    net = linear(4)
    own = attack(net, IMAGES, target=net(IMAGES).argmax(1), eps=1e-3, steps=2)
    assert own.reached.all()
    assert not own.moved.any()
    assert "0 of 3 images moved" in repr(own)
    with torch.no_grad():
        net[1].bias -= 100
    none = attack(net, IMAGES, answer="label_logits", eps=1e-3, steps=2)
    assert none.reached.all(), "no label was true"
    assert not none.moved.any()


def test_a_card_whose_transform_normalises_has_to_tell_mean_and_std():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = torch.tensor([-2.0, 0.0, 1.0, 2.0] * 3).view(1, 3, 2, 2)
    known = {"transform": lambda image: image, "input_size": (3, 2, 2)}
    bare = ModelCard("net", lambda: net, **known)
    with pytest.raises(OptionError, match="images lie from -2 to 2, and the card, which has a transform, tells no"):
        attack(net, images, steps=1, card=bare)
    told = ModelCard("net", lambda: net, mean=(0.5,), std=(0.25,), **known)
    for known in ({"card": told}, {"card": bare, "value_range": {"mean": (0.5,), "std": (0.25,)}}):
        moved = attack(net, images, steps=1, eps=0.1, **known).images - images
        assert float(moved.abs().max()) == pytest.approx(0.4), "0.1 in [0, 1] is 0.4 where the std is 0.25"
    assert attack(net, images.clamp(0, 1), steps=1, eps=0.1, card=bare).eps == 0.1
