"""The arithmetic of the noise scale: right on average, and an interval that holds what it says."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from torch_featviz.errors import OptionError
from torch_featviz.training.noise.scale import Estimate, Norms, _student, ratio_interval


def drawn(rng, looks, *, batch, noise, size=200):
    """Norms of batches of Gaussian gradients, whose true one has length 1 and whose covariance has the trace `noise`.

    The squared length of a Gaussian vector about (1, 0, 0, ...) is drawn as noncentral chi-squared, not as a vector.
    """

    def squared(examples):
        spread = noise / size / examples
        return spread * rng.noncentral_chisquare(size, 1 / spread, looks)

    small = np.mean([squared(1) for _ in range(batch)], axis=0)
    return [Norms(1, float(a), batch, float(b), False) for a, b in zip(small, squared(batch), strict=True)]


def test_averages_come_near_the_truth():
    estimate = Estimate(4000)
    for norms in drawn(np.random.default_rng(0), 4000, batch=16, noise=30.0):
        estimate.add(norms)
    scale = estimate.scale((), {})
    assert scale.noise == pytest.approx(30, rel=0.02)
    assert scale.gradient == pytest.approx(1, rel=0.05)
    assert scale.value == scale.noise / scale.gradient
    assert scale.low < 30 < scale.high


@pytest.mark.parametrize("looks", [5, 20, 100])
@pytest.mark.parametrize(("batch", "noise"), [(32, 20.0), (128, 200.0), (32, 400.0)])
def test_the_interval_covers(looks, batch, noise):
    """In about 95 of 100 runs; of 400 runs that is at least 90.5 % with 1 in 10⁴ to miss."""
    rng, runs, held = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        several = drawn(rng, looks, batch=batch, noise=noise)
        low, high = ratio_interval([each.noise() for each in several], [each.gradient() for each in several])
        held += low <= noise <= high
    assert 0.905 <= held / runs <= 1


def test_an_interval_is_where_the_difference_may_be_nothing():
    rng = np.random.default_rng(2)
    above, below = rng.normal(5, 1, 12), rng.normal(2, 0.4, 12)
    low, high = ratio_interval(list(above), list(below))
    grid = np.linspace(0, 10, 20001)
    p = stats.ttest_1samp(above - grid[:, None] * below, 0, axis=1).pvalue
    inside = grid[p >= 0.05]
    assert [low, high] == pytest.approx([inside.min(), inside.max()], abs=1e-3)


@pytest.mark.parametrize(
    ("above", "below"),
    [([5.0, 6.0], [1.0, 1.1]), ([5.0, 6.0, 7.0], [1.0, -1.0, 0.1]), ([0.0] * 3, [0.0] * 3), ([1.0] * 3, [0.0] * 3)],
)
def test_where_nothing_is_known_above(above, below):
    low, high = ratio_interval(above, below)
    assert high == math.inf
    assert low >= 0


def test_where_both_may_be_nothing():
    """All ratios but those between two positive ones may be, and so 0, too."""
    above, below = [0.7, 1.1, 0.3, 0.7, 1.5, -0.5], [-0.4, -0.9, 0.3, -1.1, -0.2, -0.2]
    p = [stats.ttest_1samp(np.array(above) - r * np.array(below), 0).pvalue > 0.05 for r in (0, 0.5, 1, 2, 9)]
    assert p == [True, True, False, True, True]
    assert ratio_interval(above, below) == (0, math.inf)


def test_a_gradient_that_is_not_seen_in_the_noise_leaves_a_lower_end():
    rng = np.random.default_rng(3)
    low, high = ratio_interval(list(rng.normal(100, 1, 50)), list(rng.normal(0, 1, 50)))
    assert 100 < low < 1000
    assert high == math.inf


@pytest.mark.parametrize("freedom", [2, 3, 5, 10, 50, 1000])
def test_students_t(freedom):
    assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_a_changing_loss_scale_changes_nothing():
    """Of a scale that doubles by and by, the last looks would be all that counts."""
    rng = np.random.default_rng(4)
    plain, scaled, naive = Estimate(2000), Estimate(2000), Estimate(2000)
    for i, norms in enumerate(drawn(rng, 2000, batch=64, noise=30.0)):
        factor = 4.0 ** (i // 100)
        plain.add(norms)
        more = norms._replace(of_small=norms.of_small * factor, of_big=norms.of_big * factor)
        scaled.add(more._replace(scaled=True))
        naive.add(more)
    a, b, c = (each.scale((), {}) for each in (plain, scaled, naive))
    assert b.value == pytest.approx(a.value, rel=0.02)
    assert [b.low, b.high] == pytest.approx([a.low, a.high], rel=0.05)
    assert c.high - c.low > 2 * (b.high - b.low)
    scaled.looks.clear()
    for look in plain.looks:
        scaled.add(look._replace(scaled=True))
    b = scaled.scale((), {})
    assert [b.noise, b.gradient] == pytest.approx([a.noise, a.gradient], rel=0.05)


def test_looks_that_tell_nothing():
    estimate = Estimate(3)
    for broken in (math.nan, math.inf):
        estimate.add(Norms(1, broken, 8, 1.0, False))
        estimate.add(Norms(1, 1.0, 8, broken, False))
    estimate.add(Norms(1, 0.0, 8, 0.0, False))
    scale = estimate.scale(("a",), {"b": "is odd"})
    assert (scale.looks, scale.low, scale.high) == (0, 0, math.inf)
    assert math.isnan(scale.value)
    assert str(scale) == "noise scale unknown: no step was looked at ('b' is odd)"


def test_no_gradient_beyond_the_noise():
    estimate = Estimate(3)
    estimate.add(Norms(1, 8.0, 8, 0.5, False))
    scale = estimate.scale(("a",), {})
    assert scale.gradient < 0
    assert (scale.value, scale.low, scale.high) == (math.inf, 0, math.inf)


def test_a_window_and_a_state():
    estimate, other = Estimate(3), Estimate(3)
    for i in range(1, 6):
        estimate.add(Norms(1, 2.0 * i, 8, i, False))
    assert [each.of_big for each in estimate.looks] == [3, 4, 5]
    other.load_state_dict(json.loads(json.dumps(estimate.state_dict())))
    assert other.scale(("a",), {}) == estimate.scale(("a",), {})


def test_one_line():
    estimate = Estimate(10)
    for i in range(5):
        estimate.add(Norms(1, 1200.0 + i, 8, 151.0 + i, False))
    text = str(estimate.scale(("a", "b"), {"c": "BatchNorm"}))
    assert text == "noise scale 381 examples (95 %: 235 to 1016) at batches of 8, 5 looks, 2 of 3 layers"


def test_window_must_be_positive():
    with pytest.raises(OptionError, match="window must be at least 1, got 0"):
        Estimate(0)


@pytest.mark.parametrize("size", [1e-200, 1e-320, 1e150, 1e308, math.inf, math.nan])
def test_norms_of_which_nothing_can_be_computed_are_left_out(size):
    estimate = Estimate(10)
    for big in (2, 3, 4, 5):
        estimate.add(Norms(1, size, big, size / big, False))
    assert len(estimate.looks) == 0
    assert math.isnan(estimate.scale((), {}).value)


@pytest.mark.parametrize("size", [1e-129, 1e129])
@pytest.mark.parametrize("scaled", [False, True])
def test_norms_near_those(size, scaled):
    estimate = Estimate(10)
    for big in (2, 3, 4, 2**62):
        estimate.add(Norms(1, size, big, size / 2, scaled))
    assert len(estimate.looks) == 4
    assert str(estimate.scale((), {}))


def test_an_interval_of_huge_numbers_is_no_error():
    assert ratio_interval([1e200, -1e200, 1e200], [1e200, 1e200, 1e-200])[0] == 0
