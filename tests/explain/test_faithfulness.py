"""Deletion, insertion and randomisation against nested loops and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain import Attribution, attribute, faithfulness
from torch_featviz.explain.faithfulness import _elsewhere, blur
from torch_featviz.inspect.patches import patch_of
from torch_featviz.model.inputs import Inputs


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


def moved_by_hand(heat, rows, columns):
    high, wide = heat.shape
    result = torch.empty_like(heat)
    for y in range(high):
        for x in range(wide):
            result[(y + rows) % high, (x + columns) % wide] = heat[y, x]
    return result


PLACES = (
    (1, 3),
    (2, 6),
    (3, 2),
    (4, 5),
    (5, 1),
    (6, 4),
)  # sevenths of each side


def test_chance_is_the_same_heatmap_at_six_other_places():
    net = net_of()
    why = attribute(net, IMAGES, target=[2, 0, 1], method="input_x_gradient")
    found = faithfulness(net, IMAGES, why, steps=3, stages=0)
    blurred = blur(IMAGES)
    for b, target in enumerate([2, 0, 1]):
        areas = []
        for place in PLACES:
            heat = moved_by_hand(why.heatmaps[b], *(round(6 * part / 7) for part in place))
            deletion = area_by_hand(net, IMAGES[b], torch.zeros(2, 6, 6), heat, target, 3)
            areas.append((deletion, area_by_hand(net, blurred[b], IMAGES[b], heat, target, 3)))
        deletions, insertions = np.array(areas).T
        assert float(found.random_deletion[b]) == pytest.approx(deletions.mean(), abs=1e-5)
        assert float(found.random_insertion[b]) == pytest.approx(insertions.mean(), abs=1e-5)
        assert float(found.deviation[b]) == pytest.approx(((insertions - deletions) / 2).std(ddof=1), abs=1e-5)


@given(st.lists(st.integers(4, 9), min_size=1, max_size=3))
def test_other_places_are_other_places(sides):
    heat = torch.arange(float(np.prod(sides))).view(1, *sides)
    moved = _elsewhere(heat)
    assert len(moved) == 6
    for one in moved:
        assert not one.equal(heat)
        assert one.flatten().sort().values.equal(heat.flatten())
    if len(sides) > 1:
        assert len({tuple(one.flatten().tolist()) for one in moved}) == 6


def test_a_heatmap_without_places_is_no_better_than_chance():
    net = net_of()
    flat = attribute(net, IMAGES, target=1, method="saliency")
    flat.heatmaps.fill_(0.5)
    found = faithfulness(net, IMAGES, flat, stages=0)
    torch.testing.assert_close(found.gain, torch.zeros(3))
    assert [str(verdict) for verdict in found.verdict] == ["= no better than chance"] * 3


class Patched(nn.Module):
    """Two blocks of a small ViT, of patches of 4 × 2 pixels."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 8, (4, 2), (4, 2)), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


def patches_by_hand(net, start, end, heat, target, steps):
    """One patch of 4 × 2 pixels at a time; `heat` is a mean for each, row by row."""
    order = sorted(range(len(heat)), key=lambda i: -heat[i])
    values = []
    for step in range(steps + 1):
        image = start.clone()
        for place, i in enumerate(order):
            if (place + 0.5) / len(heat) < step / steps:
                y, x = 4 * (i // 4), 2 * (i % 4)
                for row in range(y, y + 4):
                    for column in range(x, x + 2):
                        image[:, row, column] = end[:, row, column]
        with torch.no_grad():
            values.append(float(torch.softmax(net(image[None])[0].double(), 0)[target]))
    return sum((a + b) / 2 / steps for a, b in pairwise(values))


def test_a_transformer_loses_whole_patches_of_its_own_grid():
    torch.manual_seed(0)
    net, images = Patched().eval(), torch.randn(2, 1, 12, 8)
    why = attribute(net, images, target=[2, 1], method="input_x_gradient")
    found = faithfulness(net, images, why, steps=5, stages=0)
    assert found.patch == (4, 2)
    blurred = blur(images)
    for b, target in enumerate([2, 1]):
        heat = [
            float(np.mean([why.heatmaps[b, 4 * row + i, 2 * column + j] for i in range(4) for j in range(2)]))
            for row in range(3)
            for column in range(4)
        ]
        deletion = patches_by_hand(net, images[b], torch.zeros(1, 12, 8), heat, target, 5)
        insertion = patches_by_hand(net, blurred[b], images[b], heat, target, 5)
        assert float(found.deletion[b]) == pytest.approx(deletion, abs=1e-5)
        assert float(found.insertion[b]) == pytest.approx(insertion, abs=1e-5)
        elsewhere = []
        for place in PLACES:
            rows, columns = round(3 * place[0] / 7), round(4 * place[1] / 7)
            moved = moved_by_hand(torch.tensor(heat).view(3, 4), rows, columns).flatten().tolist()
            elsewhere.append(patches_by_hand(net, images[b], torch.zeros(1, 12, 8), moved, target, 5))
        assert float(found.random_deletion[b]) == pytest.approx(np.mean(elsewhere), abs=1e-5)


def test_patches_that_leave_a_rest_of_the_image_are_none():
    tokens = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.BatchNorm1d(8)).eval()
    assert patch_of(tokens, Inputs(torch.zeros(1, 3, 32, 32))) == (8, 8)
    assert patch_of(tokens, Inputs(torch.zeros(1, 3, 36, 36))) == (1, 1)  # 4 × 4 tokens of 8 pixels, not of 9


def test_patches_can_be_chosen():
    torch.manual_seed(0)
    net, images = Patched().eval(), torch.randn(2, 1, 12, 8)
    why = attribute(net, images, target=1, method="saliency")
    single = faithfulness(net, images, why, stages=0, patch=1)
    assert single.patch == (1, 1)
    assert not torch.equal(single.deletion, faithfulness(net, images, why, stages=0).deletion)
    own = faithfulness(net, images, why, stages=0, patch=(4, 2))
    torch.testing.assert_close(own.deletion, faithfulness(net, images, why, stages=0).deletion)
    assert faithfulness(net_of(), IMAGES, attribute(net_of(), IMAGES, method="saliency"), stages=0).patch == (1, 1)


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
        ({"steps": 2**31}, OptionError, "steps and stages must be at most 100,000, got 2147483648 and"),
        ({"patch": 4}, OptionError, "patch must divide the sides of the images, 6 × 6; got 4"),
        ({"patch": (2, 2, 2)}, OptionError, "patch must divide the sides"),
        ({"stages": -1}, OptionError, "stages at least 0, got 6 and -1"),
        ({"images": IMAGES[:2]}, ShapeError, r"these images, of shape \(2, 2, 6, 6\); got heatmaps \(3, 6, 6\)"),
    ],
)
def test_bad_input(change, error, message):
    net = net_of()
    given = {"images": IMAGES, **change}
    with pytest.raises(error, match=message):
        faithfulness(net, given.pop("images"), attribute(net, IMAGES, method="saliency"), **given)
