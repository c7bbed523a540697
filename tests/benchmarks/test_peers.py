"""The comparison of capture with its peers can tell right from wrong, and says where we are behind."""

import pytest
import torch
from torch import nn

from benchmarks.peers import Cell, lines, not_first
from benchmarks.traps import TRAPS, attempt, judge, leaves, oracle, wrong
from benchmarks.ways import OURS, PEERS, Way

BY_NAME = {way.name: way for way in OURS + PEERS}
HOOKS = [way for way in PEERS if way.package == "torch"]


@pytest.fixture
def overwriting():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3)).eval()


def ask(way, model):
    with torch.no_grad():
        return judge(way, model, torch.randn(1, 3, 8, 8), leaves(model))


@pytest.mark.parametrize("way", OURS, ids=lambda way: way.name)
def test_ours_is_right_where_hooks_are_not(way, overwriting):
    assert ask(way, overwriting) == "right"


@pytest.mark.parametrize("way", HOOKS, ids=lambda way: way.name)
def test_hooks_keep_what_is_overwritten(way, overwriting):
    assert ask(way, overwriting) == "1 of 3 wrong (1 changed)"
    assert ask(way, nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())) == "right"


@pytest.mark.parametrize("way", OURS, ids=lambda way: way.name)
@pytest.mark.parametrize("trap", TRAPS)
def test_ours_falls_into_no_trap(trap, way):
    assert attempt(TRAPS[trap], way) == "right"


def test_hooks_fall_into_traps():
    answers = {trap: attempt(question, HOOKS[0]) for trap, question in TRAPS.items()}
    assert answers["module called three times"] == answers["`out += identity`"] == "wrong"
    assert answers["plain names through a `module.` wrapper"] == "error (AttributeError)"
    assert answers["tuple outputs (LSTM)"] == answers["model as it was, afterwards"] == "right"


def test_missing_calls_are_wrong():
    model, x = nn.Sequential(nn.ReLU(), nn.Tanh()), torch.randn(2)
    expected = oracle(model, x, leaves(model))
    assert wrong(expected, expected) == ""
    assert wrong(expected, {"0": expected["0"] * 2}) == "2 of 2 wrong (2 lack calls)"
    assert wrong(expected, expected | {"1": [x]}) == "1 of 2 wrong (1 changed)"


def test_what_is_not_installed_is_said():
    absent = Way("absent", "no-such-package-of-peers", HOOKS[0].enter, "")
    assert attempt(lambda way: "right", absent) == "not installed"


def test_where_we_are_behind():
    kept, anew = OURS
    fast, wrong_one, tracing = BY_NAME["torchextractor"], BY_NAME["hooks, kept registered"], BY_NAME["nnsight"]
    cells = {
        kept: Cell("ours", (1.1, 1.05, 1.2), True),
        anew: Cell("ours anew", (1.4, 1.35, 1.5), True),
        fast: Cell("fast", (1.0, 0.9, 1.04), True),
        wrong_one: Cell("wrong", (0.9, 0.9, 0.9), False),
        tracing: Cell("anew", (1.2, 1.2, 1.3), True),
        BY_NAME["captum LayerActivation"]: Cell("not installed"),
    }
    assert not_first({"net": cells}) == [
        f"- net: torchextractor fast; {kept.name} ours",
        f"- net: nnsight anew; {anew.name} ours anew",
    ]
    assert not_first({"net": cells | {fast: Cell("close", (1.0, 0.9, 1.06), True), tracing: Cell("-")}}) == []


def test_table():
    assert lines(["", "a"], [["b", "c"]]) == ["|  | a |", "| --- | --- |", "| b | c |"]
