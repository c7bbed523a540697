import numpy as np
import pytest

from torch_featviz.zoo.marks import _circle, _cross, draw_mark


@pytest.mark.parametrize("label", [0, 1])
def test_the_same_state_draws_the_same_bytes(label):
    one, two = (draw_mark(label, np.random.default_rng(7)) for _ in "ab")
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)


# Written down from the generator: what was measured on these drawings (accuracies, pictures) holds while it draws them.
DRAWN = {_circle: (429, 37661, 0.07859699803), _cross: (850, 22100, 0.07503796045)}


@pytest.mark.parametrize("draw", DRAWN)
def test_the_strokes_of_four_hundred_hands(draw):
    """Strokes, points, and the mean distance between points that follow each other."""
    strokes = [path for seed in range(400) for path in draw(np.random.default_rng(seed))]
    steps = np.concatenate([np.linalg.norm(np.diff(path, axis=0), axis=1) for path in strokes])
    assert (len(strokes), len(steps) + len(strokes), steps.mean()) == pytest.approx(DRAWN[draw], rel=1e-6)
