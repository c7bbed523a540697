"""Rules about gradients and updates, each with what is just beyond its limit, and what is just not."""

import math
from dataclasses import replace

import pytest

from tests.training.rules.samples import ABOUT, FINE, MOVED, about, account, layer, still, told, weight
from torch_featviz.training.findings import Findings


def moved(known=None, **others):
    parameters = {"parameters": {**MOVED, **{f"{name}.weight": each for name, each in others.items()}}}
    return parameters if known is None else (parameters, known)


def b(**figures):
    return moved(b=weight(**figures))


def test_rows_without_gradient():
    for rows, unreached, expected in ((64, 48, 1), (64, 47, 0), (63, 62, 0), (100, 75, 1), (100, 74, 0)):
        looks = [b(rows=rows, unreached=unreached)] * 3
        assert told(*looks) == [(200, "dead", ("b.weight",))] * expected, (rows, unreached)
    assert told(*[b(unreached=48)] * 2) == []
    few = {**b(unreached=48), "layers": {**FINE, "b": layer(n=159)}}
    assert told(*[few] * 5) == []
    assert told(*[{**few, "layers": {**FINE, "b": layer(n=160)}}] * 3) == [(200, "dead", ("b.weight",))]


def test_a_row_of_three_may_be_broken_off():
    bad, good = b(unreached=50), b(unreached=10)
    assert told(bad, bad, good, bad, bad, good) == []
    assert told(bad, bad, good, bad, bad, bad) == [(500, "dead", ("b.weight",))]


def test_gradients_a_thousand_times_the_usual():
    for grad, expected in ((1001.0, [(500, "exploding", ("b.weight",))]), (999.0, [])):
        assert told(*[moved()] * 5, b(grad=grad)) == expected
    assert told(*[moved()] * 4, b(grad=1001.0)) == []  # not known long enough
    # beside others that are as large, it is one that begins small
    large = dict.fromkeys("ac", weight(grad=500.0))
    assert told(*[moved(**large, b=weight())] * 5, moved(**large, b=weight(grad=1500.0))) == []
    assert len(told(*[moved(**large, b=weight())] * 5, moved(**large, b=weight(grad=7500.0)))) == 1


def test_a_share_of_the_largest_gradient_and_of_what_it_moves():
    for grad, ratio, expected in (
        (0.99e-4, 0.99e-7, 1), (1.01e-4, 0.99e-7, 0), (0.99e-4, 1.01e-7, 0),
    ):  # fmt: skip
        looks = [moved(), *[b(grad=grad, ratio=ratio)] * 3]
        assert [kind for _, kind, _ in told(*looks)].count("vanishing") == expected
    by_size = [moved(), *[b(grad=0.99e-3, ratio=0.9e-7, size=10_000)] * 3]  # RMS
    assert told(*by_size) == [(300, "vanishing", ("b.weight",))]


def test_a_gradient_that_is_on_its_way_is_let_alone():
    assert told(b(grad=1e-6, ratio=1e-9), *[b(grad=3.1e-6, ratio=1e-9)] * 5) == []
    assert told(b(grad=0.028, ratio=1e-9), *[b(grad=0.0299, ratio=1e-9)] * 3)  # too little
    assert [kind for _, kind, _ in told(b(grad=1e-6, ratio=1e-9), *[b(grad=2.9e-6, ratio=1e-9)] * 5)] == ["vanishing"]


@pytest.mark.parametrize(
    ("dtype", "ratio", "expected"),
    [("bfloat16", 0.99 * 2.0**-12, 1), ("bfloat16", 1.01 * 2.0**-12, 0), ("float16", 0.99 * 2.0**-15, 1),
     ("float16", 1.01 * 2.0**-15, 0), ("float32", 1e-5, 0)],
)  # fmt: skip
def test_what_rounding_swallows(dtype, ratio, expected):
    known = account(about={name: about(dtype=dtype) for name in MOVED})
    looks = [moved(known, **dict.fromkeys("abc", weight(ratio=ratio)))] * 3
    assert told(*looks) == [(200, "stopped", tuple(MOVED))] * expected
    once = moved(known, **dict.fromkeys("abc", weight(ratio=0.1)))
    assert told(once, *looks) == []  # it has moved


def test_all_that_hardly_move_for_long():
    slow = moved(**dict.fromkeys("abc", weight(ratio=0.99e-6)))
    for every, expected in ((10, [(40, "stopped", tuple(MOVED))]), (100, [(300, "stopped", tuple(MOVED))])):
        assert told(*[slow] * 5, every=every) == expected
    assert told(*[slow] * 5, every=4) == []  # 16 steps
    assert told(*[moved(**dict.fromkeys("abc", weight(ratio=1.01e-6)))] * 9) == []
    rising = [(slow, account(rate=1e-9 * (i + 1))) for i in range(9)]
    assert told(*rising) == []
    assert told(*rising, *[(slow, account(rate=9e-9))] * 3) == [(1100, "stopped", tuple(MOVED))]


def test_one_that_stands_while_others_move():
    for ratio, expected in ((0.99e-6, 1), (1.01e-6, 0)):
        assert told(*[b(ratio=ratio)] * 3) == [(200, "stopped", ("b.weight",))] * expected
    table = account(about={**ABOUT, "b.weight": about(table=True)})
    assert told(*[moved(table, b=weight(ratio=0.99e-6))] * 5) == []  # of a table a step uses few rows
    slow = dict.fromkeys("ac", weight(ratio=0.99e-6))
    assert told(*[moved(**slow, b=weight(ratio=1e-10))] * 3, every=1) == []  # of a median that hardly moves


def test_what_was_told_as_vanishing_is_not_told_as_stopped():
    assert [kind for _, kind, _ in told(moved(), *[b(grad=1e-6, ratio=1e-10)] * 9)] == ["vanishing"]


def test_large_updates_once_the_training_has_settled():
    large = b(ratio=0.101)
    assert told(*[large] * 23, every=1) == [(22, "large_updates", ("b.weight",))]  # from step 20 on, in three
    assert told(*[b(ratio=0.0999)] * 40, every=1) == []
    assert told(moved(), *[large] * 3) == [(300, "large_updates", ("b.weight",))]


def test_a_weight_that_grows_by_drift_is_let_alone():
    """What began near 0 changes by 2/k of itself in step k."""
    drift = [b(norm=max(0.001, 0.001 * k), ratio=2 / max(k, 1)) for k in range(200)]
    assert told(*drift, every=1) == []
    wild = [b(norm=0.001)] + [b(norm=0.001 * (11 + k), ratio=0.2) for k in range(1, 60)]
    (found,) = told(*wild, every=1)
    assert found == (53, "large_updates", ("b.weight",))  # 0.2 times 51 is more than ten, in three


def test_shut_off_by_one_step():
    gone = {**b(grad=0.0, ratio=0.0, unreached=64), "layers": {**FINE, "b": layer(low=-9.0, high=-1.0)}}
    for ratio, kinds in ((0.101, ["large_updates", "dead"]), (0.099, ["dead"])):
        found = told(moved(), b(ratio=ratio), *[gone] * 3)
        assert [kind for _, kind, _ in found] == kinds, ratio
        assert {step for step, _, _ in found} == {400}


def test_behind_weights_of_zeros():
    gone = weight(grad=0.0, ratio=0.0, unreached=64)
    zeros = {"a": gone, "b": still(norm=0.0)}  # frozen, say
    assert told(*[moved(**zeros)] * 2) == []
    (found,) = told(*[moved(**zeros)] * 3)
    assert found == (200, "dead", ("a.weight",))
    findings = Findings()
    told(*[moved(**zeros)] * 3, findings=findings)
    assert (
        "because the weights of a later layer are all zeros: a.weight (b.weight is all zeros)" in findings.all[0].text
    )
    told(*[moved(a=gone)] * 3, findings=(findings := Findings()))
    assert "These outputs get no gradient at all" in findings.all[0].text


def test_dead_from_the_start_is_told_apart():
    dead = b(unreached=60)
    for before, advice in (
        (0, "Check the initial biases and weights."),
        (1, "Lower the learning rate; a LeakyReLU"),
    ):
        told(*[moved()] * before, *[dead] * 3, findings=(findings := Findings()))
        assert advice in findings.all[0].text


def test_patience_with_what_begins_at_zero():
    late = [b(grad=0.0, ratio=0.0)] + [b(grad=1e-6, ratio=1e-10)] * 9
    assert told(*late) == []
    assert [kind for _, kind, _ in told(*late, moved(), *[b(grad=1e-6, ratio=1e-10)] * 3)] == ["vanishing"]


def test_ignored_weights_are_not_told():
    looks = [b(unreached=60)] * 5
    assert told(*looks, ignore={"dead": "*.weight"}) == []
    assert told(*looks, ignore={"dead": "a*"}) == [(200, "dead", ("b.weight",))]


def test_odd_ratios_raise_nothing():
    for ratio in (math.inf, math.nan, 0.0, None, 1e300):
        told(*[b(ratio=ratio)] * 4)
        told(*[moved(**dict.fromkeys("abc", weight(ratio=ratio)))] * 4)


def flat(*losses, **figures):
    """Looks of 20 steps each."""
    parameters = {"parameters": {name: weight(**figures) for name in MOVED}}
    return [(parameters, account(losses=[loss] * 20, start=20 * i)) for i, loss in enumerate(losses)]


def kinds(*looks):
    return [(step, kind) for step, kind, _ in told(*looks, every=20)]


def test_steps_too_small_for_a_loss_that_stays():
    assert kinds(*flat(*[3.0] * 5, ratio=4.9e-5)) == [(80, "stopped")]
    assert kinds(*flat(*[3.0] * 4, ratio=4.9e-5)) == []  # 80 steps
    assert kinds(*flat(*[3.0] * 9, ratio=5.1e-5)) == []
    assert kinds(*flat(3.0, 3.0, *[2.8] * 9, ratio=4.9e-5)) == []  # it falls
    assert kinds(*flat(*[-3.0] * 9, ratio=4.9e-5)) == []  # of such a loss a share tells nothing
    spent = [*flat(*[3.0] * 3, ratio=1e-3), *flat(*[3.0] * 9, ratio=1e-5)]
    assert kinds(*spent) == []  # once they were larger
    warm = [(parts, account(losses=[3.0] * 20, rate=0.01 * (i + 1))) for i, (parts, _) in enumerate(flat(*[3.0] * 9))]
    assert kinds(*warm) == []
    two = [(parts, account(losses=[3.0] * 20, optimizers=2)) for parts, _ in flat(*[3.0] * 9, ratio=1e-5)]
    assert kinds(*two) == []


def test_large_steps_of_a_loss_that_hardly_falls():
    assert kinds(*flat(*[3.0] * 9, ratio=0.061)) == [(100, "large_updates")]  # known at 60, and three in a row
    assert kinds(*flat(*[3.0] * 9, ratio=0.059)) == []
    assert kinds(*flat(3.0, 3.0, *[2.5] * 9, ratio=0.061)) == []
    mixed = {"a.weight": weight(ratio=0.09), "b.weight": weight(ratio=0.01), "c.weight": weight(ratio=0.01)}
    assert kinds(*[({"parameters": mixed}, known) for _, known in flat(*[3.0] * 9)]) == []  # one alone


def grown(times, *losses, rows=3):
    known = [known for _, known in flat(*losses)]
    return [
        ({"parameters": {name: weight(norm=times if i else 1.0, rows=rows) for name in MOVED}}, each)
        for i, each in enumerate(known)
    ]


def test_weights_that_have_outgrown_their_beginning():
    assert kinds(*grown(3.1, *[3.0] * 9)) == [(60, "large_updates")]
    assert kinds(*grown(2.9, *[3.0] * 9)) == []
    assert kinds(*grown(3.1, 3.0, 3.0, *[2.5] * 9)) == []
    assert kinds(*grown(3.1, *[11.0] * 9)) == []  # of large targets
    assert kinds(*grown(3.1, *[None] * 9)) == []


def test_weights_that_begin_small_may_grow_to_the_usual_size():
    """PyTorch draws numbers of which those of a row have a norm of sqrt(1 / 3)."""
    assert kinds(*grown(6.1, *[3.0] * 9, rows=12)) == [(60, "large_updates")]
    assert kinds(*grown(5.9, *[3.0] * 9, rows=12)) == []


def test_a_table_may_outgrow_its_beginning():
    """Embeddings begin as small as one likes: where the loss can hardly fall they grow all the same."""
    looks = grown(3.1, *[3.0] * 9)
    tables = [(parts, replace(known, about=dict.fromkeys(MOVED, about(table=True)))) for parts, known in looks]
    assert kinds(*tables) == []


def test_a_loss_that_fell_long_ago_has_fallen():
    """Means that are joined must not make the beginning as low as what followed it."""
    assert kinds(*grown(3.1, *[3.0] * 2, *[2.0] * 1000)) == []
    assert kinds(*grown(3.1, *[3.0] * 2, *[2.0 - 0.001 * i for i in range(1000)])) == []


def test_a_gate_that_is_shut_is_let_alone():
    """Four rows are off by chance now and then; where all before them learn it is no more than a gate."""
    silent = {"layers": {**FINE, "b": layer(high=-0.1)}}
    for rows, expected in ((7, 0), (8, 1)):
        looks = [{**silent, **moved(b=weight(rows=rows, unreached=rows))}] * 3
        assert len(told(*looks)) == expected, rows
    before = {**silent, **moved(a=weight(grad=0.0, rows=64, unreached=64), b=weight(rows=4, unreached=4))}
    assert told(*[before] * 3) == [(200, "dead", ("b.weight", "a.weight"))]  # in everybody's way


def test_an_answer_is_a_code_where_its_channels_are_dead():
    """As in an autoencoder whose decoder is the same weight: there is no layer after the encoder."""
    code = replace(layer(channels=64, n=2048), dead=48)
    rows = moved(c=weight(rows=64, unreached=48))
    assert told(*[{**rows, "layers": {**FINE, "c": code}}] * 3) == [(200, "dead", ("c.weight",))]
    for other in (replace(code, dead=47), replace(code, dead=0)):  # of a head many outputs may not be asked for
        assert told(*[{**rows, "layers": {**FINE, "c": other}}] * 3) == []
    below = replace(code, dead=64, max=-1.0)  # as values of actions, of which each example asks for one
    assert told(*[{**rows, "layers": {**FINE, "c": below}}] * 3) == []
