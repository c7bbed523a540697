"""Rules about what is trained at all, each with what is just beyond its limit, and what is just not."""

import pytest

from tests.training.rules.samples import ABOUT, FINE, MOVED, about, account, layer, still, text, told, weight

ALL = tuple(MOVED)
STILL = dict.fromkeys(MOVED, still())
BEFORE = dict.fromkeys(MOVED, 1.0)


def test_nothing_is_said_of_a_healthy_training():
    assert told(*[account(before=BEFORE)] * 9) == []


def test_an_optimizer_of_another_copy():
    copied = account(stepped=False, unheld=ALL, others=("Adam", "SGD"), copies=True, before=BEFORE, rates={})
    look = ({"parameters": STILL}, copied)
    assert told(look, look) == [(0, "untrained", ALL)]
    assert "as if it was created for another copy of the model: a.weight (Adam, SGD), b.weight (Adam, SGD)" in text(
        look
    )
    stepped = account(stepped=True, unheld=("a.weight",), others=("Adam",), copies=True)
    assert "No optimizer holds these" in text(({"parameters": {**MOVED, "a.weight": still()}}, stepped))


def test_in_no_optimizer_unless_moved_by_hand():
    unheld = account(unheld=("a.weight",), before=BEFORE)
    assert told(({"parameters": {**MOVED, "a.weight": still()}}, unheld)) == [(0, "untrained", ("a.weight",))]
    assert told(({"parameters": {**MOVED, "a.weight": still(norm=1.001)}}, unheld)) == []
    assert told(({"parameters": MOVED}, account(unheld=("z",)))) == [(0, "untrained", ("z",))]  # of no watched layer


def test_thrown_away():
    known = {**ABOUT, "c.weight": about(frozen=True)}
    thrown = account(about=known, thrown_away=True, stepped=False, rates={}, before=BEFORE)
    assert told(({"parameters": STILL}, thrown)) == [(0, "untrained", ("a.weight", "b.weight"))]
    by_hand = dict.fromkeys(MOVED, still(norm=0.99))
    assert told(({"parameters": by_hand}, thrown)) == []
    assert told(({"parameters": STILL}, account(stepped=False, rates={}))) == []


def test_none_with_a_gradient():
    assert told(({"parameters": STILL}, account(unreached=ALL))) == [(0, "untrained", ALL)]
    assert "backward() before step()" in text(({"parameters": STILL}, account(unreached=ALL)))
    assert told(({"parameters": STILL}, account(unreached=()))) == []


@pytest.mark.parametrize(
    ("unreached", "expected"),
    [
        (("a.weight",), [(0, "untrained", ("a.weight",))]),
        (("a.weight", "b.weight"), [(0, "untrained", ("a.weight", "b.weight"))]),
        (("b.weight",), [(200, "untrained", ("b.weight",))]),  # it may idle
        (("c.weight",), [(200, "untrained", ("c.weight",))]),
    ],
)
def test_cut_off_is_told_at_once_and_others_after_three(unreached, expected):
    parameters = {**MOVED, **dict.fromkeys(unreached, still())}
    assert told(*[({"parameters": parameters}, account(unreached=unreached))] * 5) == expected


def test_what_is_moved_now_and_then_idles():
    idle = ({"parameters": {**MOVED, "b.weight": still()}}, account(unreached=("b.weight",)))
    assert told(idle, idle, account(), idle, idle) == []
    others = [({"parameters": {**MOVED, "b.weight": still(norm=1.0 + i)}}, idle[1]) for i in range(9)]
    assert told(*others) == []  # others move it
    ends = [({"parameters": {**MOVED, "b.weight": still()}}, idle[1])] * 2
    assert told(*others[:2], *ends, *others[2:4], *ends) == []


def test_all_gradients_zero_in_the_first_step_only():
    zero = {"parameters": dict.fromkeys(MOVED, weight(grad=0.0, ratio=0.0))}
    assert told(zero, zero) == [(0, "untrained", ALL)]
    assert told({}, zero, zero) == []
    assert told({"parameters": {**zero["parameters"], "c.weight": weight(grad=1e-30)}}) == []
    assert told({"parameters": {**STILL}}) == []


def test_a_rate_of_zero_from_the_beginning():
    none = {**dict.fromkeys(MOVED, 0.1), "b.weight": 0.0}
    quiet = {"parameters": {**MOVED, "b.weight": weight(ratio=0.0)}}
    assert told(*[(quiet, account(rates=none))] * 5) == [(100, "untrained", ("b.weight",))]
    assert told(account(), *[(quiet, account(rates=none))] * 2) == []  # a schedule ended
    tiny = {**none, "b.weight": 1e-30}
    assert "untrained" not in [kind for _, kind, _ in told(*[(quiet, account(rates=tiny))] * 5)]
    assert told((quiet, account(rates=none)), account(), account()) == []  # a warm-up that begins there


def test_zeros_one_after_another_hold_back_all():
    zeros = dict.fromkeys(("a.weight", "b.weight"), weight(grad=0.0, ratio=0.0, norm=0.0))
    all_still = {"parameters": {**MOVED, **zeros, "c.weight": weight(grad=0.0, ratio=0.0)}}
    assert told(all_still, all_still) == [(0, "untrained", ("a.weight", "b.weight"))] or told(all_still)[0][2] == ALL
    assert "because these are all zeros: a.weight, b.weight, at step 0" in text(all_still)
    assert told({"parameters": {**MOVED, **zeros}}) == []  # others have a gradient


def test_an_expert_may_wait_long_for_its_turn():
    names = ("experts.0.weight", "experts.1.weight")
    parameters = {"experts.0.weight": weight(), "experts.1.weight": still()}
    waits = account(rates=dict.fromkeys(names, 0.1), unreached=names[1:], about=dict.fromkeys(names, about()))
    assert told(*[({"parameters": parameters}, waits)] * 19) == []
    assert told(*[({"parameters": parameters}, waits)] * 20) == [(1900, "untrained", names[1:])]
    alone = account(rates=dict.fromkeys(names, 0.1), unreached=names, about=dict.fromkeys(names, about()))
    assert told(({"parameters": dict.fromkeys(names, still())}, alone)) == [(0, "untrained", names)]


def test_steps_that_a_scaler_skips_forever():
    assert told(account(skipped=24)) == [(0, "nonfinite", ("gradient",))]
    assert "gradient (24 blocks) in a row" in text(account(skipped=24))
    assert told(account(skipped=0)) == []


def test_evaluation_mode_since_the_first_look():
    switched = account(switched=("norm", "drop"))
    assert told(account(), switched) == []
    assert told(account(), switched, switched) == [(200, "mode", ("norm", "drop"))]
    assert told(*[account(switched=("norm",), stepped=False)] * 5) == []


def test_frozen_at_random():
    frozen = account(drawn=("a.weight", "b.weight"))
    assert told(frozen, frozen) == [(0, "untrained", ("a.weight", "b.weight"))]
    assert "Load trained weights before freezing them" in text(frozen)


def test_uncleared():
    grown = {"parameters": {name: weight(grad=2.1) for name in MOVED}}
    missed = [(grown, account(uncleared=True))] * 3
    assert told(account(), *missed) == [(200, "gradients", ("gradient",))]
    assert told(account(), *[account(uncleared=True)] * 3) == []  # which does not grow
    assert "Call optimizer.zero_grad() once per step." in text(account(), *missed)


def test_norms_without_statistics_and_rows_alike_count_once_there_is_a_step():
    for kind, facts in (("mode", {"idle_norms": ("n1", "n2")}), ("symmetric", {"alike": ("a.weight",)})):
        assert told(account(stepped=False, **facts)) == []
        assert told(account(**facts), account(**facts)) == [(0, kind, next(iter(facts.values())))]
    assert "a.weight (64 rows)" in text(account(alike=("a.weight",)))


def test_what_is_untrained_is_not_told_again_as_dead_or_stopped():
    gone = weight(grad=0.0, ratio=0.0, unreached=64)
    looks = [({"parameters": {**MOVED, "a.weight": gone}, "layers": {**FINE, "a": layer(low=-2, high=-1)}},
              account(rates={**dict.fromkeys(MOVED, 0.1), "a.weight": 0.0}))] * 9  # fmt: skip
    kinds = [kind for _, kind, names in told(*looks)]
    assert kinds == ["untrained"]


def test_each_kind_may_be_ignored_by_name():
    unheld = ({"parameters": STILL}, account(unheld=ALL, before=BEFORE))
    assert told(unheld, ignore={"untrained": "a.*"}) == [(0, "untrained", ("b.weight", "c.weight"))]
    assert told(unheld, ignore={"untrained": ["a.*", "[bc].weight"]}) == []
    assert told(unheld, ignore={"dead": "*"}) == [(0, "untrained", ALL)]
