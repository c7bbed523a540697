"""Ten recipes, healthy and broken; and that their harness sees a Monitor that is wrong."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

import torch_featviz as fv
from benchmarks import recipes, recipes_harness
from benchmarks.recipes_harness import FIRST_LOOK, RECIPES, Facts, Recipe, Run, Told, broken, faults, judge, verdicts
from torch_featviz.training.history import Finding

recipes.load("first")

HEALTHY = ("mlp_sgd", "cnn_momentum_steps", "resnet_zero_norms", "gru_of_rows", "lora")
BROKEN = ("relus_shut_off", "weights_a_thousandth", "group_with_rate_zero", "optimizer_of_the_head", "nan_in_an_image")


def verdict_of(name):
    recipe = RECIPES[name]
    twin = RECIPES[recipe.twin].facts(7) if recipe.twin else None
    return judge(recipe, recipe.facts(7), twin)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_said_of_healthy_recipes(name):
    verdict = verdict_of(name)
    assert (verdict.state, verdict.others) == ("quiet", ())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipes_are_told(name):
    verdict = verdict_of(name)
    assert (verdict.state, verdict.note) == ("told", "")


def test_a_seed_gives_the_same_again():
    first, second, other = (replace(RECIPES["ten_sigmoids"].facts(seed), seconds=0) for seed in (1, 1, 2))
    assert first == second
    assert first.end != other.end


def test_there_are_enough_and_each_says_what_it_is():
    first = [RECIPES[name] for name in recipes.load("first")]
    assert sum(recipe.broken for recipe in first) >= 16
    assert sum(not recipe.broken for recipe in first) >= 16
    assert sum(recipe.nothing_trained for recipe in first) == 6
    assert all(recipe.about.endswith((".", "?")) for recipe in first)
    assert not [recipe.name for recipe in first if recipe.twin and RECIPES[recipe.twin].broken]


# A harness that cannot fail is worthless


class Fake:
    """A Monitor that says what it is told to, at the step it is told to, and calls it step 0."""

    says: ClassVar = {}  # step: kind and names
    first_sample = 0

    def __init__(self, model, *, every):
        self.step_number, self.findings, self.history = 0, (), []

    @contextmanager
    def step(self):
        yield SimpleNamespace(log=lambda **scalars: None)
        if said := self.says.get(self.step_number):
            self.findings += (Finding(0, said[0], tuple(said[1].split()), "What is wrong. What to do."),)
        if self.step_number >= self.first_sample:
            self.history.append(None)
        self.step_number += 1


@pytest.fixture
def say(monkeypatch):
    """Of a training of 40 steps, looked at in every tenth: facts where these things are said."""
    monkeypatch.setattr(fv, "Monitor", Fake)

    def facts(says, falls_to=1.0, first_sample=0, recipe="fake"):
        def train():
            run = Run(nn.Linear(1, 1), every=10)
            for number in range(40):
                with run.step() as step:
                    step.log(loss=torch.tensor(1.0 if number < 20 else falls_to, requires_grad=True))
            return run

        monkeypatch.setattr(Fake, "says", says)
        monkeypatch.setattr(Fake, "first_sample", first_sample)
        return Recipe(recipe, "MLP", train).facts(0)

    return facts


SOUND = Recipe("fake", "MLP", lambda: None, learns=0.5)
ILL = Recipe("fake", "MLP", lambda: None, broken=True, kinds=("dead",), names=("1", "head.*"), by=20, stays=0.9)


@pytest.mark.parametrize(
    ("says", "falls_to", "state"),
    [({}, 0.2, "quiet"), ({39: ("dead", "1")}, 0.2, "false"), ({}, 0.6, "did not learn"),
     ({3: ("dead", "1")}, 0.6, "did not learn"), ({}, float("nan"), "did not learn")],
)  # fmt: skip
def test_of_a_healthy_recipe(say, says, falls_to, state):
    assert judge(SOUND, say(says, falls_to)).state == state


@pytest.mark.parametrize(
    ("says", "state"),
    [({20: ("dead", "1")}, "told"), ({20: ("dead", "1.weight")}, "told"), ({0: ("dead", "5 head.weight")}, "told"),
     ({0: ("dead", "5"), 15: ("dead", "1")}, "told"), ({0: ("vanishing", "1"), 15: ("dead", "1")}, "told"),
     ({21: ("dead", "1")}, "late"), ({5: ("vanishing", "1")}, "wrong"), ({5: ("dead", "5")}, "wrong"),
     ({5: ("dead", "10.weight")}, "wrong"), ({5: ("dead", "head")}, "wrong"), ({5: ("dead", "")}, "wrong"),
     ({}, "missed")],
)  # fmt: skip
def test_of_a_broken_recipe(say, says, state):
    assert judge(ILL, say(says)).state == state


def test_what_may_be_argued_about_is_no_false_alarm(say):
    allowing = replace(SOUND, allowed=("targets",))
    assert judge(allowing, say({5: ("targets", "")}, 0.2)).state == "quiet"
    assert judge(allowing, say({5: ("targets", ""), 9: ("dead", "1")}, 0.2)).state == "false"


def test_when_it_was_told_counts_and_not_what_step_it_names(say):
    (told,) = say({21: ("dead", "1")}).told
    assert told.at == 21


def test_any_name_and_any_time(say):
    late = say({39: ("dead", "7")})
    assert judge(replace(ILL, names=None), late).state == "late"
    assert judge(replace(ILL, names=None, by=None), late).state == "told"


@pytest.mark.parametrize(
    ("at", "first_sample", "state"),
    [(0, 0, "told"), (10, 0, "told"), (11, 0, "late"), (16, 16, "told"), (17, 16, "late"), (11, 99, "late")],
)
def test_the_first_look_ends_with_its_sample_or_before_the_second(say, at, first_sample, state):
    assert judge(replace(ILL, by=FIRST_LOOK), say({at: ("dead", "1")}, first_sample=first_sample)).state == state


def test_a_recipe_that_is_not_broken_is_seen(say):
    right = {0: ("dead", "1")}
    assert judge(ILL, say(right, falls_to=0.8)).state == "not broken"
    assert judge(ILL, say(right, falls_to=float("nan"))).state == "told"
    less = replace(ILL, stays=None, twin="twin")
    twin = say({}, falls_to=0.5, recipe="twin")
    assert judge(less, say(right, falls_to=0.7), twin).state == "not broken"
    assert judge(less, say(right, falls_to=0.8), twin).state == "told"
    assert judge(less, say(right, falls_to=0.7)).state == "told"  # nothing to be held against
    found = verdicts([say(right, falls_to=0.7), twin], {"fake": less, "twin": replace(SOUND, name="twin")})
    assert [each.state for each in found] == ["not broken", "quiet"]


def test_an_error_is_a_fault_of_the_suite():
    facts = Recipe("fake", "MLP", lambda: 1 // 0).facts(0)
    assert facts.error.startswith("ZeroDivisionError")
    (line,) = faults([judge(ILL, facts)])
    assert line.startswith("fake, seed 0: failed ZeroDivisionError")


def test_how_a_broken_recipe_is_known_must_be_said():
    for options in ({}, {"stays": 0.9, "twin": "mlp_sgd"}):
        with pytest.raises(ValueError, match="give one of stays=, twin= and unchecked="):
            broken("MLP", "dead", **options)


def many(states, **options):
    """Verdicts of 30 broken recipes, of which the first come out like this."""
    return [
        recipes_harness.Verdict(replace(ILL, name=f"r{i}", **options), Facts(f"r{i}", 0), state)
        for i, state in enumerate([*states, *["told"] * (30 - len(states))])
    ]


def test_three_of_thirty_may_be_missed():
    assert faults(many(["missed", "late", "wrong"])) == []
    assert faults(many(["missed"] * 4)) == ["4 of 30 broken recipes are not told: r0, r1, r2, r3"]
    missed = many(["missed"] * 3)
    other_seed = [replace(each, facts=replace(each.facts, seed=1)) for each in many(["told"] * 3 + ["missed"])]
    assert len(faults(missed + other_seed)) == 1  # each recipe must be told with every seed
    assert len(faults(many(["wrong"], nothing_trained=True))) == 1
    sound = recipes_harness.Verdict(SOUND, Facts("fake", 0), "false", others=(Told(3, "dead", ("1",), ""),))
    assert faults([*many([]), sound]) == ["fake, seed 0: false alarm, 3: dead 1"]


def test_the_exit_code_and_the_table(monkeypatch, capsys, tmp_path):
    def run_all(wanted, seeds, jobs):
        assert [recipe.name for recipe in wanted] == ["tanh_of_large_weights", "mlp_sgd"]
        sick = Facts("tanh_of_large_weights", 5, (Told(20, "saturated", ("2",), "a | b"),), 10, 1, 1)
        return [sick, Facts("mlp_sgd", 5, said, 10, 1, 0.1)]

    monkeypatch.setattr(recipes, "run_all", run_all)
    arguments = ["--only", "tanh_of_large*", "--seed", "5", "--file", str(tmp_path / "table.md")]
    said = ()
    assert recipes.main(arguments) == 0
    page = (tmp_path / "table.md").read_text()
    assert page in capsys.readouterr().out
    assert "| MLP | told 20: saturated 2 | a / b |" in page
    assert "- Broken: 1 of 1 recipes told in time with every seed; runs: 1 told, 0 late, 0 wrong, 0 missed" in page
    said = (Told(0, "loss", (), "It stands."),)
    assert recipes.main(arguments) == 1
    assert "| MLP | **false** 0: loss | It stands. |" in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        recipes.main(["--only", "nothing-like-it"])
    assert "no recipe is called 'nothing-like-it'; there are" in capsys.readouterr().err
