"""What is asked of the curve of a loss, against NumPy's least squares."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.training.rules.curve import Curve


def curve(values, count=10.0):
    return Curve([[i * count, value, count] for i, value in enumerate(values)])


def falls_by_least_squares(values):
    """A slope below 0 by more than 2.5 standard errors, of two degrees of freedom less than there are means."""
    places = np.arange(len(values))
    slope, level = np.polyfit(places, values, 1)
    rest = np.asarray(values) - level - slope * places
    error = math.sqrt((rest**2).sum() / (len(values) - 2) / ((places - places.mean()) ** 2).sum())
    return slope < -2.5 * error


@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=4, max_size=7))
def test_a_fall_is_one_of_least_squares(values):
    """Of fewer than eight means nothing is known of how the slope changes."""
    places = np.arange(len(values))
    slope, level = np.polyfit(places, values, 1)
    rest = np.asarray(values) - level - slope * places
    if abs(slope) > 1e-3 and (rest**2).sum() > 1e-3:  # where rounding does not decide
        assert curve(values).falls == falls_by_least_squares(values)


def test_of_three_means_it_is_not_known():
    assert not curve([3.0, 2.0, 1.0]).falls
    assert curve([3.0, 2.0, 1.0, 0.0]).falls
    assert not curve([0.0, 1.0, 2.0, 3.0]).falls


def test_what_comes_to_rest_falls_no_more():
    rests = [2.3 + 0.5**i for i in range(10)]
    assert falls_by_least_squares(rests)
    assert not curve(rests).falls
    assert curve([2.3 - 0.01 * i for i in range(10)]).falls  # as fast as before
    assert curve([2.3 - 0.01 * i**2 for i in range(10)]).falls  # and faster: it escapes from a plateau


def test_the_numbers_of_a_curve():
    several = Curve([[9, 4.0, 10], [19, 5.0, 10], [20, 1.0, 1], [30, 2.0, 10]])
    assert (len(several), several.steps, several.first, several.last, several.begun) == (4, 31, 4.0, 2.0, 5.0)
    assert several.mean == pytest.approx((40 + 50 + 1 + 20) / 31)
    before, after = several.halves
    assert (before.mean, after.mean) == (pytest.approx(4.5), pytest.approx(21 / 11))


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], 15, True),
        ([2.0, 2.0, 2.0, 2.0], 14, False),  # 56 steps
        ([2.0, 2.0, 2.0], 100, False),
        ([2.0, 2.0, 1.71, 1.71], 15, True),
        ([2.0, 2.0, 1.69, 1.69], 15, False),
        ([2.0, 9.0, 1.71, 1.71], 15, True),  # it jumped in between
        ([1.0, 2.0, 0.84, 0.84], 15, False),
        ([-2.0, -2.0, -1.0, -1.0], 15, False),
        ([0.0, 0.0, 0.0, 0.0], 15, False),
    ],
)
def test_whether_a_loss_has_hardly_fallen(values, count, expected):
    assert curve(values, count).hardly_falls == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 1.3, 1.3, 1.3], True),
        ([2.0, 1.2, 1.2, 1.19], False),  # it fell before
        ([2.0, 1.9, 1.8, 1.7], False),  # and this one still falls
        ([2.0, 1.9, 1.8, 1.72], True),
        ([0.0, 1.3, 1.3, 1.3], True),
        ([-2.0, -1.3, -1.3, -1.3], False),
        ([2.0, 1.3, 1.3], False),
    ],
)
def test_whether_a_loss_has_come_to_rest(values, expected):
    assert curve(values, 20).rests == expected
