"""Rules about what layers return, each with what is just beyond its limit, and what is just not."""

import math

import pytest

from tests.training.rules.samples import FINE, MOVED, account, layer, still, text, told, weight


def layers(**others):
    return {"layers": {**FINE, **others}}


def test_values_beyond_their_first_std():
    for std, expected in ((1001.0, [(100, "exploding", ("b",))]), (999.0, [])):
        assert told({}, layers(b=layer(std=std))) == expected
    small = layers(b=layer(std=0.01))
    assert told(small, layers(b=layer(std=999.0))) == []  # what began small has the same room
    assert told(small, layers(b=layer(std=1001.0))) == [(100, "exploding", ("b",))]
    large = layers(b=layer(std=100.0))
    assert told(large, layers(b=layer(std=65_503.0))) == []
    assert told(large, layers(b=layer(std=65_505.0))) == [(100, "exploding", ("b",))]


def test_an_answer_alone_may_grow_to_its_targets():
    assert told({}, layers(c=layer(std=1e5))) == []
    assert told({}, layers(b=layer(std=1e5), c=layer(std=1e5))) == [(100, "exploding", ("b", "c"))]
    only = {"layers": {"a": layer()}}
    assert told(only, {"layers": {"a": layer(std=1e5)}}) == [(100, "exploding", ("a",))]


def test_one_single_value():
    same = layer(std=0.0, low=3.0, high=3.0)
    assert told({}, *[layers(b=same)] * 2) == []
    assert told({}, *[layers(b=same)] * 3) == [(300, "dead", ("b",))]
    assert told({}, *[layers(b=layer(std=0.0, low=3.0, high=3.0, n=15))] * 5) == []
    assert told({}, *[layers(b=layer(std=0.0, low=3.0, high=3.0, n=16))] * 3) == [(300, "dead", ("b",))]
    begins = {**layers(b=same), "parameters": {**MOVED, "b.weight": still(norm=0.0)}}
    assert told(*[begins] * 5) == []  # its weights are 0


def test_a_layer_that_begins_constant_has_time_until_it_arrives():
    nothing = layer(std=0.0, low=0.0, high=0.0)
    assert told(*[layers(b=nothing)] * 9) == []
    assert told(layers(b=nothing), {}, *[layers(b=nothing)] * 3) == [(400, "dead", ("b",))]


def saturated(share, low=-1.0, fed=1.0, **more):
    return {**layers(b=layer(saturated=share, low=low, high=1.0), **more), "parameters": {
        "a.weight": weight(grad=fed), "c.weight": weight()}}  # fmt: skip


def test_saturated_where_it_holds_back_the_gradient():
    for share, fed, expected in ((0.8, 0.099, 1), (0.799, 0.099, 0), (0.8, 0.101, 0)):
        assert told(*[saturated(share, fed=fed)] * 3) == [(200, "saturated", ("b",))] * expected
    assert told(*[saturated(0.9, fed=0.01)] * 2) == []
    unfed = {**layers(b=layer(saturated=0.9)), "parameters": {"c.weight": weight()}}
    assert told(*[unfed] * 3) == [(200, "saturated", ("b",))]
    answer = layers(c=layer(saturated=1.0))
    assert told(*[{**answer, "parameters": {"a.weight": weight(grad=0.01), "c.weight": weight()}}] * 5) == []


def test_a_saturated_answer_counts_while_the_loss_is_high():
    """Of rare positives nearly all answers are at one end, and a training that goes on begins with few errors."""
    answer = layers(c=layer(saturated=0.9))
    for loss, expected in ((0.11, 1), (0.09, 0)):
        looks = [(answer, account(losses=[loss] * 30, start=30 * i)) for i in range(6)]
        assert len(told(*looks, every=30)) == expected, loss


def test_of_several_layers_the_nearest_before_it_counts():
    share = layers(b=layer(saturated=0.9))
    held, free = weight(grad=0.01), weight()
    for a, b, expected in ((held, free, 0), (free, held, 1)):
        parameters = {"a.weight": a, "b.weight": b, "c.weight": free}
        assert len(told(*[{**share, "parameters": parameters}] * 3)) == expected


def test_a_gate_counts_where_it_was_so_from_the_beginning():
    assert told(*[saturated(0.9, low=0.0, fed=0.01)] * 3) == [(200, "saturated", ("b",))]
    learnt = [saturated(0.79, low=0.0, fed=0.01), *[saturated(0.9, low=0.0, fed=0.01)] * 5]
    assert told(*learnt) == []
    both_sides = [saturated(0.79, fed=0.01), *[saturated(0.9, fed=0.01)] * 3]
    assert told(*both_sides) == [(300, "saturated", ("b",))]


@pytest.mark.parametrize(
    ("stds", "names"),
    [
        ((1.0, 0.99e-4, 0.99e-4), ("b", "c")),
        ((1.0, 1.01e-4, 0.99e-4), ()),  # the last alone
        ((1.0, 0.99e-4, 1.01e-4), ()),  # it is added to what is not small
        ((0.1, 0.99e-5, 0.99e-5), ("b", "c")),  # of the largest before it
        ((50.0, 0.99e-4, 0.99e-4), ("b", "c")),  # at most 1: after thousands, ordinary is not small
        ((50.0, 1.01e-4, 1.01e-4), ()),
    ],
)
def test_values_that_vanish_to_the_end(stds, names):
    small = layers(**{name: layer(std=std) for name, std in zip("abc", stds, strict=True)})
    assert told(*[small] * 2) == []
    assert told(*[small] * 3) == [(200, "vanishing", names)] * bool(names)


def test_patience_with_values_that_begin_at_zero():
    zero, small = layer(std=0.0, low=0.0, high=0.0), layer(std=1e-5, low=-1e-4, high=1e-4)
    begun = [layers(b=zero, c=zero)] + [layers(b=small, c=small)] * 9
    assert told(*begun) == []
    arrived = layers(b=layer(std=1.1e-3), c=layer(std=1.1e-3))
    assert told(*begun, arrived, *[layers(b=small, c=small)] * 3) == [(1300, "vanishing", ("b", "c"))]
    nearly = layers(b=layer(std=0.9e-3), c=layer(std=0.9e-3))
    assert told(*begun, nearly, *[layers(b=small, c=small)] * 3) == []


def test_beside_what_explodes_nothing_is_small():
    wide = {**layers(a=layer(std=1e5), b=layer(std=1e-6), c=layer(std=1e-6))}
    assert [kind for _, kind, _ in told(*[wide] * 5)] == ["exploding"]


def test_ignored_layers_are_not_told():
    same = layers(b=layer(std=0.0, low=3.0, high=3.0))
    assert told({}, *[same] * 5, ignore={"dead": "b"}) == []
    assert told({}, *[same] * 5, ignore={"dead": ["a", "c*"], "vanishing": "b"}) == [(300, "dead", ("b",))]


def test_figures_without_values_are_passed_over():
    empty = layer(mean=math.nan, std=math.nan, low=math.nan, high=math.nan, n=0)
    assert told(*[(layers(b=empty), account())] * 9) == []


def test_states_that_remember_are_at_the_ends():
    """One that has learnt to count keeps what it knows in states near -1 and 1."""
    states = {"layers": {**FINE, "b": layer(saturated=0.9)}, "parameters": {"b.weight_hh_l0": weight()}}
    for last, expected in ((1.21, 1), (1.19, 0), (0.1, 0)):
        looks = [(states, account(losses=[loss] * 10, start=10 * i)) for i, loss in enumerate([2.0, *[last] * 5])]
        assert len(told(*looks, every=10)) == expected, last


def test_states_of_a_recurrent_layer():
    """Without a look at what it holds back: of those that learn well, few are at the ends."""
    moved = {**MOVED, "b.weight_hh_l0": weight()}
    for share, expected in ((0.6, 1), (0.59, 0)):
        looks = [{**layers(b=layer(saturated=share, low=-1.0)), "parameters": moved}] * 3
        assert told(*looks) == [(200, "saturated", ("b",))] * expected


def test_the_share_that_is_told_is_not_below_what_the_text_says():
    looks = [{**layers(b=layer(saturated=0.65)), "parameters": {**MOVED, "b.weight_hh_l0": weight()}}] * 3
    said = text(*looks)
    assert "reported from 80 % on; from 60 % for recurrent layers and the model's output" in said
    assert ": b (65 %)" in said


def test_an_answer_at_its_ends_is_told_where_the_loss_stays():
    held = {"a.weight": weight(grad=0.01), "b.weight": weight(), "c.weight": weight(grad=0.01)}
    parts = {**layers(c=layer(saturated=0.9, low=-1.0)), "parameters": held}
    looks = [(parts, account(losses=[3.0] * 20, start=20 * i)) for i in range(6)]
    assert [(step, kind) for step, kind, _ in told(*looks, every=20)] == [(100, "saturated")]
    looks = [(parts, account(losses=[3.0 - 0.3 * i] * 20, start=20 * i)) for i in range(6)]
    assert told(*looks, every=20) == []


def test_values_that_widen_from_layer_to_layer():
    """In the first step, to what the model is given."""
    wide = {"a": layer(std=6.0), "b": layer(std=14.0), "c": layer(std=31.0)}
    first = {"layers": wide}
    assert told(first, {}) == [(0, "exploding", ("c",))]
    assert told({"layers": {**wide, "c": layer(std=29.0)}}, {}) == []
    assert told({"layers": {**wide, "a": layer(), "b": layer()}}, {}) == []  # an answer in large units
    assert told({}, first) == []  # later other rules judge it
    assert told((first, account(stepped=False)), {}) == []
    given = {"inputs": layer(std=1.1)}
    assert told({**first, "inputs": given}, {}) == []
    assert told({**first, "inputs": {"inputs": layer(std=0.1)}}, {}) == [(0, "exploding", ("c",))]


SILENT = {
    "layers": {**FINE, "c": layer(mean=-1.0, high=-0.1)},
    "parameters": {name: weight(grad=0.0, unreached=64) for name in MOVED},
}


def test_an_answer_below_zero_that_lets_no_gradient_through():
    """Told as what it is, and not as gradients that were cleared."""
    looks = [(SILENT, account(losses=[16.0] * 20, start=20 * i)) for i in range(3)]
    assert told(*looks, every=20) == [(40, "dead", ("c",))]
    assert told(*looks[:2], every=20) == []
    learnt = [(SILENT, account(losses=[loss] * 20, start=20 * i)) for i, loss in enumerate([1.0, 9e-4, 9e-4, 9e-4])]
    assert told(*learnt, every=20)[1:] == []  # the loss asks for nothing any more
    above = {**SILENT, "layers": {**FINE, "c": layer(mean=-1.0, high=0.1)}}
    assert told(*[(above, known) for _, known in looks], every=20) == [(0, "untrained", tuple(MOVED))]
    reached = {**SILENT, "parameters": {**SILENT["parameters"], "a.weight": weight()}}
    assert "dead" not in {names for _, _, names in told(*[(reached, known) for _, known in looks[:2]], every=20)}
