"""Rules about the loss: flat at a guess, a jump, diverging, targets without a scale."""

from math import cos, log, pi

import pytest

from tests.training.rules.samples import FINE, account, layer, told
from torch_featviz.training.findings import Findings

TEN = log(10)


def curve(losses, *, every=30, **facts):
    """Looks of `every` steps each, all with the same loss."""
    return [account(losses=[loss] * every, start=i * every, **facts) for i, loss in enumerate(losses)]


def kinds(*looks, **options):
    return [(step, kind) for step, kind, _ in told(*looks, **options)]


def test_flat_at_the_logarithm_of_the_classes():
    assert kinds(*curve([TEN] * 4), every=30) == [(90, "loss")]
    assert kinds(*curve([TEN] * 3, every=40), every=40) == []  # four means at least
    assert kinds(*curve([TEN] * 4, every=40), every=40) == [(120, "loss")]
    assert kinds(*curve([TEN] * 4, every=24), every=24) == []  # 96 steps
    assert kinds(*curve([TEN] * 4, every=25), every=25) == [(75, "loss")]
    for loss, expected in ((1.019 * TEN, 1), (0.996 * TEN, 1), (1.021 * TEN, 0), (0.994 * TEN, 0)):
        assert len(kinds(*curve([loss] * 4))) == expected, loss


def test_a_loss_that_falls_is_not_flat():
    falls = [1.03 * TEN, 1.03 * TEN, TEN, TEN]
    assert kinds(*curve(falls)) == []
    assert kinds(*curve([1.015 * TEN, 1.015 * TEN, TEN, TEN])) == [(300, "loss")]


def test_one_output_is_no_guess():
    """Nor that of a GAN's judge, which ends at ln(2) when all is well."""
    for channels, classes, expected in ((2, 2, 1), (1, 2, 0), (10, 2, 0), (10, 3, 0), (1, 10, 0)):
        layers = {"layers": {**FINE, "c": layer(channels=channels)}}
        looks = [(layers, each) for each in curve([log(classes)] * 4)]
        assert len(kinds(*looks)) == expected, (channels, classes)


def test_a_flat_loss_waits_for_a_warm_up_and_for_causes():
    rising = [account(losses=[TEN] * 30, rate=0.01 * (i + 1)) for i in range(6)]
    assert kinds(*rising) == []
    assert kinds(*rising, account(losses=[TEN] * 30, rate=0.06)) == [(600, "loss")]
    assert kinds(*curve([TEN] * 9, optimizers=2)) == [(300, "loss")]
    unheld = curve([TEN] * 9, unheld=("z",))
    assert kinds(*unheld) == [(0, "untrained")]  # which explains it


def test_a_jump_in_any_step():
    calm = account(losses=[2.0] * 5)
    assert kinds(calm, calm, account(losses=[2.0, 201.0, 2.0])) == [(200, "loss")]
    assert kinds(calm, calm, account(losses=[2.0, 199.0, 2.0])) == []
    assert kinds(account(losses=[2.0, 201.0, 2.0])) == [(0, "loss")]  # between two looks at the beginning
    assert kinds(calm, account(losses=[201.0, *[2.0] * 9], optimizers=2)) == []
    assert kinds(account(losses=[1e-4] * 5), account(losses=[9.9])) == []  # of one that begins at 0
    assert kinds(account(losses=[-2.0]), account(losses=[900.0])) == []  # of no sign that tells
    (found,) = told(calm, account(losses=[2.0, 999.0, 2.0], start=5))
    assert found == (100, "loss", ("loss",))


def test_diverging_is_told_after_three_in_a_row():
    for last, expected in ((20.1, [(400, "loss")]), (19.9, [])):
        assert kinds(*curve([2.0, 2.0, last, last, last])) == expected
    assert kinds(*curve([2.0, 2.0, 21.0, 21.0, 2.0, 21.0, 21.0])) == []
    assert kinds(*curve([1.0, 3.0, 29.0, 29.0, 29.0])) == []  # of the first two the higher counts
    assert kinds(*curve([2.0, 2.0, 21.0, 21.0, 21.0], optimizers=2)) == []


@pytest.mark.parametrize(
    ("loss", "after", "std", "expected"),
    [(1.01e4, 1.01e4, 1.0, 1), (0.99e4, 0.99e4, 1.0, 0), (0.99e4, 1.01e4, 1.0, 0),
     (1.01e4, 0.89e4, 1.0, 0), (2e4, 1.9e4, 2.0, 0),
     (5e4, 4.9e4, 2.0, 1), (1.2e4, 1.2e4, 0.1, 1)],
)  # fmt: skip
def test_targets_without_a_scale(loss, after, std, expected):
    looks = [({"layers": {**FINE, "c": layer(std=std)}}, each) for each in curve([loss, after, after])]
    assert kinds(*looks[:2], every=50) == [(50, "targets")] * expected
    assert kinds(*looks[:2], every=49) == []


@pytest.mark.parametrize(
    ("loss", "after", "std", "expected"),
    [
        (101.0, 101.0, 1.0, 1),
        (99.0, 99.0, 1.0, 0),
        (99.0, 500.0, 1.0, 0),
        (101.0, 90.0, 1.0, 0),
        (101.0, 101.0, 5.1, 0),
        (141.0, 141.0, 7.0, 1),
    ],
)
def test_targets_without_a_scale_after_a_hundred_steps(loss, after, std, expected):
    looks = [({"layers": {**FINE, "c": layer(std=std)}}, each) for each in curve([loss, after])]
    assert kinds(*looks, every=100) == [(100, "targets")] * expected
    assert kinds(*looks, every=99) == []


def test_steps_that_go_on_when_the_learning_rate_is_spent():
    def looks(last, loss=2.0, count=3, first=0.1):
        spent = [account(losses=[loss] * 20, rate=last) for _ in range(count)]
        return [account(losses=[2.0] * 20, rate=first), *spent]

    assert told(*looks(0.9e-5)) == [(300, "stopped", ("learning_rate",))]
    assert told(*looks(0.0)) == [(300, "stopped", ("learning_rate",))]
    assert kinds(*looks(1.1e-5)) == []
    assert kinds(*looks(0.0, count=2)) == []  # as at the end of a schedule
    assert kinds(*looks(0.0, loss=0.09)) == []  # there is nothing left to learn
    assert kinds(*looks(0.0, loss=-3.0)) == []
    restarts = [account(losses=[2.0] * 20, rate=rate) for rate in (0.1, 0.0, 0.0, 0.1, 0.0, 0.0, 0.1)]
    assert kinds(*restarts) == []
    assert [kind for _, kind in kinds(*looks(0.0, first=0.0))] == ["untrained"]  # another rule's


def test_the_end_of_a_schedule_grows_with_its_length():
    """Of a cosine of 10000 steps the last 64 are below a ten thousandth of its first rate."""
    rates = [0.1 * (1 + cos(pi * i / 1000)) / 2 for i in range(1000)]
    assert kinds(*[account(losses=[2.0] * 10, rate=rate) for rate in rates], every=10) == []
    looks = [account(losses=[2.0] * 10, rate=rate) for rate in (*[0.1] * 100, *[0.0] * 20)]
    assert kinds(*looks, every=10) == [(1130, "stopped")]  # a tenth of all, and more
    assert kinds(*looks[90:], every=1) == []  # fewer than 20 steps
    assert kinds(*looks[90:], *looks[-2:], every=1) == [(31, "stopped")]


def test_a_schedule_that_is_spent_is_the_cause_of_a_flat_loss():
    rates = [0.1, 1e-6, 1e-6, 1e-6, 1e-6]
    assert kinds(*[account(losses=[TEN] * 30, rate=rate) for rate in rates]) == [(300, "stopped")]


def test_a_loss_of_the_wrong_sign():
    assert kinds(*curve([-TEN, -TEN - 0.1])) == [(100, "loss")]
    assert kinds(*curve([-TEN, -TEN + 0.1])) == []
    assert kinds(*curve([-1.04 * TEN, -3.0])) == [(100, "loss")]
    assert kinds(*curve([-1.06 * TEN, -3.0])) == []
    assert kinds(*curve([-0.1, -101.0])) == [(100, "loss")]
    assert kinds(*curve([-0.1, -99.0])) == []
    assert kinds(*curve([0.003, -101.0])) == [(100, "loss")]  # of a critic without a bound
    assert kinds(*curve([3.0, -301.0])) == [(100, "loss")]
    assert kinds(*curve([3.0, -299.0])) == []
    assert kinds(*curve([-TEN, -TEN - 0.1], optimizers=2)) == [(100, "loss")]
    two = [({"layers": {**FINE, "c": layer(channels=2)}}, each) for each in curve([-0.69, -0.9])]
    assert kinds(*two) == []  # a Dice loss may begin there


def test_a_loss_that_rises_above_a_guess():
    high = 1.51 * TEN
    assert kinds(*curve([TEN, high, high, high, high, high])) == [(500, "loss")]  # with four means, three times
    assert kinds(*curve([TEN, *[1.49 * TEN] * 9])) == []
    assert kinds(*curve([1.06 * TEN, *[1.6 * TEN] * 9])) == []  # it began elsewhere
    assert kinds(*curve([TEN, *[high] * 9], optimizers=2)) == []
    assert kinds(*curve([TEN, *[high] * 5], every=6)) == []
    two = [({"layers": {**FINE, "c": layer(channels=2)}}, each) for each in curve([log(2), *[9.0] * 9])]
    assert kinds(*two) == []


def test_a_loss_that_jumped_and_came_back_to_a_guess_is_flat():
    assert kinds(*curve([TEN, 3.0, 2.5, TEN, TEN, TEN, TEN, TEN])) == [(500, "loss")]
    assert kinds(*curve([2.6, 3.0, 2.5, TEN, TEN, TEN])) == []  # it came down from elsewhere


def test_a_loss_that_slowly_falls_is_not_flat():
    falls = [1.01 * TEN - 0.001 * i for i in range(10)]
    assert kinds(*curve(falls)) == [(300, "loss")]  # of so few means it is not known
    assert kinds(*curve([2.4, 2.4, 2.4, 2.4, *[1.01 * TEN - 0.001 * i for i in range(6)]])) == []


def test_without_a_loss_nothing_is_said():
    assert kinds(*[account(losses=[None] * 30)] * 9) == []
    assert kinds(*[({"layers": {}, "parameters": {}}, account(losses=[TEN] * 30, rates={}))] * 9) == []


@pytest.mark.parametrize(("every", "steps"), [(1, 16), (5, 20), (30, 30)])
def test_the_beginning_stays_what_it_was(every, steps):
    """However long a training is, its first mean is of few steps; of one step alone it is left to chance."""
    findings = Findings()
    told(*curve([3.0] * 9 + [1.0] * 991, every=every), findings=findings)
    means = findings.state_dict()["memory"]["curve"]
    assert means[0][2] == steps
    assert sum(count for _, _, count in means) == 1000 * every
    assert len(means) <= 64


def test_many_means_are_joined_and_none_is_lost():
    looks = curve([TEN] * 300)
    assert kinds(*looks) == [(300, "loss")]
    assert kinds(*curve([2.0] * 200), *curve([21.0] * 3))[-1] == (20200, "loss")
