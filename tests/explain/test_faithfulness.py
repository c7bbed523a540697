"""Deletion, insertion and randomisation against nested loops and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import Attribution, attribute, faithfulness
from torch_featviz.explain.faithfulness import blur


def net_of(size=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size * size, 3))


IMAGES = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def area_by_hand(net, start, end, heat, target, steps):
    """One image at a time, one pixel at a time."""
    order = sorted(range(36), key=lambda i: (-float(heat.flatten()[i]), i))
    values = []
    for step in range(steps + 1):
        image = start.clone()
        changed = [i for place, i in enumerate(order) if (place + 0.5) / 36 < step / steps]
        for i in changed:
            image[:, i // 6, i % 6] = end[:, i // 6, i % 6]
        with torch.no_grad():
            values.append(float(torch.softmax(net(image[None])[0].double(), 0)[target]))
    return sum((a + b) / 2 / steps for a, b in pairwise(values))


def test_areas_equal_loops():
    net = net_of()
    why = attribute(net, IMAGES, target=[2, 0, 1], method="input_x_gradient")
    found = faithfulness(net, IMAGES, why, steps=5, stages=0, internal_batch_size=4)
    blurred = blur(IMAGES)
    for b, target in enumerate([2, 0, 1]):
        deletion = area_by_hand(net, IMAGES[b], torch.zeros(2, 6, 6), why.heatmaps[b], target, 5)
        insertion = area_by_hand(net, blurred[b], IMAGES[b], why.heatmaps[b], target, 5)
        assert float(found.deletion[b]) == pytest.approx(deletion, abs=1e-5)
        assert float(found.insertion[b]) == pytest.approx(insertion, abs=1e-5)
    assert found.similarity.shape == (0, 3)
    assert not found.unmoved
    given = faithfulness(net, IMAGES, why, steps=5, stages=0, baselines=0.5)
    deletion = area_by_hand(net, IMAGES[0], torch.full((2, 6, 6), 0.5), why.heatmaps[0], 2, 5)
    assert float(given.deletion[0]) == pytest.approx(deletion, abs=1e-5)


def test_blur_equals_loops():
    image = torch.randn(1, 1, 5, 5)
    expected = image[0, 0].numpy().astype(float)
    for _ in range(2):
        rows = [[expected[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean() for x in range(5)] for y in range(5)]
        expected = np.array(rows)
    np.testing.assert_allclose(blur(image)[0, 0].numpy(), expected, atol=1e-6)


def test_a_true_map_is_told_from_a_false_one():
    class Corner(nn.Module):
        def forward(self, x):
            score = x[:, :, :2, :2].sum((1, 2, 3))
            return torch.stack([score, -score], dim=1)

    images = torch.rand(4, 1, 6, 6) + 0.5
    true = attribute(Corner(), images, target=0, method="input_x_gradient")
    negated = Attribution(true.attributions, -true.heatmaps, true.classes, true.method)
    good, bad = (faithfulness(Corner(), images, why, stages=0, baselines=0.0) for why in (true, negated))
    assert bool((good.deletion < good.random_deletion).all())
    assert bool((good.insertion > good.random_insertion).all())
    assert bool((bad.deletion > bad.random_deletion).all())
    assert bool((bad.insertion < bad.random_insertion).all())


def test_similarity_is_spearmans_with_the_last_layers_random_first():
    net = net_of()
    why = attribute(net, IMAGES, target=1, method="integrated_gradients", n_steps=5)
    found = faithfulness(net, IMAGES, why, stages=2, seed=3)
    assert found.similarity.shape == (2, 3)
    again = faithfulness(net, IMAGES, why, stages=2, seed=3)
    assert torch.equal(found.similarity, again.similarity)

    last = net_of()  # the first stage: only the last layer is shuffled
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.rand_like(why.heatmaps.flatten(1))  # the random order
        with torch.no_grad():
            for parameter in (last[3].weight, last[3].bias):
                flat = parameter.flatten()
                parameter.copy_(flat[torch.randperm(len(flat))].view_as(parameter))
    other = attribute(last, IMAGES, target=1, method="integrated_gradients", n_steps=5)
    for b in range(3):
        a, c = (each.heatmaps[b].flatten().numpy() for each in (why, other))
        assert float(found.similarity[0, b]) == pytest.approx(stats.spearmanr(a, c).statistic, abs=1e-5)


def test_a_method_that_ignores_the_weights_is_marked():
    net = nn.Sequential(nn.Identity(), *net_of())
    deaf = faithfulness(net, IMAGES, attribute(net, IMAGES, target=0, method="layer_activation", layer="0"))
    assert deaf.unmoved
    assert bool((deaf.similarity == 1).all())
    hears = faithfulness(net, IMAGES, attribute(net, IMAGES, target=0, method="gradcam", layer="1"), seed=1)
    assert not hears.unmoved


def test_targets_that_are_no_classes():
    net = net_of()
    why = attribute(net, IMAGES, target=lambda output: output[:, 0] * 2, method="saliency")
    found = faithfulness(net, IMAGES, why, steps=4, stages=1, baselines=0.0)
    with torch.no_grad():
        ends = net(torch.stack([IMAGES, torch.zeros_like(IMAGES)]).flatten(0, 1))[:, 0] * 2
    assert found.deletion.shape == (3,)
    one = faithfulness(net, IMAGES, why, steps=1, stages=0, baselines=0.0)
    torch.testing.assert_close(one.deletion, (ends[:3] + ends[3:]) / 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, OptionError, "steps must be at least 1"),
        ({"stages": -1}, OptionError, "stages at least 0, got 16 and -1"),
        ({"images": IMAGES[:2]}, ShapeError, r"these images, of shape \(2, 2, 6, 6\); got heatmaps \(3, 6, 6\)"),
    ],
)
def test_bad_input(change, error, message):
    net = net_of()
    given = {"images": IMAGES, **change}
    with pytest.raises(error, match=message):
        faithfulness(net, given.pop("images"), attribute(net, IMAGES, method="saliency"), **given)
